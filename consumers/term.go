package consumers

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/internal/attempt"
	"github.com/pgjet/pgjet/internal/lead"
	"github.com/pgjet/pgjet/internal/natsconn"
	"github.com/pgjet/pgjet/internal/pause"
	"github.com/pgjet/pgjet/internal/postgres"
)

const (
	// pingTime bounds a question to the database beside an attempt.
	pingTime = 5 * time.Second
	// stopRemembering is for how long it tries once it is told to stop.
	stopRemembering = 2 * time.Second
	// pollEvery is how often a session looks for due intents, and what operators want.
	pollEvery = 250 * time.Millisecond
)

// rememberTime is for how long a process tries to commit that an effect happened.
var rememberTime = 2 * time.Minute

// A term is one session of a runner: bound to the durable consumer, known to the
// database, and, if events are in order, alone.
type term struct {
	*Runner
	id       string // of this session, in intents
	conn     *pgx.Conn
	place    place
	consumer jetstream.Consumer
	first    uint64 // and last place in the stream, as of the beginning
	last     uint64
	ackFloor atomic.Uint64 // as JetStream said last
	missing  int64         // as of the last counts
	missed   int           // how often in a row
	next     uint64        // number of the next delivery since the last reset
	suspects uint64        // up to here a process that died may have been at work
	gate     *gate
	hands    *hands
	acks     *acks
	lanes    *lanes
	solo     sync.RWMutex // held alone by an attempt at which a process died before
	alone    atomic.Bool  // there is one of those in hand
	kick     chan struct{}
	fail     context.CancelCauseFunc // ends the session
	stopping context.Context         //nolint:containedctx // ends when the runner is told to stop
	callers  attempt.Callers
	began    time.Time
	// when the server was started with which the session began
	serverBegan time.Time

	holder    error     // of a lock that attempts need, seen last; nil without one
	heldSince time.Time // since when it is that one

	mu   sync.Mutex
	keys map[string]bool // that have intents: later events wait behind them
}

func (t *term) ordered() bool { return !t.Consumer.Unordered }

// session handles events until something fails, or ctx ends.
func (r *Runner) session(ctx context.Context) error {
	t := &term{Runner: r, stopping: ctx, id: fmt.Sprintf("%s:%s", r.process, uuid.NewString()[:8]), began: time.Now(),
		gate: newGate(r.Consumer.Workers), kick: make(chan struct{}, 1), keys: make(map[string]bool)}
	t.hands = newHands(max(leastHeld, 4*r.Consumer.Workers, 4*r.Consumer.Batch))
	t.acks, t.lanes = newAcks(), newLanes()
	r.gate.Store(t.gate)
	err := t.begin(ctx)
	if t.conn != nil {
		defer lead.Close(t.conn)
	}
	if err != nil {
		return t.tell(ctx, t.explained(t.named(ctx, err)))
	}
	defer func() { r.ended = append(r.ended, t.id) }()
	err = t.serve(ctx)
	r.renew(err)
	return t.explained(t.named(ctx, err))
}

// named returns err, or who keeps the session from a table, if that is why it ended.
func (t *term) named(ctx context.Context, err error) error {
	if t.conn == nil || t.conn.IsClosed() {
		return lead.NameLock(ctx, t.db(), err, tables...)
	}
	return lead.NameLock(ctx, t.conn, err, tables...)
}

// renew has all connections made anew if the database refused a statement of ours: a handler
// may have changed the session of one, by a set role, say.
func (r *Runner) renew(err error) {
	if _, refused := errors.AsType[*pgconn.PgError](err); refused {
		r.DB.Reset()
	}
}

// tell leaves why no session began in the database, for those who ask there, if it is
// at hand.
func (t *term) tell(ctx context.Context, err error) error {
	connected := t.conn != nil && !t.conn.IsClosed()
	switch {
	case ctx.Err() != nil, errors.Is(err, errSuperseded):
	case connected:
		_ = t.heartbeat(ctx, t.conn, err) // the log says it, too
	case postgres.IsPooler(err) && postgres.CheckNames(ctx, t.DB) == nil: // which takes statements
		_ = t.heartbeat(ctx, t.db(), err)
	}
	return err
}

// begin connects, takes the lead if order asks for it, and binds.
func (t *term) begin(ctx context.Context) (err error) {
	direct, err := t.direct(ctx)
	if err == nil {
		t.conn, err = lead.Connect(ctx, direct, "consumer "+t.Consumer.Name, "pgjet-"+t.Consumer.Name,
			postgres.Setting{Name: "lock_timeout", Value: lockTime})
	}
	if err != nil {
		return &databaseError{"connect", err}
	}
	if err := postgres.CheckNames(ctx, t.DB); err != nil {
		return &databaseError{"look at the pool", err}
	}
	if _, err := t.conn.Exec(ctx, `select pg_advisory_lock(hashtextextended('pgjet.process.' || $1, 0))`, t.id); err != nil {
		return &databaseError{"announce the process", err}
	}
	if t.serverBegan, err = started(ctx, t.conn); err != nil {
		return &databaseError{"ask when the server was started", err}
	}
	if err := t.awaitTables(ctx); err != nil {
		return err
	}
	if err := t.releaseEarlier(ctx); err != nil {
		return &databaseError{"give intents back", err}
	}
	if t.ordered() {
		if err := t.standBy(ctx); err != nil {
			return err
		}
	}
	if err := natsconn.CheckVersion(t.JS.Conn()); err != nil {
		return err
	}
	created, err := t.stream(ctx)
	if err != nil {
		return err
	}
	err = pgx.BeginFunc(ctx, t.conn, func(tx pgx.Tx) error {
		var err error
		t.place, err = t.register(ctx, tx, created)
		return err
	})
	if err != nil {
		return t.waitIfPaused(ctx, err)
	}
	if t.ordered() {
		if err := t.depose(ctx); err != nil {
			return &databaseError{"take the lead", err}
		}
		if err := t.takePlace(ctx); err != nil {
			return &databaseError{"take the lead", err}
		}
	}
	if err := t.rebuildIfAsked(ctx, &t.place); err != nil {
		return &databaseError{"rebuild", err}
	}
	if err := t.bind(ctx); err != nil {
		return err
	}
	if err := t.loadKeys(ctx); err != nil {
		return &databaseError{"look for intents", err}
	}
	return nil
}

