package migrations_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/migrations"
	"github.com/pgjet/pgjet/migrations/demo"
	"github.com/pgjet/pgjet/outbox"
)

var roles = []string{"pgjet_writer", "pgjet_relay", "pgjet_consumer", "pgjet_operator"}

// statements lists statements with the roles that may run them; no other role may.
var statements = []struct{ sql, roles string }{
	{`insert into pgjet.outbox (id, type, key, traceparent, header, data, time)
	  values (gen_random_uuid(), 'a.b', 'k', null, null, '{}', now())`, "writer"},
	{`insert into pgjet.outbox (xid, id, type, key, data) values ('5', gen_random_uuid(), 'a.b', 'k', '{}')`, ""},
	{`insert into pgjet.outbox (seq, id, type, key, data) overriding system value
	  values (5, gen_random_uuid(), 'a.b', 'k', '{}')`, ""},
	{`insert into pgjet.outbox_1 (seq, id, type, key, data) overriding system value values (5, gen_random_uuid(), 'a.b', 'k', '{}')`, ""},
	{`select nextval('pgjet.outbox_seq_seq')`, ""},
	{`select setval('pgjet.outbox_seq_seq', 1)`, ""},
	{`select from pgjet.outbox`, "relay operator"},
	{`update pgjet.outbox set key = key`, ""},
	{`delete from pgjet.outbox`, ""},
	{`truncate pgjet.outbox`, ""},
	{`drop table pgjet.outbox_1`, ""},
	{`lock table pgjet.outbox in access exclusive mode`, ""},
	{`select last_value from pgjet.outbox_seq_seq`, "relay operator"},
	{`select name, low, high from pgjet.outbox_partition`, "relay operator"},
	{`select pgjet.outbox_default_used()`, "relay operator"},
	{`select pgjet.add_outbox_partition(1000000, 1000100)`, "relay"},
	{`select pgjet.empty_outbox_default(100)`, "relay"},
	{`select pgjet.drop_outbox_partition('outbox_1', pg_current_snapshot(), 50000)`, "relay operator"},
	{`select pgjet.lock_outbox()`, ""},
	{`select pgjet.change_outbox()`, ""},
	{`select pgjet.grant_roles()`, ""},

	{`insert into pgjet.scheduled (id, due, type, key, traceparent, header, data, time, content_type, body)
	  values (gen_random_uuid(), now(), 'a.b', 'k', null, null, null, now(), 'a/b', '')`, "writer"},
	{`insert into pgjet.scheduled (n, id, due, type, key, data) overriding system value
	  values (5, gen_random_uuid(), now(), 'a.b', 'k', '{}')`, ""},
	{`delete from pgjet.scheduled where id = gen_random_uuid()`, "writer operator"},
	{`select id from pgjet.scheduled`, "writer operator"},
	{`select due from pgjet.scheduled`, "relay operator"},
	{`select data from pgjet.scheduled`, "operator"},
	{`update pgjet.scheduled set due = now()`, "operator"},
	{`update pgjet.scheduled set type = 'b.c'`, ""},
	{`truncate pgjet.scheduled`, ""},
	{`select pgjet.move_due('S', 1, '-infinity', 0)`, "relay"},

	{`select from pgjet.leader`, "relay operator"},
	{`insert into pgjet.leader as l (stream, epoch) values ('S', 1) on conflict (stream) do update set epoch = l.epoch + 1`, "relay"},
	{`insert into pgjet.leader as l (stream, epoch, paused_at, paused_by, pause_reason) values ('S', 0, now(), 'me', 'r')
	  on conflict (stream) do update set paused_at = now(), paused_by = 'me', pause_reason = 'r'`, "relay operator"},
	{`select epoch from pgjet.leader for share`, "relay operator"},
	{`update pgjet.leader set epoch = 7`, "relay"},
	{`delete from pgjet.leader`, ""},
	{`select from pgjet.checkpoint`, "relay operator"},
	{`insert into pgjet.checkpoint (stream, stream_created, stream_seq, snapshot, floor, epoch)
	  values ('S', now(), 1, pg_current_snapshot(), 1, 1)`, "relay"},
	{`update pgjet.checkpoint set floor = floor`, ""},
	{`delete from pgjet.checkpoint where floor = 0`, "relay"},
	{`select from pgjet.quarantine`, "relay operator"},
	{`insert into pgjet.quarantine (seq, event_id, reason) values (7, gen_random_uuid(), 'r')`, "relay"},
	{`update pgjet.quarantine set state = 'retry', changed_at = now(), changed_by = 'me', change_reason = 'r' where seq = 9`, "relay operator"},
	{`update pgjet.quarantine set reason = '' where seq = 9`, "relay"},
	{`delete from pgjet.quarantine where seq = 9`, "relay"},
	{`select from pgjet.unknown_message`, "relay operator"},
	{`insert into pgjet.unknown_message (stream, stream_created, stream_seq, subject) values ('S', now(), 1, 's')`, "relay"},
	{`delete from pgjet.unknown_message where stream = 'S'`, "relay operator"},
	{`select from pgjet.adoption`, "relay operator"},
	{`insert into pgjet.adoption (stream, stream_created, stream_seq, by, reason) values ('S', now(), 1, 'me', 'r')`, "operator"},
	{`delete from pgjet.adoption`, ""},
	{`select from pgjet.pruned`, "relay operator"},
	{`update pgjet.pruned set events = 0`, ""},
	{`select from pgjet.operation`, "relay operator"},
	{`insert into pgjet.operation (kind, target, by, reason) values ('prune', 't', 'me', 'r')`, "operator"},
	{`delete from pgjet.operation`, ""},
	{`select kind, target, at, detail, state from pgjet.operation`, "relay operator"},
	{`select by, reason from pgjet.operation`, "operator"},
	{`update pgjet.operation set state = 'done', done = 1, total = 1, changed_at = now()`, "operator"},
	{`update pgjet.operation set by = 'me'`, ""},
	{`select from pgjet.audit`, "relay operator"},
	{`insert into pgjet.audit (stream, stream_created, system_identifier, stream_seq, snapshot, floor, events, compared, missing, extra, twice, out_of_order, changed)
	  values ('S', now(), 1, 1, pg_current_snapshot(), 1, 1, 0, 0, 0, 0, 0, 0)`, "relay"},
	{`update pgjet.audit set ended_at = now()`, "relay"},
	{`delete from pgjet.audit`, "relay"},
	{`select pgjet.end_republish(0)`, "operator"},
	{`insert into pgjet.quarantine (seq, event_id, reason, state, stream, operation) values (8, gen_random_uuid(), 'r', 'retry', 'S', 1)`, "relay"},

	{`select from pgjet.consumer`, "consumer operator"},
	{`insert into pgjet.consumer (name, stream, stream_created, ordered, effects) values ('d', 'S', now(), true, false)`, "consumer"},
	{`insert into pgjet.consumer (name, stream, stream_created, ordered, effects, slices, prefix, types) values ('d', 'S', now(), true, false, 8, 'events', '{a.b}')`, "consumer"},
	{`update pgjet.consumer set prefix = 'events', types = '{a.b}'`, "consumer"},
	{`insert into pgjet.consumer (name, stream, stream_created, place, placed_at, server_start) values ('d', 'S', now(), '1/1', now(), now())`, "consumer"},
	{`update pgjet.consumer set place = '1/1', placed_at = now(), server_start = now()`, "consumer"},
	{`update pgjet.consumer set epoch = epoch + 1, rebuild = true`, "consumer operator"},
	{`update pgjet.consumer set slices = 1`, "consumer"},
	{`select from pgjet.slice`, "consumer operator"},
	{`update pgjet.slice set epoch = 1, floor = 0`, "consumer operator"},
	{`update pgjet.slice set high = 1, process = 'p', lost_until = 1`, "consumer"},
	{`delete from pgjet.slice where consumer = 'x'`, "consumer"},
	{`update pgjet.consumer set paused_at = now(), paused_by = 'me', pause_reason = 'r'`, "operator"},
	{`delete from pgjet.consumer`, ""},
	{`select from pgjet.process`, "consumer operator"},
	{`insert into pgjet.process (consumer, process, workers) values ('c', 'p', 1)`, "consumer"},
	{`select from pgjet.inbox`, "consumer operator"},
	{`insert into pgjet.inbox (consumer, event_id, state, attempts) values ('c', gen_random_uuid(), 'done', 1)
	  on conflict do nothing`, "consumer operator"},
	{`update pgjet.inbox set state = 'dead'`, "consumer operator"},
	{`delete from pgjet.inbox`, "consumer operator"},
	{`truncate pgjet.inbox`, ""},
	{`select from pgjet.intent`, "consumer operator"},
	{`insert into pgjet.intent (consumer, event_id, type, key, stream, generation, stream_seq, subject, header, data)
	  values ('c', gen_random_uuid(), 't', 'k', 'S', 1, 1, 's', '{}', '')`, "consumer operator"},
	{`update pgjet.intent set due_at = now()`, "consumer operator"},
	{`delete from pgjet.intent`, "consumer operator"},
	{`select from pgjet.attempt`, "consumer operator"},
	{`insert into pgjet.attempt (consumer, event_id, attempt, began, process, outcome)
	  values ('c', gen_random_uuid(), 1, now(), 'p', 'done')`, "consumer"},
	{`update pgjet.attempt set error = ''`, ""},
	{`select from pgjet.dead_letter`, "consumer operator"},
	{`insert into pgjet.dead_letter (consumer, event_id, stream, stream_seq, subject, header, data, error, attempts)
	  values ('c', gen_random_uuid(), 'S', 1, 's', '{}', '', 'e', 1)`, "consumer"},
	{`update pgjet.dead_letter set state = 'redriven', changed_at = now(), changed_by = 'me', change_reason = 'r'`, "consumer operator"},
	{`update pgjet.dead_letter set error = ''`, "consumer"},
	{`delete from pgjet.dead_letter`, "consumer"},
	{`select from pgjet.saga`, "consumer operator"},
	{`insert into pgjet.saga (id, name, key, input) values (gen_random_uuid(), 's', 'k', '{}')`, "consumer"},
	{`update pgjet.saga set state = 'undoing', epoch = epoch + 1, attempts = 0, waits = 0, due_at = now(), changed_at = now()`, "consumer operator"},
	{`update pgjet.saga set steps = '[]'`, "consumer"},
	{`delete from pgjet.saga`, "consumer"},
	{`select from directory.users`, "consumer"},
	{`insert into directory.users values (gen_random_uuid(), 'e', 'n', now(), 'n', 'e') on conflict (id) do nothing`, "consumer"},
	{`delete from directory.users`, "consumer"},
	{`truncate directory.users`, ""},
	{`select from directory.signups`, "consumer"},
	{`insert into directory.signups values ('2026-11-21', 1, now()) on conflict (day) do update set users = 2`, "consumer"},
	{`delete from directory.signups`, "consumer"},
	{`select from directory.deleted`, "consumer"},
	{`insert into directory.deleted values (gen_random_uuid(), true)`, "consumer"},
	{`update directory.deleted set counted = true`, "consumer"},
	{`delete from directory.deleted`, "consumer"},
	{`select directory.grant_roles()`, ""},
	{`create table directory.mine ()`, ""},
	{`select from pgjet.schema_version`, "operator"},
	{`create table pgjet.mine ()`, ""},
}

