package chaos

import (
	"os"
	"syscall"
)

// mount mounts a file system, or changes the options of a mounted one.
func mount(source, dir, kind string, again bool, options string) error {
	flags := uintptr(0)
	if again {
		flags = syscall.MS_REMOUNT
	}
	return os.NewSyscallError("mount", syscall.Mount(source, dir, kind, flags, options))
}

func unmount(dir string) error { return os.NewSyscallError("umount", syscall.Unmount(dir, 0)) }
