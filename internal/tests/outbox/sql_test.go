package outbox_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/lib/pq"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/internal/tests/notes"
	"github.com/pgjet/pgjet/outbox"
	"github.com/pgjet/pgjet/relay/backlog"
)

// A line is a connection that counts round trips.
type line struct {
	net.Conn
	asked bool
	trips *atomic.Int64
}

func (l *line) Write(b []byte) (int, error) {
	if !l.asked {
		l.trips.Add(1)
	}
	l.asked = true
	return l.Conn.Write(b)
}

func (l *line) Read(b []byte) (int, error) {
	n, err := l.Conn.Read(b)
	l.asked = false
	return n, err
}

// A dialer opens lines.
type dialer struct{ trips atomic.Int64 }

func (d *dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, network, address)
	return &line{Conn: c, trips: &d.trips}, err
}

func (d *dialer) Dial(network, address string) (net.Conn, error) {
	return d.DialContext(context.Background(), network, address)
}

func (d *dialer) DialTimeout(network, address string, _ time.Duration) (net.Conn, error) {
	return d.Dial(network, address)
}

// drivers are the drivers of database/sql for PostgreSQL.
var drivers = map[string]func(address string, d *dialer) (*sql.DB, error){
	"pgx": func(address string, d *dialer) (*sql.DB, error) {
		config, err := pgx.ParseConfig(address)
		if err != nil {
			return nil, err
		}
		config.DialFunc = d.DialContext
		return stdlib.OpenDB(*config), nil
	},
	"lib/pq": func(address string, d *dialer) (*sql.DB, error) {
		c, err := pq.NewConnector(address)
		if err != nil {
			return nil, err
		}
		c.Dialer(d)
		return sql.OpenDB(c), nil
	},
}

// byDriver runs fn with one connection of each driver, with these settings.
func byDriver(t *testing.T, settings url.Values, fn func(t *testing.T, db *sql.DB, pool *pgxpool.Pool, d *dialer)) {
	for name, open := range drivers {
		t.Run(name, func(t *testing.T) {
			pool, d := testenv.Postgres(t), &dialer{}
			address, err := url.Parse(pool.Config().ConnString())
			if err != nil {
				t.Fatal(err)
			}
			query := address.Query()
			query.Set("sslmode", "disable")
			maps.Copy(query, settings)
			address.RawQuery = query.Encode()
			db, err := open(address.String(), d)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { db.Close() })
			db.SetMaxOpenConns(1)
			fn(t, db, pool, d)
		})
	}
}

func beginSQL(t *testing.T, db *sql.DB) *sql.Tx {
	t.Helper()
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tx.Rollback() })
	return tx
}

// TestSQLTx: appending outside of a transaction does not compile.
func TestSQLTx(t *testing.T) {
	form := reflect.TypeFor[outbox.SQLTx]()
	if tx := reflect.TypeFor[*sql.Tx](); !tx.Implements(form) {
		t.Errorf("%s is no SQLTx", tx)
	}
	for _, pool := range []reflect.Type{reflect.TypeFor[*sql.DB](), reflect.TypeFor[*sql.Conn](), reflect.TypeFor[*pgxpool.Pool](), reflect.TypeFor[pgx.Tx]()} {
		if pool.Implements(form) {
			t.Errorf("%s is an SQLTx", pool)
		}
	}
}