func TestRoles(t *testing.T) {
	db := testenv.Postgres(t)
	_, err := db.Exec(t.Context(), `
		insert into pgjet.leader (stream, epoch) values ('S', 1);
		insert into pgjet.checkpoint (stream, stream_created, stream_seq, snapshot, floor, epoch, system_identifier)
		select 'S', now(), 1, pg_current_snapshot(), 50000, 1, system_identifier from pg_control_system()`)
	if err != nil {
		t.Fatal(err)
	}
	for _, role := range append(roles, "pgjet_nobody") {
		for _, s := range statements {
			allowed := strings.Contains(s.roles, strings.TrimPrefix(role, "pgjet_"))
			err := as(t.Context(), db, role, func(tx pgx.Tx) error {
				_, err := tx.Exec(t.Context(), s.sql)
				return err
			})
			pgErr, _ := errors.AsType[*pgconn.PgError](err)
			if refused := pgErr != nil && pgErr.Code == "42501"; allowed && err != nil || !allowed && !refused {
				t.Errorf("%s: %s: %v, want allowed = %t", role, s.sql, err, allowed)
			}
		}
	}
}

// as runs fn with the rights of a role, and rolls back.
func as(ctx context.Context, db *pgxpool.Pool, role string, fn func(pgx.Tx) error) error {
	tx, err := db.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback(ctx)
	if role == "pgjet_nobody" {
		_, err = tx.Exec(ctx, `create role pgjet_nobody; grant usage on schema pgjet to pgjet_nobody`)
	}
	if err == nil {
		_, err = tx.Exec(ctx, `set local role `+role)
	}
	if err != nil {
		return fmt.Errorf("become %s: %w", role, err)
	}
	return fn(tx)
}

