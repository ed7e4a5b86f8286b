package console_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/console"
	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/relay"
)

// A load is the content of a database, in numbers.
type load struct{ events, letters, consumers, intents int }

// idNow is a UUIDv7, as events have.
const idNow = `encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid()) placing substring(int8send((extract(epoch from clock_timestamp()) * 1000)::bigint) from 3) from 1 for 6),
	52, 1), 53, 1), 'hex')::uuid`

// fill creates a database with that load. A tenth of the events are pending, the letters have 200
// errors and three attempts each, and there are operations, sagas and scheduled events.
func (l load) fill(t *testing.T, db *pgxpool.Pool) {
	t.Helper()
	exec := func(sql string, args ...any) {
		t.Helper()
		testenv.Exec(t, db, sql, args...)
	}
	for {
		var next int
		if err := db.QueryRow(t.Context(), `select coalesce(max(high), 1) from pgjet.outbox_partition`).Scan(&next); err != nil {
			t.Fatal(err)
		}
		if next > l.events {
			break
		}
		exec(`select pgjet.add_outbox_partition($1, $2)`, next, next+l.events/4+1)
	}
	const batches = 10 // each a transaction
	for range batches {
		exec(`
			insert into pgjet.outbox (id, type, key, data, header, traceparent)
			select `+idNow+`, 'load.type' || n % 10, 'usr_' || n % $2, json_build_object('email', 'user' || n || '@example.com', 'name', 'Ann ' || n, 'plan', 'free'),
			       jsonb_build_object('ce-requestid', 'req-' || md5($1::text || n)), '00-' || md5(n::text || $1) || '-' || left(md5(n::text), 16) || '-01'
			  from generate_series(1, $1::int) n`, l.events/batches, max(1, l.events/20))
	}
	exec(`insert into pgjet.leader (stream, epoch, process, since) values ('EVENTS', 3, 'host:1', now())`)
	for n := range 100 {
		exec(`
			insert into pgjet.checkpoint (stream, stream_created, stream_seq, snapshot, floor, epoch, system_identifier, events)
			select 'EVENTS', '2026-01-01', $1, pg_current_snapshot(), $1, 3, system_identifier, $1 from pg_control_system()`, l.events*9/10*(n+1)/100)
	}
	exec(`
		insert into pgjet.consumer (name, stream, stream_created, ordered, effects)
		select 'consumer-' || n, 'EVENTS', now(), n % 2 = 0, n % 3 = 0 from generate_series(0, $1 - 1) n`, l.consumers)
	exec(`
		insert into pgjet.inbox (consumer, event_id, state, generation, stream_seq, attempts)
		select 'consumer-' || seq % $1, id, 'done', 1, seq, 1 from pgjet.outbox where seq % 2 = 0`, l.consumers)
	exec(`
		with e as (select gen_random_uuid() as id, n, 'consumer-' || n % $2 as consumer, (n * 7919) % 200 as error from generate_series(1, $1) n),
		     i as (insert into pgjet.inbox (consumer, event_id, state, generation, stream_seq, attempts) select consumer, id, 'dead', 1, n, 3 from e),
		     a as (insert into pgjet.attempt (consumer, event_id, attempt, began, took, process, outcome, error)
		           select consumer, id, a, now() - interval '1 hour' + a * interval '1 minute', '1 second', 'host:1', case a when 3 then 'dead' else 'retried' end, 'refused' from e, generate_series(1, 3) a)
		insert into pgjet.dead_letter (consumer, event_id, generation, stream_seq, stream, subject, type, key, header, data, error, error_group, attempts, process, state)
		select consumer, id, 1, n, 'EVENTS', 'events.00.user.created', 'user.created', 'usr_' || n % $3, '{}', convert_to(repeat('{"name": "Ann"}', 20), 'UTF8'),
		       'code ' || error || ': no such mailbox user' || n || '@example.com, and a stack ' || repeat('at some/file.go:100 ', 20),
		       'code ' || error || ': no such mailbox', 3, 'host:1', case when n % 20 = 0 then 'discarded' else 'dead' end from e`, l.letters, l.consumers, max(1, l.events/20))
	exec(`
		with e as (select gen_random_uuid() as id, n, 'consumer-' || n % $2 as consumer from generate_series(1, $1) n),
		     i as (insert into pgjet.inbox (consumer, event_id, state, generation, stream_seq, attempts) select consumer, id, 'intent', 1, n, 1 from e)
		insert into pgjet.intent (consumer, event_id, type, key, stream, generation, stream_seq, subject, header, data, attempts, error)
		select consumer, id, 'user.created', 'usr_' || n, 'EVENTS', 1, n, 'events.00.user.created', '{}', '{}', 1, 'mail server away' from e`, l.intents, l.consumers)
	exec(`
		insert into pgjet.operation (kind, target, by, reason, detail)
		select (array['dead.redrive', 'dead.discard', 'consumer.pause', 'event.reveal', 'quarantine.retry'])[1 + n % 5], 'consumer-' || n % 50, 'ann@host', 'because',
		       jsonb_build_object('ids', array[n, n + 1], 'seqs', array[n], 'changed', 2) from generate_series(1, $1) n`, l.letters/10)
	exec(`
		insert into pgjet.saga (id, name, key, state, input, started_at, ended_at)
		select gen_random_uuid(), 'order', 'usr_' || n, case n % 100 when 0 then 'running' else 'done' end, '{}', now() - n * interval '1 second', case n % 100 when 0 then null else now() end
		  from generate_series(1, $1) n`, l.letters/10)
	exec(`insert into pgjet.scheduled (id, type, key, data, due) select gen_random_uuid(), 'load.later', 'usr_' || n, '{}', now() + n * interval '1 minute' from generate_series(1, $1) n`, l.letters/10)
	exec(`analyze`)
}

