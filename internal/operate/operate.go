// Package operate answers an operator's questions as Go values: is anything wrong, and what
// happened to this event. The command line prints them.
//
// It asks the database, with the rights of pgjet_operator, and NATS, with the permissions of the
// role operator. It only makes changes that an operator names: an operation that is planned, run,
// resumed or cancelled by its id, a planned replay, listed messages to adopt. Reading is bounded:
// except for a requested audit, it never goes through the whole outbox, and it ends with the
// context. If PostgreSQL or NATS does not answer, the rest is returned, and the value says what is
// missing and why.
//
// The word for why something does not move is a [Reason]. [Reasons] lists them all, with their
// meanings and next steps.
//
// # Files
//
// DESIGN.md says why it is built this way. The package is large because there are many questions: a
// file for each, named like the command that asks it (status.go, event.go, key.go, doctor.go …).
// list.go, find.go, timeline.go and history.go are about events; operation.go, decide.go, resume.go and
// republish.go change something; reason.go has the reasons, rights.go what a role may read, schema.go
// the schemas of the JSON.
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

// A Source is where facts are read. Either server may be unreachable: then its facts are missing.
type Source struct {
	DB    *pgxpool.Pool
	DBErr error // why DB is nil

	NATS    *nats.Conn
	JS      jetstream.JetStream
	NATSErr error // why NATS and JS are nil

	Stream string               // the default if no relay has ever run
	Own    func(id string) bool // whether the asking program can run this consumer itself

	Rows int64 // rows of the outbox to search for values without an index; 0 is 200 000
}

// The servers that facts are read from, as in [Missing].
const (
	database = "database"
	server   = "nats"
)

// A Missing says which server could not be asked, and which facts are therefore missing.
type Missing struct {
	What string `json:"what"` // database or nats
	Code string `json:"code"` // one of [Reasons]
	Text string `json:"text"`
	Lack string `json:"lack"` // what is unknown
}

// missing returns the Missing of a server that did not answer.
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

// byIndex calls fn with a transaction whose statements use an index wherever there is one, whatever
// the statistics are, and are not compiled: they read a bounded part of a large table, whose bounds
// the planner does not know.
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
