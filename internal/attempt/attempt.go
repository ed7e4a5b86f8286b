// Package attempt runs the code of others, such as a handler of a consumer or a step of a
// saga. Such a call may panic, hang, or spoil the transaction that it was given.
package attempt

import (
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ErrAbandoned says that a call did not return when its time was up. It cannot be stopped;
// the transaction that it was given must be cut off: see [Cut].
var ErrAbandoned = errors.New("did not return when its time was up, and was left behind")

// A Panic is the value with which a call panicked.
type Panic struct {
	Stack []byte
	text  string
}

// Error returns the panic's value as text.
func (p *Panic) Error() string { return p.text }

const notItsEnd = "its transaction, which is not for it to do: return nil to commit it, an error to roll it back"

// Ended returns the error of a call, named by what, that ended its transaction.
func Ended(what string) error { return fmt.Errorf("the %s ended "+notItsEnd, what) }

// CheckTx returns an error if a call, named by what, returned nil but left tx unable to
// commit.
func CheckTx(what string, tx pgx.Tx) error {
	conn := tx.Conn().PgConn()
	switch {
	case conn.IsClosed():
		return fmt.Errorf("the %s lost its connection: it closed it, or the context of a statement ended before the statement did", what)
	case conn.IsBusy():
		return fmt.Errorf("the %s left rows open, or a statement running; close the rows before it returns", what)
	case conn.TxStatus() == 'E':
		return fmt.Errorf("the %s hid that a statement failed", what)
	case conn.TxStatus() != 'T':
		return Ended(what)
	}
	return nil
}

// Cut closes the socket of a connection that an abandoned call may be using.
func Cut(conn *pgxpool.Conn) {
	defer func() { _ = recover() }() // a call may have spoiled it
	_ = conn.Hijack().PgConn().Conn().Close()
}

// Delay returns how long to wait after attempt n, from 1. It is random, up to twice a delay
// that starts at first and doubles with each attempt up to longest.
func Delay(n int, first, longest time.Duration) time.Duration {
	b := backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(first),
		backoff.WithMultiplier(2),
		backoff.WithMaxInterval(longest),
		backoff.WithRandomizationFactor(1),
		backoff.WithMaxElapsedTime(0))
	for i := 1; i < min(n, 32); i++ { // longest is reached long before
		b.NextBackOff()
	}
	return b.NextBackOff()
}
