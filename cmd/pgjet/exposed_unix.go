//go:build unix

package main

import (
	"os"
	"syscall"
)

// isOwn reports whether a folder belongs to this process's user.
func isOwn(dir string) bool {
	info, err := os.Lstat(dir)
	if err != nil {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(stat.Uid) == os.Geteuid()
}

// exposed reports whether others than this process's user may read or change a file of that
// user. If the file belongs to somebody else, such as a secret that Kubernetes mounts, the
// process reads it as one of the file's group: the group then may read it.
func exposed(info os.FileInfo) bool {
	others := os.FileMode(0o077)
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && int(stat.Uid) != os.Geteuid() && os.Geteuid() != 0 {
		others = 0o037
	}
	return info.Mode()&others != 0
}
