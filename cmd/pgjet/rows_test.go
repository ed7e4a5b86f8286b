package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/internal/upkeep"
	"github.com/pgjet/pgjet/relay"
)

// extremes are SQL values at the limits of each type, or in a form that pgjet does not write.
var extremes = map[string][]string{
	"text": {
		`''`, `'x'`, `'user.created'`, `E'\x1b[2J\x07\u009b31m\u202e'`, `E'a\nb\tc\rd'`, `repeat('long ', 50000)`, `'日本'`, `'null'`,
		`'00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'`,
	},
	"timestamp with time zone": {
		`'infinity'`, `'-infinity'`, `'4714-11-24 00:00:00+00 BC'`, `'294276-12-31 23:59:59.999999+00'`, `'10000-01-01 00:00:00+00'`,
		`'9999-12-31 23:59:59.999999+00'`, `'9999-12-31 23:59:59-05'`, `'0001-01-01 00:00:00+00'`, `'0001-01-01 00:00:00+05'`, `now()`, `'epoch'`,
	},
	"interval":    {`'0'`, `'1 second'`, `'-1 day'`, `'178000000 years'`, `'-178000000 years'`, `'infinity'`, `'-infinity'`},
	"bigint":      {`0`, `1`, `-1`, `9223372036854775807`, `-9223372036854775808`, `9007199254740993`},
	"smallint":    {`0`, `1`, `-1`, `32767`, `-32768`},
	"integer":     {`0`, `1`, `-1`, `2147483647`, `-2147483648`},
	"boolean":     {`true`, `false`},
	"uuid":        {`gen_random_uuid()`, `'00000000-0000-0000-0000-000000000000'`, `'ffffffff-ffff-ffff-ffff-ffffffffffff'`},
	"bytea":       {`''`, `'\x00ff1b5b'`, `'{}'`, `'{"a":'`},
	"json":        {`'{}'`, `'null'`, `'1e400'`, `'"\u0000"'`, `(repeat('[', 3000) || repeat(']', 3000))::json`, `'{"a":1,"a":2}'`},
	"ARRAY":       {`'{}'`, `'{user.created}'`, `'{"",">"}'`, `E'{"evil\\x1b[2J"}'`, `'{{a,b},{c,d}}'`, `'{null}'`, `array_fill('x'::text, '{500}')`},
	"pg_snapshot": {`'1:1:'`, `'1:9223372036854775807:'`, `'5:9:5,7'`, `pg_current_snapshot()`},
	"jsonb": {
		`'{}'`, `'null'`, `'[]'`, `'"x"'`, `'1e400'`, `'{"a":"b"}'`, `'{"tracestate":"a=1"}'`, `'{"a":["b"]}'`, `'{"a":[1]}'`, `'{"a":[["b"]]}'`, `'{"a":null}'`,
		`'[null]'`, `'[{"name":1}]'`, `'[{"name":["a"],"state":"done"}]'`, `'[{"name":"a","state":"done","attempts":1.0,"result":[1]}]'`,
		`'[{"name":"a","state":"done","attempts":"1"}]'`, `'[{"name":"a","state":"no","attempts":1.5}]'`, `'[{"name":"a","state":"done","error":{}}]'`,
		`'[{"name":"a","state":"done","attempts":[1]}]'`, `'[[{"name":1}]]'`,
		`(repeat('[', 3000) || repeat(']', 3000))::jsonb`,
	},
}

// ofColumn are values for columns that refer to other tables, or that allow few values.
var ofColumn = map[string][]string{
	"stream": {`'EVENTS'`}, "consumer": {`'directory'`, `E'evil\x1b[2J'`},
	"outbox.type": {`'user.created'`, `''`, `repeat('x', 200)`, `E'a\x1bb'`}, "consumer.name": {`'directory'`, `E'evil\x1b[2J'`},
	"inbox.state": {`'done'`, `'dead'`, `'discarded'`, `'odd'`}, "dead_letter.state": {`'dead'`, `'redriven'`, `'odd'`},
	"saga.state": {`'running'`, `'needs_operator'`, `'done'`, `'odd'`}, "quarantine.state": {`'held'`, `'retry'`, `'dropped'`, `'odd'`},
	"attempt.outcome": {`'done'`, `'died'`, `'odd'`},
}

