package outbox_test

import (
	"database/sql"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/internal/tests/notes"
	"github.com/pgjet/pgjet/outbox"
	"github.com/pgjet/pgjet/relay/backlog"
)

// inOneHour returns a due time for which no test waits.
func inOneHour() time.Time { return time.Now().Add(time.Hour) }

// schedule schedules payloads for one time, and returns their ids.
func schedule(t *testing.T, db *pgxpool.Pool, due time.Time, payloads ...events.Payload) (ids []uuid.UUID) {
	t.Helper()
	err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
		for _, p := range payloads {
			id, err := outbox.AppendAt(t.Context(), tx, due, p)
			if err != nil {
				return err
			}
			ids = append(ids, id)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

// move does the work of a leading relay until nothing more is due, and returns how many
// events it moved.
func move(t *testing.T, db *pgxpool.Pool) (all int64) {
	t.Helper()
	testenv.Exec(t, db, `insert into pgjet.leader (stream, epoch) values ('S', 1) on conflict do nothing`)
	for {
		var moved int64
		if err := db.QueryRow(t.Context(), `select moved from pgjet.move_due('S', 1, '-infinity', 0)`).Scan(&moved); err != nil {
			t.Fatal(err)
		}
		if moved == 0 {
			return all
		}
		all += moved
	}
}

// cancel cancels an event in a transaction of its own.
func cancel(t *testing.T, db *pgxpool.Pool, id uuid.UUID) (waiting bool) {
	t.Helper()
	err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) (err error) {
		waiting, err = outbox.Cancel(t.Context(), tx, id)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return waiting
}

// makeDue makes everything that is scheduled due now.
func makeDue(t *testing.T, db *pgxpool.Pool) {
	t.Helper()
	testenv.Exec(t, db, `update pgjet.scheduled set due = clock_timestamp() - interval '1 minute'`)
}

// TestAppendAtKeepsEverything, in every mode of pgx, alone and in a batch: once it is due,
// a scheduled event is appended unchanged, in the order of scheduling.
func TestAppendAtKeepsEverything(t *testing.T) {
	t.Parallel()
	inEveryMode(t, func(t *testing.T, db *pgxpool.Pool) {
		sent := everything()
		ids := schedule(t, db, inOneHour(), sent, notes.Of("k", 1))
		batch := &pgx.Batch{}
		queued, err := outbox.QueueAt(traced(), batch, inOneHour(), notes.Of("k", 2))
		if err != nil {
			t.Fatal(err)
		}
		if err := db.SendBatch(t.Context(), batch).Close(); err != nil {
			t.Fatal(err)
		}
		if n := move(t, db); n != 0 {
			t.Errorf("%d events were moved an hour before they are due", n)
		}
		makeDue(t, db)
		if n := move(t, db); n != 3 {
			t.Errorf("%d events were moved, want 3", n)
		}
		var got []events.Event
		_, err = backlog.Read(t.Context(), notes.NewCursor(t, db).Reader, backlog.Position{}, func(r backlog.Record) error {
			got = append(got, r.Event)
			return nil
		})
		if err != nil || len(got) != 3 {
			t.Fatalf("read %d events, %v, want 3", len(got), err)
		}
		sent.Seq = got[0].Seq
		if diff := cmp.Diff(sent, got[0]); diff != "" {
			t.Errorf("the event has changed:\n%s", diff)
		}
		if got[1].ID != ids[1] || got[2].ID != queued || ids[0] != sent.ID {
			t.Errorf("ids are %v and %v, want those of what was read: %v, %v, %v", ids, queued, got[0].ID, got[1].ID, got[2].ID)
		}
		if !strings.HasPrefix(got[2].Traceparent, "00-01") || got[1].Traceparent != "" {
			t.Errorf("the trace contexts are %q and %q, want that of the second", got[1].Traceparent, got[2].Traceparent)
		}
		if age := time.Since(got[1].Time); age > time.Minute || age < -time.Minute {
			t.Errorf("an event without a time has that of %s ago, want when it was moved", age)
		}
	})
}

// TestCancel: a waiting event is cancelled once, if the transaction commits.
func TestCancel(t *testing.T) {
	t.Parallel()
	inEveryMode(t, func(t *testing.T, db *pgxpool.Pool) {
		ids := schedule(t, db, inOneHour(), notes.Of("k", 1), notes.Of("k", 2))
		boom := errors.New("boom")
		err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
			if waiting, err := outbox.Cancel(t.Context(), tx, ids[1]); err != nil || !waiting {
				t.Errorf("Cancel() = %t, %v", waiting, err)
			}
			return boom
		})
		if !errors.Is(err, boom) {
			t.Fatal(err)
		}
		if !cancel(t, db, ids[0]) || cancel(t, db, ids[0]) {
			t.Error("an event that waits is not cancelled once")
		}
		makeDue(t, db)
		move(t, db)
		notes.Want(t, notes.NewCursor(t, db).More(), 2)
		if cancel(t, db, ids[1]) {
			t.Error("an event that was moved was cancelled")
		}
	})
}

