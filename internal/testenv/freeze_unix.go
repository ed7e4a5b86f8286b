//go:build unix

package testenv

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// Freeze stops a process and its descendants until the returned function is called. They keep their
// connections and do nothing. They continue at cleanup at the latest.
func Freeze(t testing.TB, pid int) (thaw func()) {
	t.Helper()
	var frozen []int
	for more := []int{pid}; len(more) > 0; { // it may start children meanwhile
		for _, p := range more {
			if err := syscall.Kill(p, syscall.SIGSTOP); err != nil && p == pid {
				t.Fatal(err)
			}
		}
		frozen = append(frozen, more...)
		more = slices.DeleteFunc(children(frozen), func(p int) bool { return slices.Contains(frozen, p) })
	}
	thaw = func() {
		for _, p := range slices.Backward(frozen) {
			_ = syscall.Kill(p, syscall.SIGCONT) // it may have ended
		}
		frozen = nil
	}
	t.Cleanup(thaw)
	return thaw
}

// children returns the processes whose parent is in the list.
func children(parents []int) (all []int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range stats {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		// pid (name) state parent …
		fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		if parent, _ := strconv.Atoi(fields[1]); slices.Contains(parents, parent) {
			all = append(all, pid)
		}
	}
	return all
}
