package consumers_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/testenv"
)

// run runs a consumer on a pool until the test ends.
func (b *fixture) runOn(db *pgxpool.Pool, direct *pgx.ConnConfig, c consumers.Consumer) *consumers.Runner {
	b.Helper()
	c.Slices = 1
	r := &consumers.Runner{Consumer: c, DB: db, Direct: direct, JS: b.js, Log: testenv.Logger(b)}
	testenv.Run(b, r.Run)
	return r
}

// hostile gives the database of a fixture defaults that must not matter.
func (b *fixture) hostile() {
	b.Helper()
	for _, setting := range []string{"default_transaction_isolation = serializable", "default_transaction_read_only = on", "statement_timeout = '200ms'",
		"lock_timeout = '100ms'", "idle_in_transaction_session_timeout = '100ms'", "synchronous_commit = off", "search_path = public", "bytea_output = escape",
		`"IntervalStyle" = sql_standard`, "extra_float_digits = -15"} {
		b.exec(fmt.Sprintf(`alter database %s set %s`, b.db.Config().ConnConfig.Database, setting))
	}
}

func (b *fixture) pooled(mode, options string) *pgxpool.Pool {
	b.Helper()
	db, err := pgxpool.New(b.Context(), testenv.PgBouncer(b, b.db.Config().ConnString(), mode)+"&pool_max_conns=10"+options)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(db.Close)
	return db
}

// TestThroughAPooler: the workers of each form of consumer work through a pooler, on a pool of
// pgjet and on another one, with hostile defaults; the session connects directly.
func TestThroughAPooler(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"transaction", "session"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			b := newFixture(t)
			b.exec(`create table public.seen (consumer text, n int, synchronous text, timeout text)`)
			url := b.db.Config().ConnString()
			b.hostile()
			config, err := postgres.ParseConfig(testenv.PgBouncer(t, url, mode))
			if err != nil {
				t.Fatal(err)
			}
			own, err := postgres.Open(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { postgres.Close(own) })
			direct, err := pgx.ParseConfig(url)
			if err != nil {
				t.Fatal(err)
			}
			var first atomic.Bool
			note := func(name string) handleFunc {
				return func(ctx context.Context, tx pgx.Tx, e events.Event) error {
					p, err := events.Decode[noted](e)
					if err != nil {
						return err
					}
					if p.N == 3 && name == "ordered" && first.CompareAndSwap(false, true) {
						return fmt.Errorf("once")
					}
					_, err = tx.Exec(ctx, `insert into public.seen select $1, $2, current_setting('synchronous_commit'), current_setting('statement_timeout') from pg_sleep(0.3 * ($2 % 10)::int / 9)`, name, p.N)
					return err
				}
			}
			b.runOn(own, direct, consumers.Consumer{Name: "ordered", Handler: each(note("ordered"))})
			b.runOn(b.pooled(mode, "&default_query_exec_mode=cache_describe"), direct, consumers.Consumer{Name: "unordered", Unordered: true, Handler: each(note("unordered"))})
			b.runOn(own, direct, consumers.Consumer{Name: "effect", Handler: effect(func(ctx context.Context, e events.Event) error {
				p, err := events.Decode[noted](e)
				if err == nil {
					_, err = postgres.DB{Pool: own}.Exec(ctx, `insert into public.seen values ('effect', $1)`, p.N)
				}
				return err
			})})
			for n := range 30 {
				b.publish(keyed(fmt.Sprint("k", n%3), n))
			}
			testenv.Eventually(t, patience, "each consumer has handled each event", func() bool {
				return b.count(`select count(*) from public.seen`) >= 90
			})
			if n := b.count(`select count(*) from (select distinct consumer, n from public.seen) s`); n != 90 {
				t.Errorf("%d different effects, want 90", n)
			}
			if n := b.count(`select count(*) from public.seen where consumer <> 'effect' and (synchronous, timeout) <> ('on', '0')`); n != 0 {
				t.Errorf("%d transactions ran with hostile settings", n)
			}
		})
	}
}

// TestPoolerIsRefused: without a direct connection a consumer reports that, and its status, too.
func TestPoolerIsRefused(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	for _, c := range []consumers.Consumer{{Name: "ordered", Handler: each(write)}, {Name: "unordered", Unordered: true, Handler: each(write)}} {
		r := b.runOn(b.pooled("transaction", "&default_query_exec_mode=cache_describe"), nil, c)
		b.blocked(r, "pooler: ")
		b.blocked(r, "consumer "+c.Name+" needs a session of its own")
		testenv.Eventually(t, patience, "the database says so", func() bool {
			return b.count(`select count(*) from pgjet.process where consumer = $1 and cause like 'pooler: %'`, c.Name) == 1
		})
	}
	if n := b.count(`select count(*) from pg_locks where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())`); n != 0 {
		t.Errorf("%d locks were left", n)
	}
}

// TestNamesAreRefused: a pool that would name statements on sessions of a pooler is not used, and a
// consumer, with a session of its own or without, says what to do.
func TestNamesAreRefused(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	direct, err := pgx.ParseConfig(b.db.Config().ConnString())
	if err != nil {
		t.Fatal(err)
	}
	b.publish(event(1))
	for want, direct := range map[string]*pgx.ConnConfig{"add default_query_exec_mode=cache_describe": direct, "needs a session of its own": nil} {
		through := testenv.PgBouncer(t, b.db.Config().ConnString(), "transaction")
		db, err := pgxpool.New(t.Context(), through)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(db.Close)
		r := b.runOn(db, direct, consumers.Consumer{Name: "test", Handler: each(write)})
		b.blocked(r, "pooler: ")
		b.blocked(r, want)
		for range 5 {
			if err := r.Ready(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "pooler: ") {
				t.Errorf("Ready() = %v, want the reason pooler", err)
			}
		}
		for who, settings := range testenv.ForeignSettings(t, through) {
			if settings["prepared"] != "0" {
				t.Errorf("session %d of the pooler has %s prepared statements, want none", who, settings["prepared"])
			}
		}
		if direct != nil {
			testenv.Eventually(t, patience, "the database says so", func() bool {
				return b.count(`select count(*) from pgjet.process where cause like 'pooler: %cache_describe%'`) == 1
			})
		}
	}
	b.once(0)
}

