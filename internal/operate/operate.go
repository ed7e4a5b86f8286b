// Package operate answers an operator's questions as Go values: is anything wrong, and what
// happened to this event. The command line prints them.
//
// It asks the database, with the rights of pgjet_operator, and NATS, with the permissions of the
// role operator. It changes nothing but what an operator asks for by name: an operation that is planned, run,
// resumed or cancelled by its id, a replay that was planned, messages to adopt that were listed. What it reads is
// bounded: but for an audit, which somebody asked for, it never goes through the whole outbox, and its time ends with
// the context. If PostgreSQL or NATS does not answer, the rest is returned, and the value says what is missing and why.
//
// Why something does not move has a word, a [Reason]. [Reasons] is the list of all, with what
// each means and what to do next.
package operate

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/internal/jserror"
	"github.com/pgjet/pgjet/internal/natsconn"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

// A Source is what facts come from. Either server may be away: then the facts lack what it knows.
type Source struct {
	DB    *pgxpool.Pool
	DBErr error // why DB is nil

	NATS    *nats.Conn
	JS      jetstream.JetStream
	NATSErr error // why NATS and JS are nil

	Stream string               // that is meant if no relay has ever run
	Own    func(id string) bool // whether the program that asks can run this consumer itself

	Rows int64 // of the outbox that are looked through for what no index has; 0 is 200 000
}

// The servers that facts come from, as in [Missing].
const (
	database = "database"
	server   = "nats"
)

// A Missing says what could not be asked, and what the facts lack therefore.
type Missing struct {
	What string `json:"what"` // database or nats
	Code string `json:"code"` // one of [Reasons]
	Text string `json:"text"`
	Lack string `json:"lack"` // what is not known
}

// missing says that what did not answer.
func missing(what string, err error, lack string) Missing {
	code := string(sqlstate.Of(err))
	if what == server {
		code = string(natsconn.Of(err))
	}
	switch {
	case code != "":
	case what == server:
		code = string(jserror.Unreachable)
	case errors.Is(err, context.DeadlineExceeded):
		code = string(sqlstate.Timeout)
	default:
		code = string(sqlstate.Unreachable)
	}
	return Missing{what, code, without(err.Error(), code), lack}
}

// A querier is a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// byIndex calls fn with a transaction whose statements go by an index wherever there is one, whatever statistics say, and are not
// compiled: of a table that is large they look at a bounded part, and that its end is near is not known to the planner.
func (s Source) byIndex(ctx context.Context, fn func(db querier) error) error {
	return pgx.BeginTxFunc(ctx, s.DB, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `select set_config('enable_seqscan', 'off', true), set_config('jit', 'off', true)`); err != nil {
			return err
		}
		return fn(tx)
	})
}

// collect reads all rows of a query.
func collect[T any](ctx context.Context, db querier, scan pgx.RowToFunc[T], sql string, args ...any) ([]T, error) {
	rows, err := db.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scan)
}

// utc returns t in UTC; nil stays nil.
func utc(t *time.Time) *time.Time {
	if t == nil {
		return nil
	}
	return new(t.UTC())
}
