//go:build !linux

package program

import "syscall"

// Ours returns nil: only Linux ends a process with the one that started it.
func Ours() *syscall.SysProcAttr { return nil }
