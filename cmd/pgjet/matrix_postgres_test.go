package main

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/devserver"
	"github.com/pgjet/pgjet/internal/testenv"
)

// postgresRows are environments that differ in PostgreSQL.
func postgresRows() []matrixRow {
	var rows []matrixRow
	if wholeMatrix {
		for _, major := range []int{14, 15, 16, 17, 18} {
			rows = append(rows, matrixRow{name: fmt.Sprint("PostgreSQL ", major), run: func(m *trial) {
				onPostgres(m, postgresPrograms(m, major))
			}})
		}
		for _, bin := range furtherPrograms() {
			rows = append(rows, matrixRow{name: "PostgreSQL in " + bin, run: func(m *trial) { onPostgres(m, bin) }})
		}
	}
	for _, h := range hostile {
		rows = append(rows, matrixRow{name: "defaults: " + h.name, short: h.short, run: h.run})
	}
	return append(rows,
		matrixRow{name: "PgBouncer, transaction mode", short: true, run: func(m *trial) { pooled(m, "transaction") }},
		matrixRow{name: "PgBouncer, session mode", run: func(m *trial) { pooled(m, "session") }},
		matrixRow{name: "standby is promoted", run: standbyPromoted},
		matrixRow{name: "failover with loss", run: failoverWithLoss},
		matrixRow{name: "switchover", run: switchover},
	)
}

// furtherPrograms are the directories of PostgreSQL programs: those in PGJET_PG_BINS, and those of
// system packages.
func furtherPrograms() []string {
	bins := filepath.SplitList(os.Getenv("PGJET_PG_BINS"))
	if len(bins) == 0 {
		programs, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
		for _, p := range programs {
			bins = append(bins, filepath.Dir(p))
		}
	}
	return bins
}

// postgresPrograms returns the directory with the programs of a major version.
func postgresPrograms(m *trial, major int) string {
	m.Helper()
	bin, err := devserver.DownloadPostgres(m.Context(), major, os.Getenv("PGJET_PG_MIRROR"))
	if err != nil {
		m.skip("%v", err)
	}
	return bin
}

// newestPostgres returns the programs of the newest version that is available. The short form does
// not download any.
func newestPostgres(m *trial) string {
	m.Helper()
	if wholeMatrix {
		return postgresPrograms(m, 18)
	}
	bin, err := devserver.FindPostgres(m.Context(), devserver.PostgresOptions{Bin: os.Getenv("PGJET_PG_BIN"), Mirror: os.Getenv("PGJET_PG_MIRROR")})
	if err != nil {
		m.Fatal(err)
	}
	return bin
}

func onPostgres(m *trial, bin string) {
	p := testenv.PostgresServerWith(m, devserver.PostgresOptions{Bin: bin})
	m.checked = p.Version() + ", kill -9 of relay, mailer and directory"
	walk(m, site{database: p.URL(), nats: testenv.NATS(m).URL()}, nil)
}

// A hostileDefaults is a set of unusual defaults of the role of all processes.
type hostileDefaults struct {
	name     string
	short    bool
	settings []string // of the role: "name = value"
	since    int      // the first version that has the settings; 0 is any
	german   bool     // needs a server that speaks German
}

var hostile = []hostileDefaults{
	{name: "all at once", short: true, settings: []string{
		"default_transaction_isolation = 'serializable'", "default_transaction_deferrable = on", "default_transaction_read_only = on",
		"statement_timeout = '200ms'", "lock_timeout = '200ms'", "idle_in_transaction_session_timeout = '200ms'", "idle_session_timeout = '300ms'",
		"client_encoding = 'LATIN1'", "\"TimeZone\" = 'Pacific/Chatham'", "\"DateStyle\" = 'German, DMY'", "\"IntervalStyle\" = 'sql_standard'",
		"search_path = ''", "synchronous_commit = off", "bytea_output = 'escape'", "extra_float_digits = -15",
		"standard_conforming_strings = off", "quote_all_identifiers = on", "row_security = off", "plan_cache_mode = 'force_generic_plan'",
		"enable_seqscan = off", "enable_indexscan = off", "work_mem = '64kB'", "array_nulls = off", "xmloption = 'document'",
	}},
	{name: "serializable", settings: []string{"default_transaction_isolation = 'serializable'"}},
	{name: "statement_timeout", settings: []string{"statement_timeout = '200ms'", "lock_timeout = '200ms'", "idle_in_transaction_session_timeout = '200ms'"}},
	{name: "transaction_timeout", since: 17, settings: []string{"transaction_timeout = '200ms'", "statement_timeout = '200ms'"}},
	{name: "LATIN1 client", settings: []string{"client_encoding = 'LATIN1'"}},
	{name: "German", german: true, settings: []string{"lc_messages = 'de_DE.UTF-8'", "\"DateStyle\" = 'German, DMY'", "\"TimeZone\" = 'Europe/Berlin'"}},
	{name: "read only, no search_path", settings: []string{"default_transaction_read_only = on", "search_path = 'nothing'", "synchronous_commit = off"}},
}