// TestModeIsRefused: Run fails at once with a pool on which no statement would work.
func TestModeIsRefused(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	for _, option := range []string{"default_query_exec_mode=exec", "default_query_exec_mode=simple_protocol", "statement_cache_capacity=0",
		"default_query_exec_mode=cache_describe&description_cache_capacity=0"} {
		db, err := pgxpool.New(t.Context(), b.db.Config().ConnString()+"&"+option)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		r := consumers.Runner{Consumer: consumers.Consumer{Name: "test", Handler: each(write, "note.made")}, DB: db, JS: b.js}
		if err := r.Run(t.Context()); err == nil || !strings.Contains(err.Error(), strings.Split(option, "&")[len(strings.Split(option, "&"))-1]+" cannot work") {
			t.Errorf("Run with %s = %v, want an error that says so", option, err)
		}
	}
}

// TestWrongEncodingIsRefused: nothing is stored by a connection with the wrong encoding.
func TestWrongEncodingIsRefused(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.publish(event(1))
	config := b.db.Config()
	config.ConnConfig.RuntimeParams["client_encoding"] = "LATIN1"
	db, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	r := b.runOn(db, nil, consumers.Consumer{Name: "test", Handler: each(write)})
	b.blocked(r, "client_encoding is LATIN1")
	b.once(0)
}

// TestForeignHolder: a session of another program holds the consumer's lock, in any mode; the
// consumer, and its status, name it.
func TestForeignHolder(t *testing.T) {
	t.Parallel()
	for _, lock := range []string{
		"pg_advisory_lock(hashtextextended('pgjet.active.test', 0))",
		"pg_advisory_lock(hashtextextended('pgjet.slice.test.0', 0))",
		"pg_advisory_lock_shared(hashtextextended('pgjet.slice.test.0', 0))",
	} {
		b := newFixture(t)
		conn, err := pgx.Connect(t.Context(), b.db.Config().ConnString()+"&application_name=psql")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(t.Context())
		if _, err := conn.Exec(t.Context(), "select "+lock); err != nil {
			t.Fatal(err)
		}
		b.publish(event(1))
		r, _ := b.start(write)
		b.blocked(r, fmt.Sprintf(`lead_taken: the lead is held by process %d of the server, application "psql"`, conn.PgConn().PID()))
		testenv.Eventually(t, patience, "the database says so", func() bool {
			return b.count(`select count(*) from pgjet.process where cause like 'lead_taken: %'`) == 1
		})
		if err := conn.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.handled(1)
	}
}

// TestForeignHolderOfAttempts: a session of another program holds the lock that the consumer's
// attempts need, before the consumer begins and while it runs; the consumer, and its status, name
// it.
func TestForeignHolderOfAttempts(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	conn, err := pgx.Connect(t.Context(), b.db.Config().ConnString()+"&application_name=nightly")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	do := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	var r *consumers.Runner
	for i, lock := range []string{ // the first blocks its beginning, the others its attempts
		`_shared(hashtextextended('pgjet.consumer.test', 1))`, `(hashtextextended('pgjet.consumer.test', 1))`, `(hashtextextended('pgjet.consumer.test', 0))`,
	} {
		do(`select pg_advisory_lock` + lock)
		b.publish(event(i + 1))
		if r == nil {
			r, _ = b.start(write)
		}
		b.blocked(r, fmt.Sprintf(`lead_taken: the lock of this consumer's attempts is held by process %d of the server, application "nightly"`, conn.PgConn().PID()))
		testenv.Eventually(t, patience, "the database says so", func() bool {
			return b.count(`select count(*) from pgjet.process where cause like 'lead_taken: %'`) == 1
		})
		do(`select pg_advisory_unlock` + lock)
		b.handled(i + 1)
		b.ready(r)
	}
	b.once(3)
}

// TestSchemaChangesUnderHandlers: a statement that a schema change has invalidated on every
// connection fails no attempt.
func TestSchemaChangesUnderHandlers(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.exec(`create table t (name varchar(10)); insert into t values ('x')`)
	n := 0
	more := func() {
		for range 20 {
			n++
			b.publish(event(n))
		}
		b.handled(n)
	}
	b.startOn(b.js, consumers.Consumer{Workers: 6, Handler: each(func(ctx context.Context, tx pgx.Tx, e events.Event) error {
		if err := tx.QueryRow(ctx, `select name from t where $1 and pg_sleep(0.01) is not null`, true).Scan(new(string)); err != nil {
			return err
		}
		return write(ctx, tx, e)
	})})
	more()
	b.exec(`alter table t alter column name type varchar(300)`)
	more()
	b.settled()
	b.once(n)
	if failed := b.count(`select count(*) from pgjet.attempt where outcome <> 'done'`) + b.count(`select count(*) from pgjet.inbox where attempts > 1`); failed != 0 {
		t.Errorf("%d attempts failed, want none", failed)
	}
}