// A writableColumn is one that a role may write.
type writableColumn struct{ Table, Column, Type, Privilege string }

// scribble writes extreme values into every column that each role may write. It returns how many
// statements the database accepted.
func scribble(t *testing.T, db *pgxpool.Pool, rnd *rand.Rand, rounds int) (taken map[string]int) {
	taken = make(map[string]int)
	for _, role := range []string{"pgjet_writer", "pgjet_relay", "pgjet_consumer", "pgjet_operator"} {
		rows, _ := db.Query(t.Context(), `
			select c.table_name, c.column_name, c.data_type, p.privilege
			  from information_schema.columns c, unnest('{insert,update}'::text[]) as p (privilege)
			 where c.table_schema = 'pgjet' and c.is_identity = 'NO'
			   and has_column_privilege($1, format('pgjet.%I', c.table_name), c.column_name, p.privilege)
			 order by 1, 4, 2`, role)
		all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[writableColumn])
		if err != nil || len(all) == 0 {
			t.Fatalf("%s may write %d columns, %v", role, len(all), err)
		}
		value := func(c writableColumn) string {
			if rnd.IntN(10) == 0 {
				return "null"
			}
			values := extremes[c.Type]
			if few := slices.Concat(ofColumn[c.Column], ofColumn[c.Table+"."+c.Column]); len(few) > 0 {
				values = few
			}
			if len(values) == 0 {
				t.Fatalf("no values for %s.%s, of type %s", c.Table, c.Column, c.Type)
			}
			return values[rnd.IntN(len(values))]
		}
		err = pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
			if _, err := tx.Exec(t.Context(), `set local role `+role); err != nil {
				return err
			}
			try := func(table, sql string) {
				inner, err := tx.Begin(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if _, err = inner.Exec(t.Context(), sql); err != nil {
					_ = inner.Rollback(t.Context())
					return
				}
				if err := inner.Commit(t.Context()); err == nil {
					taken[role+" "+table]++
				}
			}
			inserts := make(map[string][]writableColumn)
			for _, c := range all {
				if c.Privilege == "insert" {
					inserts[c.Table] = append(inserts[c.Table], c)
				}
			}
			for table, columns := range inserts {
				for i := 0; i < rounds || taken[role+" "+table] == 0 && i < 20*rounds; i++ { // until one is accepted
					var names, values []string
					for _, c := range columns {
						v := value(c)
						if i%2 == 0 && rnd.IntN(4) > 0 { // otherwise hardly any is accepted
							v = tame(c, v)
						}
						names, values = append(names, c.Column), append(values, v)
					}
					try(table, fmt.Sprintf("insert into pgjet.%s (%s) values (%s) on conflict do nothing", table, strings.Join(names, ", "), strings.Join(values, ", ")))
				}
			}
			for range 4 {
				for _, c := range all {
					if c.Privilege == "update" {
						try(c.Table, fmt.Sprintf("update pgjet.%s set %s = %s", c.Table, c.Column, value(c)))
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return taken
}

// tame returns a value that no check refuses.
func tame(c writableColumn, v string) string {
	switch c.Type {
	case "timestamp with time zone":
		return "now()"
	case "interval":
		return "'1 second'"
	case "bigint", "integer":
		return "0"
	case "jsonb":
		if c.Column == "steps" {
			return `'[]'`
		}
		return `'{}'`
	}
	if v == "null" && c.Type != "pg_snapshot" && c.Column != "heal_floor" {
		return extremes[c.Type][0]
	}
	return v
}

// TestNoRowBreaksAView: whatever the roles can write, every view shows it without control
// characters, and each row of the outbox is published or put into quarantine.
func TestNoRowBreaksAView(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	if n, err := strconv.ParseUint(os.Getenv("PGJET_SEED"), 10, 64); err == nil {
		seed = n
	}
	t.Logf("PGJET_SEED=%d", seed)
	url, nats := testenv.DatabaseURL(t), testenv.NATS(t).URL()
	ensureStream(t, nats)
	must(t, exitOK, "consumer", "ensure", "directory", "--nats-url", nats)
	db := openDB(t, url)
	taken := scribble(t, db, rand.New(rand.NewPCG(seed, 0)), 40)
	for _, table := range []string{
		"pgjet_writer outbox", "pgjet_relay leader", "pgjet_relay checkpoint", "pgjet_relay quarantine", "pgjet_consumer consumer", "pgjet_consumer process",
		"pgjet_consumer inbox", "pgjet_consumer intent", "pgjet_consumer dead_letter", "pgjet_consumer attempt", "pgjet_consumer saga", "pgjet_operator operation", "pgjet_relay audit",
	} {
		if taken[table] == 0 {
			t.Errorf("the database took nothing of %s", table)
		}
	}
	views := [][]string{
		{"status"}, {"outbox", "status"}, {"relay", "status"}, {"relay", "quarantine", "ls"}, {"consumer", "ls"}, {"consumer", "get", "directory"},
		{"audit", "show"}, {"audit", "run"}, {"op", "ls"}, {"event", "ls"}, {"event", "ls", "--state", "dead"}, {"doctor"}, {"dead", "ls"}, {"dead", "groups"}, {"saga", "ls"}, {"migrate", "status"}, {"replay", "directory", "--all", "--dry-run"},
	}
	for _, v := range []struct{ command, query string }{
		{"dead get", `select id::text from pgjet.dead_letter order by random() limit 3`},
		{"saga get", `select id::text from pgjet.saga order by random() limit 3`},
		{"op get", `select id::text from pgjet.operation order by random() limit 3`},
		{"event get", `select id::text from pgjet.outbox order by random() limit 3`},
		{"event timeline", `select event_id::text from (select event_id from pgjet.dead_letter union all select event_id from pgjet.inbox) e order by random() limit 4`},
		{"event timeline", `select event_id::text from pgjet.quarantine order by random() limit 3`},
	} {
		rows, _ := db.Query(t.Context(), v.query)
		ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range ids {
			views = append(views, append(strings.Fields(v.command), id))
		}
	}
	for _, v := range views {
		for _, form := range []string{"table", "json"} {
			view(t, append(slices.Clone(v), "-o", form, "--database-url", url), nats)
		}
	}
	if _, err := db.Exec(t.Context(), `insert into pgjet.outbox (id, type, key, data) values (gen_random_uuid(), 'user.created', 'k', '{}')`); err != nil {
		t.Fatal(err)
	}
	// The relay's own state is removed, otherwise it would not work.
	if _, err := db.Exec(t.Context(), `truncate pgjet.leader, pgjet.checkpoint, pgjet.adoption, pgjet.unknown_message, pgjet.quarantine, pgjet.audit`); err != nil {
		t.Fatal(err)
	}
	config := db.Config().ConnConfig.Copy()
	config.RuntimeParams["role"] = "pgjet_relay"
	r := &relay.Relay{Database: config, NATSURL: nats, Source: "/test", Log: testenv.Logger(t)}
	stop := testenv.Run(t, r.Run)
	testenv.Eventually(t, 30*time.Second, "all is published or set aside", func() bool {
		conn, err := db.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Release()
		s, err := upkeep.ReadStatus(t.Context(), conn.Conn())
		if err != nil {
			t.Fatal(err)
		}
		return s.Pending == 0 && s.Quarantined > 0 && s.Published > 0 // at least one is
	})
	stop()
	for _, form := range []string{"table", "json"} {
		view(t, []string{"outbox", "status", "-o", form, "--database-url", url}, nats)
		view(t, []string{"relay", "quarantine", "ls", "-o", form, "--database-url", url}, nats)
	}
}

// TestNoNullBreaksAView: nor does a row in which one column is null, and every other has a value.
func TestNoNullBreaksAView(t *testing.T) {
	t.Parallel()
	url, nats := testenv.DatabaseURL(t), testenv.NATS(t).URL()
	ensureStream(t, nats)
	must(t, exitOK, "consumer", "ensure", "directory", "--nats-url", nats)
	db := openDB(t, url)
	for table, row := range map[string]struct {
		insert string
		views  []string
	}{
		"consumer": {`
			insert into pgjet.consumer (name, stream, stream_created, prefix, types, paused_at, paused_by, pause_reason, place, placed_at, server_start)
			values ('directory', 'EVENTS', now(), 'pgjet.events', '{user.created}', now(), 'me', 'a test', '1/2', now(), now())`,
			[]string{"replay directory --all --dry-run", "consumer get directory", "consumer ls"}},
		"leader": {`
			insert into pgjet.leader (stream, epoch, process, since, cause, cause_at, paused_at, paused_by, pause_reason, heal_snapshot, heal_floor, place, placed_at, server_start)
			values ('EVENTS', 1, 'host:1', now(), 'nats_down', now(), now(), 'me', 'a test', '1:1:', 1, '1/2', now(), now())`,
			[]string{"relay status"}},
	} {
		if _, err := db.Exec(t.Context(), row.insert); err != nil {
			t.Fatal(err)
		}
		rows, _ := db.Query(t.Context(), `
			select column_name::text from information_schema.columns where table_schema = 'pgjet' and table_name = $1 and is_nullable = 'YES' order by 1`, table)
		columns, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil || len(columns) < 5 {
			t.Fatalf("%s has the columns %v, %v", table, columns, err)
		}
		for _, c := range columns {
			set := fmt.Sprintf(`update pgjet.%s set %s = null`, table, c)
			switch c { // one is null with the other
			case "place", "heal_snapshot":
				continue
			case "placed_at":
				set += ", place = null"
			case "heal_floor":
				set += ", heal_snapshot = null"
			}
			if _, err := db.Exec(t.Context(), set); err != nil {
				t.Fatal(err)
			}
			for _, v := range row.views {
				view(t, append(strings.Fields(v), "-o", "json", "--database-url", url), nats)
			}
			if _, err := db.Exec(t.Context(), `delete from pgjet.`+table); err != nil {
				t.Fatal(err)
			}
			if _, err := db.Exec(t.Context(), row.insert); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// view runs a command, and checks what it prints.
func view(t *testing.T, args []string, nats string) {
	t.Helper()
	if slices.Contains([]string{"consumer", "replay", "status", "event"}, args[0]) || args[0] == "audit" && args[1] == "run" {
		args = append(args, "--nats-url", nats)
	}
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), args, &stdout, &stderr)
	if code != exitOK && code != exitFindings && code != exitNotFound && code != exitRefused {
		t.Errorf("%q ends with %d: %s", args, code, &stderr)
		return
	}
	if slices.Contains(args, "json") {
		if code != exitNotFound && code != exitRefused && !json.Valid(stdout.Bytes()) {
			t.Errorf("%q prints no JSON: %.300q", args, stdout.String())
		}
		return
	}
	for _, out := range []string{stdout.String(), stderr.String()} {
		if i := strings.IndexFunc(out, func(r rune) bool { return r != '\n' && !unicode.IsGraphic(r) }); i >= 0 {
			t.Errorf("%q prints %q", args, out[max(0, i-40):min(len(out), i+20)])
		}
	}
}
