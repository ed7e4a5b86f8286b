package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
)

// keyName is the file of the key that signs access tokens.
const keyName = "users.jwk"

// passwordName is the file of the password of the development servers.
const passwordName = "servers.password"

// A stateLock keeps a second run out of a state directory.
type stateLock struct{ file *os.File }

// lockState makes dir if it is missing, and locks it until unlock or the end of the process.
func lockState(dir string) (*stateLock, error) {
	// 0755, because PostgreSQL runs as another user if this process is root's.
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the state directory: %w; choose another with --dir", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock the state directory: %w; choose another with --dir", err)
	}
	if err := lockFile(f); err != nil {
		pid, _ := io.ReadAll(io.LimitReader(f, 32))
		f.Close()
		return nil, &exitError{exitUnreachable, fmt.Errorf(
			"%s is in use by another pgjet dev (pid %s); stop it, or choose another directory with --dir and other ports with --port",
			dir, strings.TrimSpace(string(pid)))}
	}
	if err := f.Truncate(0); err == nil {
		fmt.Fprintf(f, "%d\n", os.Getpid())
	}
	return &stateLock{f}, nil
}

func (l *stateLock) unlock() { l.file.Close() }

func devResetCommand(dir *string) *cobra.Command {
	yes := false
	cmd := &cobra.Command{
		Use:   "reset",
		Short: "Remove the state of pgjet dev: tables, stream and mails",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return reset(*dir, yes, cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

// reset removes the state of pgjet dev in dir, and dir itself if nothing else is in it. It refuses
// while a pgjet dev runs there.
func reset(dir string, yes bool, in io.Reader, out io.Writer) error {
	if _, err := os.Stat(filepath.Join(dir, "lock")); errors.Is(err, os.ErrNotExist) {
		fmt.Fprintf(out, "nothing to remove: %s holds no state of pgjet dev\n", dir)
		return nil
	}
	if !yes {
		if !terminal(in) {
			return usagef("reset removes all users, events and mails in %s; to do that use --yes", dir)
		}
		if !confirm(in, out, fmt.Sprintf("Remove all users, events and mails in %s?", dir)) {
			fmt.Fprintln(out, "nothing was removed")
			return nil
		}
	}
	lock, err := lockState(dir)
	if err != nil {
		return err
	}
	defer lock.unlock()
	ours, err := filepath.Glob(filepath.Join(dir, "postgres.new-*")) // left by a first start that was killed
	if err != nil {
		return err
	}
	for _, name := range []string{"postgres", "nats", "mail", "services", "ready.json", "pgjet.yaml", keyName, keyName + ".new", passwordName, passwordName + ".new", "lock"} {
		ours = append(ours, filepath.Join(dir, name))
	}
	for _, path := range ours {
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("remove state: %w", err)
		}
	}
	if err := os.Remove(dir); err != nil {
		fmt.Fprintf(out, "removed the state in %s; other files there were left alone\n", dir)
		return nil
	}
	fmt.Fprintf(out, "removed %s\n", dir)
	return nil
}