// role is the role of all processes of a hostile row.
const role = "app"

func (h hostileDefaults) run(m *trial) {
	o := devserver.PostgresOptions{Bin: newestPostgres(m)}
	if h.german {
		o.Bin = germanPrograms(m)
	}
	p := testenv.PostgresServerWith(m, o)
	m.checked = fmt.Sprintf("%s, the role's defaults: %s", p.Version(), strings.Join(h.settings, ", "))
	if len(h.settings) > 3 {
		m.checked = fmt.Sprintf("%s, %d hostile defaults of the role", p.Version(), len(h.settings))
	}
	db := openAdmin(m, p.URL())
	for _, sql := range append([]string{"create role " + role + " login createrole", "alter database pgjet owner to " + role,
		"grant pg_monitor to " + role}, h.alterations()...) {
		if _, err := db.Exec(m.Context(), sql); err != nil {
			m.Fatalf("%s: %v", sql, err)
		}
	}
	url := strings.Replace(p.URL(), "pgjet@", role+"@", 1)
	if h.german {
		speaksGerman(m, url)
	}
	walk(m, site{database: url, admin: p.URL(), nats: testenv.NATS(m).URL(), standbys: true}, nil)
}

// speaksGerman checks that the server's messages are German.
func speaksGerman(m *trial, url string) {
	m.Helper()
	conn, err := pgx.Connect(m.Context(), url)
	if err != nil {
		m.Fatal(err)
	}
	defer conn.Close(m.Context())
	if _, err := conn.Exec(m.Context(), `select 1/0`); err == nil || !strings.Contains(err.Error(), "Division durch Null") {
		m.Fatalf("the server says %v, want German", err)
	}
}

// pooled connects the user service and the pools of consumers through PgBouncer. What needs a
// session of its own connects directly, and is refused otherwise. Other clients of the pooler find
// their connections unchanged.
func pooled(m *trial, mode string) {
	m.checked = "relay and sessions go directly; refused without; connections of others are unchanged"
	if _, err := exec.LookPath(cmp.Or(os.Getenv("PGJET_PGBOUNCER"), "/usr/sbin/pgbouncer")); err != nil {
		m.skip("pgbouncer is not installed")
	}
	direct := testenv.EmptyDatabaseURL(m)
	pool := testenv.PgBouncer(m, direct, mode)
	before := observe(m, pool)
	walk(m, site{
		database: pool, admin: direct, nats: testenv.NATS(m).URL(), vars: env{"PGJET_DIRECT_DATABASE_URL": direct},
	}, func(p *mainPath) {
		delete(p.vars, "PGJET_DIRECT_DATABASE_URL")
		for _, args := range [][]string{{"relay"}, {"consume", "directory", "--addr", anyPort}} {
			s := p.service("", args...)
			s.NotReady(s.Admin, "pooler")
			s.Stop()
		}
		p.vars["PGJET_DIRECT_DATABASE_URL"] = direct
		if after := observe(m, pool); !maps.Equal(before, after) {
			m.Errorf("connections of the pooler were %v, and are %v", before, after)
		}
	})
}

