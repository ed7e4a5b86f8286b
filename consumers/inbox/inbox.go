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
	// ErrSuperseded says that an operator, or another process, changed the consumer while a
	// session was at work: nothing that the session does counts any more.
	ErrSuperseded = errors.New("the consumer was changed, beginning again")
	// ErrTaken says that another process took an event over, since this one was out of touch
	// with the database.
	ErrTaken = errors.New("another process has taken the event over")
)

// An Error is a failure of a statement of this package, not of a handler's.
type Error struct {
	What string
	Err  error
}

func (e *Error) Error() string { return e.What + ": " + e.Err.Error() }

// Unwrap returns what the database said.
func (e *Error) Unwrap() error { return e.Err }

// failed returns err as an [Error]; nil, and what is no failure of a statement, as they are.
func failed(what string, err error) error {
	if err == nil || errors.Is(err, ErrSuperseded) || errors.Is(err, ErrTaken) {
		return err
	}
	return &Error{what, err}
}

// What becomes of an attempt, and of an event or dead letter.
const (
	Done      = "done"
	Retried   = "retried"   // an attempt failed, and another one follows
	Dead      = "dead"      // the consumer gave up
	Redriven  = "redriven"  // an operator gave a dead letter another chance, which has not ended
	Discarded = "discarded" // an operator gave it up for good
)

// A Message is an event as it stands in the stream, and in intents and dead letters. Its texts
// are cut to what PostgreSQL takes when they are written.
type Message struct {
	ID         uuid.UUID
	Generation int32  // of the stream; with Seq its place
	Seq        uint64 // 0 if it has none
	Stream     string
	Subject    string
	Type       string
	Key        string
	Header     map[string][]string
	Data       []byte
}

// A Tenure is one session of a consumer: what it may do to the events, for as long as its epoch
// is that of the consumer.
type Tenure struct {
	Consumer   string
	Ordered    bool    // events of one key are handled in the order of the stream
	ParkKey    bool    // and wait behind dead letters
	Slice      Slice   // the whole, if they are not
	Epoch      int64   // of the slice: the fence
	Version    Version // of the inbox: in one that was restored since, the epoch says nothing
	Generation int32   // of the stream
	Session    string  // the name under which intents are taken; the process holds a lock of that name: see [Announce]
	Process    string  // host:pid, in the attempt log

	DB      postgres.DB
	Timeout time.Duration // of a handler
}

// A DB is where single statements go: a connection, a transaction, or a pool as package
// postgres gives it.
type DB interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// A Reader is where queries go.
type Reader interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// The locks. Each is written down here only.
const (
	// attempts is what transactions of attempts hold in shared mode: $1 is the consumer. Who has it
	// exclusively has waited for all of them, and keeps new ones waiting.
	attempts = `hashtextextended('pgjet.consumer.' || $1, 0)`
	// sliceAttempts is what those of one slice hold, too: $2 is its number.
	sliceAttempts = `hashtextextended('pgjet.consumer.' || $1, 1 + $2::int)`
	// session is what a session holds for as long as its process lives.
	session = `hashtextextended('pgjet.process.' || $1, 0)`
	// gone is the condition that the process which took intent i does not live.
	gone = `pg_try_advisory_xact_lock_shared(hashtextextended('pgjet.process.' || i.taken_by, 0))`
)

// Announce makes it known, for as long as the connection lasts, that the session lives.
func Announce(ctx context.Context, conn *pgx.Conn, name string) error {
	_, err := conn.Exec(ctx, `select pg_advisory_lock(`+session+`)`, name)
	return failed("announce the process", err)
}

// The rules of waiting, each written down here only. The place of an event is its generation
// and its sequence in the stream. Each is "is true" so that PostgreSQL looks it up for one intent after the other: a join of
// all that waits behind a key with itself takes for ever.
const (
	// behindIntent is the condition that intent i waits for an earlier one of its key.
	behindIntent = `(exists (select from pgjet.intent e where e.consumer = i.consumer and e.key = i.key
		and (e.generation, e.stream_seq) < (i.generation, i.stream_seq)) is true)`
	// behindDead is the condition that intent i waits for an earlier dead letter of its key.
	behindDead = `(exists (select from pgjet.dead_letter d where d.consumer = i.consumer and d.key = i.key and d.state = 'dead'
		and (d.generation, d.stream_seq) < (i.generation, i.stream_seq)) is true)`
	// parked is behindIntent for one that is about to wait for it: it locks the last of those until the transaction ends, so that the end of
	// that one wakes this one. One that is ending just now is not waited for.
	parked = `(exists (select from pgjet.intent where consumer = i.consumer and event_id = (
		select e.event_id from pgjet.intent e where e.consumer = i.consumer and e.key = i.key and (e.generation, e.stream_seq) < (i.generation, i.stream_seq)
		 order by e.generation desc, e.stream_seq desc limit 1) for key share skip locked))`
	// moved is what becomes of a row of the inbox in a stream that was made anew: it gets the
	// place that its event has now.
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

// parks is waits for an intent that is about to be parked.
func (t *Tenure) parks() string {
	switch {
	case t.Ordered && t.ParkKey:
		return `(` + parked + ` or ` + behindDead + `)`
	case t.Ordered:
		return parked
	}
	return `false`
}

// Lock waits until no transaction of an attempt of the consumer is open, anywhere, and keeps
// new ones waiting until tx ends. It waits no longer than within, unless that is 0.
func Lock(ctx context.Context, tx pgx.Tx, consumer string, within time.Duration) error {
	if within > 0 {
		if _, err := tx.Exec(ctx, `select set_config('lock_timeout', $1, true)`, fmt.Sprintf("%dms", max(1, within.Milliseconds()))); err != nil {
			return err
		}
	}
	_, err := tx.Exec(ctx, `select pg_advisory_xact_lock(`+attempts+`)`, consumer)
	return err
}

// LockedOut reports whether [Lock] gave up waiting.
func LockedOut(err error) bool { return sqlstate.Is(err, sqlstate.LockNotAvailable) }

// write runs fn in a transaction that the server ends when its process does nothing for some seconds: one that is
// frozen must not keep what it has locked from the one that takes over.
func write(ctx context.Context, db *pgxpool.Pool, fn func(tx pgx.Tx) error) error {
	return pgx.BeginTxFunc(ctx, db, postgres.Transaction(lead.Silence), fn)
}
