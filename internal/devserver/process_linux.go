package devserver

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
)

// namespaces says whether a process may appear to itself as another user.
const namespaces = true

// nobody is the user id that root has inside its namespace.
const nobody = 65534

// attributes start a process in its own group, so that Ctrl-C in a terminal
// reaches this process alone, and interrupt it when this one dies. The signal
// follows the death of the thread that started it: see [holdThread].
func (a account) attributes() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGINT, Credential: a.credential()}
	if a.namespace {
		attr.Cloneflags = syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: nobody, HostID: 0, Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: nobody, HostID: 0, Size: 1}}
	}
	return attr
}

// holdThread keeps the calling goroutine on its thread, and the thread alive,
// until the function that it returns is called.
func holdThread() func() {
	runtime.LockOSThread()
	return runtime.UnlockOSThread
}

// serves reports whether pid, or any other process, works on the cluster in dir. The
// processes of a server have that working directory, and those of a killed server keep it
// for a moment. If pid may not be examined, its name decides.
func serves(pid int, dir string) bool {
	want, err := os.Stat(dir)
	if err != nil {
		return false
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d/cwd", pid)); errors.Is(err, fs.ErrPermission) {
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		return err == nil && strings.HasPrefix(string(name), "postgres")
	}
	processes, _ := filepath.Glob("/proc/[0-9]*/cwd")
	return slices.ContainsFunc(processes, func(cwd string) bool {
		got, err := os.Stat(cwd)
		return err == nil && os.SameFile(got, want)
	})
}
