package producer

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// errDatabaseBusy says that all transactions stayed taken.
var errDatabaseBusy = errors.New("no turn for a transaction")

// A database is a pool in which transactions leave a quarter of the connections to
// reads: a read does not stand in line behind all that is to be written.
type database struct {
	*pgxpool.Pool
	changes *gate
}

func newDatabase(db *pgxpool.Pool) *database {
	conns := int(db.Config().MaxConns)
	const line = 1 << 20 // admissions bound it
	return &database{db, newGate(max(1, conns-max(1, conns/4)), line)}
}

// Begin begins a transaction, which must end with Commit or Rollback. It waits for its turn
// as long as ctx has time, and returns [errDatabaseBusy] then.
func (d *database) Begin(ctx context.Context) (pgx.Tx, error) {
	const never = time.Hour // ctx ends before
	leave, err := d.changes.enter(ctx, never)
	if errors.Is(err, errFull) {
		return nil, errDatabaseBusy
	}
	if err != nil {
		return nil, err
	}
	tx, err := d.Pool.Begin(ctx)
	if err != nil {
		leave()
		return nil, err
	}
	return &change{tx, leave}, nil
}

// A change is a transaction that gives its turn back when it ends.
type change struct {
	pgx.Tx
	leave func()
}

// Commit commits the transaction, and ends it in any case.
func (c *change) Commit(ctx context.Context) error {
	defer c.leave()
	return c.Tx.Commit(ctx)
}

// Rollback ends the transaction, if it has not ended.
func (c *change) Rollback(ctx context.Context) error {
	defer c.leave()
	return c.Tx.Rollback(ctx)
}
