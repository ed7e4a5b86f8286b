// Package docs has the documents that the program prints, so that those who have no copy of the
// repository can read them.
package docs

import "embed"

// Runbooks are the files runbooks/*.md: what to do about each reason why something does not move.
//
//go:embed runbooks/*.md
var Runbooks embed.FS
