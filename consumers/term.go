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

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/internal/attempt"
	"github.com/pgjet/pgjet/internal/lead"
	"github.com/pgjet/pgjet/internal/natsconn"
	"github.com/pgjet/pgjet/internal/postgres"
)

const (
	// pingTime bounds a question to the database beside an attempt.
	pingTime = 5 * time.Second
	// stopRemembering is for how long it tries once it is told to stop.
	stopRemembering = 2 * time.Second
	// pollEvery is how often a session looks for due intents, and what operators want.
	pollEvery = 250 * time.Millisecond
	// lockTime is less than pingTime: the server says that somebody holds a lock before the connection is
	// given up, as if the server were away.
	lockTime = "4s"
)

// rememberTime is for how long a process tries to commit that an effect happened.
var rememberTime = 2 * time.Minute

var errStandby = errors.New("standby: another process is active")

// A term is one session of a run: bound to the durable consumer, known to the
// database, and, if events are in order, alone.
type term struct {
	*run
	stopping context.Context //nolint:containedctx // ends when the runner is told to stop
	began    time.Time

	// Set by begin, and read by all.
	tenure      inbox.Tenure
	at          inbox.Place // as it was then
	serverBegan time.Time   // when the server was started with which the session began
	suspects    uint64      // up to here a process that died may have been at work

	conn    *pgx.Conn               // of begin, then of watch
	durable durable                 // of begin, then of receive
	fail    context.CancelCauseFunc // ends the session

	// Shared.
	gate     *gate
	hands    *hands
	acks     *acks
	lanes    *lanes
	solo     sync.RWMutex // held alone by an attempt at which a process died before
	alone    atomic.Bool  // there is one of those in hand
	kick     chan struct{}
	callers  attempt.Callers
	ackFloor atomic.Uint64 // as JetStream said last

	lookout   // of begin, then of watch
	reckoning // of count
}

// session handles events until something fails, or ctx ends.
func (r *run) session(ctx context.Context) error {
	t := &term{run: r, stopping: ctx, began: time.Now(), gate: newGate(r.Consumer.Workers), acks: newAcks(), lanes: newLanes(), kick: make(chan struct{}, 1)}
	t.tenure = inbox.Tenure{Consumer: r.Consumer.Name, Ordered: r.ordered(), ParkKey: r.Consumer.ParkKey, Process: r.process,
		Session: fmt.Sprintf("%s:%s", r.process, uuid.NewString()[:8])}
	t.durable.run = r
	t.hands = newHands(max(leastHeld, 4*r.Consumer.Workers, 4*r.Consumer.Handler.most))
	r.gate.Store(t.gate)
	err := t.begin(ctx)
	if t.conn != nil {
		defer lead.Close(t.conn)
	}
	if err != nil {
		return t.tell(ctx, t.explained(t.named(ctx, err)))
	}
	defer func() { r.ended = append(r.ended, t.tenure.Session) }()
	err = t.serve(ctx)
	r.cut = r.cut || err != nil && ctx.Err() == nil && !errors.Is(err, inbox.ErrSuperseded)
	r.renew(err)
	return t.explained(t.named(ctx, err))
}

// named returns err, or who keeps the session from a table, if that is why it ended.
func (t *term) named(ctx context.Context, err error) error {
	if t.conn == nil || t.conn.IsClosed() {
		return inbox.NameLock(ctx, t.db, err)
	}
	return inbox.NameLock(ctx, t.conn, err)
}

// renew has all connections made anew if the database refused a statement of ours: a handler
// may have changed the session of one, by a set role, say.
func (r *run) renew(err error) {
	if _, refused := errors.AsType[*pgconn.PgError](err); refused {
		r.db.Reset()
	}
}

