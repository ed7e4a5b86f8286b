package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/sqlstate"
	"github.com/pgjet/pgjet/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestParseConfigRefuses(t *testing.T) {
	for option, want := range map[string]string{
		"default_query_exec_mode=exec":            "default_query_exec_mode=exec cannot work",
		"default_query_exec_mode=simple_protocol": "default_query_exec_mode=simple_protocol cannot work",
		"client_encoding=LATIN1":                  "client_encoding=LATIN1 cannot work",
		"CLIENT_ENCODING=sql_ascii":               "cannot work",
		"client_encoding=auto":                    "client_encoding=auto cannot work",
		"replication=database":                    "replication=database cannot work",
		"replication=true":                        "replication=true cannot work",
		"target_session_attrs=read-only":          "target_session_attrs=read-only cannot work",
		"target_session_attrs=standby":            "target_session_attrs=standby cannot work",
		"target_session_attrs=prefer-standby":     "target_session_attrs=prefer-standby cannot work",
		"keepalives_idle=5":                       "the option keepalives_idle is not supported",
		"gssencmode=disable":                      "the option gssencmode is not supported",
		"statement_cache_mode=describe":           "the option statement_cache_mode is not supported",
		"pool_max_conns=2":                        "pool_max_conns=2 is too small, want at least 3",
		"pool_max_conns=4&pool_min_conns=5":       "pool_min_conns=5",
		"pool_min_conns=-1":                       "pool_min_conns=-1",
		"pool_min_idle_conns=100":                 "pool_min_idle_conns=100",
		"pool_health_check_period=0s":             "pool_health_check_period must be more than 0",
		"pool_max_conn_lifetime=0s":               "pool_max_conn_lifetime must be more than 0",
		"pool_max_conn_lifetime_jitter=-1s":       "pool_max_conn_lifetime_jitter must not be less than 0",
		"pool_max_conn_idle_time=-1s":             "pool_max_conn_idle_time must be more than 0",
		"pool_ping_timeout=-1s":                   "pool_ping_timeout must not be less than 0",
		"pool_max_conns=many":                     "pool_max_conns",
	} {
		_, err := postgres.ParseConfig("postgres://app:secret@db.example/app?" + option)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("ParseConfig(…?%s) = %v, want an error that says %q and not the password", option, err, want)
		}
	}
	t.Setenv("PGTARGETSESSIONATTRS", "standby")
	if _, err := postgres.ParseConfig("postgres://app@db.example/app"); err == nil {
		t.Error("ParseConfig with PGTARGETSESSIONATTRS=standby = nil, want an error")
	}
}

// TestOptionsWork tries each accepted option, on a pool in use.
func TestOptionsWork(t *testing.T) {
	t.Parallel()
	url := testenv.EmptyDatabaseURL(t)
	for _, option := range []string{
		"", "default_query_exec_mode=cache_describe", "default_query_exec_mode=describe_exec", "default_query_exec_mode=cache_statement",
		"statement_cache_capacity=0", "statement_cache_capacity=-1", "description_cache_capacity=0",
		"default_query_exec_mode=cache_describe&description_cache_capacity=0", "statement_cache_capacity=1",
		"client_encoding=UTF8", "client_encoding=utf-8", "client_encoding=unicode", "replication=false",
		"target_session_attrs=read-write", "target_session_attrs=primary", "target_session_attrs=any",
		"pool_max_conns=3", "pool_min_conns=3", "pool_min_idle_conns=1", "pool_max_conn_lifetime=1ms", "pool_max_conn_idle_time=1ms",
		"pool_health_check_period=10ms", "pool_ping_timeout=0s", "connect_timeout=0", "application_name=mine",
		"statement_timeout=100", "default_transaction_read_only=on", "default_transaction_isolation=serializable", "TimeZone=Asia/Tokyo",
		"datestyle=German", "standard_conforming_strings=off", "search_path=nowhere", "bytea_output=escape", "IntervalStyle=sql_standard",
		"extra_float_digits=-15", "synchronous_commit=off", "lock_timeout=1", "idle_in_transaction_session_timeout=100", "idle_session_timeout=100",
		"options=-c%20statement_timeout%3D100%20-c%20client_encoding%3DLATIN1%20-c%20default_transaction_read_only%3Don",
	} {
		config, err := postgres.ParseConfig(url + "&" + option)
		if err != nil {
			t.Errorf("ParseConfig(…&%s) = %v, want none", option, err)
			continue
		}
		db, err := postgres.Open(t.Context(), config)
		if err != nil {
			t.Errorf("%s: %v", option, err)
			continue
		}
		if err := work(t.Context(), db); err != nil {
			t.Errorf("%s: %v", option, err)
		}
		postgres.Close(db)
	}
}

