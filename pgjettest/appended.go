package pgjettest

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/events"
)

// An Appended is an event in the outbox, with its payload.
type Appended[T events.Payload] struct {
	events.Event
	Payload T
}

// RequireAppended returns the events of type T that were appended in a transaction, in
// their order, and fails the test if there are none. If want is given, they must be exactly
// these payloads. The failure shows what was appended instead. With [events.Event] as T, it
// returns events of all types.
//
// in is a transaction, which need not be committed: a [pgx.Tx], a [*sql.Tx], or a type that
// wraps one. Only events appended in that transaction count. If in is a pool or a
// connection, such as [*pgxpool.Pool] or [*sql.DB], all events count that were committed in
// its database, which should be the test's own: see [Database]. If in is a [*Mark], the
// events appended after it count. An event that is scheduled for later counts once the
// relay has appended it; see [RequireScheduled].
func RequireAppended[T events.Payload](t testing.TB, in any, want ...T) []Appended[T] {
	t.Helper()
	return requireAll(t, "appended", appended(t, in), want)
}

// requireAll returns the events of type T among all. It fails the test if there are none,
// or if they are not those in want. done is what happened to them: appended or scheduled.
func requireAll[T events.Payload](t testing.TB, done string, all []events.Event, want []T) []Appended[T] {
	t.Helper()
	found, err := ofType[T](all)
	if err != nil {
		t.Fatalf("%v; %s: %s", err, done, list(all))
	}
	kind := fmt.Sprintf("%T", *new(T))
	if k := events.TypeOf[T](); k != "" {
		kind = k
	}
	if len(want) == 0 {
		if len(found) == 0 {
			t.Fatalf("no %s was %s, but %s", kind, done, list(all))
		}
		return found
	}
	wanted := make([]events.Event, len(want))
	for i, p := range want {
		if wanted[i], err = events.New(p); err != nil {
			t.Fatal(err)
		}
	}
	same := len(found) == len(wanted)
	for i := 0; same && i < len(found); i++ {
		same = equal(found[i].Event, wanted[i])
	}
	if !same {
		t.Fatalf("%s %s: %swant: %s", kind, done, list(all), list(wanted))
	}
	return found
}

// RequireNothingAppended fails the test if an event of any type was appended, and shows it. See [RequireAppended] for in.
func RequireNothingAppended(t testing.TB, in any) {
	t.Helper()
	if all := appended(t, in); len(all) > 0 {
		t.Fatalf("want nothing appended, but %s", list(all))
	}
}

// A Mark is a place in an outbox, and in what is scheduled.
type Mark struct {
	in        any
	seq       int64 // of the last event that was appended
	scheduled int64 // of the last one that was scheduled
}

// Since returns a Mark behind everything that was appended and scheduled so far, for the
// functions whose names begin with Require. See [RequireAppended] for in.
func Since(t testing.TB, in any) *Mark {
	t.Helper()
	m := &Mark{in: in}
	for _, e := range appended(t, in) {
		m.seq = e.Seq
	}
	for _, r := range scheduled(t, in) {
		m.scheduled = max(m.scheduled, r.n)
	}
	return m
}

// ofType returns the events in all that are of type T.
func ofType[T events.Payload](all []events.Event) (found []Appended[T], err error) {
	kind := events.TypeOf[T]()
	for _, e := range all {
		a := Appended[T]{Event: e}
		switch p := any(&a.Payload).(type) {
		case *events.Event:
			*p = e
		default:
			if e.Type != kind {
				continue
			}
			if a.Payload, err = events.Decode[T](e); err != nil {
				return nil, err
			}
		}
		found = append(found, a)
	}
	return found, nil
}

// equal reports whether an appended event has the content of want.
func equal(e, want events.Event) bool {
	return e.Type == want.Type && e.Key == want.Key && e.ContentType == want.ContentType &&
		(bytes.Equal(e.Data, want.Data) || e.IsJSON() && bytes.Equal(canonical(e.Data), canonical(want.Data)))
}