// TestAppendSQLKeepsEverything: with every driver, and whatever the session's settings, an
// event is unchanged in the outbox, and several stay in order.
func TestAppendSQLKeepsEverything(t *testing.T) {
	t.Parallel()
	for what, settings := range map[string]url.Values{
		"defaults":       {},
		"other settings": {"standard_conforming_strings": {"off"}, "DateStyle": {"German"}, "TimeZone": {"Asia/Kathmandu"}, "backslash_quote": {"on"}, "bytea_output": {"escape"}},
	} {
		t.Run(what, func(t *testing.T) {
			byDriver(t, settings, func(t *testing.T, db *sql.DB, pool *pgxpool.Pool, _ *dialer) {
				var sent []events.Event
				tx := beginSQL(t, db)
				for _, n := range []int{1, 0, 5, 1} {
					var payloads []events.Payload
					for range n {
						e := events.Event{ID: uuid.Must(uuid.NewV7()), Type: "note.made", Key: `\' ?|{"?0,NULL}`, Data: json.RawMessage(`"$1 ? \\ '"`)}
						switch len(sent) % 3 {
						case 1:
							e.Key, e.Data = `$1 -- {",}`, json.RawMessage(`{"a": "\u0041\\ $1 $2 /* ;"}`)
						case 2:
							e = everything()
							e.Time = time.Date(1, 1, 1, 0, 0, 0, 999999000, time.UTC).AddDate(len(sent)*1600, 0, 0)
						}
						payloads, sent = append(payloads, e), append(sent, e)
					}
					if err := outbox.AppendSQL(t.Context(), tx, payloads...); err != nil {
						t.Fatal(err)
					}
				}
				if err := tx.Commit(); err != nil {
					t.Fatal(err)
				}
				wantEvents(t, pool, sent)
			})
		})
	}
}

// wantEvents fails unless exactly these events are in the outbox, in this order. Those
// without a time have the current one.
func wantEvents(t *testing.T, db *pgxpool.Pool, sent []events.Event) {
	t.Helper()
	var got []events.Event
	_, err := backlog.Read(t.Context(), notes.NewCursor(t, db).Reader, backlog.Position{}, func(r backlog.Record) error {
		if e := &r.Event; len(e.Header) == 0 { // sent without a time
			if time.Since(e.Time).Abs() > time.Minute {
				t.Errorf("time = %v, want now", e.Time)
			}
			e.Time = time.Time{}
		}
		r.Event.Seq = 0
		got = append(got, r.Event)
		return nil
	})
	if diff := cmp.Diff(sent, got); err != nil || diff != "" {
		t.Errorf("events changed in the outbox: %v\n%s", err, diff)
	}
}

// TestAppendSQLIsOneRoundTrip, also the first time on a connection.
func TestAppendSQLIsOneRoundTrip(t *testing.T) {
	t.Parallel()
	byDriver(t, nil, func(t *testing.T, db *sql.DB, _ *pgxpool.Pool, d *dialer) {
		tx := beginSQL(t, db)
		for _, n := range []int{1, 1, 10, 0} {
			before := d.trips.Load()
			if err := outbox.AppendSQL(t.Context(), tx, letters(n)...); err != nil {
				t.Fatal(err)
			}
			if trips := d.trips.Load() - before; trips != int64(min(n, 1)) {
				t.Errorf("%d events cost %d round trips, want %d", n, trips, min(n, 1))
			}
		}
	})
}

func TestAppendSQLIsAtomic(t *testing.T) {
	t.Parallel()
	byDriver(t, nil, func(t *testing.T, db *sql.DB, pool *pgxpool.Pool, _ *dialer) {
		for n, end := range []func(*sql.Tx) error{(*sql.Tx).Rollback, (*sql.Tx).Commit, (*sql.Tx).Rollback} {
			tx := beginSQL(t, db)
			if err := outbox.AppendSQL(t.Context(), tx, notes.Of("k", n)); err != nil {
				t.Fatal(err)
			}
			notes.Want(t, notes.NewCursor(t, pool).More(), []int{1}[:n/2]...) // it does not commit by itself
			if err := end(tx); err != nil {
				t.Fatal(err)
			}
			if err := outbox.AppendSQL(t.Context(), tx, notes.Of("k", n)); !errors.Is(err, sql.ErrTxDone) {
				t.Errorf("AppendSQL() after the end of the transaction = %v, want %v", err, sql.ErrTxDone)
			}
		}
		notes.Want(t, notes.NewCursor(t, pool).More(), 1)
	})
}