// work uses a pool as pgjet does: statements with parameters, batches, and transactions,
// several at a time, and longer than a hostile time-out.
func work(ctx context.Context, pool *pgxpool.Pool) error {
	db := postgres.DB{Pool: pool}
	errs := make([]error, 3)
	var all sync.WaitGroup
	for i := range errs {
		all.Go(func() { errs[i] = workAlone(ctx, db) })
	}
	all.Wait()
	return errors.Join(errs...)
}

func pinned(ctx context.Context, db *pgxpool.Pool) (is bool) {
	_ = db.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		is = postgres.Pinned(conn.Conn())
		return nil
	})
	return is
}

const euro = `'\n' Jürgen 日本 €`

func workAlone(ctx context.Context, db postgres.DB) error {
	for range 2 {
		var text string
		var at time.Time
		var span time.Duration
		var bytes []byte
		now := time.Now().Truncate(time.Microsecond)
		err := db.QueryRow(ctx, `select $1::text, $2::timestamptz, $3::interval, $4::bytea from pg_sleep(0.01)`,
			euro, now, time.Minute, []byte{0, 255}).Scan(&text, &at, &span, &bytes)
		if err != nil {
			return fmt.Errorf("query: %w", err)
		}
		if text != euro || !at.Equal(now) || span != time.Minute || !slices.Equal(bytes, []byte{0, 255}) {
			return fmt.Errorf("got %q %s %s %v", text, at, span, bytes)
		}
		if _, err := db.Exec(ctx, `select $1::int + pg_backend_pid()`, 1); err != nil {
			return fmt.Errorf("exec: %w", err)
		}
		if err := db.QueryRow(ctx, `select 1 where $1`, false).Scan(new(int)); !errors.Is(err, pgx.ErrNoRows) {
			return fmt.Errorf("no row: %w", err)
		}
		err = db.QueryRow(ctx, `select 1 / $1::int`, 0).Scan(new(int))
		if refused, ok := errors.AsType[*pgconn.PgError](err); !ok || refused.Code != "22012" {
			return fmt.Errorf("1 / 0: %w", err)
		}
		ns, err := postgres.Collect(ctx, db, pgx.RowTo[int32], `select generate_series(1, $1::int)`, 3)
		if err != nil || !slices.Equal(ns, []int32{1, 2, 3}) {
			return fmt.Errorf("collect: %v %w", ns, err)
		}
		b := &pgx.Batch{}
		b.Queue(`select txid_current(), pg_sleep(0.01)`)
		b.Queue(`select $1::int`, 2).QueryRow(func(row pgx.Row) error { return row.Scan(new(int)) })
		if err := db.Send(ctx, b); err != nil {
			return fmt.Errorf("batch: %w", err)
		}
		err = pgx.BeginTxFunc(ctx, db.Pool, postgres.Transaction(0), func(tx pgx.Tx) error {
			if err := settings(ctx, tx); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, `select pg_sleep(0.01 * $1::int)`, 1)
			return err
		})
		if err != nil {
			return fmt.Errorf("transaction: %w", err)
		}
	}
	return nil
}

// settings returns an error if a transaction runs with a setting that it must not have.
func settings(ctx context.Context, tx pgx.Tx) error {
	for name, want := range map[string]string{
		"transaction_isolation": "read committed", "transaction_read_only": "off", "statement_timeout": "0", "lock_timeout": "0",
		"idle_in_transaction_session_timeout": "1min", "transaction_timeout": "0", "synchronous_commit": "on",
		"client_encoding": "UTF8", "DateStyle": "ISO, MDY", "TimeZone": "UTC", "standard_conforming_strings": "on",
	} {
		var got *string
		if err := tx.QueryRow(ctx, `select current_setting($1, true)`, name).Scan(&got); err != nil {
			return err
		}
		if got != nil && *got != want {
			return fmt.Errorf("%s is %s, want %s", name, *got, want)
		}
	}
	return nil
}

