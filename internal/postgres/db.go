package postgres

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/sqlstate"
)

// A DB is a pool, of anyone, by which every statement and every batch is a transaction of
// its own that depends on no default. On a pinned connection that is what the statement is
// anyway; on others it is put between a begin and a commit, in the same round trip.
//
// A statement that fails since the schema changed under a prepared one is made once more,
// by a new connection. It has changed nothing.
type DB struct{ *pgxpool.Pool }

// Exec is as that of a pool.
func (d DB) Exec(ctx context.Context, sql string, args ...any) (tag pgconn.CommandTag, err error) {
	err = d.one(ctx, func(conn *pgxpool.Conn) (err error) {
		tag, err = conn.Exec(ctx, sql, args...)
		return err
	}, func(b *pgx.Batch) {
		b.Queue(sql, args...).Exec(func(t pgconn.CommandTag) error {
			tag = t
			return nil
		})
	})
	return tag, err
}

// QueryRow is as that of a pool.
func (d DB) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	return row(func(dest []any) error {
		return d.one(ctx, func(conn *pgxpool.Conn) error {
			return conn.QueryRow(ctx, sql, args...).Scan(dest...)
		}, func(b *pgx.Batch) {
			b.Queue(sql, args...).QueryRow(func(row pgx.Row) error { return row.Scan(dest...) })
		})
	})
}

type row func(dest []any) error

func (r row) Scan(dest ...any) error { return r(dest) }

// Collect returns the rows of a query, as [pgx.CollectRows] does.
func Collect[T any](ctx context.Context, d DB, fn pgx.RowToFunc[T], sql string, args ...any) (all []T, err error) {
	err = d.query(ctx, func(rows pgx.Rows) (err error) {
		all, err = pgx.CollectRows(rows, fn)
		return err
	}, sql, args)
	return all, err
}

// CollectOne returns the row of a query that has one, as [pgx.CollectExactlyOneRow] does.
func CollectOne[T any](ctx context.Context, d DB, fn pgx.RowToFunc[T], sql string, args ...any) (one T, err error) {
	err = d.query(ctx, func(rows pgx.Rows) (err error) {
		one, err = pgx.CollectExactlyOneRow(rows, fn)
		return err
	}, sql, args)
	return one, err
}

func (d DB) query(ctx context.Context, collect func(pgx.Rows) error, sql string, args []any) error {
	return d.one(ctx, func(conn *pgxpool.Conn) error {
		rows, err := conn.Query(ctx, sql, args...)
		if err != nil {
			return err
		}
		return collect(rows)
	}, func(b *pgx.Batch) { b.Queue(sql, args...).Query(collect) })
}

// one makes one statement: alone on a pinned connection, else as queue puts it into a batch. It
// makes a stale one twice.
func (d DB) one(ctx context.Context, alone func(*pgxpool.Conn) error, queue func(*pgx.Batch)) error {
	try := func() error {
		conn, err := d.Acquire(ctx)
		if err != nil {
			return err
		}
		defer conn.Release()
		if Pinned(conn.Conn()) {
			return alone(conn)
		}
		b := &pgx.Batch{}
		queue(b)
		// That there is no row must not fail the batch: pgx would forget all that it prepared.
		none := false
		fn := b.QueuedQueries[0].Fn
		b.QueuedQueries[0].Fn = func(results pgx.BatchResults) error {
			err := fn(results)
			if none = errors.Is(err, pgx.ErrNoRows); none {
				return nil
			}
			return err
		}
		err = send(ctx, conn, b)
		if err == nil && none {
			err = pgx.ErrNoRows
		}
		return err
	}
	err := try()
	if Stale(err) {
		d.Reset() // others have prepared it, too
		err = try()
	}
	return err
}

// Acquire is as that of a pool. It refuses a connection that stores text wrong.
func (d DB) Acquire(ctx context.Context) (*pgxpool.Conn, error) {
	conn, err := d.Pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	if err := CheckEncoding(conn.Conn().PgConn()); err != nil {
		conn.Release()
		return nil, err
	}
	return conn, nil
}

// Send makes the statements of a batch, one transaction together, and calls what was
// given for their results. It does not make them again: what was given may have been called.
func (d DB) Send(ctx context.Context, b *pgx.Batch) error {
	conn, err := d.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	return send(ctx, conn, b)
}

func send(ctx context.Context, conn *pgxpool.Conn, b *pgx.Batch) error {
	b, whole := Whole(conn.Conn(), b)
	err := conn.SendBatch(ctx, b).Close()
	if err != nil && whole {
		Undo(ctx, conn.Conn())
	}
	return err
}

// Whole returns b as a transaction that depends on no default, for one connection, and
// whether it begins and commits by itself; on a pinned connection b is one as it is. After an error
// such a transaction needs [Undo].
func Whole(conn *pgx.Conn, b *pgx.Batch) (*pgx.Batch, bool) {
	if Pinned(conn) {
		return b, false
	}
	whole := &pgx.Batch{}
	whole.Queue(begin)
	whole.Queue(pins)
	whole.QueuedQueries = append(slices.Clip(whole.QueuedQueries), b.QueuedQueries...)
	whole.Queue(`commit`)
	return whole, true
}

var (
	begin = `begin isolation level read committed read write`
	pins  = local(0)
)

// undoTime bounds a rollback.
const undoTime = 5 * time.Second

// Undo ends a transaction that has failed, so that its connection can be used again. One on
// which that fails is closed.
func Undo(ctx context.Context, conn *pgx.Conn) {
	if conn.IsClosed() || conn.PgConn().TxStatus() == 'I' {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	_, _ = conn.Exec(ctx, `rollback`) // a pool drops a connection that is still in a transaction
}

// Stale reports whether a statement was refused since what its connection had prepared
// does not fit the schema any more, or is not there: it works on a new connection, and has
// changed nothing.
func Stale(err error) bool {
	class := sqlstate.Of(err)
	return !IsPooler(err) && (class == sqlstate.StalePlan || class == sqlstate.Pooler)
}
