package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// slowSync is the least time of a sync to the simulated slow disk, as on many a network
// volume.
const slowSync = 2 * time.Millisecond

// slowDisk is a library that is loaded into PostgreSQL. It makes each fsync and fdatasync,
// which still happen, last at least NANOSECONDS. Nothing else becomes slower: processes
// that sync at the same time wait at the same time, and commits share the sync of the log
// as usual.
const slowDisk = `
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <time.h>

static int last(const char *name, int fd) {
	int (*next)(int) = dlsym(RTLD_NEXT, name);
	struct timespec until;
	clock_gettime(CLOCK_MONOTONIC, &until);
	int result = next(fd), error = errno;
	until.tv_nsec += NANOSECONDS;
	until.tv_sec += until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, 0) == EINTR) {}
	errno = error;
	return result;
}

int fsync(int fd) { return last("fsync", fd); }
int fdatasync(int fd) { return last("fdatasync", fd); }
`

// buildSlowDisk compiles the library into dir, and returns the variable of the environment that loads it.
func buildSlowDisk(ctx context.Context, dir string) (variable string, err error) {
	library := filepath.Join(dir, "slowdisk.so")
	cc := exec.CommandContext(ctx, "cc", "-shared", "-fPIC", "-O2", fmt.Sprintf("-DNANOSECONDS=%d", slowSync.Nanoseconds()),
		"-x", "c", "-o", library, "-", "-ldl")
	cc.Stdin = strings.NewReader(slowDisk)
	if out, err := cc.CombinedOutput(); err != nil {
		return "", fmt.Errorf("compile the library that makes the disk slow, which needs cc and Linux: %w: %s", err, out)
	}
	return "LD_PRELOAD=" + library, nil
}