// views are the pages that query the database, in their most expensive forms.
func views(t *testing.T, db *pgxpool.Pool) map[string]string {
	t.Helper()
	one := func(sql string) (text string) {
		t.Helper()
		if err := db.QueryRow(t.Context(), sql).Scan(&text); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
		return text
	}
	dead := one(`select event_id::text from pgjet.dead_letter where state = 'dead' order by id desc limit 1`)
	letter := one(`select id::text from pgjet.dead_letter where state = 'dead' order by id desc limit 1`)
	group := one(`select 'g_' || left(encode(sha256(convert_to(consumer || chr(10) || error_group, 'UTF8')), 'hex'), 8) from pgjet.dead_letter where state = 'dead' order by id desc limit 1`)
	old := one(`select id::text from pgjet.outbox order by seq limit 1`)
	return map[string]string{
		"now": "/", "events": "/events", "events that are published": "/events?state=published", "pending events": "/events?state=pending",
		"quarantined events": "/events?state=quarantined", "events of a type": "/events?type=load.type3", "events of a type that is not there": "/events?type=no.such",
		"events of a key": "/events?key=usr_7", "events since": "/events?since=1h",
		"an event": "/events/" + one(`select id::text from pgjet.outbox order by seq desc limit 1`), "an old event": "/events/" + old,
		"a published event":     "/events/" + one(`select id::text from pgjet.outbox where seq > (select max(floor) from pgjet.checkpoint) - 10 order by seq limit 1`),
		"an event that is dead": "/events/" + dead, "a dead letter": "/dead/" + letter, "an event that is retried": "/events/" + one(`select event_id::text from pgjet.intent limit 1`),
		"found by key": "/events?find=usr_7", "found by field": "/events?field=plan&value=free", "found by a field that is not there": "/events?field=plan&value=dear", "found by mail address": "/events?find=" + url.QueryEscape(one(`select data ->> 'email' from pgjet.outbox order by seq desc limit 1`)),
		"found by an address that is not there": "/events?find=nobody@example.net", "found by trace": "/events?find=" + one(`select split_part(traceparent, '-', 2) from pgjet.outbox order by seq desc limit 1`),
		"found by request": "/events?find=" + one(`select header ->> 'ce-requestid' from pgjet.outbox order by seq desc limit 1`),
		"consumers":        "/consumers", "a consumer": "/consumers/consumer-1", "dead letters": "/dead", "dead letters of a consumer": "/dead?consumer=consumer-1",
		"dead letters of a group": "/dead?group=" + group, "dead letters of a type": "/dead?type=user.created", "dead letters of a key": "/dead?key=usr_7",
		"dead letters since": "/dead?since=1h", "discarded letters": "/dead?state=discarded",
		"a plan for all": "/dead/plan?verb=redrive&all=1", "a plan for a group": "/dead/plan?verb=redrive&group=" + group, "a plan for one": "/dead/plan?verb=redrive&id=" + letter,
		"a key": "/keys?key=usr_7", "retrying": "/retrying", "retrying at a consumer": "/retrying?consumer=consumer-1", "relay": "/relay", "operations": "/operations", "an operation": "/operations/1", "operations of a kind": "/operations?kind=dead&state=stopped", "audit": "/audit", "scheduled": "/scheduled",
		"sagas": "/sagas", "sagas in a state": "/sagas?state=done", "sagas of a key": "/sagas?key=usr_7", "types": "/types", "a type": "/types/load.type1", "processes": "/processes",
	}
}

