package consumers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/trace"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/attempt"
)

// groupTime is how long the handlers of a group may take together before the next one is left to another
// attempt.
const groupTime = 50 * time.Millisecond

// maxDeaths is how many processes may die at an event. Then it is set aside.
const maxDeaths = 3

var (
	// errLost is why an event whose fate is unknown is not simply handled.
	errLost = errors.New("lost: JetStream counts this event as delivered and the inbox does not know it; it may have been handled before the database was restored. Redrive or discard it")
	// errUnkept is why an event is not tried once more although nothing says how its attempts
	// ended.
	errUnkept = errors.New("max_attempts: as many attempts as are allowed were begun, and the database did not keep how the last one ended; it was not tried again")
)

// deal takes events from claim to settlement, until each is settled: it makes one attempt at as many as go together, and if that fails, at each
// event alone. What each comes to, [term.settle] writes down.
func (t *term) deal(ctx context.Context, queue []*work) {
	slices.SortStableFunc(queue, func(a, b *work) int {
		return cmp.Or(cmp.Compare(a.Generation, b.Generation), cmp.Compare(a.Seq, b.Seq))
	})
	stuck := make(map[string]bool) // keys whose later intents have to wait
	for most := t.Consumer.most(); len(queue) > 0; {
		some, v, e := t.next(ctx, queue, most, stuck)
		if ctx.Err() != nil { // the session is over; messages are in our hands still, and perhaps earlier ones of their keys
			t.giveBackIntents(ctx, queue)
			return
		}
		queue = queue[len(some):]
		var a tried
		if v == try {
			a = t.attempt(ctx, some)
			if v, e = t.judge(ctx, a.err), a.ending; len(some) > 1 && v.ofOne() {
				most, queue = 1, slices.Concat(some, queue)
				continue
			}
			some = a.tried
		}
		again := t.settle(ctx, some, v, e, stuck)
		if len(again) > 0 { // perhaps one of them is the reason
			most = 1
		}
		queue = slices.Concat(again, t.passOver(ctx, a.doubles), a.left, queue)
	}
}

// next returns the first events of a queue on which the verdict is the same before any attempt: up to most that can be attempted together, those that have
// to wait, or one of which anything else is to become.
func (t *term) next(ctx context.Context, queue []*work, most int, stuck map[string]bool) (some []*work, v verdict, e ending) {
	for n, w := range queue {
		is, err := t.admit(w, stuck[w.Key])
		if n > 0 && (is != v || w.written() != queue[0].written()) || is == try && n == most || ctx.Err() != nil {
			return queue[:n], v, e
		}
		v, e = is, ending{began: time.Now(), err: err}
		switch {
		case v == wait && !w.written():
			t.hold(w.Key) // what comes behind it in this queue waits, too
		case v != try:
			return queue[:n+1], v, e
		}
	}
	return queue, v, e
}

// admit returns what is to be done with an event before any attempt.
func (t *term) admit(w *work, stuck bool) (verdict, error) {
	switch {
	case w.written() && stuck:
		return wait, nil
	case w.bad != nil:
		return never, w.bad
	case w.written() && w.Deaths >= maxDeaths:
		return never, fmt.Errorf("crash: %d processes died at this event, it was not tried again", w.Deaths)
	case w.written() && w.Attempts > t.Consumer.MaxAttempts, w.tried >= t.Consumer.MaxAttempts:
		return never, errUnkept
	case w.written():
		return try, nil
	case w.delivery.lost && t.Consumer.Handler.effect != nil:
		return never, errLost
	case w.delivery.suspect || t.lanes.holds(w.Key):
		return wait, nil
	case t.Consumer.Handler.effect != nil:
		return intend, nil
	}
	return try, nil
}

// A tried is what one attempt did.
type tried struct {
	ending
	tried   []*work // what the attempt was about
	doubles []*work // of which the inbox knew already
	left    []*work // for another attempt, since these took long
}

// attempt makes one attempt at events together. An event at which a process died runs alone in the process.
func (t *term) attempt(ctx context.Context, all []*work) (a tried) {
	a.tried, a.began = all, time.Now()
	if t.gate.pass(ctx) != nil {
		a.err = inbox.ErrSuperseded // the session is over
		return a
	}
	if !all[0].paced && !t.pace(ctx, len(all)) {
		t.gate.retract()
		a.err = inbox.ErrSuperseded
		return a
	}
	all[0].paced = false
	defer t.solo.enter(all[0].Deaths > 0)()
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), t.Consumer.Timeout+groupTime)
	defer cancel()
	var span trace.Span
	if len(all) == 1 || t.Consumer.Handler.batch != nil { // else each event has its own
		limit, span = t.startSpan(limit, all)
	}
	a.began = time.Now()
	switch {
	case t.Consumer.Handler.effect != nil:
		a.err = t.effect(limit, all[0])
	case all[0].written():
		a.err = t.retry(limit, &a)
	default:
		a.err = t.first(limit, &a)
	}
	if a.err != nil {
		a.tried, a.doubles, a.left = all, nil, nil
	}
	a.took = time.Since(a.began) / time.Duration(max(1, len(a.tried)))
	if span != nil {
		endSpan(span, a.err)
	}
	t.left(ctx, a)
	if a.err == nil && t.Consumer.Handler.effect != nil {
		a.err = t.unfinished(ctx, t.remember(ctx, all[0], a.ending))
	}
	return a
}

// pace blocks until the consumer's rate allows an attempt at n events. It reports false if ctx ends before.
func (t *term) pace(ctx context.Context, n int) bool {
	if t.limiter == nil {
		return true
	}
	r := t.limiter.ReserveN(time.Now(), n)
	if !sleep(ctx, r.Delay()) {
		r.Cancel()
		return false
	}
	return true
}

