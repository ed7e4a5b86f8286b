package program

import "syscall"

// Ours returns the attributes of a process that ends with this one, frozen or not.
func Ours() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
