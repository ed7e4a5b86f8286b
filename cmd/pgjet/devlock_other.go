//go:build !unix

package main

import "os"

// lockFile does nothing here: PostgreSQL's own lock still guards its data.
func lockFile(*os.File) error { return nil }
