package testenv

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// serverSessions is the number of server sessions of a PgBouncer in transaction mode.
const serverSessions = 4

// PgBouncer starts a PgBouncer in front of the PostgreSQL server of a database URL, in the pool
// mode session, transaction or statement, and returns the URL of the database through it. It has
// few connections to the server, so that clients take turns, and supports only the necessary part
// of the protocol: only the settings that each version tracks, and no prepared statements. Settings
// are further lines of its configuration.
func PgBouncer(t testing.TB, database, mode string, settings ...string) string {
	t.Helper()
	port, _ := StartPgBouncer(t, 0, database, mode, settings...)
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	u.Host = fmt.Sprintf("127.0.0.1:%d", port)
	return u.String()
}

// StartPgBouncer is [PgBouncer] at a port; 0 picks a free one. The returned function ends it before
// the end of the test.
func StartPgBouncer(t testing.TB, port int, database, mode string, settings ...string) (at int, stop func()) {
	t.Helper()
	server, err := pgx.ParseConfig(database)
	if err != nil {
		t.Fatal(err)
	}
	if port == 0 {
		port = freePort(t)
	}
	dir, err := makeDir()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "pgbouncer.ini")
	if err := os.WriteFile(file, []byte(pgbouncerConfig(server, port, mode, settings)), 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{file}
	if os.Geteuid() == 0 { // PgBouncer refuses to run as root
		args = append([]string{"-u", "nobody"}, args...)
	}
	var output syncBuffer
	cmd := exec.Command(pgbouncer(t), args...)
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // it was killed
	}()
	stop = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		<-ended
		os.RemoveAll(dir)
	})
	t.Cleanup(stop)
	awaitPgBouncer(t, fmt.Sprintf("127.0.0.1:%d", port), ended, &output)
	return port, stop
}

// pgbouncerConfig returns the configuration of a PgBouncer in front of server.
func pgbouncerConfig(server *pgx.ConnConfig, port int, mode string, settings []string) string {
	size := 40
	if mode == "transaction" {
		size = serverSessions
	}
	return fmt.Sprintf("[databases]\n* = host=%s port=%d user=%s\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %d\n"+
		"unix_socket_dir =\nauth_type = any\npool_mode = %s\nmax_client_conn = 500\ndefault_pool_size = %d\n%s\n",
		server.Host, server.Port, server.User, port, mode, size, strings.Join(settings, "\n"))
}

// awaitPgBouncer waits until a PgBouncer accepts connections at address.
func awaitPgBouncer(t testing.TB, address string, ended <-chan struct{}, output *syncBuffer) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; {
		if conn, err := net.Dial("tcp", address); err == nil {
			conn.Close()
			return
		}
		select {
		case <-ended:
			t.Fatalf("pgbouncer ended:\n%s", output.String())
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("pgbouncer does not answer at %s:\n%s", address, output.String())
		}
	}
}

// ForeignSettings returns all settings of the server sessions behind a [PgBouncer] in transaction
// mode, and the numbers of their prepared statements and advisory locks, as another client sees
// them.
func ForeignSettings(t testing.TB, url string) (all []map[string]string) {
	t.Helper()
	var txs []pgx.Tx
	for range serverSessions {
		config, err := pgx.ParseConfig(url)
		if err != nil {
			t.Fatal(err)
		}
		config.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
		config.RuntimeParams["application_name"] = "foreign"
		conn, err := pgx.ConnectConfig(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.Background())
		tx, err := conn.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		txs = append(txs, tx)
		rows, err := tx.Query(t.Context(), `
			select name, setting from pg_settings where name not in ('transaction_isolation')
			union all select 'prepared', count(*)::text from pg_prepared_statements
			union all select 'locks', count(*)::text from pg_locks where pid = pg_backend_pid() and locktype = 'advisory'`)
		if err != nil {
			t.Fatal(err)
		}
		values := make(map[string]string)
		var name, value string
		if _, err := pgx.ForEachRow(rows, []any{&name, &value}, func() error { values[name] = value; return nil }); err != nil {
			t.Fatal(err)
		}
		all = append(all, values)
	}
	for _, tx := range txs {
		_ = tx.Rollback(t.Context())
	}
	return all
}

// pgbouncer returns the path of the program.
func pgbouncer(t testing.TB) string {
	t.Helper()
	for _, path := range []string{os.Getenv("PGJET_PGBOUNCER"), "pgbouncer", "/usr/sbin/pgbouncer", "/opt/homebrew/bin/pgbouncer"} {
		if path == "" {
			continue
		}
		if found, err := exec.LookPath(path); err == nil {
			return found
		}
	}
	t.Fatal("pgbouncer is not installed: apt-get install pgbouncer (or brew install pgbouncer), or say in PGJET_PGBOUNCER where it is")
	return ""
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// A syncBuffer may be read while a process writes to it.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