// TestWriterAppends: the functions for services need no rights beyond those of
// pgjet_writer.
func TestWriterAppends(t *testing.T) {
	db := testenv.Postgres(t)
	err := as(t.Context(), db, "pgjet_writer", func(tx pgx.Tx) error {
		return outbox.Append(t.Context(), tx, events.UserCreated{UserID: "1"}, events.UserCreated{UserID: "2"})
	})
	if err != nil {
		t.Error(err)
	}
}

// server returns a pool on a PostgreSQL server of its own, which has no roles of pgjet.
func server(t *testing.T) *pgxpool.Pool {
	t.Helper()
	db, err := pgxpool.New(t.Context(), testenv.PostgresServer(t).URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	return db
}

func database(t *testing.T, db *pgxpool.Pool, name, user string) *pgxpool.Pool {
	t.Helper()
	config := db.Config()
	config.ConnConfig.Database, config.ConnConfig.User = name, user
	own, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(own.Close)
	return own
}

func grants(t *testing.T, db *pgxpool.Pool) (n int) {
	t.Helper()
	err := db.QueryRow(t.Context(), `
		select count(*) from pg_roles where rolname = any($1) and has_schema_privilege(rolname, 'pgjet', 'usage')`, roles).Scan(&n)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestRolesInManyDatabases migrates databases of a new cluster at the same time: one makes
// the roles, each grants its rights.
func TestRolesInManyDatabases(t *testing.T) {
	db := server(t)
	var wg sync.WaitGroup
	var all []*pgxpool.Pool
	for n := range 6 {
		name := fmt.Sprintf("app%d", n)
		if _, err := db.Exec(t.Context(), `create database `+name); err != nil {
			t.Fatal(err)
		}
		all = append(all, database(t, db, name, db.Config().ConnConfig.User))
	}
	for _, own := range all {
		wg.Go(func() {
			if _, err := migrations.Up(t.Context(), own); err != nil {
				t.Errorf("Up() = %v", err)
			}
		})
	}
	wg.Wait()
	for _, own := range all {
		if n := grants(t, own); n != len(roles) {
			t.Errorf("%d roles have rights in %s, want %d", n, own.Config().ConnConfig.Database, len(roles))
		}
	}
}

// TestRolesThatMayNotBeCreated: the migrations succeed without the roles, and say what to
// do.
func TestRolesThatMayNotBeCreated(t *testing.T) {
	db := server(t)
	for _, sql := range []string{`create role plain login`, `create database app owner plain`} {
		if _, err := db.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	config := database(t, db, "app", "plain").Config()
	var hints strings.Builder
	config.ConnConfig.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { hints.WriteString(n.Message) }
	plain, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if _, err := migrations.Up(t.Context(), plain, demo.Sets...); err != nil {
		t.Fatalf("Up() = %v", err)
	}
	if hint := `run "create role pgjet_writer nologin"`; !strings.Contains(hints.String(), hint) {
		t.Errorf("notices are %q, want one with %q", hints.String(), hint)
	}
	if n := grants(t, plain); n != 0 {
		t.Fatalf("%d roles have rights, want none", n)
	}
	if _, err := db.Exec(t.Context(), `create role pgjet_writer nologin`); err != nil {
		t.Fatal(err)
	}
	if _, err := plain.Exec(t.Context(), `select pgjet.grant_roles()`); err != nil {
		t.Fatal(err)
	}
	if n := grants(t, plain); n != 1 {
		t.Errorf("%d roles have rights, want pgjet_writer", n)
	}
	if _, err := db.Exec(t.Context(), `create role pgjet_consumer nologin`); err != nil {
		t.Fatal(err)
	}
	var may bool
	if _, err := plain.Exec(t.Context(), `select directory.grant_roles()`); err != nil {
		t.Fatal(err)
	}
	err = plain.QueryRow(t.Context(), `select has_table_privilege('pgjet_consumer', 'directory.users', 'insert')`).Scan(&may)
	if err != nil || !may {
		t.Errorf("pgjet_consumer may insert users: %t, %v, want it to", may, err)
	}
}

// claims are statements of docs/security.md about the roles that the grants above do not
// cover.
var claims = []struct {
	role, sql string
	allowed   bool
}{
	{"pgjet_writer", `insert into pgjet.outbox (id, type, key, data) values (gen_random_uuid(), 'user.deleted', 'somebody', '{}')`, true},
	{"pgjet_writer", `lock table pgjet.outbox in share mode`, false},
	{"pgjet_writer", `select from pgjet.inbox`, false},
	{"pgjet_consumer", `update pgjet.inbox set state = 'done' where consumer = 'another'`, true},
	{"pgjet_consumer", `lock table pgjet.inbox in access exclusive mode`, true},
	{"pgjet_consumer", `insert into pgjet.outbox (id, type, key, data) values (gen_random_uuid(), 'user.deleted', 'somebody', '{}')`, false},
	{"pgjet_consumer", `select from pgjet.operation`, false},
	{"pgjet_relay", `insert into pgjet.outbox (id, type, key, data) values (gen_random_uuid(), 'a.b', 'k', '{}')`, false},
	{"pgjet_relay", `insert into pgjet.scheduled (id, due, type, key, data) values (gen_random_uuid(), now(), 'a.b', 'k', '{}')`, false},
	{"pgjet_relay", `delete from pgjet.scheduled`, false},
	{"pgjet_consumer", `delete from pgjet.scheduled`, false},
	{"pgjet_relay", `select from pgjet.inbox`, false},
	{"pgjet_operator", `insert into pgjet.outbox (id, type, key, data) values (gen_random_uuid(), 'a.b', 'k', '{}')`, false},
	{"pgjet_operator", `update pgjet.operation set by = 'somebody else'`, false},
	{"pgjet_nobody", `select pg_advisory_xact_lock(1)`, true},
	{"pgjet_nobody", `select pg_terminate_backend(pg_backend_pid())`, false},
}

func TestClaimsOfTheSecurityPage(t *testing.T) {
	db := testenv.Postgres(t)
	for _, c := range claims {
		err := as(t.Context(), db, c.role, func(tx pgx.Tx) error {
			_, err := tx.Exec(t.Context(), c.sql)
			return err
		})
		if !c.allowed && !denied(err) || c.allowed && err != nil {
			t.Errorf("%s: %s: %v, want allowed = %t", c.role, c.sql, err, c.allowed)
		}
	}
}

func denied(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pgErr.Code == "42501"
}

var sqlBlock = regexp.MustCompile("(?s)```sql\n(.*?)```")

// TestSecurityPage runs the SQL of docs/security.md: it keeps strangers out, limits each
// writer to its own types, and the relay still reads.
func TestSecurityPage(t *testing.T) {
	db := testenv.Postgres(t)
	page, err := os.ReadFile("../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	exec := func(sql string) {
		t.Helper()
		if _, err := db.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	names := []string{"orders", "shipping", "relay", "operator", "users", "stranger"}
	for _, name := range names {
		exec(`create role ` + name + ` login`)
	}
	t.Cleanup(func() {
		for _, name := range names {
			_, err := db.Exec(context.WithoutCancel(t.Context()), `drop owned by `+name+`; drop role `+name)
			if err != nil {
				t.Error(err)
			}
		}
	})
	database := pgx.Identifier{db.Config().ConnConfig.Database}.Sanitize()
	blocks := sqlBlock.FindAllStringSubmatch(string(page), -1)
	if len(blocks) < 4 {
		t.Fatalf("docs/security.md has %d blocks of SQL", len(blocks))
	}
	for _, b := range blocks {
		exec(strings.ReplaceAll(b[1], "database app", "database "+database))
	}
	for name, want := range map[string]bool{"orders": true, "shipping": true, "stranger": false} {
		got := false
		if err := db.QueryRow(t.Context(), `select has_database_privilege($1, current_database(), 'connect')`, name).Scan(&got); err != nil || got != want {
			t.Errorf("%s may connect: %t (%v), want %t", name, got, err, want)
		}
	}
	const event = `insert into pgjet.outbox (id, type, key, data) values (gen_random_uuid(), '%s', 'k', '{}')`
	const later = `insert into pgjet.scheduled (id, due, type, key, data) values (gen_random_uuid(), now(), '%s', 'k', '{}')`
	exec(fmt.Sprintf(event, "user.created"))
	exec(`insert into pgjet.scheduled (id, due, type, key, data) values ('00000000-0000-7000-8000-000000000001', now(), 'user.waited', 'k', '{}')`)
	for _, c := range []struct {
		role, sql string
		allowed   bool
	}{
		{"orders", fmt.Sprintf(event, "order.paid"), true},
		{"orders", fmt.Sprintf(event, "user.deleted"), false},
		{"shipping", fmt.Sprintf(event, "order.paid"), false},
		{"orders", fmt.Sprintf(later, "order.forgotten"), true},
		{"orders", fmt.Sprintf(later, "user.deleted"), false},
		{"orders", `with gone as (delete from pgjet.scheduled where id = '00000000-0000-7000-8000-000000000001' returning id) select 1 / (1 - count(*)) from gone`, true}, // finds none
		{"relay", `select 1 / count(due) from pgjet.scheduled`, true},
		{"operator", `select 1 / count(data) from pgjet.scheduled`, true},
		{"relay", `select 1 / count(*) from pgjet.outbox where type = 'user.created'`, true}, // sees it
		{"users", `insert into pgjet.operation (kind, target, by, reason) values ('user.delete', 'u', 'user a', 'r')`, true},
		{"users", `select from pgjet.operation`, false},
	} {
		err := as(t.Context(), db, c.role, func(tx pgx.Tx) error {
			_, err := tx.Exec(t.Context(), c.sql)
			return err
		})
		if !c.allowed && !denied(err) || c.allowed && err != nil {
			t.Errorf("%s: %s: %v, want allowed = %t", c.role, c.sql, err, c.allowed)
		}
	}
}

// TestOnlyARelaySaysWhatIsPublished: a partition with an event that no checkpoint covers
// can be dropped only by a role that can write a checkpoint. That is the relay alone, which
// is trusted with it.
func TestOnlyARelaySaysWhatIsPublished(t *testing.T) {
	db := testenv.Postgres(t)
	if _, err := db.Exec(t.Context(), `
		insert into pgjet.outbox (id, type, key, data) values (gen_random_uuid(), 'a.b', 'k', '{}');
		insert into pgjet.leader (stream, epoch) values ('S', 1);
		insert into pgjet.checkpoint (stream, stream_created, stream_seq, snapshot, floor, epoch, system_identifier)
		select 'S', now(), 0, '1:1:', 0, 1, system_identifier from pg_control_system()`); err != nil {
		t.Fatal(err)
	}
	// Each role tries all of these, and after each to drop. Statements without the right
	// fail.
	forge := []string{
		`insert into pgjet.checkpoint (stream, stream_created, stream_seq, snapshot, floor, epoch, system_identifier)
		 select 'S', now(), 1, pg_current_snapshot(), 9000000, 1, system_identifier from pg_control_system()`,
		`update pgjet.checkpoint set floor = 9000000, snapshot = pg_current_snapshot()`,
		`delete from pgjet.checkpoint`,
		`delete from pgjet.leader`,
		`update pgjet.leader set epoch = 0`,
		`update pgjet.leader set cause = 'stream_missing: it says'`,
		`insert into pgjet.leader (stream, epoch, cause) values ('T', 1, 'stream_missing: it says')`,
		`insert into pgjet.leader (stream, epoch) values ('T', 0)`,
		`insert into pgjet.quarantine (seq, event_id, reason, state) select seq, id, 'r', 'dropped' from pgjet.outbox`,
		`insert into pgjet.adoption (stream, stream_created, stream_seq, by, reason) values ('S', now(), 9000000, 'me', 'r')`,
		`update pgjet.pruned set seq = 9000000`,
		`select setval('pgjet.outbox_seq_seq', 9000000)`,
		`delete from pgjet.outbox`,
		`truncate pgjet.outbox`,
		`drop table pgjet.outbox_1`,
	}
	drop := []string{
		`select pgjet.drop_outbox_partition('outbox_1', pg_current_snapshot(), 9000000)`,
		`select pgjet.drop_outbox_partition('outbox_1', null, null)`,
	}
	for _, role := range append(roles, "pgjet_nobody") {
		err := as(t.Context(), db, role, func(tx pgx.Tx) error {
			for _, one := range forge {
				for _, sql := range append([]string{one}, drop...) {
					_ = pgx.BeginFunc(t.Context(), tx, func(tx pgx.Tx) error {
						_, err := tx.Exec(t.Context(), sql)
						return err
					})
				}
			}
			if _, err := tx.Exec(t.Context(), `reset role`); err != nil {
				return err
			}
			var left int
			err := tx.QueryRow(t.Context(), `select count(*) from pgjet.outbox`).Scan(&left)
			if relay := role == "pgjet_relay"; (left == 0) != relay {
				t.Errorf("%s has left %d events of 1", role, left)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}