// plans collects the execution plans of the statements of a page.
type plans struct {
	mu  sync.Mutex
	all []plan
}

// A plan is the execution plan of one statement.
type plan struct {
	Query string   `json:"Query Text"`
	Plan  planNode `json:"Plan"`
}

// A planNode is a step of a plan.
type planNode struct {
	Type      string     `json:"Node Type"`
	Relation  string     `json:"Relation Name"`
	Rows      float64    `json:"Actual Rows"`
	Filtered  float64    `json:"Rows Removed by Filter"`
	Rechecked float64    `json:"Rows Removed by Index Recheck"`
	Loops     float64    `json:"Actual Loops"`
	Plans     []planNode `json:"Plans"`
}

func (p *plans) note(_ *pgconn.PgConn, n *pgconn.Notice) {
	_, text, found := strings.Cut(n.Message, "plan:\n")
	if !found {
		return
	}
	var one plan
	if err := json.Unmarshal([]byte(text), &one); err != nil {
		panic(fmt.Sprintf("auto_explain says %s: %v", n.Message, err))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = append(p.all, one)
}

// take returns the collected plans, and removes them.
func (p *plans) take() []plan {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := p.all
	p.all = nil
	return all
}

// each calls fn with a step and the steps below it.
func (n planNode) each(fn func(planNode)) {
	fn(n)
	for _, below := range n.Plans {
		below.each(fn)
	}
}

// looked returns how many rows a step read.
func (n planNode) looked() float64 { return (n.Rows + n.Filtered + n.Rechecked) * n.Loops }

// explained returns a pool of db on whose connections each statement is explained as it runs.
func explained(t *testing.T, db *pgxpool.Pool) (*pgxpool.Pool, *plans) {
	t.Helper()
	config, p := db.Config(), &plans{}
	config.MaxConns = 6
	config.ConnConfig.OnNotice = p.note
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, `load 'auto_explain'; set auto_explain.log_min_duration = 0; set auto_explain.log_format = json; set auto_explain.log_level = notice;
			set auto_explain.log_nested_statements = on; set auto_explain.log_analyze = on; set auto_explain.log_timing = off`)
		return err
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool, p
}

// large reports whether a table grows with the number of events or failures.
func large(table string) bool {
	for _, name := range []string{"outbox_1", "outbox_2", "outbox_3", "outbox_4", "outbox_5", "outbox_6", "outbox_7", "outbox_8", "outbox_9", "inbox", "attempt", "dead_letter", "intent", "operation", "saga", "scheduled"} {
		if strings.HasPrefix(table, name) {
			return true
		}
	}
	return false
}

