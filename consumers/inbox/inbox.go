package inbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/lead"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

var (
	// ErrSuperseded says that an operator or another process changed the consumer, which ended the
	// session. Nothing that the session does has an effect any more.
	ErrSuperseded = errors.New("the consumer was changed, beginning again")
	// ErrTaken says that another process took over an event while this process could not reach the
	// database.
	ErrTaken = errors.New("another process has taken the event over")
)

// An Error is a failed statement of this package, as opposed to a failed handler.
type Error struct {
	What string
	Err  error
}

func (e *Error) Error() string { return e.What + ": " + e.Err.Error() }

// Unwrap returns the error of the database.
func (e *Error) Unwrap() error { return e.Err }

// failed wraps err in an [Error]. It returns nil, [ErrSuperseded] and [ErrTaken] as they are.
func failed(what string, err error) error {
	if err == nil || errors.Is(err, ErrSuperseded) || errors.Is(err, ErrTaken) {
		return err
	}
	return &Error{what, err}
}

// The states of an event or dead letter, and the outcomes of an attempt.
const (
	Done      = "done"
	Retried   = "retried"   // an attempt failed, and another one follows
	Dead      = "dead"      // the consumer gave the event up, and an operator decides on it
	Redriven  = "redriven"  // an operator gave a dead letter back to its consumer, which has not finished it
	Discarded = "discarded" // an operator gave the event up for good
)

// A Message is an event as stored in the stream, in intents and in dead letters. Its texts are made
// acceptable to PostgreSQL when they are written.
type Message struct {
	ID         uuid.UUID
	Generation int32  // of the stream; with Seq the event's position in it
	Seq        uint64 // 0 if unknown
	Stream     string
	Subject    string
	Type       string
	Key        string
	Header     map[string][]string
	Data       []byte
}

// A Tenure is the time in which one session owns one slice of a consumer. Its methods have an
// effect only while its epoch is that of the slice.
type Tenure struct {
	Consumer   string
	Ordered    bool    // of an ordered consumer
	ParkKey    bool    // events also wait behind dead letters of their key
	Slice      Slice   // the zero Slice if the consumer is not ordered
	Epoch      int64   // of the slice: the fence
	Version    Version // of the inbox; after a restore the epoch proves nothing
	Generation int32   // of the stream
	Session    string  // the name in taken_by; the process holds a lock of that name: see [Announce]
	Process    string  // host:pid, in the attempt log

	DB      postgres.DB
	Timeout time.Duration // of one call of the handler
}

// A DB executes single statements: a connection, a transaction, or a pool of package postgres.
type DB interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// A Reader executes queries.
type Reader interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// The advisory locks. Each is defined only here.
const (
	// attempts is held in shared mode by each transaction of an attempt; $1 is the consumer. A
	// session that holds it exclusively has waited for all of them, and blocks new ones.
	attempts = `hashtextextended('pgjet.consumer.' || $1, 0)`
	// sliceAttempts is held likewise by transactions of attempts at one slice; $2 is its number.
	sliceAttempts = `hashtextextended('pgjet.consumer.' || $1, 1 + $2::int)`
	// session is held by a session for as long as its process lives.
	session = `hashtextextended('pgjet.process.' || $1, 0)`
	// gone is the condition that the process which took intent i no longer lives.
	gone = `pg_try_advisory_xact_lock_shared(hashtextextended('pgjet.process.' || i.taken_by, 0))`
)

// Announce records that the session lives, for as long as the connection lasts.
func Announce(ctx context.Context, conn *pgx.Conn, name string) error {
	_, err := conn.Exec(ctx, `select pg_advisory_lock(`+session+`)`, name)
	return failed("announce the process", err)
}

// The rules of waiting. Each is defined only here. An event's position is its generation and its
// sequence in the stream. "is true" makes PostgreSQL evaluate each condition per intent: joining
// everything that waits behind one key with itself would take far too long.
const (
	// behindIntent is the condition that intent i waits for an earlier one of its key.
	behindIntent = `(exists (select from pgjet.intent e where e.consumer = i.consumer and e.key = i.key
		and (e.generation, e.stream_seq) < (i.generation, i.stream_seq)) is true)`
	// behindDead is the condition that intent i waits for an earlier dead letter of its key.
	behindDead = `(exists (select from pgjet.dead_letter d where d.consumer = i.consumer and d.key = i.key and d.state = 'dead'
		and (d.generation, d.stream_seq) < (i.generation, i.stream_seq)) is true)`
	// parked is behindIntent for an intent that is about to be parked. It locks the last earlier
	// intent until the transaction ends, so that the end of that intent wakes this one. An intent
	// that is just ending is skipped.
	parked = `(exists (select from pgjet.intent where consumer = i.consumer and event_id = (
		select e.event_id from pgjet.intent e where e.consumer = i.consumer and e.key = i.key and (e.generation, e.stream_seq) < (i.generation, i.stream_seq)
		 order by e.generation desc, e.stream_seq desc limit 1) for key share skip locked))`
	// moved updates a row of the inbox after the stream was created again: the row gets the event's
	// new position.
	moved = `on conflict (consumer, event_id) do update set generation = excluded.generation, stream_seq = excluded.stream_seq
		 where i.generation <> excluded.generation`
)

// waits returns the condition that intent i waits behind another event of its key.
func (t *Tenure) waits() string {
	switch {
	case t.Ordered && t.ParkKey:
		return `(` + behindIntent + ` or ` + behindDead + `)`
	case t.Ordered:
		return behindIntent
	}
	return `false`
}

// parks returns the same condition as waits, for an intent that is about to be parked.
func (t *Tenure) parks() string {
	switch {
	case t.Ordered && t.ParkKey:
		return `(` + parked + ` or ` + behindDead + `)`
	case t.Ordered:
		return parked
	}
	return `false`
}

// Lock waits until no transaction of an attempt of the consumer is open in any process, and blocks
// new ones until tx ends. If within is not 0, it waits no longer than that.
func Lock(ctx context.Context, tx pgx.Tx, consumer string, within time.Duration) error {
	if within > 0 {
		if _, err := tx.Exec(ctx, `select set_config('lock_timeout', $1, true)`, fmt.Sprintf("%dms", max(1, within.Milliseconds()))); err != nil {
			return err
		}
	}
	_, err := tx.Exec(ctx, `select pg_advisory_xact_lock(`+attempts+`)`, consumer)
	return err
}

// LockedOut reports whether err is that of a [Lock] that gave up waiting.
func LockedOut(err error) bool { return sqlstate.Is(err, sqlstate.LockNotAvailable) }

// write runs fn in a transaction that the server ends after a few idle seconds: a frozen process
// must not keep its locks from the process that takes over.
func write(ctx context.Context, db *pgxpool.Pool, fn func(tx pgx.Tx) error) error {
	return pgx.BeginTxFunc(ctx, db, postgres.Transaction(lead.Silence), fn)
}
