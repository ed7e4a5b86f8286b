//go:build unix

package devserver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// An account is the user that runs the server programs. The zero account is the user of
// this process.
type account struct {
	other     bool   // it differs from the user of this process
	uid, gid  uint32 // the owner of the files, as this process sees it
	namespace bool   // uid appears to the programs as nobody
}

// chooseAccount returns an account that may run the programs in bin and enter dir.
// PostgreSQL does not run as root. So root becomes the user postgres, else nobody. If
// neither may enter dir, it is root disguised as nobody, if the system can do that.
func chooseAccount(ctx context.Context, bin, dir string) (account, error) {
	if os.Geteuid() != 0 {
		return account{}, nil
	}
	var errs []error
	for _, a := range accounts() {
		err := a.try(ctx, bin, dir)
		if err == nil {
			return a, nil
		}
		errs = append(errs, err)
	}
	return account{}, refusal(bin, dir, errors.Join(errs...))
}

// accounts lists the accounts that root may choose from, best first.
func accounts() []account {
	var all []account
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err1 == nil && err2 == nil {
			all = append(all, account{other: true, uid: uint32(uid), gid: uint32(gid)})
		}
	}
	if namespaces {
		all = append(all, account{other: true, namespace: true})
	}
	return all
}

// try runs one of the programs in dir, so that the system decides, even with access lists
// and confined containers.
func (a account) try(ctx context.Context, bin, dir string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "postgres"), "--version")
	cmd.SysProcAttr = a.attributes()
	cmd.Dir = dir
	defer holdThread()()
	return cmd.Run()
}

// refusal returns an error that says what root must change.
func refusal(bin, dir string, err error) error {
	const why = "PostgreSQL refuses to run as root, and no other user can enter %s: choose another directory with %s"
	if d := closed(dir); d != "" {
		return fmt.Errorf(why+" (%w)", d, "--dir", err)
	}
	if d := closed(bin); d != "" {
		return fmt.Errorf(why+" (%w)", d, "--pg-bin", err)
	}
	return fmt.Errorf("PostgreSQL refuses to run as root, and cannot be run as another user here: run pgjet as another user (%w)", err)
}

// closed returns the uppermost directory on the way to path that only its owner and its
// group may enter, "" if there is none.
func closed(path string) string {
	found := ""
	for d := path; ; d = filepath.Dir(d) {
		if info, err := os.Stat(d); err == nil && info.Mode().Perm()&1 == 0 {
			found = d
		}
		if d == filepath.Dir(d) {
			return found
		}
	}
}

// own makes the account the owner of dir and everything in it, unless it is already.
func (a account) own(dir string) error {
	if !a.other {
		return nil
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok && s.Uid == a.uid {
		return nil
	}
	// The directory itself comes last: its owner shows that all was done.
	var paths []string
	err = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		paths = append(paths, path)
		return err
	})
	for i := len(paths) - 1; i >= 0 && err == nil; i-- {
		err = os.Lchown(paths[i], int(a.uid), int(a.gid))
	}
	return err
}

// credential returns the user to switch to, nil for none.
func (a account) credential() *syscall.Credential {
	if !a.other || a.namespace {
		return nil
	}
	return &syscall.Credential{Uid: a.uid, Gid: a.gid}
}

// alive reports whether a process pid exists that could be one of our servers.
func alive(pid int) bool { return pid > 0 && syscall.Kill(pid, 0) == nil }
