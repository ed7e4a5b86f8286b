//go:build !linux

package testenv

// memoryOr returns dir: only Linux has a file system in memory at a known path.
func memoryOr(dir string) string { return dir }
