package consumers_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/devserver"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/migrations"
)

// newSceneWithServer returns a scene with a PostgreSQL server of its own.
func newSceneWithServer(t *testing.T) (*scene, *devserver.Postgres) {
	t.Helper()
	p := testenv.PostgresServer(t)
	db := openPool(t, p.URL())
	if _, err := db.Exec(t.Context(), `alter database pgjet set synchronous_commit = on`); err != nil {
		t.Fatal(err)
	}
	db.Reset()
	if _, err := migrations.Up(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	js, url := testenv.JetStream(t)
	return newSceneOn(t, newFixtureOn(t, db, js), p.URL(), url), p
}

// restart starts a server again that was killed.
func (s *scene) restart(p *devserver.Postgres) *devserver.Postgres {
	s.Helper()
	again, err := devserver.StartPostgres(s.Context(), p.Options())
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { _ = again.Stop() })
	s.db.Reset()
	return again
}

func (s *scene) killPostgres(p *devserver.Postgres) {
	s.Helper()
	if err := syscall.Kill(p.PID(), syscall.SIGKILL); err != nil {
		s.Fatal(err)
	}
	<-p.Done()
}

// killBackend kills one of the server's processes, so that it ends all of them and starts again.
func (s *scene) killBackend() {
	s.Helper()
	pid := s.count(`select pid from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid() limit 1`)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		s.Fatal(err)
	}
	s.eventually("PostgreSQL is back", func() bool { s.db.Reset(); return s.db.Ping(s.Context()) == nil })
}

// TestChaosPostgresKilled kills the server while handlers run. It comes back with everything that
// was committed, or without the last of it: then JetStream is ahead.
func TestChaosPostgresKilled(t *testing.T) {
	for _, commit := range []string{"on", "off"} {
		for _, unordered := range []bool{false, true} {
			t.Run(fmt.Sprintf("synchronous_commit %s unordered %t", commit, unordered), func(t *testing.T) {
				t.Parallel()
				s, server := newSceneWithServer(t)
				s.exec(`alter database pgjet set synchronous_commit = ` + commit)
				s.exec(`alter system set wal_writer_delay = '10s'`)
				s.db.Reset()
				s.run(child{Unordered: unordered, Slow: 5 * time.Millisecond})
				for range upTo(1, 5) {
					s.more(150)
					s.reaches(s.published - 100 - s.rand.IntN(50))
					s.killPostgres(server)
					server = s.restart(server)
					s.more(150)
					s.reaches(s.published - 100 - s.rand.IntN(50))
					s.killBackend()
				}
				s.check(!unordered)
			})
		}
	}
}

// TestOutagesAreNoAttempts: PostgreSQL becomes unreachable in the middle of one attempt after the
// other. None of that counts as an attempt or a death.
func TestOutagesAreNoAttempts(t *testing.T) {
	t.Parallel()
	s, server := newSceneWithServer(t)
	attempts, begun := atomic.Int32{}, make(chan struct{})
	s.more(1)
	r, _ := s.startOn(s.js, consumers.Consumer{MaxAttempts: 3, Handler: each(func(ctx context.Context, tx pgx.Tx, e events.Event) error {
		switch n := attempts.Add(1); {
		case n == 1:
			return errors.New("not yet")
		case n <= 5:
			begun <- struct{}{}
			_, err := tx.Exec(ctx, `select pg_sleep(30)`)
			return err
		}
		return record(ctx, tx, e)
	})})
	for range 4 {
		<-begun
		s.killPostgres(server)
		s.blocked(r, "database_unreachable")
		server = s.restart(server)
	}
	s.check(true)
	if n := s.count(`select attempts from pgjet.inbox`); n != 2 {
		t.Errorf("the inbox says %d attempts, want the one that failed and the one that did not", n)
	}
}

// TestRestartDuringAnAttemptSpendsNone: PostgreSQL is back before the handler notices its absence,
// so that the failure looks like the handler's own.
func TestRestartDuringAnAttemptSpendsNone(t *testing.T) {
	t.Parallel()
	s, server := newSceneWithServer(t)
	attempts, begun, back := atomic.Int32{}, make(chan struct{}), make(chan struct{})
	s.more(1)
	s.startOn(s.js, consumers.Consumer{MaxAttempts: 3, Handler: each(func(ctx context.Context, tx pgx.Tx, e events.Event) error {
		switch attempts.Add(1) {
		case 1:
			return errors.New("not yet")
		case 2:
			begun <- struct{}{}
			<-back
			_, err := tx.Exec(ctx, `select`)
			return err
		}
		return record(ctx, tx, e)
	})})
	<-begun
	s.killPostgres(server)
	s.restart(server)
	close(back)
	s.check(true)
	if n := s.count(`select attempts from pgjet.inbox`); n != 2 {
		t.Errorf("the inbox says %d attempts, want the one that failed and the one that did not", n)
	}
}

