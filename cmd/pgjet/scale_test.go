package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/internal/upkeep"
)

// A scaleRig is a database with a large outbox and many dead letters, and a stream.
type scaleRig struct {
	*testing.T
	db             *pgxpool.Pool
	database, nats string
	rows           int
}

// grow appends rows up to a number, in partitions like those of a relay. If they are published, a
// checkpoint covers all but the last hundred.
func (c *scaleRig) grow(rows int, published bool) {
	c.Helper()
	for ; c.rows < rows; c.rows += 250_000 {
		testenv.Exec(c.T, c.db, `
			insert into pgjet.outbox (id, type, key, traceparent, data)
			select gen_random_uuid(), 'user.created', 'k' || n % 100000, '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01', '{"name":"Ann","email":"ann@example.com"}'
			  from generate_series(1, 250000) n`)
		conn, err := c.db.Acquire(c.Context())
		if err == nil {
			_, err = upkeep.Maintain(c.Context(), conn.Conn(), 72*time.Hour)
			conn.Release()
		}
		if err != nil {
			c.Fatal(err)
		}
	}
	testenv.Exec(c.T, c.db, `analyze pgjet.outbox`)
	if published {
		testenv.Exec(c.T, c.db, `
			insert into pgjet.checkpoint (stream, system_identifier, stream_created, stream_seq, snapshot, floor, events, epoch, kept)
			select 'EVENTS', (select system_identifier from pg_control_system()), now(), max(seq), pg_current_snapshot(), max(seq) - 100, count(*), 1, true from pgjet.outbox`)
	}
}

// die creates dead letters with a hundred errors, and as many events that are done.
func (c *scaleRig) die(letters int) {
	c.Helper()
	testenv.Exec(c.T, c.db, `insert into pgjet.consumer (name, stream, stream_created, ordered, effects) values ('notes', 'EVENTS', now(), false, false)`)
	for n := 0; n < letters; n += 100_000 {
		testenv.Exec(c.T, c.db, `
			with d as (
				insert into pgjet.dead_letter (consumer, event_id, stream, generation, stream_seq, subject, type, key, header, data, error, error_group, attempts, process)
				select 'notes', gen_random_uuid(), 'EVENTS', 1, $1::int + i, 'events.00.user.created', 'user.created', 'k' || i, '{"ce-type": ["user.created"]}', '{}',
				       'no mailbox ' || i, 'no mailbox of kind ' || i % 100, 3, 'host:1'
				  from generate_series(1, 100000) i returning *
			)
			insert into pgjet.inbox (consumer, event_id, state, attempts, generation, stream_seq)
			select consumer, event_id, 'dead', attempts, generation, stream_seq from d
			union all
			select 'notes', gen_random_uuid(), 'done', 1, 1, $1::int + i from generate_series(1, 100000) i`, n)
	}
	testenv.Exec(c.T, c.db, `analyze pgjet.inbox, pgjet.dead_letter`)
}

// asks runs a command a few times, and logs and returns the median duration.
func (c *scaleRig) asks(line string) time.Duration {
	c.Helper()
	args := words(line, c.database)
	if cmd, _, err := newRoot().Find(strings.Fields(line)); err == nil && cmd.Flag("nats-url") != nil {
		args = append(args, "--nats-url", c.nats)
	}
	var took []time.Duration
	for range 3 {
		var stdout, stderr bytes.Buffer
		begun := time.Now()
		if code := run(c.Context(), args, &stdout, &stderr); code != exitOK && code != exitFindings {
			c.Errorf("pgjet %s ends with %d: %s", line, code, &stderr)
		}
		took = append(took, time.Since(begun))
	}
	median := max(min(took[0], took[1]), min(max(took[0], took[1]), took[2]))
	c.Logf("%9d rows: pgjet %-60s %6d ms", c.rows, line, median.Milliseconds())
	return median
}

// TestAtScale: commands of operators take a second or two with 10 million rows of the outbox and a
// million dead letters. The test takes some minutes and 6 GB of disk: make scale.
func TestAtScale(t *testing.T) {
	if os.Getenv("PGJET_SCALE") == "" {
		t.Skip("takes some minutes and 6 GB of disk: make scale")
	}
	c := &scaleRig{T: t, database: testenv.DatabaseURL(t), nats: testenv.NATS(t).URL()}
	c.db = openDB(t, c.database)
	ensureStream(t, c.nats)
	c.die(1_000_000)
	for _, step := range []struct {
		rows      int
		published bool
	}{{1_500_000, false}, {1_500_000, true}, {10_000_000, true}, {10_250_000, false}} {
		c.grow(step.rows, step.published)
		state := map[bool]string{true: "published", false: "pending"}[step.published]
		c.Logf("%d rows, the newest of them %s", c.rows, state)
		id := query[string](t, c.db, `select id::text from pgjet.outbox order by seq desc limit 1`)
		for _, line := range []string{
			"outbox status", "status", "relay status", "consumer ls", "doctor", "dead ls", "dead groups", "dead ls --key k7", "event ls", "event ls --state pending", "event ls --state dead",
			"key k7", "event get " + id, "event timeline k7", "op ls",
		} {
			limit := 3 * time.Second
			if line == "event timeline k7" { // the timelines of 20 events
				limit = operateTime
			}
			if took := c.asks(line); took > limit {
				t.Errorf("with %d rows %s takes %s", c.rows, fmt.Sprintf("pgjet %s", line), took)
			}
		}
	}
	c.Logf("the database has %s", query[string](t, c.db, `select pg_size_pretty(pg_database_size(current_database()))`))
}