// left reports the end of an attempt to the gate, and its result to the recent attempts, unless each event is
// tried again alone.
func (t *term) left(ctx context.Context, a tried) {
	if _, ok := errors.AsType[*laterError](a.err); ok {
		t.gate.retract() // neither an outage nor the end of one
		return
	}
	var outage error
	if u, ok := errors.AsType[*attempt.UnavailableError](a.err); ok {
		outage = u
	}
	switch news := t.gate.left(outage); {
	case news && outage == nil:
		t.log.InfoContext(ctx, "what attempts need is back")
	case news:
		t.log.WarnContext(ctx, "no attempt can succeed, will keep trying", "err", outage)
	}
	if a.err == nil || len(a.tried) == 1 || t.Consumer.Handler.batch != nil {
		t.recent.add(a.ending)
	}
}

// first handles events from the stream in the transaction of their inbox rows, unless those exist.
func (t *term) first(ctx context.Context, a *tried) error {
	all := a.tried
	return t.room.Claim(ctx, messages(all), func(tx pgx.Tx, fresh []bool) error {
		a.tried, a.doubles, a.left = nil, nil, nil
		var behind []*work // doubles, which may wait for an attempt
		double := make(map[string]bool)
		for i, w := range all {
			switch {
			case !fresh[i]:
				a.doubles = append(a.doubles, w)
				double[w.Key] = t.ordered()
			case double[w.Key]:
				behind = append(behind, w)
			default:
				a.tried = append(a.tried, w)
			}
		}
		n, err := t.handle(ctx, tx, a.tried, len(all) == 1)
		if err != nil {
			return err
		}
		a.tried, a.left = a.tried[:n], slices.Concat(a.tried[n:], behind)
		return t.room.Unclaim(ctx, tx, messages(a.left))
	})
}

// retry handles events of intents that this session has taken, in the transaction that makes them done.
func (t *term) retry(ctx context.Context, a *tried) error {
	all := a.tried
	return t.room.Check(ctx, func(tx pgx.Tx) error {
		n, err := t.handle(ctx, tx, all, len(all) == 1)
		if err != nil {
			return err
		}
		a.tried, a.left = all[:n], all[n:]
		return t.unfinished(ctx, t.room.Finish(ctx, tx, intents(a.tried), a.began, time.Since(a.began)))
	})
}

// effect makes an attempt outside the database. [term.remember] makes it done.
func (t *term) effect(ctx context.Context, w *work) error {
	w.tried++
	return t.call(ctx, func(ctx context.Context) error { return t.Consumer.Handler.effect(ctx, w.event) })
}

// handle calls the handlers for events, and returns for how many: for fewer than all if they take long.
func (t *term) handle(ctx context.Context, tx pgx.Tx, all []*work, alone bool) (n int, err error) {
	if alone && len(all) > 0 {
		all[0].tried++
	}
	if t.Consumer.Handler.batch != nil || len(all) == 1 {
		return len(all), t.handleOne(ctx, tx, all)
	}
	for began := time.Now(); n < len(all) && (n == 0 || time.Since(began) < groupTime); n++ {
		ctx, span := t.startSpan(ctx, all[n:n+1])
		err := t.handleOne(ctx, tx, all[n:n+1])
		endSpan(span, err)
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// handleOne makes one call of a handler.
func (t *term) handleOne(ctx context.Context, tx pgx.Tx, all []*work) error {
	if len(all) == 0 {
		return nil
	}
	late := false
	err := t.call(ctx, func(ctx context.Context) error {
		defer func() { late = ctx.Err() != nil }()
		if t.Consumer.Handler.batch == nil {
			return t.Consumer.Handler.each(ctx, tx, all[0].event)
		}
		batch := make([]events.Event, len(all))
		for i, w := range all {
			batch[i] = w.event
		}
		return t.Consumer.Handler.batch(ctx, tx, batch)
	})
	if err == nil && late {
		err = context.DeadlineExceeded
	}
	if err == nil {
		err = t.room.Sound(tx)
	}
	return err
}

// call calls a handler within its time, and waits for it for as long again.
func (t *term) call(ctx context.Context, handler func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, t.Consumer.Timeout)
	defer cancel()
	err := t.callers.Call(ctx, "handler", t.Consumer.Timeout, func() error { return handler(ctx) })
	if errors.Is(err, attempt.ErrAbandoned) {
		t.log.ErrorContext(ctx, "a handler does not return although its time is up, it is left behind", "timeout", t.Consumer.Timeout)
	}
	return err
}

// unfinished makes what [inbox.Tenure.Finish] failed with an error of the attempt: the handler may
// have caused it, by what it left behind in its transaction. If the database is there and
// takes the outcome of the attempt, it counts. A lock that somebody else holds is no such error.
func (t *term) unfinished(ctx context.Context, err error) error {
	ours, ok := errors.AsType[*inbox.Error](err)
	if !ok || t.locked(ctx, err) {
		return err
	}
	return fmt.Errorf("the handler returned no error, but the event cannot be made done after it: %w", ours.Err)
}

// remember commits that an effect has happened. It does not give up lightly: the
// effect cannot be undone. As long as somebody keeps it from a table it tries on. But a process
// that has to stop does not wait for a database that is away.
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
		ctx, cancel := context.WithTimeout(context.WithoutCancel(limit), pingTime)
		defer cancel()
		err := t.room.Remember(ctx, &w.Intent, e.began, e.took)
		if errors.Is(err, inbox.ErrTaken) {
			return backoff.Permanent(err)
		}
		t.data.Renew(err)
		return err
	}, b)
}

func intents(all []*work) []*inbox.Intent {
	i := make([]*inbox.Intent, len(all))
	for n, w := range all {
		i[n] = &w.Intent
	}
	return i
}
