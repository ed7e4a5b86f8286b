package operate

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/internal/jserror"
	"github.com/pgjet/pgjet/internal/natsconn"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/sqlstate"
	"github.com/pgjet/pgjet/migrations"
	"github.com/pgjet/pgjet/relay"
)

// The states of a setting.
const (
	OK      = "ok"
	Note    = "note"    // worth knowing, and harmless where pgjet is tried out
	Warning = "warning" // it weakens a promise, or will break one soon
	Broken  = "broken"  // it breaks a promise
	Unasked = "unknown" // it could not be checked
)

// A Diagnosis is the result of [Source.Diagnose].
type Diagnosis struct {
	At      time.Time `json:"at"`
	Healthy bool      `json:"healthy"` // nothing is broken, and there is no warning
	Checks  []Check   `json:"checks"`  // the worst first
	Missing []Missing `json:"missing"` // what could not be checked
}

// A Check is the state of a setting, or of a few that belong together.
type Check struct {
	What        string `json:"what"` // such as "postgres fsync"
	State       string `json:"state"`
	Found       string `json:"found"`
	Consequence string `json:"consequence"` // "" if it is OK; so is Fix
	Fix         string `json:"fix"`
}

// Diagnose checks the settings of PostgreSQL, NATS and the streams, and versions, permissions,
// clocks and disks, as far as the rights of pgjet_operator allow. It returns no error: what could
// not be checked is in Missing.
func (s Source) Diagnose(ctx context.Context) Diagnosis {
	d := &doctor{Source: s, Diagnosis: Diagnosis{At: time.Now().UTC(), Checks: []Check{}, Missing: []Missing{}}}
	var versions []string
	var asked sync.WaitGroup
	asked.Go(func() { versions = d.processVersions(ctx) })
	if s.DB == nil {
		d.Missing = append(d.Missing, missing(database, s.DBErr, "the settings of PostgreSQL, and which streams there are"))
	} else if err := d.lookAtDatabase(ctx); err != nil {
		d.Missing = append(d.Missing, missing(database, err, "some settings of PostgreSQL"))
	}
	asked.Wait()
	if s.NATS == nil {
		d.Missing = append(d.Missing, missing(server, s.NATSErr, "the settings of NATS and of the streams, and the running processes"))
	} else {
		d.lookAtNATS(ctx)
		d.judgeVersions(versions)
	}
	for _, m := range d.Missing {
		d.add(m.What, Broken, m.Code+": "+m.Text, "unknown: "+m.Lack, "pgjet explain "+m.Code)
	}
	rank := []string{Broken, Warning, Unasked, Note, OK}
	slices.SortStableFunc(d.Checks, func(a, b Check) int { return slices.Index(rank, a.State) - slices.Index(rank, b.State) })
	d.Healthy = !slices.ContainsFunc(d.Checks, func(c Check) bool { return c.State == Broken || c.State == Warning })
	return d.Diagnosis
}

// A doctor makes a Diagnosis.
type doctor struct {
	Source
	Diagnosis
}

func (d *doctor) add(what, state, found, consequence, fix string) {
	if state == OK {
		consequence, fix = "", ""
	}
	d.Checks = append(d.Checks, Check{what, state, Plain(found), consequence, fix})
}

// unless adds a check that is OK unless wrong.
func (d *doctor) unless(wrong bool, what, state, found, consequence, fix string) {
	if !wrong {
		state = OK
	}
	d.add(what, state, found, consequence, fix)
}

// The PostgreSQL versions on which the tests run.
const oldestPostgres, newestPostgres = 14, 18