// tell leaves why no session began in the database, for those who ask there, if it is
// at hand.
func (t *term) tell(ctx context.Context, err error) error {
	connected := t.conn != nil && !t.conn.IsClosed()
	switch {
	case ctx.Err() != nil, errors.Is(err, inbox.ErrSuperseded):
	case connected:
		_ = t.heartbeat(ctx, t.conn, err) // the log says it, too
	case postgres.IsPooler(err) && postgres.CheckNames(ctx, t.db.Pool) == nil: // which takes statements
		_ = t.heartbeat(ctx, t.db, err)
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
		return &inbox.Error{What: "connect", Err: err}
	}
	if err := postgres.CheckNames(ctx, t.db.Pool); err != nil {
		return &inbox.Error{What: "look at the pool", Err: err}
	}
	if err := inbox.Announce(ctx, t.conn, t.tenure.Session); err != nil {
		return err
	}
	if t.serverBegan, err = started(ctx, t.conn); err != nil {
		return &inbox.Error{What: "ask when the server was started", Err: err}
	}
	if err := t.awaitTables(ctx); err != nil {
		return err
	}
	// What could not be given back when earlier sessions ended, since the database was away.
	if err := inbox.Abandon(ctx, t.conn, t.Consumer.Name, t.ended); err != nil {
		return err
	}
	t.ended = nil
	if t.ordered() {
		if err := t.standBy(ctx); err != nil {
			return err
		}
	}
	if err := natsconn.CheckVersion(t.js.Conn()); err != nil {
		return err
	}
	created, err := t.durable.open(ctx)
	if err != nil {
		return err
	}
	err = pgx.BeginFunc(ctx, t.conn, func(tx pgx.Tx) (err error) {
		t.at, err = inbox.Register(ctx, tx, inbox.Registration{Consumer: t.Consumer.Name, Stream: t.stream, MoveFrom: t.Runner.MoveFrom, Created: created,
			Ordered: t.ordered(), Effects: t.Consumer.Handler.effect != nil})
		return err
	})
	if paused, ok := errors.AsType[*inbox.PausedError](err); ok {
		return t.awaitResume(ctx, paused)
	}
	if err == nil && t.ordered() {
		err = t.takePlace(ctx)
	}
	if err == nil {
		err = t.rebuildIfAsked(ctx)
	}
	if err != nil {
		return err
	}
	t.tenure.Epoch, t.tenure.Generation = t.at.Epoch, t.at.Generation
	return t.bind(ctx)
}

// bind finds the durable consumer, brings it to the inbox's position, and learns which keys are held.
func (t *term) bind(ctx context.Context) error {
	made, err := t.durable.bind(ctx)
	if err == nil {
		err = t.place(ctx, made)
	}
	if err == nil {
		err = t.tenure.Wake(ctx, t.conn)
	}
	if err != nil || !t.ordered() {
		return err
	}
	keys, err := t.tenure.Held(ctx, t.conn)
	t.lanes.hold(keys...)
	return err
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
			t.log.WarnContext(ctx, "not handling events", "err", err)
		case news:
			t.log.InfoContext(ctx, "another process is active, standing by", "holder", h.String())
		}
	})
	if err != nil {
		return &inbox.Error{What: "stand by", Err: err}
	}
	return nil
}

// awaitTables returns nil once nobody keeps the consumer from its tables, or the lock that somebody
// has held for long.
func (t *term) awaitTables(ctx context.Context) error {
	for began := time.Now(); ; {
		lock, err := inbox.TableLock(ctx, t.conn)
		switch {
		case err != nil:
			return err
		case lock == nil:
			return nil
		case time.Since(began) >= heldFor:
			return lock
		case !sleep(ctx, pollEvery):
			return ctx.Err()
		}
	}
}

// awaitResume waits for the end of a pause, and returns why there is no session.
func (t *term) awaitResume(ctx context.Context, paused *inbox.PausedError) error {
	for {
		if t.keeper.Waiting(paused) {
			t.log.InfoContext(ctx, "not handling events", "err", paused)
		}
		if err := t.heartbeat(ctx, t.conn, paused); err != nil {
			return err
		}
		if !sleep(ctx, 2*pollEvery) {
			return paused
		}
		still, err := inbox.ReadPause(ctx, t.conn, t.Consumer.Name)
		if err != nil {
			return err
		}
		if still == nil {
			return inbox.ErrSuperseded
		}
		paused = &inbox.PausedError{Consumer: t.Consumer.Name, Paused: *still}
	}
}

// takePlace supersedes all other sessions. While that waits for a lock it deposes who froze
// meanwhile, tells who else holds the lock, and keeps the connection of the lead.
func (t *term) takePlace(ctx context.Context) error {
	looking, stop := context.WithCancel(ctx)
	var looks sync.WaitGroup
	looks.Go(func() {
		for again := true; again; again = sleep(looking, saveEvery) {
			if t.depose(looking) != nil || t.lookAtLocks(looking) != nil {
				return // whoever uses the connection next says why
			}
			if err := t.gate.closed(); err != nil {
				_ = t.heartbeat(looking, t.conn, err) // the log says it, too
			}
		}
	})
	err := inbox.Supersede(ctx, t.db.Pool, t.Consumer.Name, t.process, &t.at, nil)
	stop()
	looks.Wait()
	if err != nil {
		return &inbox.Error{What: "take the lead", Err: err}
	}
	return nil
}

