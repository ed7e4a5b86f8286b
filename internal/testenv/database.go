package testenv

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/devserver"
	"github.com/pgjet/pgjet/migrations"
	"github.com/pgjet/pgjet/migrations/demo"
)

// startTime bounds starting the server and migrating the template, which may
// include a download. Everything else is much faster.
const startTime = 5 * time.Minute

// Postgres returns a pool on a fresh database with all migrations applied. A
// connection that the test has not given back at cleanup fails the test.
func Postgres(t testing.TB) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(DatabaseURL(t))
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

// DatabaseURL returns the address of a fresh database with all migrations applied,
// for a test that gives it to another process. At cleanup the database is dropped,
// whoever is still connected.
func DatabaseURL(t testing.TB) string {
	t.Helper()
	s := server(t)
	url := s.createDatabase(t, s.template)
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

// shared is the server in which all tests of this process have their databases.
var shared sharedServer

type sharedServer struct {
	once     sync.Once
	err      error // of the start
	own      *devserver.Postgres
	dir      string
	admin    *pgxpool.Pool // on a database that no test uses
	template string
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
		t.Fatal(shared.err)
	}
	return &shared
}

func (s *sharedServer) start(ctx context.Context) (err error) {
	address := os.Getenv("PGJET_TEST_DATABASE_URL")
	if address == "" {
		if s.dir, err = makeDir(); err != nil {
			return err
		}
		if s.own, err = devserver.StartPostgres(ctx, serverOptions(filepath.Join(s.dir, "pg"))); err != nil {
			return err
		}
		address = s.own.URL()
	}
	if s.admin, err = pgxpool.New(ctx, address); err != nil {
		return err
	}
	if s.template, err = makeTemplate(ctx, s.admin); err != nil {
		return fmt.Errorf("make the template for test databases: %w", err)
	}
	return nil
}

// stop undoes start, whether or not it succeeded or was called.
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
	return err
}

// createDatabase returns the address of a new database, dropped at cleanup.
func (s *sharedServer) createDatabase(t testing.TB, template string) string {
	t.Helper()
	name := "pgjet_test_" + strings.ToLower(rand.Text())
	create := fmt.Sprintf(`create database %s template %s`, name, template)
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

// makeTemplate returns the name of a database with all migrations applied and
// nobody connected, and makes it unless an earlier process did. The name tells
// which migrations, so that a server that outlives the tests may keep several.
func makeTemplate(ctx context.Context, admin *pgxpool.Pool) (string, error) {
	sum, err := fingerprint(append([]migrations.Set{{Schema: "pgjet", Files: migrations.FS()}}, demo.Sets...))
	if err != nil {
		return "", err
	}
	name := "pgjet_template_" + sum
	return name, admin.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		// One process makes it, the others wait.
		if _, err := conn.Exec(ctx, `select pg_advisory_lock(hashtextextended('pgjet test template', 0))`); err != nil {
			return err
		}
		defer conn.Conn().Close(context.WithoutCancel(ctx)) // and with it the lock
		exists := false
		err := conn.QueryRow(ctx, `select exists (select from pg_database where datname = $1)`, name).Scan(&exists)
		if err != nil || exists {
			return err
		}
		return buildTemplate(ctx, conn, name)
	})
}

// buildTemplate makes the template under another name first: what bears its name
// is complete.
func buildTemplate(ctx context.Context, conn *pgxpool.Conn, name string) error {
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
	_, err = migrations.Up(ctx, pool, demo.Sets...)
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

// fingerprint returns some digits that stand for the names and the content of all
// files.
func fingerprint(sets []migrations.Set) (string, error) {
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
	return fmt.Sprintf("%x", h.Sum(nil)[:8]), nil
}