// observe returns the settings and locks of many connections through a pooler, each result once.
func observe(m *trial, pool string) map[string]bool {
	m.Helper()
	seen := make(map[string]bool)
	var conns []*pgx.Conn
	for range 12 {
		config, err := pgx.ParseConfig(pool)
		if err != nil {
			m.Fatal(err)
		}
		config.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
		conn, err := pgx.ConnectConfig(m.Context(), config)
		if err != nil {
			m.Fatal(err)
		}
		conns = append(conns, conn)
	}
	for _, conn := range conns {
		text := ""
		err := conn.QueryRow(m.Context(), `
			select concat_ws(' ', (select string_agg(name || '=' || setting, ' ' order by name) from pg_settings
			                        where source = 'session' and name not in ('client_encoding', 'application_name', 'DateStyle', 'TimeZone')),
			       (select count(*) from pg_prepared_statements) || ' statements',
			       (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()) || ' locks')`).Scan(&text)
		if err != nil {
			m.Fatal(err)
		}
		seen[text] = true
		if err := conn.Close(m.Context()); err != nil {
			m.Fatal(err)
		}
	}
	return seen
}

func (h hostileDefaults) alterations() []string {
	var all []string
	for _, s := range h.settings {
		all = append(all, "alter role "+role+" set "+s)
	}
	return all
}

// locales makes the German locale where the C library finds it, once.
var locales = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(os.TempDir(), "pgjet-test-locale") // the user of PostgreSQL may enter it
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	out, err := exec.Command("localedef", "-i", "de_DE", "-f", "UTF-8", filepath.Join(dir, "de_DE.UTF-8")).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("localedef: %w: %s", err, out)
	}
	return dir, os.Setenv("LOCPATH", dir)
})

// germanPrograms returns programs of PostgreSQL that come with German messages.
func germanPrograms(m *trial) string {
	m.Helper()
	all, _ := filepath.Glob("/usr/share/locale/de/LC_MESSAGES/postgres-*.mo")
	for _, name := range all {
		major := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(name), "postgres-"), ".mo")
		bin := filepath.Join("/usr/lib/postgresql", major, "bin")
		if _, err := os.Stat(filepath.Join(bin, "initdb")); err != nil {
			continue
		}
		if _, err := locales(); err != nil {
			m.skip("no German locale: %v", err)
		}
		return bin
	}
	m.skip("no PostgreSQL with German messages is installed")
	return ""
}

// A pair is a primary and its hot standby.
type pair struct {
	m                *trial
	primary, standby *devserver.Postgres
	wire             *toxiproxy.Proxy // between primary and standby
}

// startPair starts a primary with all tables, and a standby that is a copy of it. The
// settings are the primary's.
func startPair(m *trial, settings map[string]string) *pair {
	m.Helper()
	bin := newestPostgres(m)
	primary := testenv.PostgresServerWith(m, devserver.PostgresOptions{Bin: bin})
	if code, process := runProcess(m, nil, "migrate", "up", "--demo", "--database-url", primary.URL()); code != exitOK {
		m.Fatalf("exit code %d of %s", code, process)
	}
	if err := primary.Stop(); err != nil {
		m.Fatal(err)
	}
	o := primary.Options()
	copied := filepath.Join(filepath.Dir(o.Dir), "standby")
	if out, err := exec.CommandContext(m.Context(), "cp", "-a", o.Dir, copied).CombinedOutput(); err != nil {
		m.Fatalf("copy the cluster: %v: %s", err, out)
	}
	if err := os.WriteFile(filepath.Join(copied, "standby.signal"), nil, 0o644); err != nil {
		m.Fatal(err)
	}
	p := &pair{m: m}
	p.primary = testenv.PostgresServerWith(m, devserver.PostgresOptions{Dir: o.Dir, Port: o.Port, Bin: bin, Settings: settings})
	wire, address := proxied(m.T, p.primary.URL())
	p.wire = wire
	p.standby = testenv.PostgresServerWith(m, devserver.PostgresOptions{Dir: copied, Bin: bin, Settings: map[string]string{
		"primary_conninfo":            address + "&application_name=standby",
		"wal_retrieve_retry_interval": "100ms",
	}})
	p.follows()
	return p
}

// follows waits until the standby streams.
func (p *pair) follows() {
	p.m.Helper()
	conn, err := pgx.Connect(p.m.Context(), p.primary.URL())
	if err != nil {
		p.m.Fatal(err)
	}
	defer conn.Close(p.m.Context())
	testenv.Eventually(p.m, patience, "the standby streams", func() bool {
		n := 0
		err := conn.QueryRow(p.m.Context(), `select count(*) from pg_stat_replication where state = 'streaming'`).Scan(&n)
		return err == nil && n == 1
	})
}

