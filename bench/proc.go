package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// A usage is the resources that processes have used. It is zero without /proc.
type usage struct {
	cpu time.Duration // in user and system mode
	rss int64         // bytes, at the peak
}

// since returns what was used after before.
func (u usage) since(before usage) usage { return usage{u.cpu - before.cpu, u.rss} }

// tick is the unit of CPU time in /proc; Linux has the same on every machine that
// PostgreSQL is built for.
const tick = 10 * time.Millisecond

// A stat holds fields of /proc/PID/stat.
type stat struct {
	parent     int
	own, ended time.Duration // CPU time of the process, and of its children that have ended
}

func readStat(pid int) (s stat, ok bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return s, false
	}
	_, rest, _ := strings.Cut(string(b), ") ") // the name may hold anything
	fields := strings.Fields(rest)
	if len(fields) < 15 {
		return s, false
	}
	number := func(i int) int { n, _ := strconv.Atoi(fields[i]); return n }
	s.parent = number(1)
	s.own = time.Duration(number(11)+number(12)) * tick
	s.ended = time.Duration(number(13)+number(14)) * tick
	return s, true
}

func processUsage(pid int) (usage, bool) {
	s, ok := readStat(pid)
	return usage{s.own, peakRSS(pid)}, ok
}

// familyUsage returns the CPU time of a process and of all its children, even of those that
// have ended. It omits memory, since shared memory cannot be attributed.
func familyUsage(pid int) usage {
	s, _ := readStat(pid)
	u := usage{cpu: s.own + s.ended}
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range all {
		n, _ := strconv.Atoi(filepath.Base(dir))
		if s, ok := readStat(n); ok && s.parent == pid {
			u.cpu += s.own
		}
	}
	return u
}

func peakRSS(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), "VmHWM:")
	kib := 0
	_, _ = fmt.Sscan(rest, &kib)
	return int64(kib) << 10
}
