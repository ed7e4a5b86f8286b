// Package attempt makes attempts at what others wrote: a handler of a consumer, a step
// of a saga. Such a call may panic, hang, or spoil the transaction that it was given.
package attempt

import (
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ErrAbandoned says that a call goes on although its time is up. It cannot be stopped;
// the transaction that it was given must be cut off: see [Cut].
var ErrAbandoned = errors.New("did not return when its time was up, and was left behind")

// A Panic is what a call panicked with.
type Panic struct {
	Stack []byte
	text  string
}

// Error returns the panic's value as text.
func (p *Panic) Error() string { return p.text }

// Sound returns an error if tx cannot commit although what, which had it, returned none.
func Sound(what string, tx pgx.Tx) error {
	conn := tx.Conn().PgConn()
	switch {
	case conn.IsClosed():
		return fmt.Errorf("the %s lost its connection: it closed it, or the context of a statement ended before the statement did", what)
	case conn.IsBusy():
		return fmt.Errorf("the %s left rows open, or a statement running; close the rows before it returns", what)
	case conn.TxStatus() != 'T':
		return fmt.Errorf("the %s hid that a statement failed, or ended its transaction", what)
	}
	return nil
}

// Cut closes the socket of a connection that a call which was left behind may be using.
func Cut(conn *pgxpool.Conn) {
	defer func() { _ = recover() }() // a call may have spoiled it
	_ = conn.Hijack().PgConn().Conn().Close()
}

// Delay returns how long to wait after attempt n, from 1: a random time up to twice what
// begins with first and doubles each time, until it is longest.
func Delay(n int, first, longest time.Duration) time.Duration {
	b := backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(first),
		backoff.WithMultiplier(2),
		backoff.WithMaxInterval(longest),
		backoff.WithRandomizationFactor(1),
		backoff.WithMaxElapsedTime(0))
	for i := 1; i < min(n, 32); i++ { // longest is long reached by then
		b.NextBackOff()
	}
	return b.NextBackOff()
}
