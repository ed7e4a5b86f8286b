package devserver

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// hbaFile is the name of the file, in a cluster's directory, that says who may connect to a
// server with a password.
const hbaFile = "pgjet_hba.conf"

// protect sets the superuser's password to o.Password, unless it is set, and writes the
// file that requires a password. It also changes a cluster of an earlier version, made
// without one: the server does not accept connections meanwhile.
func (pr program) protect(ctx context.Context, o PostgresOptions) error {
	path := filepath.Join(o.Dir, hbaFile)
	want := fmt.Sprintf("# of a password with the digest %x\nhost all all 127.0.0.1/32 scram-sha-256\n", sha256.Sum256([]byte(o.Password)))
	have, err := os.ReadFile(path)
	if err == nil && string(have) == want {
		return pr.account.own(path)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("protect PostgreSQL: %w", err)
	}
	if err := pr.setPassword(ctx, o); err != nil {
		return err
	}
	if err := os.WriteFile(path, []byte(want), 0o600); err != nil {
		return fmt.Errorf("protect PostgreSQL: %w", err)
	}
	return pr.account.own(path)
}

// setPassword runs PostgreSQL without a network for one statement.
func (pr program) setPassword(ctx context.Context, o PostgresOptions) error {
	cmd := pr.command(ctx, "postgres", "--single", "-D", o.Dir, "-c", "exit_on_error=true", "-c", "password_encryption=scram-sha-256",
		"-c", "log_min_error_statement=panic", "postgres")
	cmd.Stdin = strings.NewReader(fmt.Sprintf("alter role %s password '%s'\n", superuser, strings.ReplaceAll(o.Password, "'", "''")))
	output := newTail(o.Log)
	cmd.Stdout, cmd.Stderr = output, output
	cmd.WaitDelay = patience
	defer holdThread()()
	if err := cmd.Run(); err != nil {
		output.flush()
		return fmt.Errorf("set the password of PostgreSQL in %s: %w%s", o.Dir, err, output)
	}
	return nil
}
