package consumers

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/internal/attempt"
)

const (
	// pingTime bounds a question to the database beside an attempt.
	pingTime = 5 * time.Second
	// stopRemembering is for how long it tries once it is told to stop.
	stopRemembering = 2 * time.Second
	// pollEvery is how often a session looks whether intents are due, and what operators want.
	pollEvery = 250 * time.Millisecond
	// dueEvery is how often a term looks for due intents although the session saw none.
	dueEvery = 5 * time.Second
	// lockTime is less than pingTime: the server says that somebody holds a lock before the connection is
	// given up, as if the server were away.
	lockTime = "4s"
)

// rememberTime is for how long a process tries to commit that an effect happened.
var rememberTime = 2 * time.Minute

// A term is the time in which a session owns a slice: bound to its durable consumer, and, if events are in order, alone.
type term struct {
	*member
	fail context.CancelCauseFunc // ends the term, and with it the session, but for [term.release]

	// Set by begin, and read by all.
	tenure   inbox.Tenure
	room     room         // of the tenure
	at       inbox.Place  // as it was then
	epoch    atomic.Int64 // of the tenure, once it is known
	suspects uint64       // up to here a process that died may have been at work

	durable      durable            // of begin, then of receive
	disconnected <-chan nats.Status // from NATS, since before begin

	// Shared.
	hands    *hands
	acks     *acks
	lanes    *lanes
	kick     chan struct{}
	callers  attempt.Callers
	ackFloor atomic.Uint64 // as JetStream said last
	begun    atomic.Bool   // it handles events, or did
	over     atomic.Bool   // it was released

	reckoning // of count
}

func newTerm(m *member, slice int) *term {
	t := &term{member: m, acks: newAcks(), lanes: newLanes(&m.waiting), kick: make(chan struct{}, 1)}
	t.tenure = inbox.Tenure{Consumer: m.Consumer.Name, Ordered: m.ordered(), ParkKey: m.Consumer.ParkKey, Slice: inbox.Slice{Number: slice, Of: m.is.Slices},
		Version: m.version, Generation: m.is.Generation, Session: m.session, Process: m.process}
	t.room = m.data.Room(&t.tenure)
	t.durable.run, t.durable.slice = m.run, t.tenure.Slice
	t.hands = newHands(max(leastHeld, 4*m.Consumer.Workers, 4*m.Consumer.Handler.most), m.Consumer.Handler.most, m.is.Slices)
	return t
}

// session handles the events of the slice until something fails, it is released, or ctx ends. It returns an error
// if the session of the process cannot go on.
func (t *term) session(ctx context.Context) error {
	var deaf func()
	t.disconnected, deaf = t.source.Lost() // before it looks at the stream
	defer deaf()
	err := t.begin(ctx)
	if err == nil {
		t.begun.Store(true)
		t.serve(ctx)
		err = context.Cause(ctx)
	}
	left := t.giveUp(context.WithoutCancel(ctx))
	switch {
	case t.over.Load():
		return left
	case t.stopping.Err() != nil:
		return nil
	}
	return err
}

// begin takes the slice, and brings its durable consumer to the inbox's position.
func (t *term) begin(ctx context.Context) (err error) {
	if t.at, err = t.room.Own(ctx); err != nil {
		return err
	}
	t.tenure.Epoch = t.at.Epoch
	t.epoch.Store(t.at.Epoch)
	made, err := t.durable.bind(ctx)
	if err == nil {
		err = t.durable.open(ctx)
	}
	if err == nil {
		err = t.sameStream(ctx)
	}
	if err == nil {
		err = t.place(ctx, made)
	}
	if err == nil {
		err = t.room.Wake(ctx)
	}
	if err != nil || !t.ordered() {
		return err
	}
	keys, err := t.room.Held(ctx)
	t.lanes.hold(keys...)
	return err
}

// release gives the slice up, to another process, when what has begun is finished.
func (t *term) release() {
	t.over.Store(true)
	t.fail(errReleased)
}

// serve receives events and makes attempts until ctx ends. Then it
// takes no more, lets the attempts that have begun finish, and gives the rest back.
func (t *term) serve(ctx context.Context) {
	var others, workers sync.WaitGroup
	holding, release := context.WithCancel(context.WithoutCancel(ctx))
	others.Go(func() { t.keep(holding) })
	others.Go(func() { t.sendAcks(holding) })
	others.Go(func() { t.fail(t.receive(ctx)) })
	others.Go(func() { t.fail(t.takeDue(ctx)) })
	others.Go(func() { t.fail(t.durable.guard(ctx, &t.ackFloor)) })
	if t.tenure.Slice.Number == 0 { // one for all of them
		others.Go(func() { t.count(ctx) })
		others.Go(func() { t.prune(ctx) })
	}
	for range t.Consumer.Workers {
		workers.Go(func() { t.labour(ctx) })
	}
	switch {
	case t.keeper.Working():
		t.log.InfoContext(ctx, "consumer handles events", "stream", t.stream, "types", t.Consumer.Handler.types, "slice", t.tenure.Slice.Number, "floor", t.at.Floor)
	case t.tenure.Slice.Of > 1:
		t.log.DebugContext(ctx, "a slice was taken", "slice", t.tenure.Slice.Number, "floor", t.at.Floor)
	}
	<-ctx.Done()
	left := t.lanes.close()
	workers.Wait()
	t.callers.End()
	release()
	others.Wait()
	t.giveBackAll(context.WithoutCancel(ctx), left, t.stopping.Err() == nil && !t.over.Load())
}

// labour deals with one load after the other until the lanes are closed. All slices of the process share its workers: what
// waits for one of them is in the lanes, and goes together then.
func (t *term) labour(ctx context.Context) {
	for t.lanes.await() {
		t.workers <- struct{}{}
		t.work(ctx, t.lanes.next(t.Consumer.most(), t.Consumer.Workers))
		<-t.workers
	}
}

// work deals with a load, which may be empty.
func (t *term) work(ctx context.Context, load load) {
	if len(load.work) == 0 {
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

// giveBackAll returns what was not handled, so that it need not wait for ackWait to be
// delivered again. What is given back after a failure comes after a while.
func (t *term) giveBackAll(ctx context.Context, left []*work, failed bool) {
	t.giveBackUntried(ctx, left)
	t.flushAcks(ctx)
	for _, d := range t.hands.all() {
		delay := time.Duration(0)
		if failed {
			delay = t.Consumer.delay(d.deliveries)
		}
		_ = t.source.Nak(d.msg, delay)
	}
}

// giveUp says that nothing of the slice is in hand any more. If it fails, and the process goes on, the session has to end.
func (t *term) giveUp(ctx context.Context) error {
	if t.epoch.Load() == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, pingTime)
	defer cancel()
	if t.data.Writable(ctx) { // another server may have an older inbox
		t.save(ctx, t.room.Save)
	}
	return t.room.Leave(ctx)
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
