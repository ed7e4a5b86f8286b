//go:build unix && !linux

package devserver

import (
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

const namespaces = false

// attributes start a process in its own group, so that Ctrl-C in a terminal
// reaches this process alone.
func (a account) attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Credential: a.credential()}
}

func holdThread() func() { return func() {} }

// serves reports whether the running process pid is, by its name, a server.
func serves(pid int, _ string) bool {
	name, err := exec.Command("ps", "-p", strconv.Itoa(pid), "-o", "comm=").Output()
	return err == nil && strings.Contains(string(name), "postgres")
}
