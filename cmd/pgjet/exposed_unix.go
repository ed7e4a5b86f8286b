//go:build unix

package main

import (
	"os"
	"syscall"
)

// isOwn reports whether the user of this process owns a directory.
func isOwn(dir string) bool {
	info, err := os.Lstat(dir)
	if err != nil {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(stat.Uid) == os.Geteuid()
}

// exposed reports whether other users may read or change a file. If another user owns the file, as
// with a secret that Kubernetes mounts, this process reads it as a member of the group. The group
// then may read it.
func exposed(info os.FileInfo) bool {
	others := os.FileMode(0o077)
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && int(stat.Uid) != os.Geteuid() && os.Geteuid() != 0 {
		others = 0o037
	}
	return info.Mode()&others != 0
}
