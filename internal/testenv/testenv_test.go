package testenv_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/internal/devserver"
	"github.com/pgjet/pgjet/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func exists(t *testing.T, db *pgxpool.Pool, table string) bool {
	t.Helper()
	found := false
	if err := db.QueryRow(t.Context(), `select to_regclass($1) is not null`, table).Scan(&found); err != nil {
		t.Fatal(err)
	}
	return found
}

func TestPostgresIsMigratedAndOwn(t *testing.T) {
	t.Parallel()
	for i := range 12 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			db := testenv.Postgres(t)
			if !exists(t, db, "pgjet.outbox") {
				t.Error("there is no table pgjet.outbox")
			}
			if exists(t, db, "mine") {
				t.Error("there is the table of another test")
			}
			if _, err := db.Exec(t.Context(), `create table mine ()`); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestDatabasesAreDropped(t *testing.T) {
	t.Parallel()
	url := ""
	t.Run("one", func(t *testing.T) {
		url = testenv.DatabaseURL(t)
		conn, err := pgx.Connect(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn // a process that did not end in time
	})
	if conn, err := pgx.Connect(t.Context(), url); err == nil || !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("connect after the test: %v, want no such database", err)
		if err == nil {
			conn.Close(t.Context())
		}
	}
}

func TestEmptyDatabaseHasNoSchemas(t *testing.T) {
	t.Parallel()
	db, err := pgxpool.New(t.Context(), testenv.EmptyDatabaseURL(t))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if exists(t, db, "pgjet.outbox") {
		t.Error("there is a table pgjet.outbox")
	}
}

func TestPostgresServerMayBeKilled(t *testing.T) {
	t.Parallel()
	p := testenv.PostgresServer(t)
	if err := syscall.Kill(p.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	again, err := devserver.StartPostgres(t.Context(), p.Options())
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Stop(); err != nil {
		t.Error(err)
	}
}

func TestJetStreamSurvivesRestart(t *testing.T) {
	t.Parallel()
	js, url := testenv.JetStream(t)
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "EVENTS"}); err != nil {
		t.Fatal(err)
	}
	if got := js.Conn().ConnectedUrl(); got != url {
		t.Errorf("connected to %s, want %s", got, url)
	}
	n := testenv.NATS(t)
	n.Stop()
	again, err := devserver.StartNATS(n.Options())
	if err != nil {
		t.Fatal(err)
	}
	again.Stop()
}

func TestLoggerOutlivesItsTest(t *testing.T) {
	t.Parallel()
	var wg sync.WaitGroup
	ended := make(chan struct{})
	t.Run("one", func(t *testing.T) {
		log := testenv.Logger(t)
		log.Info("during the test")
		wg.Go(func() {
			<-ended
			log.Info("after the test") // a test's own output would panic
		})
	})
	close(ended)
	wg.Wait()
}

// A failing is a test that records its failure.
type failing struct {
	testing.TB
	message string
}

func (f *failing) Helper() {}

func (f *failing) Fatalf(format string, args ...any) {
	f.message = fmt.Sprintf(format, args...)
	panic(f)
}

func TestEventually(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	testenv.Eventually(t, 10*time.Second, "the deadline passes", func() bool { return ctx.Err() != nil })

	f := &failing{TB: t}
	defer func() {
		if recover() != f || f.message != "timed out after 1ms: pigs fly" {
			t.Errorf("Eventually failed with %q", f.message)
		}
	}()
	testenv.Eventually(f, time.Millisecond, "pigs fly", func() bool { return false })
}