// TestPlans: according to PostgreSQL, no statement of a page scans a large table, nor reads as many
// rows of it by an index. Dead letters are the exception: they are counted by their errors.
func TestPlans(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	load{events: 66_000, letters: 4000, consumers: 50, intents: 1000}.fill(t, db)
	pool, plans := explained(t, db)
	base := serve(t, console.Config{DB: pool}, nil)
	const most = 60_000 // the 50 000 rows of the outbox that a page searches, and some near the result
	looked := false
	for name, path := range views(t, db) {
		listed := strings.HasPrefix(path, "/dead?") || strings.HasPrefix(path, "/dead/plan") || path == "/dead"
		if a := ask(t, http.MethodGet, base+path, ""); a.status != http.StatusOK {
			t.Errorf("%s = %d\n%s", path, a.status, a.body)
		}
		for _, p := range plans.take() {
			counts := listed || strings.Contains(p.Query, "group by d.consumer, d.error_group") // beside an event, too
			p.Plan.each(func(n planNode) {
				rows := n.looked()
				looked = looked || large(n.Relation) && rows > most/2
				switch {
				case !large(n.Relation) || n.Relation == "dead_letter" && counts:
				case n.Type == "Seq Scan" && rows > 1000, rows > most:
					t.Errorf("%s looks at %.0f rows of %s by a %s:\n%s", name, rows, n.Relation, n.Type, p.Query)
				}
			})
		}
	}
	if !looked {
		t.Error("no statement looked at as many rows as it may: nothing was measured")
	}
}

// TestSpeed takes some minutes, and runs only by make console-speed: with 1 M events, 100 000 dead letters
// and 50 consumers each page answers within 300 ms at the 95th percentile, an open page costs the
// database less than 1 % of a core, and 200 open pages do not slow the pipeline.
func TestSpeed(t *testing.T) {
	if os.Getenv("PGJET_CONSOLE_SPEED") == "" {
		t.Skip("takes minutes: set PGJET_CONSOLE_SPEED=1")
	}
	t.Run("pages", answersSoon)
	t.Run("pipeline", slowsNothing)
}

// answersSoon measures each page, and the cost of an open one.
func answersSoon(t *testing.T) {
	db := testenv.Postgres(t)
	load{events: 1_000_000, letters: 100_000, consumers: 50, intents: 5000}.fill(t, db)
	testenv.Exec(t, db, `vacuum analyze`)
	js, _ := testenv.JetStream(t)
	base := serve(t, console.Config{DB: db, NATS: js.Conn()}, nil)
	all := views(t, db)
	names := slices.Sorted(maps.Keys(all))
	for _, name := range names {
		const looks = 20
		var took []time.Duration
		worked := cpu(t, db)
		for range looks {
			begun := time.Now()
			if a := ask(t, http.MethodGet, base+all[name], ""); a.status != http.StatusOK {
				t.Fatalf("%s = %d", name, a.status)
			}
			took = append(took, time.Since(begun))
		}
		slices.Sort(took)
		p95 := took[looks*95/100-1]
		t.Logf("%-40s median %4d ms, p95 %4d ms; the database works for %3.0f ms", name, took[looks/2].Milliseconds(), p95.Milliseconds(), 1000*(cpu(t, db)-worked)/looks)
		if p95 > 300*time.Millisecond {
			t.Errorf("%s takes %s at p95", name, p95)
		}
	}
	for _, name := range []string{"now", "events", "an event that is dead", "consumers", "dead letters", "dead letters of a group", "a key", "relay", "operations", "types"} {
		closed := leaveOpen(t, base+all[name])
		time.Sleep(4 * time.Second) // without the cost of making it the first time
		const over = 20 * time.Second
		before := cpu(t, db)
		time.Sleep(over)
		share := 100 * (cpu(t, db) - before) / over.Seconds()
		closed()
		t.Logf("%-40s open, costs the database %.2f %% of a core", name, share)
		if share > 1 {
			t.Errorf("%s, open, costs %.2f %% of a core", name, share)
		}
	}
}

