package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
)

// places says where a pgjet dev that is ready serves what, as its --json prints it.
type places struct {
	Users     string `json:"users"`
	Inbox     string `json:"inbox"`
	Directory string `json:"directory"`
	Profiles  string `json:"profiles"`
	Billing   string `json:"billing"`
	NATS      string `json:"nats"`
	Database  string `json:"database"`
	Admin     string `json:"admin"`
	SMTP      string `json:"smtp"`
	Config    string `json:"config"`
}

// remember keeps p for pgjet dev env. The file counts only while the state is locked.
func (p places) remember(dir string) error {
	text, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return os.WriteFile(readyFile(dir), append(text, '\n'), 0o600)
}

func readyFile(dir string) string { return filepath.Join(dir, "ready.json") }

func devEnvCommand(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "env",
		Short: "Print the environment by which the other commands find a running pgjet dev",
		Long: `Print the environment by which the other commands find a running pgjet dev, for
a shell:

  eval "$(pgjet dev env)"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return printEnv(*dir, cmd.OutOrStdout())
		},
	}
}

func printEnv(dir string, out io.Writer) error {
	nobody := &exitError{exitNotFound, fmt.Errorf("no pgjet dev runs in %s, or it is not ready yet; start it with: pgjet dev --dir %s", dir, dir)}
	text, err := os.ReadFile(readyFile(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nobody
	}
	if lock, err := lockState(dir); err == nil { // it was killed
		lock.unlock()
		return nobody
	}
	var p places
	if err := errors.Join(err, json.Unmarshal(text, &p)); err != nil {
		return fmt.Errorf("read where pgjet dev runs: %w", err)
	}
	fmt.Fprintf(out, "export PGJET_DATABASE_URL=%s\nexport PGJET_NATS_URL=%s\n", shellQuote(p.Database), shellQuote(p.NATS))
	return nil
}

// shellQuote returns s as one word of a shell.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