// depose ends the transactions of whoever had the lead before and does nothing in them.
func (t *term) depose(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTime) // cancelling would close the connection
	defer cancel()
	return inbox.Depose(ctx, t.conn, t.Consumer.Name)
}

// rebuildIfAsked deletes what the handlers wrote, if a replay of everything asks for it.
func (t *term) rebuildIfAsked(ctx context.Context) error {
	if !t.at.Rebuild {
		return nil
	}
	if t.Consumer.Clear == nil {
		t.log.WarnContext(ctx, "this consumer has no Clear: what its handlers wrote before the replay stays")
	}
	orphaned := t.at.Orphaned
	err := inbox.Supersede(ctx, t.db.Pool, t.Consumer.Name, t.process, &t.at, func(tx pgx.Tx) error {
		if t.Consumer.Clear != nil && t.at.Rebuild { // else another process did it
			if err := t.Consumer.Clear(ctx, tx); err != nil {
				return fmt.Errorf("clear before the replay: %w", err)
			}
		}
		t.at.Rebuild = false
		return inbox.Rebuilt(ctx, tx, t.Consumer.Name)
	})
	t.at.Orphaned = orphaned // this time it was us
	if err != nil {
		return &inbox.Error{What: "rebuild", Err: err}
	}
	return nil
}

// serve receives events and makes attempts until something fails, or ctx ends. Then it
// takes no more, lets the attempts that have begun finish, and gives the rest back.
func (t *term) serve(outer context.Context) error {
	ctx, fail := context.WithCancelCause(outer)
	defer fail(nil)
	t.fail = fail
	var others, workers sync.WaitGroup
	holding, release := context.WithCancel(context.WithoutCancel(ctx))
	others.Go(func() { t.hands.keep(holding) })
	others.Go(func() { t.sendAcks(holding) })
	others.Go(func() { t.fail(t.receive(ctx)) })
	others.Go(func() { t.fail(t.watch(ctx, holding)) })
	others.Go(func() { t.fail(t.takeDue(ctx)) })
	others.Go(func() { t.fail(t.durable.guard(ctx, &t.ackFloor)) })
	others.Go(func() { t.count(ctx) })
	others.Go(func() { t.prune(ctx) })
	for range t.Consumer.Workers {
		workers.Go(func() { t.labour(ctx) })
	}
	if t.keeper.Working() {
		t.log.InfoContext(ctx, "consumer handles events", "stream", t.stream, "types", t.Consumer.Handler.types, "floor", t.at.Floor)
	}
	<-ctx.Done()
	left := t.lanes.close()
	workers.Wait()
	t.callers.End()
	release()
	others.Wait()
	t.giveBackAll(context.WithoutCancel(ctx), left, outer.Err() == nil)
	if err := context.Cause(ctx); outer.Err() == nil {
		return err
	}
	return nil
}

// labour deals with one load after the other until the lanes are closed.
func (t *term) labour(ctx context.Context) {
	for {
		load, ok := t.lanes.next(t.Consumer.most(), t.Consumer.Workers)
		if !ok {
			return
		}
		suspect := load.work[0].Deaths > 0
		t.deal(ctx, load.work)
		if held := t.lanes.heldOf(load); len(held) > 0 {
			t.goOn(ctx, held)
		}
		t.lanes.done(load)
		if suspect {
			t.alone.Store(false)
			t.nudge()
		}
	}
}

// giveBackAll returns what was not handled, so that it need not wait for ackWait to be
// delivered again. What is given back after a failure comes after a while.
func (t *term) giveBackAll(ctx context.Context, left []*work, failed bool) {
	t.giveBackIntents(ctx, left)
	t.flushAcks(ctx)
	for _, d := range t.hands.all() {
		if failed {
			_ = d.msg.NakWithDelay(t.Consumer.delay(d.deliveries))
		} else {
			_ = d.msg.Nak()
		}
	}
	t.save(ctx)
	ctx, cancel := context.WithTimeout(ctx, pingTime)
	defer cancel()
	_ = inbox.Farewell(ctx, t.conn, t.Consumer.Name, t.process) // if it fails, others take it for dead
}

// sleep waits, and reports whether ctx goes on.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}
