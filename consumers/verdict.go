package consumers

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"regexp"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgjet/pgjet/internal/attempt"
	"github.com/pgjet/pgjet/internal/lead"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

// A verdict is what an attempt came to.
type verdict int

const (
	done        verdict = iota
	retry               // the attempt failed
	never               // it would fail again
	unavailable         // something that every event needs is away
	taken               // another process has the event now
	unwritten           // the database did not take what is ours to write
	broken              // the session cannot go on
)

// judge tells the verdict of an attempt's error.
func (t *term) judge(ctx context.Context, err error) verdict {
	if err == nil {
		return done
	}
	switch {
	case errors.Is(err, errTaken):
		return taken
	case errors.Is(err, errSuperseded):
		return broken
	}
	if _, ours := errors.AsType[*databaseError](err); ours {
		if t.away(ctx, err) {
			return broken
		}
		return unwritten
	}
	if _, ok := errors.AsType[*unavailableError](err); ok {
		return unavailable
	}
	if _, ok := errors.AsType[*backoff.PermanentError](err); ok {
		return never
	}
	if t.away(ctx, err) {
		return broken
	}
	return retry
}

// away reports whether err came about since the database is away. A handler may also
// have lost its connection by its own fault.
func (t *term) away(ctx context.Context, err error) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTime)
	defer cancel()
	class := sqlstate.Of(err)
	switch {
	case !lostConnection(err):
		return false
	case !t.writable(ctx):
		return true
	case class != sqlstate.Unreachable && class != sqlstate.ReadOnly:
		return false
	}
	// The processes of a server learn one after the other that it has died, or that it takes no
	// writes: another one may have answered.
	time.Sleep(settleTime)
	return !t.writable(ctx)
}

// writable reports whether the database answers, takes writes, and is the one with which the
// session began: a server that has started since was away. Handlers may hold all connections
// of the pool: then a new one is asked.
func (t *term) writable(ctx context.Context) bool {
	pooled, cancel := context.WithTimeout(ctx, pingTime/2)
	defer cancel()
	err := postgres.CheckWritable(pooled, t.DB)
	if err == nil {
		return t.sameServer(pooled, t.DB)
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	conn, err := pgx.ConnectConfig(ctx, t.DB.Config().ConnConfig)
	if err != nil {
		return false
	}
	defer lead.Close(conn)
	return postgres.CheckWritable(ctx, conn) == nil && t.sameServer(ctx, conn)
}

func (t *term) sameServer(ctx context.Context, db querier) bool {
	at, err := started(ctx, db)
	return err == nil && at.Equal(t.serverBegan)
}

// started returns when the server was started.
func started(ctx context.Context, db querier) (at time.Time, err error) {
	err = db.QueryRow(ctx, `select pg_postmaster_start_time()`).Scan(&at)
	return at, err
}

// settleTime is for how long a server's processes may answer after it died, or write after it was set read-only.
const settleTime = 100 * time.Millisecond

// lostConnection reports whether err may come from a database that went away.
func lostConnection(err error) bool {
	if _, answered := errors.AsType[*pgconn.PgError](err); !answered {
		return true
	}
	switch sqlstate.Of(err) {
	case sqlstate.Unreachable, sqlstate.Exhausted, sqlstate.ReadOnly:
		return true
	}
	return sqlstate.CommitUnknown(err)
}

// stack returns the stack of a panic; nil for other errors.
func stack(err error) *string {
	panicked, ok := errors.AsType[*attempt.Panic](err)
	if !ok {
		return nil
	}
	const most = 16 << 10
	s := storable(string(panicked.Stack[:min(most, len(panicked.Stack))]))
	return &s
}

// What makes two errors of the same kind differ.
var varying = regexp.MustCompile(`(?i)"[^"]*"|'[^']*'|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{22}|\S+@\S+|0x[0-9a-f]+|\d+`)

// group returns the same text for errors that differ in ids, numbers, quoted text,
// addresses and times only, and never a long one.
func group(eventType string, reason string) string {
	const most = 200
	plain := []rune(varying.ReplaceAllString(reason, "…"))
	if len(plain) > most {
		sum := sha256.Sum256([]byte(string(plain)))
		plain = append(plain[:most], []rune("…"+hex.EncodeToString(sum[:4]))...)
	}
	return eventType + ": " + string(plain)
}