func TestAppendSQLRefusesWhatCannotBePublished(t *testing.T) {
	t.Parallel()
	byDriver(t, nil, func(t *testing.T, db *sql.DB, pool *pgxpool.Pool, _ *dialer) {
		tx := beginSQL(t, db)
		err := outbox.AppendSQL(t.Context(), tx, notes.Of("k", 1), notes.Of("", 2))
		if invalid, ok := errors.AsType[*events.InvalidError](err); !ok || invalid.Field != "key" {
			t.Errorf("AppendSQL() = %v, want an InvalidError of field key", err)
		}
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
		notes.Want(t, notes.NewCursor(t, pool).More())
	})
}

func TestAppendSQLSaysWhatToDo(t *testing.T) {
	t.Parallel()
	byDriver(t, nil, func(t *testing.T, db *sql.DB, pool *pgxpool.Pool, _ *dialer) {
		testenv.Exec(t, pool, `drop table pgjet.outbox cascade`)
		tx := beginSQL(t, db)
		for _, wanted := range []string{"pgjet migrate up", "had failed before"} {
			err := outbox.AppendSQL(t.Context(), tx, notes.Of("k", 1))
			if err == nil || !strings.Contains(err.Error(), wanted) || !strings.HasPrefix(err.Error(), "append note.made to outbox: ") {
				t.Errorf("AppendSQL() = %v, want an error with %q", err, wanted)
			}
		}
	})
}

// TestAppendSQLRefusesEncodings that would change the service's text. lib/pq knows UTF8
// alone.
func TestAppendSQLRefusesEncodings(t *testing.T) {
	t.Parallel()
	byDriver(t, nil, func(t *testing.T, db *sql.DB, _ *pgxpool.Pool, _ *dialer) {
		for encoding, refused := range map[string]bool{"LATIN1": true, "SJIS": true, "SQL_ASCII": false, "UTF8": false} {
			tx := beginSQL(t, db)
			if _, err := tx.Exec(fmt.Sprintf(`set local client_encoding = %q`, encoding)); err != nil {
				tx.Rollback()
				continue // the driver itself refuses it
			}
			err := outbox.AppendSQL(t.Context(), tx, notes.Of("ü", 1))
			if refused != (err != nil) || refused && !strings.Contains(err.Error(), "add client_encoding=UTF8 to the database URL") {
				t.Errorf("AppendSQL() with %s = %v, want a refusal: %t", encoding, err, refused)
			}
			tx.Rollback()
		}
	})
}

func TestAppendSQLStoresTheTrace(t *testing.T) {
	t.Parallel()
	byDriver(t, nil, func(t *testing.T, db *sql.DB, pool *pgxpool.Pool, _ *dialer) {
		tx := beginSQL(t, db)
		if err := outbox.AppendSQL(traced(), tx, notes.Of("k", 1)); err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
		var parent string
		err := pool.QueryRow(t.Context(), `select traceparent from pgjet.outbox`).Scan(&parent)
		if err != nil || parent != "00-01000000000000000000000000000000-0200000000000000-01" {
			t.Errorf("outbox has traceparent %q, %v", parent, err)
		}
	})
}

// TestAppendSQLThroughAPooler: it prepares no statement that a pooler could give to other
// clients.
func TestAppendSQLThroughAPooler(t *testing.T) {
	t.Parallel()
	for name, open := range drivers {
		t.Run(name, func(t *testing.T) {
			pool := testenv.Postgres(t)
			db, err := open(testenv.PgBouncer(t, pool.Config().ConnString(), "transaction"), &dialer{})
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			var all []*sql.Tx
			for n := range 4 { // at the same time, each on its own session
				all = append(all, beginSQL(t, db))
				if err := outbox.AppendSQL(t.Context(), all[n], notes.Of("k", n)); err != nil {
					t.Fatal(err)
				}
			}
			for n, tx := range all {
				if err := outbox.AppendSQL(t.Context(), tx, notes.Of("k", n+4), notes.Of("k", n+8)); err != nil {
					t.Fatal(err)
				}
				if err := tx.Commit(); err != nil {
					t.Fatal(err)
				}
			}
			if got := notes.NewCursor(t, pool).More(); len(got) != 12 {
				t.Errorf("read %v, want 12 events", got)
			}
		})
	}
}
