package migrations_test

import (
	"io/fs"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	goosedb "github.com/pressly/goose/v3/database"

	"github.com/pgjet/pgjet/migrations"
	"github.com/pgjet/pgjet/migrations/demo"
)

// The versions of each schema in releases.
var releases = []map[string]int64{
	{"pgjet": 7, "users": 1, "directory": 1},
	{"pgjet": 8, "users": 2, "directory": 2},
	{"pgjet": 9, "users": 3, "directory": 2},
	{"pgjet": 10, "users": 4, "directory": 3},
	{"pgjet": 11, "users": 5, "directory": 3},
	{"pgjet": 12, "users": 5, "directory": 4},
	{"pgjet": 13, "users": 5, "directory": 4},
	{"pgjet": 14, "users": 5, "directory": 4},
	{"pgjet": 15, "users": 5, "directory": 4},
	{"pgjet": 16, "users": 5, "directory": 4},
	{"pgjet": 17, "users": 5, "directory": 4},
	{"pgjet": 18, "users": 5, "directory": 4},
	{"pgjet": 19, "users": 5, "directory": 4},
	{"pgjet": 20, "users": 5, "directory": 4},
}

// migrate brings each schema to a version, up or down.
func migrate(t *testing.T, db *pgxpool.Pool, versions map[string]int64) {
	t.Helper()
	conn := stdlib.OpenDBFromPool(db)
	defer conn.Close()
	for _, set := range sets {
		schema := set.Schema
		store, err := goosedb.NewStore(goosedb.DialectPostgres, schema+".schema_version")
		if err != nil {
			t.Fatal(err)
		}
		dir, err := fs.Sub(set.Files, schema)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.Exec(t.Context(), `create schema if not exists `+schema); err != nil {
			t.Fatal(err)
		}
		p, err := goose.NewProvider("", conn, dir, goose.WithStore(store), goose.WithDisableGlobalRegistry(true))
		if err == nil {
			_, err = p.UpTo(t.Context(), versions[schema])
		}
		if err == nil {
			_, err = p.DownTo(t.Context(), versions[schema])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestReleases: a database of each release, with users in it, works in the newest one, and
// can be taken back.
func TestReleases(t *testing.T) {
	newest := releases[len(releases)-1]
	total := int64(0)
	for _, version := range newest {
		total += version
	}
	if int(total) != count(t) {
		t.Fatalf("the newest release has %d migrations, and there are %d files: add a release", total, count(t))
	}
	for _, older := range releases {
		db := empty(t)
		signUp := func(email string) error {
			_, err := db.Exec(t.Context(), `insert into users.users (id, email, name, password) values (gen_random_uuid(), $1, 'Ann', 'x')`, email)
			return err
		}
		people := func(when string) {
			t.Helper()
			n := 0
			err := db.QueryRow(t.Context(), `select count(*) from users.users u join directory.users d on d.email = u.email`).Scan(&n)
			if err != nil || n != 1 {
				t.Errorf("%d people are left %s from %v, %v", n, when, older, err)
			}
			if err := signUp("ANN@example.com"); err == nil {
				t.Errorf("an address has two users %s from %v", when, older)
			}
		}
		migrate(t, db, older)
		if err := signUp("ann@example.com"); err != nil {
			t.Fatal(err)
		}
		_, err := db.Exec(t.Context(), `insert into directory.users values (gen_random_uuid(), 'ann@example.com', 'Ann', now(), 'ann', 'ann@example.com')`)
		if err != nil {
			t.Fatal(err)
		}
		if applied, err := migrations.Up(t.Context(), db, demo.Sets...); err != nil {
			t.Fatalf("Up() = %v, %v from %v", applied, err, older)
		}
		people("after the way up")
		pending := false // so that they are onboarded
		if err := db.QueryRow(t.Context(), `select state = 'pending' and version = 1 and roles = '{}' from users.users`).Scan(&pending); err != nil || !pending {
			t.Errorf("who was there before is not pending: %v", err)
		}
		migrate(t, db, older)
		people("after the way down")
		if _, err := migrations.Up(t.Context(), db, demo.Sets...); err != nil {
			t.Errorf("Up() = %v the second time, from %v", err, older)
		}
		people("after the way up again")
	}
}

// TestOldUsersAreMended: rows that are older than the bounds keep their meaning, and can be
// changed again.
func TestOldUsersAreMended(t *testing.T) {
	db := empty(t)
	migrate(t, db, releases[2])
	for email, row := range map[string]string{
		"nested@example.com":  `'{{admin,a},{NULL,b}}', now(), 1, 0`,
		"null@example.com":    `'{NULL,admin,a,b}', now(), 1, 0`,
		"bounds@example.com":  `'[5:7]={admin,a,b}', now(), 1, 0`,
		"late@example.com":    `'{admin,a,b}', 'infinity', 1, 0`,
		"early@example.com":   `'{admin,a,b}', '0044-03-15 BC', 1, 0`,
		"counted@example.com": `'{admin,a,b}', now(), 2147483647, 2147483647`,
		"less@example.com":    `'{admin,a,b}', now(), -1, -1`,
	} {
		if _, err := db.Exec(t.Context(), `insert into users.users (id, email, name, password, roles, created_at, version, token_generation) values (gen_random_uuid(), $1, 'Ann', 'x', `+row+`)`, email); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := db.Exec(t.Context(), `insert into users.idempotency (key, fingerprint, password, user_id, answer, created_at) select email, '', '', id, '{}', 'infinity' from users.users`); err != nil {
		t.Fatal(err)
	}
	if _, err := migrations.Up(t.Context(), db, demo.Sets...); err != nil {
		t.Fatal(err)
	}
	whole := 0
	if err := db.QueryRow(t.Context(), `select count(*) from users.users join users.idempotency i on i.user_id = id and i.created_at <= now() where array(select r from unnest(roles) r) = '{admin,a,b}'`).Scan(&whole); err != nil || whole != 7 {
		t.Errorf("%d users have their roles, and answers for a day, want 7; %v", whole, err)
	}
	tag, err := db.Exec(t.Context(), `update users.users set name = 'Eve', version = version + 1, token_generation = token_generation + 1`)
	if err != nil || tag.RowsAffected() != 7 {
		t.Errorf("%s, %v, want 7 users changed", tag, err)
	}
}

// TestOldRowsAreMended: rows of pgjet and of the directory that are older than the bounds,
// one for each bound, keep their meaning, and can be changed again. A row that cannot be
// mended does not keep the others from it.
func TestOldRowsAreMended(t *testing.T) {
	db := empty(t)
	migrate(t, db, map[string]int64{"pgjet": 8, "users": 5, "directory": 2})
	for _, row := range []string{
		`pgjet.leader (stream, epoch) values ('few', -1), ('many', 9223372036854775807)`,
		`pgjet.leader (stream, epoch, since, cause_at, paused_at) values ('times', 1, 'infinity', '-infinity', 'infinity')`,
		`pgjet.leader (stream, epoch, heal_floor) values ('floor', 1, 1)`,
		`pgjet.leader (stream, epoch, heal_snapshot) values ('snapshot', 1, '1:1:')`,
		`pgjet.quarantine (seq, event_id, reason, at, changed_at) values (1, gen_random_uuid(), 'r', 'infinity', '-infinity')`,
		`pgjet.unknown_message (stream, stream_created, stream_seq, subject, at) values ('S', 'infinity', 1, 's', 'infinity')`,
		`pgjet.adoption (stream, stream_created, stream_seq, by, reason, at) values ('S', 'infinity', 1, 'b', 'r', 'infinity')`,
		`pgjet.operation (kind, target, by, reason, at) values ('k', 't', 'b', 'r', 'infinity')`,
		`pgjet.consumer (name, stream, stream_created, epoch, generation, floor, high, lost_until)
			values ('few', 'S', '-infinity', -1, -1, -1, -1, -1), ('many', 'S', now(), 9223372036854775807, 2147483647, 1, 1, 1)`,
		`pgjet.consumer (name, stream, stream_created, since, paused_at) values ('times', 'S', now(), 'infinity', 'infinity')`,
		`pgjet.process (consumer, process, workers, attempts, failed, took, since, seen_at)
			values ('c', 'few', -1, -1, -1, '-1 s', '-infinity', '-infinity'), ('c', 'many', 1, 1, 2, '200 years', 'infinity', 'infinity')`,
		`pgjet.inbox (consumer, event_id, state, attempts, generation, stream_seq, at, began)
			values ('c', gen_random_uuid(), 'done', -1, -1, -1, 'infinity', '-infinity')`,
		`pgjet.intent (consumer, event_id, type, key, generation, stream, stream_seq, subject, header, data, attempts, deaths, since, taken_at)
			values ('c', gen_random_uuid(), 't', 'k', -1, 'S', -1, 's', '{"a": ["1", 2, "3"], "b": "4", "c": {}, "d": [null]}', '', -1, -1, 'infinity', 'infinity'),
			       ('c', gen_random_uuid(), 't', 'k', 1, 'S', 1, 's', '[]', '', 2147483647, 2147483647, now(), null)`,
		`pgjet.attempt (consumer, event_id, attempt, began, took, process, outcome)
			values ('c', gen_random_uuid(), -1, 'infinity', null, 'p', 'done'), ('c', gen_random_uuid(), 1, now(), '200 years', 'p', 'done')`,
		`pgjet.dead_letter (consumer, event_id, stream, stream_seq, subject, header, data, error, attempts, generation, at, changed_at)
			values ('c', gen_random_uuid(), 'S', -1, 's', '{"a": ["1", 2, "3"], "b": "4", "c": {}, "d": [null]}', '', '', -1, -1, 'infinity', 'infinity')`,
		`pgjet.saga (id, name, key, input, attempts, waits, epoch, due_at, started_at, changed_at, ended_at)
			values (gen_random_uuid(), 'few', 'k', '{}', -1, -1, -1, '-infinity', '-infinity', '-infinity', '-infinity'),
			       (gen_random_uuid(), 'many', 'k', '{}', 2147483647, 2147483647, 9223372036854775807, 'infinity', 'infinity', 'infinity', null)`,
		`pgjet.saga (id, name, key, input, steps)
			values (gen_random_uuid(), 'steps', 'k', '{}', '[{"name": "a", "state": 1, "attempts": 1}, 2, {"name": "c", "state": "done", "attempts": 2000000000}]'),
			       (gen_random_uuid(), 'none', 'k', '{}', '{}')`,
		`directory.users values (gen_random_uuid(), 'ann@example.com', 'Ann', 'infinity', 'ann', 'ann@example.com')`,
		`directory.signups values ('infinity', 2, 'infinity'), ('10000-01-01', 3, now()), ('9999-12-31', 4, 'infinity'), ('2026-01-01', -1, now())`,
		`pgjet.consumer (name, stream, stream_created, floor) values ('c.d', 'S', now(), 1)`, // which is not mended
	} {
		if _, err := db.Exec(t.Context(), `insert into `+row); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := migrations.Up(t.Context(), db, demo.Sets...); err != nil {
		t.Fatal(err)
	}
	for _, change := range []string{
		`pgjet.leader set epoch = epoch + 1`,
		`pgjet.quarantine set state = 'retry'`,
		`pgjet.unknown_message set subject = 'u'`,
		`pgjet.adoption set by = 'u'`,
		`pgjet.operation set detail = '{"done": true}'`,
		`pgjet.consumer set epoch = epoch + 1, generation = generation + 1 where name <> 'c.d'`,
		`pgjet.process set seen_at = now()`,
		`pgjet.inbox set state = 'dead'`,
		`pgjet.intent set error = 'e'`,
		`pgjet.attempt set error = 'e'`,
		`pgjet.dead_letter set state = 'redriven'`,
		`pgjet.saga set epoch = epoch + 1`,
		`directory.users set name = 'Eve'`,
		`directory.signups set users = users + 1`,
	} {
		if tag, err := db.Exec(t.Context(), `update `+change); err != nil || tag.RowsAffected() == 0 {
			t.Errorf("update %s: %s, %v, want all rows from before changed", change, tag, err)
		}
	}
	for _, kept := range []string{
		`select count(*) = 4 from pgjet.leader where heal_snapshot is null and heal_floor is null and paused_at is null and epoch in (1, 2, 1000000000000001)`,
		`select paused_at is not null from pgjet.leader where stream = 'times'`,
		`select paused_at is not null from pgjet.consumer where name = 'times'`,
		`select count(*) = 2 from (select header from pgjet.intent union all select header from pgjet.dead_letter) h where header = '{"a": ["1", "3"], "b": ["4"]}'`,
		`select steps = '[{"name": "a", "attempts": 1}, {}, {"name": "c", "state": "done"}]' and state = 'needs_operator'
		        and error like '%2000000000%' from pgjet.saga where name = 'steps'`,
		`select steps = '[]' and state = 'needs_operator' from pgjet.saga where name = 'none'`,
		`select count(*) = 2 from pgjet.saga where name in ('few', 'many') and state = 'running' and error = ''`,
		`select took is null from pgjet.attempt where attempt = 0`,
		`select users = 10 from directory.signups where day = '9999-12-31'`,
		`select count(*) = 2 from directory.signups`,
		`select string_agg(conname, ',' order by conname) = 'consumer_bounds' from pg_constraint
		  where connamespace in ('pgjet'::regnamespace, 'directory'::regnamespace) and not convalidated`,
	} {
		ok := false
		if err := db.QueryRow(t.Context(), kept).Scan(&ok); err != nil || !ok {
			t.Errorf("not so after the way up: %s: %v", kept, err)
		}
	}
}