// leaveOpen opens a live page, and reads it until it is closed.
func leaveOpen(t *testing.T, address string) (closed func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	mark := "?"
	if strings.Contains(address, "?") {
		mark = "&"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address+mark+"live=", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "text/event-stream")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	var reading sync.WaitGroup
	reading.Go(func() { _, _ = io.Copy(io.Discard, resp.Body) }) // it ends with the page
	return func() {
		cancel()
		resp.Body.Close()
		reading.Wait()
	}
}

// slowsNothing measures how many events a second a consumer handles, with and without 200 open
// pages in turn.
func slowsNothing(t *testing.T) {
	js, address := testenv.JetStream(t)
	db := testenv.Postgres(t)
	if _, err := js.CreateStream(t.Context(), relay.StreamConfig("EVENTS", 1)); err != nil {
		t.Fatal(err)
	}
	log := testenv.LoggerFrom(t, slog.LevelWarn)
	testenv.Run(t, (&relay.Relay{Database: db.Config().ConnConfig, NATSURL: address, Log: log}).Run)
	done := func(context.Context, pgx.Tx, events.Event) error { return nil }
	testenv.Run(t, (&consumers.Runner{Consumer: consumers.Consumer{Name: "counts", Handler: consumers.Handle(consumers.OnType("user.created", done))}, DB: db, JS: js, Log: log}).Run)
	config := db.Config()
	config.MaxConns = 6
	config.ConnConfig.RuntimeParams["application_name"] = "console"
	looks, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(looks.Close)
	base := serve(t, console.Config{DB: looks, NATS: js.Conn()}, nil)
	const pages, rounds, batch = 200, 6, 10_000
	paths := []string{"/", "/events", "/consumers", "/consumers/counts", "/dead", "/retrying", "/relay", "/sagas", "/operations", "/types"}
	rates := map[bool][]float64{}
	worked, lasted := 0.0, 0.0
	for round := range rounds {
		open := round%2 == 1
		var closes []func()
		for n := range pages {
			if open {
				closes = append(closes, leaveOpen(t, fmt.Sprint(base, paths[n%len(paths)], "?n=", n)))
			}
		}
		begun, before := time.Now(), cpu(t, db, "console")
		testenv.Exec(t, db, `insert into pgjet.outbox (id, type, key, data) select gen_random_uuid(), 'user.created', 'k' || n % 500, '{"name": "Ann"}' from generate_series(1, $1::int) n`, batch)
		testenv.Eventually(t, 2*time.Minute, "all are handled", func() bool {
			return text(t, db, `select count(*)::text from pgjet.inbox where state = 'done'`) == fmt.Sprint((round+1)*batch)
		})
		rates[open] = append(rates[open], batch/time.Since(begun).Seconds())
		if open {
			worked, lasted = worked+cpu(t, db, "console")-before, lasted+time.Since(begun).Seconds()
		}
		for _, closed := range closes {
			closed()
		}
	}
	slices.Sort(rates[false])
	slices.Sort(rates[true])
	without, with := rates[false][len(rates[false])/2], rates[true][len(rates[true])/2]
	t.Logf("%.0f events a second without pages, %.0f with %d open ones, which cost the database %.1f %% of a core", without, with, pages, 100*worked/lasted)
	if with < 0.7*without {
		t.Errorf("with %d open pages %.0f events a second are handled, without them %.0f", pages, with, without)
	}
}

// cpu returns the processor seconds of the database's sessions, or of an application's sessions, as
// Linux counts them.
func cpu(t *testing.T, db *pgxpool.Pool, application ...string) (seconds float64) {
	t.Helper()
	rows, err := db.Query(t.Context(), `select pid from pg_stat_activity where datname = current_database() and (cardinality($1::text[]) = 0 or application_name = any($1))`, append([]string{}, application...))
	if err != nil {
		t.Fatal(err)
	}
	pids, err := pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue // it has ended
		}
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		for _, ticks := range fields[11:13] { // in user and in system mode
			n, err := strconv.Atoi(ticks)
			if err != nil {
				t.Fatal(err)
			}
			const second = 100 // ticks
			seconds += float64(n) / second
		}
	}
	return seconds
}
