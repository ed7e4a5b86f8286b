package producer

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/postgres"
)

// errDatabaseBusy says that all transactions stayed in use.
var errDatabaseBusy = errors.New("no turn for a transaction")

// A database is a pool in which transactions leave a quarter of the connections to reads,
// so that a read does not wait behind all writes.
type database struct {
	postgres.DB
	changes *gate
}

func newDatabase(db *pgxpool.Pool) *database {
	conns := int(db.Config().MaxConns)
	const line = 1 << 20 // admissions bound it
	return &database{postgres.DB{Pool: db}, newGate(max(1, conns-max(1, conns/4)), line)}
}

// turn waits for a transaction's turn as long as ctx has time, and then returns
// [errDatabaseBusy].
func (d *database) turn(ctx context.Context) (leave func(), err error) {
	const never = time.Hour // ctx ends before
	leave, err = d.changes.enter(ctx, never)
	if errors.Is(err, errFull) {
		return nil, errDatabaseBusy
	}
	return leave, err
}

// Begin begins a transaction, which must end with Commit or Rollback. It waits for its turn.
func (d *database) Begin(ctx context.Context) (pgx.Tx, error) {
	leave, err := d.turn(ctx)
	if err != nil {
		return nil, err
	}
	conn, err := d.Acquire(ctx)
	if err != nil {
		leave()
		return nil, err
	}
	done := func() { conn.Release(); leave() }
	tx, err := conn.BeginTx(ctx, postgres.For(conn.Conn()))
	if err != nil {
		done()
		return nil, err
	}
	return &change{tx, sync.OnceFunc(done)}, nil
}

// beginWith is Begin with the statements that queue adds to a batch, in one round trip.
func (d *database) beginWith(ctx context.Context, queue func(*pgx.Batch)) (pgx.Tx, error) {
	leave, err := d.turn(ctx)
	if err != nil {
		return nil, err
	}
	conn, err := d.Acquire(ctx)
	if err != nil {
		leave()
		return nil, err
	}
	b := &pgx.Batch{}
	postgres.BeginBatch(conn.Conn(), b, 0)
	queue(b)
	results := conn.SendBatch(ctx, b)
	tx := &change{results.Tx(), sync.OnceFunc(func() { conn.Release(); leave() })}
	if err := results.Close(); err != nil {
		_ = tx.Rollback(ctx) // the first error has more detail
		return nil, err
	}
	return tx, nil
}

// run runs b in a transaction of its own, which commits in the same round trip. It waits
// for its turn. Its error is one of commitError.
func (d *database) run(ctx context.Context, b *pgx.Batch) error {
	leave, err := d.turn(ctx)
	if err != nil {
		return err
	}
	defer leave()
	conn, err := d.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	b, whole := postgres.Whole(conn.Conn(), b)
	if whole {
		defer postgres.Undo(ctx, conn.Conn())
	}
	results := conn.SendBatch(ctx, b)
	defer results.Close()
	if whole { // the last one is the commit
		b = &pgx.Batch{QueuedQueries: b.QueuedQueries[:b.Len()-1]}
	}
	for _, q := range b.QueuedQueries {
		if q.Fn != nil {
			err = q.Fn(results)
		} else {
			_, err = results.Exec()
		}
		if refused(err) {
			return err // and so there was no commit
		} else if err != nil {
			return commitError(err)
		}
	}
	return commitError(results.Close())
}

// A change is a transaction that releases its turn when it ends.
type change struct {
	pgx.Tx
	leave func()
}

// Commit commits the transaction, and releases its turn in any case.
func (c *change) Commit(ctx context.Context) error {
	defer c.leave()
	return c.Tx.Commit(ctx)
}

// Rollback ends the transaction, if it has not ended.
func (c *change) Rollback(ctx context.Context) error {
	defer c.leave()
	return c.Tx.Rollback(ctx)
}