// TestAppendAtRefuses events that could never be published, and an invalid due, and says
// so.
func TestAppendAtRefuses(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	id := uuid.Must(uuid.NewV7())
	for _, c := range []struct {
		due   time.Time
		event events.Event
		field string
	}{
		{time.Time{}, events.Event{Type: "a.b", Key: "k"}, "due"},
		{time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC), events.Event{Type: "a.b", Key: "k"}, "due"},
		{time.Date(9999, 12, 31, 23, 59, 59, 999999999, time.UTC), events.Event{Type: "a.b", Key: "k"}, "due"},
		{inOneHour(), events.Event{Type: "a b", Key: "k"}, "type"},
		{inOneHour(), events.Event{Type: "a.b"}, "key"},
	} {
		c.event.ID, c.event.Data = id, []byte(`{}`)
		_, err := outbox.AppendAt(t.Context(), nobody{}, c.due, c.event)
		if invalid, ok := errors.AsType[*events.InvalidError](err); !ok || invalid.Field != c.field {
			t.Errorf("AppendAt(%v, %+v) = %v, want %s refused", c.due, c.event, err, c.field)
		}
	}
	schedule(t, db, inOneHour(), events.Event{ID: id, Type: "a.b", Key: "k", Data: []byte(`{}`)})
	err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
		_, err := outbox.AppendAt(t.Context(), tx, inOneHour(), events.Event{ID: id, Type: "a.b", Key: "k", Data: []byte(`{}`)})
		return err
	})
	if err == nil || !strings.Contains(err.Error(), id.String()+" is scheduled already") {
		t.Errorf("an id that waits already: %v", err)
	}
}

// A nobody is a transaction without a connection, which must not be used.
type nobody struct{ pgx.Tx }

func (nobody) Conn() *pgx.Conn { return nil }

// TestDueIsNotRoundedDown: PostgreSQL keeps microseconds, and no event is due before its time.
func TestDueIsNotRoundedDown(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	due := time.Date(2100, 1, 2, 3, 4, 5, 1, time.UTC)
	schedule(t, db, due, notes.Of("k", 1))
	var stored time.Time
	if err := db.QueryRow(t.Context(), `select due from pgjet.scheduled`).Scan(&stored); err != nil || stored.Before(due) || stored.Sub(due) > time.Microsecond {
		t.Errorf("due is stored as %s, %v; want %s, rounded up", stored, err, due)
	}
}