// standBy waits until no other process is active.
func (t *term) standBy(ctx context.Context) error {
	err := lead.Take(ctx, t.conn, "pgjet.active."+t.Consumer.Name, func(h lead.Holder) {
		err := fmt.Errorf("%w: the lead is %s", errStandby, h)
		if h.Foreign {
			err = fmt.Errorf("lead_taken: the lead is %s, which is no process of this consumer; find out what it is, and end it with pg_terminate_backend", h)
			_ = t.heartbeat(ctx, t.conn, err) // the log says it, too
		}
		switch news := t.keeper.Waiting(err); {
		case news && h.Foreign:
			t.Log.WarnContext(ctx, "not handling events", "err", err)
		case news:
			t.Log.InfoContext(ctx, "another process is active, standing by", "holder", h.String())
		}
	})
	if err != nil {
		return &databaseError{"stand by", err}
	}
	return nil
}

// waitIfPaused waits for the end of a pause, and returns why there is no session.
func (t *term) waitIfPaused(ctx context.Context, err error) error {
	if moved, ok := errors.AsType[*movedError](err); ok {
		return moved
	}
	paused, ok := errors.AsType[*pausedError](err)
	if !ok {
		return &databaseError{"make the consumer known", err}
	}
	if t.keeper.Waiting(paused) {
		t.Log.InfoContext(ctx, "not handling events", "err", paused)
	}
	for {
		if err := t.heartbeat(ctx, t.conn, paused); err != nil {
			return &databaseError{"wait for the end of a pause", err}
		}
		select {
		case <-time.After(2 * pollEvery):
		case <-ctx.Done():
			return paused
		}
		now := &pausedError{name: t.Consumer.Name}
		err := t.conn.QueryRow(ctx, `
			select c.paused_at, coalesce(c.paused_by, ''), coalesce(c.pause_reason, ''), coalesce(`+pause.Interrupted+`, false)
			  from pgjet.consumer c where c.name = $1 and c.paused_at is not null`, t.Consumer.Name).
			Scan(&now.at, &now.by, &now.reason, &now.interrupted)
		if errors.Is(err, pgx.ErrNoRows) {
			return errSuperseded
		}
		if err != nil {
			return &databaseError{"wait for the end of a pause", err}
		}
		if paused = now; t.keeper.Waiting(paused) {
			t.Log.InfoContext(ctx, "not handling events", "err", paused)
		}
	}
}

// serve receives events and makes attempts until something fails, or ctx ends. Then it
// takes no more, lets the attempts that have begun finish, and gives the rest back.
func (t *term) serve(outer context.Context) error {
	ctx, fail := context.WithCancelCause(outer)
	defer fail(nil)
	t.fail = func(err error) { fail(err) }
	var others, workers sync.WaitGroup
	holding, release := context.WithCancel(context.WithoutCancel(ctx))
	others.Go(func() { t.hands.keep(holding) })
	others.Go(func() { t.sendAcks(holding) })
	others.Go(func() { t.fail(t.receive(ctx)) })
	others.Go(func() { t.fail(t.watch(ctx, holding)) })
	others.Go(func() { t.fail(t.takeDue(ctx)) })
	others.Go(func() { t.guard(ctx) })
	others.Go(func() { t.count(ctx) })
	others.Go(func() { t.prune(ctx) })
	for range t.Consumer.Workers {
		workers.Go(func() {
			for {
				load, ok := t.lanes.next(t.Consumer.Batch)
				if !ok {
					return
				}
				t.work(ctx, load.work)
				t.lanes.done(load)
			}
		})
	}
	if t.keeper.Working() {
		t.Log.InfoContext(ctx, "consumer handles events", "stream", t.Stream, "types", t.Consumer.Types, "floor", t.place.floor)
	}
	<-ctx.Done()
	left := t.lanes.close()
	workers.Wait()
	t.callers.End()
	release()
	others.Wait()
	t.giveBack(context.WithoutCancel(ctx), left, outer.Err() == nil)
	if err := context.Cause(ctx); outer.Err() == nil {
		return err
	}
	return nil
}

// giveBack returns what was not handled, so that it need not wait for ackWait to be
// delivered again. What is given back after a failure comes after a while.
func (t *term) giveBack(ctx context.Context, left []*work, failed bool) {
	for _, w := range left {
		if w.intent != nil {
			t.giveIntentBack(ctx, w, 0)
		}
	}
	t.flushAcks(ctx)
	for _, d := range t.hands.all() {
		if failed {
			_ = d.msg.NakWithDelay(t.Consumer.delay(d.deliveries))
		} else {
			_ = d.msg.Nak()
		}
	}
	t.save(ctx)
	t.farewell(ctx)
}

// lane names the lane of an event: that of its key, or one of its own.
func (t *term) lane(w *work) string {
	if t.ordered() {
		return w.key
	}
	return w.id.String()
}

// drop forgets a message that was dealt with.
func (t *term) drop(w *work) { t.hands.drop(w.delivery) }

// sleep waits, and reports whether the session goes on.
func (t *term) sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}
