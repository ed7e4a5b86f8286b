package consumers

import (
	"context"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/attempt"
)

// A queueTx is the transaction of an attempt as handlers get it, with the statements that functions
// of [OnQueue] have queued. If a handler ended it, the inbox rows of a group would commit although
// some of its events have not been handled. One goroutine uses it.
type queueTx struct {
	attempt.Tx
	batch    pgx.Batch
	executed int
	behind   []int // how many statements had been queued when the function for each event returned
	failed   bool  // a statement was not executed
}

func newQueueTx(tx pgx.Tx) *queueTx {
	return &queueTx{Tx: attempt.Tx{Tx: tx, What: "handler"}}
}

// handled records that the function for the next event has returned.
func (q *queueTx) handled() { q.behind = append(q.behind, q.executed+q.batch.Len()) }

// direct returns the transaction for a function that uses it itself, behind what is queued.
func (q *queueTx) direct(ctx context.Context) (pgx.Tx, error) { return q, q.send(ctx) }

// send sends the statements that are queued, and waits for the answers.
func (q *queueTx) send(ctx context.Context) error {
	if q.batch.Len() == 0 {
		return nil
	}
	q.failed = true // also if an answer panics
	for i, s := range q.batch.QueuedQueries {
		if err := q.Allow(s.SQL); err != nil {
			q.executed += i
			return err
		}
	}
	for _, s := range q.batch.QueuedQueries {
		answer := s.Fn
		s.Fn = func(br pgx.BatchResults) (err error) {
			if answer != nil {
				err = answer(br)
			} else {
				_, err = br.Exec()
			}
			if err == nil {
				q.executed++
			}
			return err
		}
	}
	err := q.SendBatch(ctx, &q.batch).Close()
	q.failed = err != nil
	q.batch = pgx.Batch{}
	return err
}

// culprit returns the number of the event whose statement failed; -1 if none did.
func (q *queueTx) culprit() int {
	if !q.failed {
		return -1
	}
	return slices.IndexFunc(q.behind, func(n int) bool { return n > q.executed })
}
