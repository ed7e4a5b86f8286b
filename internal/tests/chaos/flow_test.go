package chaos

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/internal/tests/program"
	"github.com/pgjet/pgjet/outbox"
)

// TestChaosHugeTransaction commits very many events at once, while others go on.
func TestChaosHugeTransaction(t *testing.T) {
	t.Parallel()
	g := calmRig(t)
	var all []events.Payload
	for i := range upTo(20_000, 100_000) {
		all = append(all, events.Event{Type: "note.made", Key: fmt.Sprint("huge/", i%100), Data: fmt.Appendf(nil, `{"n":%d}`, i/100+1)})
	}
	err := pgx.BeginFunc(t.Context(), g.db, func(tx pgx.Tx) error {
		savepoint, err := tx.Begin(t.Context())
		if err != nil {
			return err
		}
		if err := outbox.Append(t.Context(), savepoint, all[:len(all)/3]...); err != nil {
			return err
		}
		if err := savepoint.Rollback(t.Context()); err != nil {
			return err
		}
		return outbox.Append(t.Context(), tx, all...)
	})
	if err != nil {
		t.Fatal(err)
	}
	g.check()
}

// TestChaosRowsThatAppendRefuses inserts rows that only SQL can insert. Each is put into
// quarantine, and the other events flow.
func TestChaosRowsThatAppendRefuses(t *testing.T) {
	t.Parallel()
	g := calmRig(t)
	for _, row := range []struct{ name, column, value string }{
		{"no id", "id", `'00000000-0000-0000-0000-000000000000'`},
		{"a type with a space", "type", `'note made'`},
		{"a type with a wildcard", "type", `'note.>'`},
		{"a type too long", "type", `repeat('x', 200)`},
		{"an empty key", "key", `''`},
		{"a key too long", "key", `repeat('x', 256)`},
		{"a key of two lines", "key", `E'a\r\nb: c'`},
		{"too much data", "data", `to_json(repeat('x', 901 << 10))`},
		{"data nested too deep", "data", `(repeat('[', 11000) || repeat(']', 11000))::json`},
		{"a header of the server", "header", `'{"Nats-Expected-Last-Sequence": "1"}'`},
		{"a header of ours", "header", `'{"ce-id": "1"}'`},
		{"a header of two lines", "header", `'{"ce-a": "1\r\nNats-Rollup: all"}'`},
		{"a header with a number", "header", `'{"ce-a": 1}'`},
		{"a list of headers", "header", `'["ce-a"]'`},
		{"a traceparent too long", "traceparent", `repeat('0', 9000)`},
		{"a traceparent of two", "traceparent", `E'00-1\n00-2'`},
		{"no end of time", "time", `'infinity'`},
		{"a time before all years", "time", `'0044-03-15 12:00 BC'`},
		{"a time after all years", "time", `'12345-01-01'`},
	} {
		g.Run("sets aside "+row.name, func(t *testing.T) {
			values := map[string]string{"id": "gen_random_uuid()", "type": "'note.made'", "key": "'k'", "data": "'{}'", "header": "null", "traceparent": "null", "time": "now()"}
			values[row.column] = row.value
			var columns, list []string
			for column, value := range values {
				columns, list = append(columns, column), append(list, value)
			}
			g.exec(`insert into pgjet.outbox (` + strings.Join(columns, ", ") + `) values (` + strings.Join(list, ", ") + `)`)
			g.held++
			g.backlog(10, 1)
			testenv.Eventually(t, program.Patience, "it is set aside", func() bool {
				return program.Query[int](t, g.db, `select count(*) from pgjet.quarantine`) == g.held
			})
			g.flows(10)
		})
		if t.Failed() {
			t.FailNow() // it blocks all later events
		}
	}
	g.check()
}

// TestChaosMemory drains a large backlog and large events. The relay's memory does
// not grow with either, nor do its connections to the database.
func TestChaosMemory(t *testing.T) {
	t.Parallel()
	g := newRig(t, testenv.DatabaseURL(t), testenv.NATS(t).URL())
	count := upTo(100_000, 1_000_000)
	if program.Raced {
		count /= 6 // the race detector's memory hides the relay's
	}
	g.backlog(count, 1000)
	const size = 900 << 10
	g.exec(fmt.Sprintf(`
		insert into pgjet.outbox (id, type, key, data)
		select gen_random_uuid(), 'note.made', 'large', to_json(repeat('x', %d - 2)) from generate_series(1, %d)`,
		size, upTo(40, 300)))
	g.writer.start()
	begun := time.Now()
	g.relay = g.startRelay()
	connections := 0
	for want := uint64(program.Query[int](t, g.db, `select count(*) from pgjet.outbox`)); g.messages() < want; {
		connections = max(connections, program.Query[int](t, g.db, `
			select count(*) from pg_stat_activity where application_name like 'pgjet-relay%' and datname = current_database()`))
		if time.Since(begun) > program.Healing+time.Duration(count)*time.Millisecond/2 {
			break // check reports what is missing
		}
		time.Sleep(20 * time.Millisecond)
	}
	took, peak := time.Since(begun), g.peak(g.relay)
	t.Logf("%d events in %s, at most %.0f MiB and %d connections", count, took.Round(time.Millisecond), peak/(1<<20), connections)
	if peak > memoryFactor()*(128<<20) {
		t.Errorf("the relay took %.0f MiB, want at most 128", peak/(1<<20))
	}
	if connections == 0 || connections > 4 {
		t.Errorf("the relay had %d connections to the database, want 1 to 4", connections)
	}
	g.check()
}

// peak returns the largest memory that a process has had, in bytes.
func (g *rig) peak(s *program.Service) float64 {
	g.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.Cmd.Process.Pid))
	if err != nil {
		g.Fatal(err)
	}
	m := regexp.MustCompile(`VmHWM:\s*(\d+) kB`).FindSubmatch(b)
	if m == nil {
		g.Fatalf("no VmHWM in %s", b)
	}
	n, _ := strconv.ParseFloat(string(m[1]), 64)
	return n * 1024
}