// TestScheduledBounds: the table, too, refuses an event that could never be published or
// due, and no other.
func TestScheduledBounds(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	const insert = `insert into pgjet.scheduled (id, due, type, key, header, data) values (gen_random_uuid(), $1, $2, $3, $4, $5)`
	for _, c := range []struct{ due, kind, key, header, data string }{
		{"infinity", "a.b", "k", `{}`, `{}`},
		{"-infinity", "a.b", "k", `{}`, `{}`},
		{"10000-01-01", "a.b", "k", `{}`, `{}`},
		{"2026-01-01", "a b", "k", `{}`, `{}`},
		{"2026-01-01", "a..b", "k", `{}`, `{}`},
		{"2026-01-01", strings.Repeat("a", 129), "k", `{}`, `{}`},
		{"2026-01-01", "a.b", "", `{}`, `{}`},
		{"2026-01-01", "a.b", "a\nb", `{}`, `{}`},
		{"2026-01-01", "a.b", "a\u0085b", `{}`, `{}`},
		{"2026-01-01", "a.b", strings.Repeat("ü", 128), `{}`, `{}`},
		{"2026-01-01", "a.b", "k", `[]`, `{}`},
		{"2026-01-01", "a.b", "k", `{}`, `"` + strings.Repeat("a", events.MaxData) + `"`},
	} {
		if _, err := db.Exec(t.Context(), insert, c.due, c.kind, c.key, c.header, c.data); err == nil {
			t.Errorf("%.100v is scheduled", c)
		}
	}
	for _, key := range []string{"k", "a b", "ü\u2028\u00a0", strings.Repeat("x", events.MaxKey)} {
		data := `"` + strings.Repeat("a", events.MaxData-2) + `"`
		if _, err := db.Exec(t.Context(), insert, "2026-01-01", strings.Repeat("a", events.MaxType), key, `{"ce-a": "b"}`, data); err != nil {
			t.Errorf("key %q: %v", key, err)
		}
	}
}

// TestScheduleSQL: a transaction of database/sql schedules and cancels events as one of pgx
// does.
func TestScheduleSQL(t *testing.T) {
	t.Parallel()
	pool := testenv.Postgres(t)
	db := stdlib.OpenDBFromPool(pool)
	defer db.Close()
	in := func(fn func(tx *sql.Tx) error) {
		t.Helper()
		tx, err := db.BeginTx(t.Context(), nil)
		if err == nil {
			err = errors.Join(fn(tx), tx.Commit())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	sent := everything()
	bytes := events.Event{Type: "note.made", Key: "k", ContentType: "application/x-note", Data: []byte("\x00\xff$1'?")}
	var id uuid.UUID
	in(func(tx *sql.Tx) error {
		if _, err := outbox.AppendAtSQL(t.Context(), tx, inOneHour(), sent); err != nil {
			return err
		}
		if _, err := outbox.AppendAtSQL(t.Context(), tx, inOneHour(), bytes); err != nil {
			return err
		}
		var err error
		id, err = outbox.AppendAtSQL(t.Context(), tx, inOneHour(), notes.Of("k", 1))
		return err
	})
	in(func(tx *sql.Tx) error {
		for _, want := range []bool{true, false} {
			if waiting, err := outbox.CancelSQL(t.Context(), tx, id); err != nil || waiting != want {
				t.Errorf("CancelSQL() = %t, %v, want %t", waiting, err, want)
			}
		}
		return nil
	})
	makeDue(t, pool)
	move(t, pool)
	wantMoved(t, pool, sent, bytes)
}

// wantMoved fails unless the outbox holds these events.
func wantMoved(t *testing.T, db *pgxpool.Pool, want ...events.Event) {
	t.Helper()
	var got []events.Event
	_, err := backlog.Read(t.Context(), notes.NewCursor(t, db).Reader, backlog.Position{}, func(r backlog.Record) error {
		got = append(got, r.Event)
		return r.Err
	})
	if err != nil || len(got) != len(want) {
		t.Fatalf("read %d events, %v, want %d", len(got), err, len(want))
	}
	for i, e := range want {
		e.Seq = got[i].Seq
		if e.ID == uuid.Nil {
			e.ID, e.Time = got[i].ID, got[i].Time
		}
		if diff := cmp.Diff(e, got[i]); diff != "" {
			t.Errorf("the event has changed:\n%s", diff)
		}
	}
}

// TestScheduledBytes, in every mode of pgx: a payload that is not JSON is kept byte for byte.
func TestScheduledBytes(t *testing.T) {
	t.Parallel()
	inEveryMode(t, func(t *testing.T, db *pgxpool.Pool) {
		bytes := events.Event{Type: "note.made", Key: "k", ContentType: "application/x-note", Data: []byte("\x00\xff$1'?")}
		none := events.Event{Type: "note.made", Key: "k", ContentType: "application/x-note", Data: []byte{}}
		schedule(t, db, inOneHour(), bytes, none)
		makeDue(t, db)
		move(t, db)
		wantMoved(t, db, bytes, none)
	})
}