// hostile are defaults of a role or a database that must not matter.
var hostile = map[string]string{
	"default_transaction_isolation": "serializable", "default_transaction_read_only": "on", "default_transaction_deferrable": "on",
	"statement_timeout": "100ms", "lock_timeout": "1ms", "idle_in_transaction_session_timeout": "100ms", "idle_session_timeout": "100ms",
	"transaction_timeout": "100ms", "synchronous_commit": "off", "client_encoding": "LATIN1", "DateStyle": "German", "IntervalStyle": "sql_standard",
	"TimeZone": "Asia/Kathmandu", "standard_conforming_strings": "off", "bytea_output": "escape", "extra_float_digits": "-15",
	"search_path": "nowhere", "row_security": "off", "enable_indexscan": "off", "escape_string_warning": "off",
}

// makeHostile gives a database these defaults.
func makeHostile(t *testing.T, url string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	for name, value := range hostile {
		_, err := conn.Exec(t.Context(), fmt.Sprintf(`alter database %s set %s = '%s'`, conn.Config().Database, name, value))
		if err != nil && name != "transaction_timeout" { // since 17
			t.Fatal(err)
		}
	}
}

func open(t *testing.T, url string) *pgxpool.Pool {
	t.Helper()
	config, err := postgres.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	db, err := postgres.Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { postgres.Close(db) })
	return db
}

