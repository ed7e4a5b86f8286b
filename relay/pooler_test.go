package relay_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/relay"
)

// startAt runs a relay that connects to a database URL until the test ends.
func (b *bench) startAt(url string) *relay.Relay {
	b.Helper()
	config, err := pgx.ParseConfig(url)
	if err != nil {
		b.Fatal(err)
	}
	r := &relay.Relay{Database: config, NATSURL: b.url, Source: "/test", Log: testenv.Logger(b)}
	testenv.Run(b, r.Run)
	return r
}

// TestPoolerIsRefused: a relay notices a pooler of any mode and says what to do. Beside it,
// a relay that connects to PostgreSQL directly works.
func TestPoolerIsRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	direct := b.db.Config().ConnString()
	for _, mode := range []string{"transaction", "session"} {
		r := b.startAt(testenv.PgBouncer(t, direct, mode))
		testenv.Eventually(t, patience, "the relay refuses the pooler in mode "+mode, func() bool {
			err := r.Ready(t.Context())
			return err != nil && strings.HasPrefix(err.Error(), "pooler: ") && strings.Contains(err.Error(), "the relay needs a session of its own")
		})
	}
	// With hostile defaults, and in a mode of pgx in which its statements would not work.
	if _, err := b.db.Exec(t.Context(), fmt.Sprintf(`alter database %[1]s set default_transaction_isolation = serializable;
		alter database %[1]s set default_transaction_read_only = on; alter database %[1]s set statement_timeout = '200ms';
		alter database %[1]s set client_encoding = 'LATIN1'; alter database %[1]s set search_path = nowhere;
		alter database %[1]s set enable_indexscan = off; alter database %[1]s set enable_partition_pruning = off`, b.db.Config().ConnConfig.Database)); err != nil {
		t.Fatal(err)
	}
	b.startAt(direct + "&default_query_exec_mode=exec&statement_cache_capacity=0")
	b.append(20)
	b.settled()
}

// TestStandbyNamesTheHolder: a waiting relay names the session that holds the lock, for
// longer than the database's time-outs allow, and then takes over.
func TestStandbyNamesTheHolder(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	url := b.db.Config().ConnString()
	if _, err := b.db.Exec(t.Context(), fmt.Sprintf(`alter database %[1]s set statement_timeout = '200ms'; alter database %[1]s set lock_timeout = '100ms';
		alter database %[1]s set idle_session_timeout = '200ms'`, b.db.Config().ConnConfig.Database)); err != nil {
		t.Fatal(err)
	}
	holder, err := pgx.Connect(t.Context(), url+"&application_name=psql&idle_session_timeout=0")
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close(t.Context())
	if _, err := holder.Exec(t.Context(), `select pg_advisory_lock(hashtextextended('pgjet.relay.EVENTS', 0))`); err != nil {
		t.Fatal(err)
	}
	r := b.startAt(url)
	want := fmt.Sprintf(`lead_taken: the lead is held by process %d of the server, application "psql", connected since 20`, holder.PgConn().PID())
	testenv.Eventually(t, patience, "the relay names the holder of its lock", func() bool {
		err := r.Ready(t.Context())
		return err != nil && strings.HasPrefix(err.Error(), want)
	})
	for until := time.Now().Add(time.Second); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
		if err := r.Ready(t.Context()); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Fatalf("it did not go on waiting: %v", err)
		}
	}
	b.append(1)
	if err := holder.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.settled()
	second := b.startAt(url)
	testenv.Eventually(t, patience, "another relay names the one that leads", func() bool {
		role, detail := second.Role()
		return role == "standby" && strings.Contains(detail, `the lead is held by process`) && strings.Contains(detail, `application "pgjet-relay"`)
	})
}

// TestLockedTable: while a session locks a table that the relay needs, the relay names that
// session and does not report the database as away. Then it goes on.
func TestLockedTable(t *testing.T) {
	t.Parallel()
	for _, table := range []string{"checkpoint", "leader", "outbox", "outbox_1", "quarantine"} {
		t.Run(table, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			r := b.startAt(b.db.Config().ConnString())
			b.append(1)
			b.settled()
			b.ready(r)
			tx, err := b.db.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback(context.Background())
			b.append(1)
			if _, err := tx.Exec(t.Context(), `lock table pgjet.`+table+` in access exclusive mode`); err != nil {
				t.Fatal(err)
			}
			var why error
			testenv.Eventually(t, patience, "the relay is not ready", func() bool {
				why = r.Ready(t.Context())
				return why != nil && !strings.HasPrefix(why.Error(), "starting")
			})
			want := fmt.Sprintf("database_timeout: the lock on table pgjet.%s is held by process %d of the server", table, tx.Conn().PgConn().PID())
			if !strings.HasPrefix(why.Error(), want) {
				t.Errorf("Ready() = %v, want %s", why, want)
			}
			if err := tx.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
			b.settled()
			b.ready(r)
		})
	}
}
