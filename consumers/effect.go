package consumers

import (
	"context"
	"errors"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/lead"
	"github.com/pgjet/pgjet/internal/postgres"
)

// remember commits that an effect has happened. It does not give up lightly: the
// effect cannot be undone. As long as somebody keeps it from a table it tries on. But a process
// that is told to stop does not wait for a database that is away.
func (t *term) remember(ctx context.Context, w *work, e ending) error {
	for {
		err := t.rememberOnce(ctx, w, e)
		if err == nil || t.stopping.Err() != nil || !t.locked(ctx, err) {
			return err
		}
	}
}

func (t *term) rememberOnce(ctx context.Context, w *work, e ending) error {
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), rememberTime)
	defer cancel()
	defer context.AfterFunc(t.stopping, func() { time.AfterFunc(stopRemembering, cancel) })()
	b := backoff.WithContext(backoff.NewConstantBackOff(200*time.Millisecond), limit)
	return backoff.Retry(func() error {
		err := t.unfenced(ctx, func(ctx context.Context, tx pgx.Tx) error { return t.finish(ctx, tx, w, e) })
		if errors.Is(err, errTaken) {
			return backoff.Permanent(err)
		}
		t.renew(err)
		return err
	}, b)
}

// unfenced is write without the fence: what has happened is told even in a session that
// was superseded or paused. The intent that this process holds is fence enough.
func (t *term) unfenced(ctx context.Context, fn func(ctx context.Context, tx pgx.Tx) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTime)
	defer cancel()
	return pgx.BeginTxFunc(ctx, t.DB, postgres.Transaction(lead.Silence), func(tx pgx.Tx) error { return fn(ctx, tx) })
}

// effect writes the intent for an event from the stream down, and makes the attempt.
func (t *term) effect(ctx context.Context, w *work) {
	if t.gate.await(ctx, 0) != nil {
		return
	}
	if !t.putDown(ctx, w, 1, true, 0) {
		return
	}
	w.delivery, w.intent = nil, &intent{attempts: 1}
	t.intended(ctx, w)
}