func (d *doctor) lookAtDatabase(ctx context.Context) error {
	for _, look := range []func(context.Context) error{d.lookAtServer, d.lookAtRoles, d.lookAtSessions, d.lookAtSchema, d.lookAtClock} {
		err := look(ctx)
		if sqlstate.Of(err) == sqlstate.Permission {
			d.add("postgres permissions", Unasked, err.Error(), "some settings are not checked", "grant pgjet_operator to the user, or ask as the owner of the tables")
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// settingsThatMatter are the settings of the server that pgjet does not set for its own
// connections.
var settingsThatMatter = []struct{ name, want, state, consequence, fix string }{
	{"fsync", "on", Broken, "when the machine fails, events that were committed are lost, or the database is", "alter system set fsync = on; select pg_reload_conf();"},
	{"full_page_writes", "on", Broken, "when the machine fails while it writes, the database is damaged", "alter system set full_page_writes = on; select pg_reload_conf();"},
	{"autovacuum", "on", Warning, "the tables of consumers, relay and scheduled events grow without end, and get slow", "alter system set autovacuum = on; select pg_reload_conf();"},
	{"server_encoding", "UTF8", Broken, "events with other characters cannot be appended", "move to a database that was created with encoding 'UTF8'"},
}

func (d *doctor) lookAtServer(ctx context.Context) error {
	var version int
	var recovers bool
	var host string
	if err := d.DB.QueryRow(ctx, `select current_setting('server_version_num')::int, pg_is_in_recovery(), current_setting('server_version')`).Scan(&version, &recovers, &host); err != nil {
		return err
	}
	switch major := version / 10_000; {
	case major < oldestPostgres:
		d.add("postgres version", Broken, host, fmt.Sprintf("pgjet works with PostgreSQL %d and newer", oldestPostgres), "upgrade PostgreSQL")
	case major > newestPostgres:
		d.add("postgres version", Note, host, fmt.Sprintf("pgjet was tested with PostgreSQL up to %d", newestPostgres), "upgrade pgjet when there is a newer one")
	default:
		d.add("postgres version", OK, host, "", "")
	}
	d.unless(recovers, "postgres role", Broken, map[bool]string{true: "a standby", false: "a primary"}[recovers],
		"nothing can be appended, published or handled there", "give the address of the primary, or add target_session_attrs=read-write to the URL")
	for _, s := range settingsThatMatter {
		var value string
		if err := d.DB.QueryRow(ctx, `select current_setting($1)`, s.name).Scan(&value); err != nil {
			return err
		}
		d.unless(value != s.want, "postgres "+s.name, s.state, value, s.consequence, s.fix)
	}
	return d.DB.AcquireFunc(ctx, func(c *pgxpool.Conn) error {
		pooled := !postgres.Pinned(c.Conn())
		d.unless(pooled, "postgres pooler", Note, map[bool]string{true: "a connection pooler answers", false: "the connection is direct"}[pooled],
			"relays, and consumers that keep the order, need a session of their own, and refuse a pooler", "give them --direct-database-url: pgjet explain pooler")
		return nil
	})
}

// lookAtRoles finds roles and databases whose commits do not wait for the disk. Connections of
// pgjet set that; services that append may not.
func (d *doctor) lookAtRoles(ctx context.Context) error {
	all, err := collect(ctx, d.DB, pgx.RowTo[string], `
		select coalesce('role ' || quote_ident(r.rolname), '') || coalesce(' database ' || quote_ident(b.datname), '')
		  from pg_db_role_setting s left join pg_roles r on r.oid = s.setrole left join pg_database b on b.oid = s.setdatabase
		 where exists (select from unnest(s.setconfig) c where lower(c) in ('synchronous_commit=off', 'synchronous_commit=false', 'synchronous_commit=no', 'synchronous_commit=0')) and (s.setdatabase = 0 or b.datname = current_database())
		union all
		select 'the user of this command, or the server' from pg_settings where name = 'synchronous_commit' and reset_val = 'off'
		 order by 1 limit 10`)
	if err != nil {
		return err
	}
	for i := range all {
		all[i] = strings.TrimSpace(all[i])
	}
	found := "waited for by all"
	if len(all) > 0 {
		found = "off for " + strings.Join(all, ", ")
	}
	d.unless(len(all) > 0, "postgres synchronous_commit", Warning, found,
		"a service that appends as one of them may lose committed events when PostgreSQL fails", "alter role NAME reset synchronous_commit; or of the database or the server")
	return nil
}

// tooLong is the age from which a transaction is worth knowing.
const tooLong = 15 * time.Minute

func (d *doctor) lookAtSessions(ctx context.Context) error {
	var used, most int
	var oldest, prepared float64
	var who string
	var age int64
	var retained int64
	err := d.DB.QueryRow(ctx, `
		select (select count(*) from pg_stat_activity where backend_type = 'client backend'), current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int,
		       coalesce((select extract(epoch from clock_timestamp() - xact_start) from pg_stat_activity where datname = current_database() and xact_start is not null and pid <> pg_backend_pid() and backend_type = 'client backend' order by xact_start limit 1), 0)::float8,
		       coalesce((select pid || ' of ' || coalesce(nullif(application_name, ''), usename, 'unknown') from pg_stat_activity where datname = current_database() and xact_start is not null and pid <> pg_backend_pid() and backend_type = 'client backend' order by xact_start limit 1), ''),
		       coalesce((select extract(epoch from clock_timestamp() - min(prepared)) from pg_prepared_xacts), 0)::float8,
		       (select max(age(datfrozenxid)) from pg_database),
		       case when pg_is_in_recovery() then 0 else coalesce((select max(pg_current_wal_lsn() - restart_lsn) from pg_replication_slots where not active), 0) end::bigint`).
		Scan(&used, &most, &oldest, &who, &prepared, &age, &retained)
	if err != nil {
		return err
	}
	d.unless(float64(used) >= full*float64(most), "postgres connections", Warning, fmt.Sprintf("%d of %d", used, most),
		"processes that start, or connect again after an outage, find no connection left", "make the pools of processes smaller (pool_max_conns), or raise max_connections")
	d.unless(seconds(oldest) >= tooLong, "postgres transactions", Warning, fmt.Sprintf("the oldest is %s old%s", seconds(oldest).Round(time.Second), map[bool]string{true: ", process " + who}[who != ""]),
		"rows that are deleted since then stay, and all tables get slow; scheduled events that it holds are late", "end it where it began, or: select pg_terminate_backend(PID)")
	d.unless(seconds(prepared) >= tooLong, "postgres prepared transactions", Warning, fmt.Sprintf("the oldest is %s old", seconds(prepared).Round(time.Second)),
		"rows that are deleted since then stay, and its locks last until it is ended", "commit or roll back what pg_prepared_xacts lists")
	d.unless(age > 1_500_000_000, "postgres transaction ids", Warning, fmt.Sprintf("the oldest are %d million back", age/1_000_000),
		"PostgreSQL accepts no writes any more when the oldest is 2 100 million transactions old", "find what blocks VACUUM: long transactions, prepared ones, replication slots")
	d.unless(retained > 4<<30, "postgres replication slots", Warning, fmt.Sprintf("a slot without a reader keeps %d MiB", retained>>20),
		"the disk fills, and then PostgreSQL stops", "drop the slot if its reader is gone: select pg_drop_replication_slot(NAME)")
	d.add("postgres disk", Unasked, "PostgreSQL does not report how full its disk is", "when it is full, nothing can be appended or handled", "monitor it from outside")
	return nil
}

func (d *doctor) lookAtSchema(ctx context.Context) error {
	all, err := migrations.List(ctx, d.DB)
	if err != nil {
		return err
	}
	var pending, newer int
	for _, m := range all {
		switch m.State {
		case migrations.Pending, migrations.OutOfOrder:
			pending++
		case migrations.Unknown:
			newer++
		}
	}
	switch {
	case pending > 0:
		d.add("postgres tables", Broken, fmt.Sprintf("%d migrations are missing", pending), "processes of this version fail, or lack features", "pgjet migrate up")
	case newer > 0:
		d.add("postgres tables", Note, fmt.Sprintf("%d migrations of a newer pgjet", newer), "this program may not support what newer processes do", "use the newer one")
	default:
		d.add("postgres tables", OK, fmt.Sprintf("version %d", migrations.Latest()), "", "")
	}
	var rows int64 // a new outbox begins there
	if err := d.DB.QueryRow(ctx, `select reltuples::bigint from pg_class where oid = 'pgjet.outbox_default'::regclass`).Scan(&rows); err != nil {
		return err
	}
	d.unless(rows > 1_000_000, "postgres partitions", Warning, fmt.Sprintf("%d rows in the default partition", max(rows, 0)),
		"they cannot be dropped after publication, and the outbox grows", "make sure that a relay runs, which creates partitions: pgjet status")
	return nil
}

// apart is the largest harmless difference of clocks.
const apart = 5 * time.Second

func (d *doctor) lookAtClock(ctx context.Context) error {
	var at time.Time
	begun := time.Now()
	if err := d.DB.QueryRow(ctx, `select clock_timestamp()`).Scan(&at); err != nil {
		return err
	}
	d.clock("postgres", at, begun)
	return nil
}

// clock compares the clock of a server, which was read since begun, with the local one.
func (d *doctor) clock(server string, at, begun time.Time) {
	ended := time.Now()
	off := max(begun.Sub(at), at.Sub(ended), 0)
	d.unless(off > apart, server+" clock", Warning, fmt.Sprintf("%s from the clock here", off.Round(time.Millisecond)),
		"times of events, waits and timelines are wrong by that much", "synchronise the clocks (NTP)")
}

func (d *doctor) lookAtNATS(ctx context.Context) {
	version := d.NATS.ConnectedServerVersion()
	d.unless(natsconn.CheckVersion(d.NATS) != nil, "nats version", Broken, version, "pgjet needs nats-server "+natsconn.Needed+" or newer", "upgrade nats-server")
	const payload = 1 << 20
	d.unless(d.NATS.MaxPayload() < payload, "nats max_payload", Warning, fmt.Sprintf("%d bytes", d.NATS.MaxPayload()),
		"larger events go to quarantine, although the append accepted them", "set max_payload: 1MB in nats-server")
	if host, _, err := net.SplitHostPort(d.NATS.ConnectedAddr()); err == nil {
		ip := net.ParseIP(host)
		open := !d.NATS.TLSRequired() && ip != nil && !ip.IsLoopback()
		d.unless(open, "nats encryption", Warning, map[bool]string{true: "none, to " + host, false: "encrypted, or on this machine"}[open],
			"anyone on the network path can read events and passwords", "use tls:// and --nats-ca")
	}
	d.lookAtAccount(ctx)
	streams := []string{d.Stream}
	if d.DB != nil {
		if all, err := (&view{Source: d.Source}).streams(ctx); err == nil {
			streams = all
		}
	}
	for _, name := range streams {
		d.lookAtStream(ctx, name)
	}
	d.lookAtDurables(ctx)
}

func (d *doctor) lookAtAccount(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	account, err := d.JS.AccountInfo(ctx)
	if err != nil {
		d.add("nats storage", Unasked, "the account cannot be read", "when its storage is used up, nothing is published", "permit $JS.API.INFO, or monitor it from outside")
		return
	}
	limit := account.Limits.MaxStore
	found := fmt.Sprintf("%d bytes used, no limit", account.Store)
	if limit > 0 {
		found = fmt.Sprintf("%d of %d bytes used", account.Store, limit)
	}
	d.unless(limit > 0 && float64(account.Store) >= full*float64(limit), "nats storage", Warning, found,
		"when it is used up, nothing is published, and events wait in the outbox", "raise the limit of the account, or set max_age for the stream")
}

func (d *doctor) lookAtStream(ctx context.Context, name string) {
	what := "stream " + name
	stream, err := d.JS.Stream(ctx, name)
	if err != nil {
		code := string(natsconn.Of(err))
		fix := "pgjet explain " + code
		if natsconn.Of(err) == jserror.StreamMissing {
			fix = Typed("pgjet stream ensure", name)
		}
		d.add(what, Broken, without(natsconn.NoStream(ctx, d.JS, name), code), "nothing is published", fix)
		return
	}
	asked := time.Now()
	info, err := stream.Info(ctx)
	if err != nil {
		return
	}
	if !info.TimeStamp.IsZero() {
		d.clock("nats", info.TimeStamp, asked)
	}
	fix := Typed("pgjet stream ensure", name) + " shows all differences"
	flaws := relay.Flaws(info.Config, relay.DefaultRetention)
	for _, f := range flaws {
		setting, consequence, _ := strings.Cut(f.Text, ": ")
		state := Warning
		if f.Breaks {
			state = Broken
		}
		d.add(what, state, setting, consequence, fix)
	}
	if len(flaws) == 0 {
		d.add(what, OK, "its settings are right", "", "")
	}
	single := info.Config.Replicas < 2
	state := Note
	if d.NATS.ConnectedClusterName() != "" {
		state = Warning
	}
	d.unless(single, what+" replicas", state, fmt.Sprint(info.Config.Replicas), "one disk has the only copy of pruned events", "in production, a cluster of three servers and --replicas 3")
	d.unless(relay.Owner(info.Config) == (relay.Outbox{}), what+" owner", Warning, relay.Owner(info.Config).String(),
		"another outbox may be published there by mistake", Typed("pgjet stream ensure", name)+" --database-url URL")
	s := Stream{MaxBytes: info.Config.MaxBytes, MaxMsgs: info.Config.MaxMsgs, Bytes: info.State.Bytes, Messages: info.State.Msgs}
	if info.Cluster != nil {
		for _, r := range info.Cluster.Replicas {
			if r.Offline || !r.Current {
				s.Behind = append(s.Behind, r.Name)
			}
		}
	}
	for _, near := range s.limits() {
		setting, consequence, _ := strings.Cut(near, ": ")
		d.add(what+" limits", Warning, setting, consequence, "raise the limit, or set max_age; repair the server")
	}
}

// lookAtDurables checks the durable consumers of all known consumers.
func (d *doctor) lookAtDurables(ctx context.Context) {
	if d.DB == nil {
		return
	}
	type known struct {
		Name, Stream string
		Slices       int
	}
	all, err := collect(ctx, d.DB, pgx.RowToStructByPos[known], `select name, stream, slices from pgjet.consumer order by name limit 100`)
	if err != nil {
		return
	}
	for _, k := range all {
		for _, durable := range inbox.Durables(k.Name, k.Slices) {
			c, err := d.JS.Consumer(ctx, k.Stream, durable)
			if err != nil {
				continue // the status reports that
			}
			d.lookAtDurable("consumer "+durable, c.CachedInfo().Config, "start a process of it, which corrects that; what differs shows: pgjet consumer ensure "+Word(k.Name))
		}
	}
}

// lookAtDurable checks one durable consumer. fix is what to do about it.
func (d *doctor) lookAtDurable(what string, config jetstream.ConsumerConfig, fix string) {
	forgotten := config.InactiveThreshold > 0
	d.unless(forgotten, what, Warning, map[bool]string{true: "inactive_threshold is " + config.InactiveThreshold.String(), false: "its durable consumer stays"}[forgotten],
		"its durable consumer is deleted when no process runs for longer", fix)
	if config.MaxDeliver > 0 {
		d.add(what, Broken, fmt.Sprintf("max_deliver is %d", config.MaxDeliver), "JetStream drops events that no inbox has", fix)
	}
}

// processVersions returns the versions of the processes that answer.
func (d *doctor) processVersions(ctx context.Context) (versions []string) {
	if d.NATS == nil {
		return nil
	}
	all, err := Instances(ctx, d.NATS, "")
	if err != nil {
		return nil
	}
	for _, i := range all {
		if strings.HasPrefix(i.Name, "pgjet-") {
			versions = append(versions, i.Version)
		}
	}
	slices.Sort(versions)
	return slices.Compact(versions)
}

func (d *doctor) judgeVersions(versions []string) {
	d.unless(len(versions) > 1, "pgjet versions", Note, map[bool]string{true: strings.Join(versions, ", "), false: "no process runs"}[len(versions) > 0],
		"processes of different versions run, as during an upgrade", "end the upgrade; see pgjet services ls")
}