// url names both servers, and requires the one that accepts writes.
func (p *pair) url() string {
	return fmt.Sprintf("postgres://pgjet@127.0.0.1:%d,127.0.0.1:%d/pgjet?sslmode=disable&target_session_attrs=read-write",
		p.primary.Options().Port, p.standby.Options().Port)
}

// promote makes the standby a primary.
func (p *pair) promote() {
	p.m.Helper()
	conn, err := pgx.Connect(p.m.Context(), p.standby.URL())
	if err != nil {
		p.m.Fatal(err)
	}
	defer conn.Close(p.m.Context())
	if _, err := conn.Exec(p.m.Context(), `select pg_promote()`); err != nil {
		p.m.Fatalf("promote the standby: %v", err)
	}
}

// standbyPromoted connects everything to a hot standby. The processes are not ready, and report
// why, until it is promoted.
func standbyPromoted(m *trial) {
	pair := startPair(m, nil)
	m.checked = pair.standby.Version() + ", not ready on a hot standby, ready once it is promoted"
	p := newPath(m, site{database: pair.primary.URL(), nats: testenv.NATS(m).URL()})
	p.admin, p.database = pair.standby.URL(), pair.standby.URL()
	p.vars["PGJET_DATABASE_URL"] = pair.standby.URL()
	p.db = openAdmin(m, pair.standby.URL())
	p.start()
	for _, s := range p.all() {
		s.NotReady(s.Admin, "database_read_only")
	}
	pair.promote()
	begun := time.Now()
	p.ready()
	m.checked += fmt.Sprintf(" after %.1f s", time.Since(begun).Seconds())
	p.load()
	p.killAll()
	p.load()
	p.check()
}

// switchover stops a primary whose commits wait for the standby, and promotes the standby.
func switchover(m *trial) {
	pair := startPair(m, map[string]string{"synchronous_standby_names": "standby", "synchronous_commit": "on"})
	m.checked = pair.primary.Version() + ", nothing is lost"
	walk(m, site{database: pair.url(), nats: testenv.NATS(m).URL()}, func(p *mainPath) {
		if err := pair.primary.Stop(); err != nil {
			m.Fatal(err)
		}
		pair.promote()
		begun := time.Now()
		p.ready()
		m.checked += fmt.Sprintf("; ready after %.1f s", time.Since(begun).Seconds())
	})
}

// failoverWithLoss kills a primary whose last commits are published but never reached the standby,
// and promotes the standby. The relay halts until an operator adopts. What the consumers did with
// the lost events is lost as well, so they do it again.
func failoverWithLoss(m *trial) {
	pair := startPair(m, nil)
	m.checked = pair.primary.Version() + ", relay halts, adopt"
	walk(m, site{database: pair.url(), nats: testenv.NATS(m).URL()}, func(p *mainPath) {
		p.settled()
		pair.wire.Stop()
		known := p.number
		p.load()
		p.settled()
		p.again = p.number - known
		p.lost = query[int](m, p.db, `select count(*) from pgjet.outbox`)
		pair.kill()
		pair.promote()
		p.db.Reset()
		begun := time.Now()
		p.relay.NotReady(p.relay.Admin, "database_behind")
		m.checked += fmt.Sprintf("; halted after %.1f s", time.Since(begun).Seconds())
		p.lost -= query[int](m, p.db, `select count(*) from pgjet.outbox`)
		p.must(exitOK, "relay", "adopt", "--yes", "--reason", "failover with loss")
		p.ready()
		p.decide = func() { // the events may have been handled: their mails have arrived
			p.mailer.Eventually(matrixPatience, fmt.Sprintf("%d lost events wait for a decision", p.again), func() bool {
				return query[int](m, p.db, `select count(*) from pgjet.dead_letter where consumer = 'welcome-mailer' and state = 'dead'`) == p.again
			})
			p.must(exitOK, "dead", "discard", "--consumer", "welcome-mailer", "--yes", "--reason", "failover with loss")
		}
	})
}

// kill kills the primary.
func (p *pair) kill() {
	p.m.Helper()
	if err := syscall.Kill(p.primary.PID(), syscall.SIGKILL); err != nil {
		p.m.Fatal(err)
	}
	<-p.primary.Done()
}