func TestHostileDefaults(t *testing.T) {
	t.Parallel()
	url := testenv.EmptyDatabaseURL(t)
	makeHostile(t, url)
	for name, url := range map[string]string{
		"direct":      url,
		"transaction": testenv.PgBouncer(t, url, "transaction"),
		"session":     testenv.PgBouncer(t, url, "session"),
	} {
		t.Run(name, func(t *testing.T) {
			db := open(t, url)
			if got := pinned(t.Context(), db); got != (name == "direct") {
				t.Errorf("Pinned = %t", got)
			}
			if name != "direct" { // idle_session_timeout ends the pooler's sessions, and only the pooler can notice
				testenv.Eventually(t, 10*time.Second, "a session lasts as long as the work", func() bool { return work(t.Context(), db) == nil })
				return
			}
			if err := work(t.Context(), db); err != nil {
				t.Error(err)
			}
			time.Sleep(200 * time.Millisecond) // idle for longer than idle_session_timeout
			if err := work(t.Context(), db); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestServerWideReadOnly: a server that is set to accept no writes gets none, however a
// transaction begins, even on connections that are already open. Defaults of the database
// do not matter.
func TestServerWideReadOnly(t *testing.T) {
	t.Parallel()
	server := testenv.PostgresServer(t)
	admin, err := pgx.Connect(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(context.Background())
	exec := func(sql string, args ...any) {
		t.Helper()
		if _, err := admin.Exec(t.Context(), fmt.Sprintf(sql, args...)); err != nil {
			t.Fatal(err)
		}
	}
	exec(`create table public.t (n int)`)
	pools := map[string]*pgxpool.Pool{"direct": open(t, server.URL()), "pooled": open(t, testenv.PgBouncer(t, server.URL(), "transaction"))}
	const write = `insert into public.t values (1)`
	ways := map[string]func(conn *pgxpool.Conn, db *pgxpool.Pool) error{
		"Transaction": func(_ *pgxpool.Conn, db *pgxpool.Pool) error {
			return pgx.BeginTxFunc(t.Context(), db, postgres.Transaction(0), func(tx pgx.Tx) error {
				_, err := tx.Exec(t.Context(), write)
				return err
			})
		},
		"For": func(conn *pgxpool.Conn, _ *pgxpool.Pool) error {
			return pgx.BeginTxFunc(t.Context(), conn, postgres.For(conn.Conn()), func(tx pgx.Tx) error {
				_, err := tx.Exec(t.Context(), write)
				return err
			})
		},
		"BeginBatch": func(conn *pgxpool.Conn, _ *pgxpool.Pool) error {
			b := &pgx.Batch{}
			postgres.BeginBatch(conn.Conn(), b, 0)
			b.Queue(write)
			results := conn.SendBatch(t.Context(), b)
			err := results.Close()
			if err == nil {
				return results.Tx().Commit(t.Context())
			}
			postgres.Undo(t.Context(), conn.Conn())
			return err
		},
		"DB": func(_ *pgxpool.Conn, db *pgxpool.Pool) error {
			_, err := postgres.DB{Pool: db}.Exec(t.Context(), write)
			return err
		},
	}
	check := func(writable bool) {
		t.Helper()
		for name, db := range pools {
			for way, fn := range ways {
				err := db.AcquireFunc(t.Context(), func(conn *pgxpool.Conn) error { return fn(conn, db) })
				if writable && err != nil || !writable && sqlstate.Of(err) != sqlstate.ReadOnly {
					t.Errorf("%s, %s: %v; writable: %t", name, way, err, writable)
				}
			}
		}
	}
	check(true)
	exec(`alter system set default_transaction_read_only = on`)
	exec(`select pg_reload_conf()`)
	exec(`select pg_sleep(0.3)`) // open sessions do not show when they have read the setting
	check(false)
	exec(`alter system reset default_transaction_read_only`)
	exec(`select pg_reload_conf()`)
	exec(`select pg_sleep(0.3)`)
	check(true)
	exec(`alter database %s set default_transaction_read_only = on`, admin.Config().Database)
	for _, db := range pools {
		db.Reset()
	}
	pools["new, pooled"] = open(t, testenv.PgBouncer(t, server.URL(), "transaction"))
	check(true)
}

// TestForeignPool uses a pool that package postgres did not open.
func TestForeignPool(t *testing.T) {
	t.Parallel()
	url := testenv.EmptyDatabaseURL(t)
	makeHostile(t, url)
	plain, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	_, err = postgres.DB{Pool: plain}.Exec(t.Context(), `select 1`)
	if err == nil || !strings.Contains(err.Error(), "client_encoding is LATIN1") {
		t.Errorf("Exec by a connection in LATIN1: %v, want an error that says so", err)
	}
	own, err := pgxpool.New(t.Context(), url+"&client_encoding=UTF8&TimeZone=UTC&DateStyle=ISO&standard_conforming_strings=on")
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if err := work(t.Context(), own); err != nil {
		t.Error(err)
	}
}

func TestRemoteApplyStays(t *testing.T) {
	t.Parallel()
	url := testenv.EmptyDatabaseURL(t)
	var got string
	db := open(t, url)
	if _, err := db.Exec(t.Context(), `alter database `+db.Config().ConnConfig.Database+` set synchronous_commit = remote_apply`); err != nil {
		t.Fatal(err)
	}
	for _, url := range []string{url, testenv.PgBouncer(t, url, "transaction")} {
		err := pgx.BeginTxFunc(t.Context(), open(t, url), postgres.Transaction(0), func(tx pgx.Tx) error {
			return tx.QueryRow(t.Context(), `show synchronous_commit`).Scan(&got)
		})
		if err != nil || got != "remote_apply" {
			t.Errorf("synchronous_commit is %s (%v), want remote_apply as the database says", got, err)
		}
	}
}

func TestConnect(t *testing.T) {
	t.Parallel()
	url := testenv.EmptyDatabaseURL(t)
	makeHostile(t, url)
	s := postgres.Session{What: "the test", Application: "pgjet-test", Settings: []postgres.Setting{{Name: "enable_seqscan", Value: "off"}, {Name: "idle_session_timeout", Value: "8s"}},
		Optional: []postgres.Setting{{Name: "client_connection_check_interval", Value: "5s"}, {Name: "work_mem", Value: "nonsense"}}}
	parse := func(url string) *pgx.ConnConfig {
		config, err := pgx.ParseConfig(url + "&default_query_exec_mode=exec&statement_cache_capacity=0")
		if err != nil {
			t.Fatal(err)
		}
		return config
	}
	conn, err := postgres.Connect(t.Context(), parse(url), s)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var got string
	err = conn.QueryRow(t.Context(), `
		select concat_ws(' ', current_setting('enable_seqscan'), current_setting('idle_session_timeout'), current_setting('statement_timeout'),
		       current_setting('application_name'), current_setting('client_encoding')) where $1`, true).Scan(&got)
	if want := "off 8s 0 pgjet-test UTF8"; err != nil || got != want {
		t.Errorf("settings are %q (%v), want %q", got, err, want)
	}
	for _, mode := range []string{"transaction", "session"} {
		through := testenv.PgBouncer(t, url, mode)
		_, err := postgres.Connect(t.Context(), parse(through), s)
		if !postgres.IsPooler(err) || !strings.Contains(err.Error(), "the test needs a session of its own") || !strings.Contains(err.Error(), "--direct-database-url") {
			t.Errorf("Connect through a pooler in mode %s: %v, want a PoolerError that says what to do", mode, err)
		}
	}
}

// TestNothingLeaks has a foreign client read all settings through the same pooler.
func TestNothingLeaks(t *testing.T) {
	t.Parallel()
	url := testenv.EmptyDatabaseURL(t)
	through := testenv.PgBouncer(t, url, "transaction", "server_reset_query_always = 0")
	before := testenv.ForeignSettings(t, through)
	if err := work(t.Context(), open(t, through)); err != nil {
		t.Fatal(err)
	}
	config, err := pgx.ParseConfig(through)
	if err != nil {
		t.Fatal(err)
	}
	_, err = postgres.Connect(t.Context(), config, postgres.Session{What: "it", Application: "x", Settings: []postgres.Setting{{Name: "enable_seqscan", Value: "off"}}})
	if !postgres.IsPooler(err) {
		t.Error(err)
	}
	for who, got := range testenv.ForeignSettings(t, through) {
		for name, value := range got {
			if want := before[0][name]; value != want {
				t.Errorf("foreign session %d has %s = %q, want %q", who, name, value, want)
			}
		}
	}
}

// TestPoolerComesAndGoes moves a pool in use behind a pooler, and back.
func TestPoolerComesAndGoes(t *testing.T) {
	t.Parallel()
	server := testenv.PostgresServer(t)
	db := open(t, server.URL())
	port := db.Config().ConnConfig.Port
	check := func(direct bool) {
		t.Helper()
		testenv.Eventually(t, 10*time.Second, fmt.Sprintf("connections work, direct: %t", direct), func() bool {
			return work(t.Context(), db) == nil && pinned(t.Context(), db) == direct
		})
	}
	check(true)
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	options := server.Options()
	options.Port = 0
	moved := startPostgres(t, options)
	_, stop := testenv.StartPgBouncer(t, int(port), moved.URL(), "transaction")
	check(false)
	stop()
	if err := moved.Stop(); err != nil {
		t.Fatal(err)
	}
	startPostgres(t, server.Options())
	check(true)
}

// TestStale changes the schema under prepared statements.
func TestStale(t *testing.T) {
	t.Parallel()
	url := testenv.EmptyDatabaseURL(t)
	admin := open(t, url)
	if _, err := admin.Exec(t.Context(), `create table public.t (name varchar(200), n int); insert into public.t values ('x', 1)`); err != nil {
		t.Fatal(err)
	}
	for name, url := range map[string]string{"direct": url, "pooled": testenv.PgBouncer(t, url, "transaction")} {
		db := postgres.DB{Pool: open(t, url)}
		look := func() {
			t.Helper()
			var all sync.WaitGroup
			for range 8 { // several connections
				all.Go(func() {
					var text, number string
					err := db.QueryRow(t.Context(), `select name, n::text from public.t where $1 and pg_sleep(0.01) is not null`, true).Scan(&text, &number)
					if err != nil || text != "x" || number != "1" {
						t.Errorf("%s: got %s %s (%v), want x 1", name, text, number, err)
					}
					_, err = postgres.Collect(t.Context(), db, pgx.RowToMap, `select * from public.t where $1`, true)
					if err != nil {
						t.Errorf("%s: %v", name, err)
					}
				})
			}
			all.Wait()
		}
		look()
		for _, change := range []string{`alter column name type varchar(300)`, `alter column n type bigint`, `add column more text`, `alter column name type text`, `drop column more`} {
			if _, err := admin.Exec(t.Context(), `alter table public.t `+change); err != nil {
				t.Fatal(err)
			}
			look()
		}
		if _, err := db.Exec(t.Context(), `deallocate all`); err != nil {
			t.Fatal(err)
		}
		look()
		if _, err := admin.Exec(t.Context(), `alter table public.t alter column name type varchar(200), alter column n type int`); err != nil {
			t.Fatal(err)
		}
	}
}

// TestConnectByAPool: the settings of a session override those of the pool whose
// configuration it has.
func TestConnectByAPool(t *testing.T) {
	t.Parallel()
	config, err := postgres.ConnConfig(t.Context(), open(t, testenv.EmptyDatabaseURL(t)))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := postgres.Connect(t.Context(), config, postgres.Session{What: "it", Application: "x",
		Settings: []postgres.Setting{{Name: "idle_session_timeout", Value: "8s"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var got string
	if err := conn.QueryRow(t.Context(), `show idle_session_timeout`).Scan(&got); err != nil || got != "8s" {
		t.Errorf("idle_session_timeout is %s (%v), want 8s", got, err)
	}
}