// canonical returns JSON with its fields in one order.
func canonical(data []byte) []byte {
	var v any
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if d.Decode(&v) != nil {
		return data
	}
	b, err := json.Marshal(v)
	if err != nil {
		return data
	}
	return b
}

// Bounds of the events that a failure shows.
const (
	mostListed = 20
	mostData   = 500
)

// list returns events as lines, after their number.
func list(all []events.Event) string {
	if len(all) == 0 {
		return "nothing\n"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d in all:\n", len(all))
	for i, e := range all {
		if i == mostListed {
			fmt.Fprintf(&b, "  … and %d more\n", len(all)-i)
			break
		}
		data := fmt.Sprintf("%d bytes of %s", len(e.Data), e.ContentType)
		if e.IsJSON() {
			data = string(e.Data)
		}
		if len(data) > mostData {
			data = strings.ToValidUTF8(data[:mostData], "") + "…"
		}
		fmt.Fprintf(&b, "  %s, key %s: %s\n", e.Type, e.Key, data)
	}
	return b.String()
}

// The types from which the rows of an outbox can be read.
type (
	pgxDB interface {
		Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	}
	sqlDB interface {
		QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	}
)

// The methods by which a transaction is known.
type (
	pgxTx interface {
		Commit(ctx context.Context) error
	}
	sqlTx interface{ Commit() error }
)

// rows are rows of pgx or of database/sql.
type rows interface {
	Next() bool
	Scan(dest ...any) error
	Err() error
}

// appended returns the events that were appended in.
func appended(t testing.TB, in any) (all []events.Event) {
	t.Helper()
	after, db := int64(0), in
	if m, ok := in.(*Mark); ok {
		after, db = m.seq, m.in
	}
	query := `select ` + columns + `, case when isfinite(time) then time else now() end, seq from pgjet.outbox where seq > $1`
	if isTx(db) {
		query += ` and xid = pg_current_xact_id_if_assigned()`
	}
	err := read(t.Context(), db, query+` order by seq`, after, func(found rows) error {
		var e events.Event
		err := scan(found, &e, &e.Time, &e.Seq)
		all = append(all, e)
		return err
	})
	if err != nil {
		t.Fatalf("read the outbox: %v", err)
	}
	return all
}

// isTx reports whether db is a transaction.
func isTx(db any) bool {
	switch db.(type) {
	case pgxTx, sqlTx:
		return true
	}
	return false
}

// read calls each for the rows that a query with one argument finds.
func read(ctx context.Context, db any, query string, after int64, each func(rows) error) error {
	var found rows
	switch db := db.(type) {
	case pgxDB:
		rows, err := db.Query(ctx, query, after)
		if err != nil {
			return err
		}
		defer rows.Close()
		found = rows
	case sqlDB:
		rows, err := db.QueryContext(ctx, query, after)
		if err != nil {
			return err
		}
		defer rows.Close()
		found = rows
	default:
		return fmt.Errorf("%T is no transaction, pool or connection of pgx or database/sql", db)
	}
	for found.Next() {
		if err := each(found); err != nil {
			return err
		}
	}
	return found.Err()
}

// columns are common to an event in the outbox and a scheduled one.
const columns = `id::text, type, key, coalesce(traceparent, ''), coalesce(header::text, '{}'), coalesce(data::text, ''), coalesce(body, ''), coalesce(content_type, '')`

// scan reads columns and more.
func scan(found rows, e *events.Event, more ...any) (err error) {
	var id, header, data string
	var body []byte
	if err := found.Scan(append([]any{&id, &e.Type, &e.Key, &e.Traceparent, &header, &data, &body, &e.ContentType}, more...)...); err != nil {
		return err
	}
	if e.ID, err = uuid.Parse(id); err != nil {
		return err
	}
	if e.Data = []byte(data); !e.IsJSON() {
		e.Data = body
	}
	if err := json.Unmarshal([]byte(header), &e.Header); err != nil {
		return errors.New("the header of an event is no object of strings")
	}
	return nil
}
