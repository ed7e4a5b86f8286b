package devserver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// superuser is the role that owns a cluster and everything in it.
const superuser = "pgjet"

// makeCluster returns the program that may serve the cluster in o.Dir, and makes the
// cluster if the directory is missing or empty.
func makeCluster(ctx context.Context, o PostgresOptions, found installed) (program, error) {
	parent := filepath.Dir(o.Dir)
	if err := makeDir(parent); err != nil {
		return program{}, fmt.Errorf("make the data directory: %w", err)
	}
	acc, err := chooseAccount(ctx, found.bin, parent)
	if err != nil {
		return program{}, err
	}
	pr := program{found, acc}
	entries, err := os.ReadDir(o.Dir)
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return pr, fmt.Errorf("read the data directory: %w", err)
	case len(entries) == 0:
		return pr, pr.initialize(ctx, o)
	case clusterMajor(o.Dir) == 0:
		return pr, fmt.Errorf("%s is not empty and holds no PostgreSQL data: choose another directory with --dir", o.Dir)
	}
	return pr, acc.own(o.Dir)
}

// initialize makes the cluster beside its place and moves it there when it is complete:
// after any interruption, the next start finds all or nothing.
func (pr program) initialize(ctx context.Context, o PostgresOptions) error {
	dir, err := os.MkdirTemp(filepath.Dir(o.Dir), filepath.Base(o.Dir)+".new-")
	if err != nil {
		return fmt.Errorf("make the data directory: %w", err)
	}
	defer os.RemoveAll(dir)
	if err := pr.account.own(dir); err != nil {
		return err
	}
	if err := pr.initdb(ctx, dir, o); err != nil {
		return err
	}
	if err := os.Remove(o.Dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("make the data directory: %w", err)
	}
	return os.Rename(dir, o.Dir)
}

func (pr program) initdb(ctx context.Context, dir string, o PostgresOptions) error {
	args := []string{"-D", dir, "-U", superuser, "--auth=trust", "--encoding=UTF8", "--locale=C"}
	if !o.Durable {
		args = append(args, "--no-sync")
	}
	cmd := pr.command(ctx, "initdb", args...)
	output := newTail(o.Log)
	cmd.Stdout, cmd.Stderr = output, output
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = patience
	defer holdThread()()
	if err := cmd.Run(); err != nil {
		output.flush()
		return fmt.Errorf("make a PostgreSQL cluster in %s: initdb: %w%s", o.Dir, err, output)
	}
	return nil
}

// clusterMajor returns the major version that made the cluster in dir, 0 if there
// is none.
func clusterMajor(dir string) int {
	b, err := os.ReadFile(filepath.Join(dir, "PG_VERSION"))
	if err != nil {
		return 0
	}
	major, _, _ := strings.Cut(strings.TrimSpace(string(b)), ".")
	n, _ := strconv.Atoi(major)
	return n
}

// A lock is the lock file of a running server in its cluster.
type lock struct {
	pid   int
	ready bool // it accepts connections
}

func lockFile(dir string) string { return filepath.Join(dir, "postmaster.pid") }

// readLock reads the lock file. It returns an error if there is none.
func readLock(dir string) (lock, error) {
	b, err := os.ReadFile(lockFile(dir))
	if err != nil {
		return lock{}, err
	}
	lines := strings.Split(string(b), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(lines[0]))
	if err != nil {
		return lock{}, err
	}
	status := ""
	if len(lines) > 7 {
		status = strings.TrimSpace(lines[7])
	}
	return lock{pid, status == "ready" || status == "standby"}, nil
}

// locked reports whether a server left its lock in the cluster.
func locked(dir string) bool {
	_, err := os.Stat(lockFile(dir))
	return err == nil
}

// WaitUnused waits until no server runs on the cluster in dir: one whose parent was killed may
// still be shutting down, and have its port. It returns an error if one still runs after 10 s.
// It removes a lock whose process is a zombie, or another program by now, as after a restart
// of the machine, since PostgreSQL would believe it. It leaves a lock without a process for
// PostgreSQL to examine.
func WaitUnused(ctx context.Context, dir string) error {
	for deadline := time.Now().Add(patience); ; {
		l, err := readLock(dir)
		if err != nil || !alive(l.pid) {
			return nil
		}
		if !serves(l.pid, dir) {
			return removeLock(dir)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the data in %s is in use by PostgreSQL (pid %d): stop it, or choose another directory with --dir", dir, l.pid)
		}
		if !pause(ctx) {
			return context.Cause(ctx)
		}
	}
}

// removeLock removes the lock, which the server may have removed just before.
func removeLock(dir string) error {
	err := os.Remove(lockFile(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// pause waits a moment between two checks of something that another process changes. It
// returns false, at once, if ctx is done.
func pause(ctx context.Context) bool {
	timer := time.NewTimer(20 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// makeDir makes a directory and its missing parents. Everyone may enter those that root
// makes, whatever the umask: the server runs as another user.
func makeDir(dir string) error {
	var missing []string
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(d); !errors.Is(err, fs.ErrNotExist) || d == filepath.Dir(d) {
			break
		}
		missing = append(missing, d)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, d := range missing {
		if os.Geteuid() != 0 {
			break
		}
		if err := os.Chmod(d, 0o755); err != nil {
			return err
		}
	}
	return nil
}
