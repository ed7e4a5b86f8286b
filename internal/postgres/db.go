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

// A DB wraps any pool so that every statement and every batch is a transaction of its own
// that depends on no default. On a pinned connection a statement is one anyway; on others
// it runs between a begin and a commit, in the same round trip.
//
// A statement that fails because the schema changed under a prepared one runs once more, on
// a new connection. The first run has changed nothing.
type DB struct{ *pgxpool.Pool }

// Exec is Exec of a pool.
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

// QueryRow is QueryRow of a pool.
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

// one runs one statement: alone on a pinned connection, else as queue puts it into a batch.
// It runs a stale one twice.
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
		// A missing row must not fail the batch: pgx would drop all prepared statements.
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

// Acquire is Acquire of a pool. It refuses a connection that stores text wrong, and gives the
// others [quickUUIDs].
func (d DB) Acquire(ctx context.Context) (*pgxpool.Conn, error) {
	conn, err := d.Pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	if err := CheckEncoding(conn.Conn().PgConn()); err != nil {
		conn.Release()
		return nil, err
	}
	quickUUIDs(conn.Conn())
	return conn, nil
}

// Send runs the statements of a batch as one transaction, and calls the callbacks for their
// results. It does not run them again, since callbacks may have been called.
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
// whether begin and commit were added; on a pinned connection b is one already. After an
// error such a transaction needs [Undo].
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

// Undo ends a failed transaction, so that its connection can be used again. If that fails,
// it closes the connection.
func Undo(ctx context.Context, conn *pgx.Conn) {
	if conn.IsClosed() || conn.PgConn().TxStatus() == 'I' {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	_, _ = conn.Exec(ctx, `rollback`) // a pool drops a connection that is still in a transaction
}

// Stale reports whether a statement was refused because its prepared form no longer fits
// the schema, or is missing. It works on a new connection, and has changed nothing.
func Stale(err error) bool {
	class := sqlstate.Of(err)
	return !IsPooler(err) && (class == sqlstate.StalePlan || class == sqlstate.Pooler)
}
