package outbox_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
)

// TestMain runs the examples on a database that another program makes. That keeps what a service that imports
// outbox downloads small: see TestOutboxIsLight.
func TestMain(m *testing.M) {
	code, err := withDatabase(m.Run)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// withDatabase calls run while db is a pool on a fresh database.
func withDatabase(run func() int) (code int, err error) {
	server := exec.Command("go", "run", "../internal/tests/database", `create table orders (id text primary key, paid boolean not null default false)`)
	server.Stderr = os.Stderr
	end, err := server.StdinPipe()
	if err != nil {
		return 0, err
	}
	out, err := server.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := server.Start(); err != nil {
		return 0, err
	}
	url, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return 0, fmt.Errorf("the database was not made: %w", err)
	}
	if db, err = pgxpool.New(context.Background(), strings.TrimSpace(url)); err != nil {
		return 0, err
	}
	code = run()
	db.Close()
	end.Close()
	return code, server.Wait()
}