// TestReadOnlySpendsNoAttempts: a read-only server counts as an outage, whatever handlers return
// meanwhile. A handler that makes its own transaction read-only fails itself.
func TestReadOnlySpendsNoAttempts(t *testing.T) {
	t.Parallel()
	s, _ := newSceneWithServer(t)
	s.more(1)
	var attempts, session atomic.Int32
	r, _ := s.startOn(s.js, consumers.Consumer{MaxAttempts: 4, Handler: each(func(ctx context.Context, tx pgx.Tx, e events.Event) error {
		switch attempts.Add(1) {
		case 1:
			if _, err := tx.Exec(ctx, `set transaction read only`); err != nil {
				return err
			}
		case 2:
			session.Store(int32(s.count(`select pid from pg_locks where locktype = 'advisory' and mode = 'ExclusiveLock' limit 1`)))
			s.exec(`alter system set default_transaction_read_only = on`)
			s.readOnly()
			return &pgconn.PgError{Code: "25006", Message: "the server became a standby"}
		}
		return record(ctx, tx, e)
	})})
	s.blocked(r, "database_read_only")
	s.eventually("the session of the attempt has ended", func() bool {
		return s.count(`select count(*) from pg_stat_activity where pid = $1`, session.Load()) == 0
	})
	s.exec(`alter system reset default_transaction_read_only`)
	s.exec(`select pg_reload_conf()`)
	s.check(true)
	if n := s.count(`select attempts from pgjet.inbox`); n != 2 {
		t.Errorf("the inbox says %d attempts, want the handler's own failure and the success", n)
	}
}

// readOnly makes the server reload its configuration, which it does with a delay, and waits until
// it refuses writes.
func (s *scene) readOnly() {
	s.Helper()
	s.eventually("the server takes no writes", func() bool {
		s.exec(`select pg_reload_conf()`)
		conn, err := pgx.ConnectConfig(s.Context(), s.db.Config().ConnConfig)
		if err != nil {
			return false
		}
		defer conn.Close(context.Background())
		return postgres.CheckWritable(s.Context(), conn) != nil
	})
}

// TestChaosPostgresPaused stops all processes of the server for longer than any timeout.
func TestChaosPostgresPaused(t *testing.T) {
	longOnly(t)
	modes(t, func(t *testing.T, unordered bool) {
		s, server := newSceneWithServer(t)
		s.run(child{Unordered: unordered, Slow: 5 * time.Millisecond})
		s.run(child{Unordered: unordered, Slow: 5 * time.Millisecond})
		for range upTo(1, 2) {
			s.more(300)
			s.reaches(s.published - 250)
			thaw := testenv.Freeze(t, server.PID())
			time.Sleep(12 * time.Second)
			thaw()
		}
		s.check(!unordered)
	})
}

// forget resets the database to the state with the first n events, except for outside effects.
func (s *scene) forget(n int, outside bool) {
	s.Helper()
	s.exec(fmt.Sprintf(`delete from pgjet.inbox where stream_seq > %d`, n))
	if !outside {
		s.exec(fmt.Sprintf(`delete from done where n > %d`, n))
	}
	s.exec(fmt.Sprintf(`update pgjet.slice set floor = %d, high = %[1]d, stored = null, lost_until = 0`, n))
}

// TestRestoredDatabase: the database has fewer events than JetStream has delivered. The lost ones
// are handled again.
func TestRestoredDatabase(t *testing.T) {
	modes(t, func(t *testing.T, unordered bool) {
		s := newScene(t)
		s.more(100)
		p := s.run(child{Unordered: unordered})
		s.check(!unordered)
		p.stop()
		s.forget(60, false)
		s.more(10)
		s.run(child{Unordered: unordered})
		s.check(!unordered)
	})
}

// TestRestoredDatabaseOfAnEffect: it is unknown whether the effects happened, so no process may
// repeat them, not even after another one died at the event.
func TestRestoredDatabaseOfAnEffect(t *testing.T) {
	modes(t, func(t *testing.T, unordered bool) {
		s := newScene(t)
		s.more(100)
		c := child{Form: "effect", Unordered: unordered}
		p := s.run(c)
		s.check(!unordered)
		p.stop()
		s.forget(60, true)
		s.run(child{Form: "effect", Unordered: unordered, Workers: 1, Die: "before", At: 5}).ends()
		s.run(c)
		if a := s.ends(); a.Dead != 40 || a.Done != 60 || a.Unaccounted != 0 {
			t.Errorf("account %+v, want 60 done and 40 dead", a)
		}
		if n := s.count(`select count(*) from pgjet.dead_letter where error like 'lost:%'`); n != 40 {
			t.Errorf("%d dead letters of effects that are lost, want 40", n)
		}
		s.effects(100, !unordered)
	})
}
