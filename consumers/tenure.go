package consumers

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/internal/delivery"
	"github.com/pgjet/pgjet/consumers/internal/durable"
	"github.com/pgjet/pgjet/internal/attempt"
)

// dueEvery is how often a tenure looks for due intents although the session saw none.
const dueEvery = 5 * time.Second

var errReleased = errors.New("the slice goes to another process")

// A tenure is the time in which a session owns a slice. It is bound to the slice's durable
// consumer, alone if the consumer is ordered.
type tenure struct {
	settler // used by all its goroutines
	session *session

	// Set by begin, and constant afterwards.
	id           inbox.Tenure
	start        inbox.SliceState // when it began
	suspects     uint64           // a process that died may have been handling events up to this sequence
	durable      *durable.Consumer
	disconnected <-chan nats.Status // closed when the connection to NATS is lost after begin was called

	// Used only by the goroutine that receives.
	delivery uint64 // number of the next delivery since the last reset

	// Shared.
	callers  attempt.Callers
	ackFloor atomic.Uint64 // according to JetStream, as last seen
	owns     atomic.Bool   // id has its epoch: the session may read it
	begun    atomic.Bool   // it handles events, or did
	released atomic.Bool   // it was released
}

func newTenure(s *session, slice int, fail context.CancelCauseFunc) *tenure {
	t := &tenure{session: s}
	t.id = inbox.Tenure{Consumer: s.Consumer.Name, Ordered: s.ordered(), ParkKey: s.Consumer.ParkKey, Slice: inbox.Slice{Number: slice, Of: s.registered.Slices},
		Version: s.version, Generation: s.registered.Generation, Session: s.name, Process: s.process, DB: s.db, Timeout: s.Consumer.Timeout}
	t.settler = settler{run: s.run, database: s.database, inbox: s.database.Inbox(&t.id), lanes: newLanes(&s.waiting), gate: s.gate, fail: fail,
		unacked: delivery.NewUnacked(s.source, s.log, ackWait, s.Consumer.Workers, s.Consumer.Handler.most, s.registered.Slices)}
	return t
}

// handleSlice handles the events of the slice until something fails, it is released, or ctx ends.
// It returns an error if the session cannot go on.
func (t *tenure) handleSlice(ctx context.Context) error {
	var stop func()
	t.disconnected, stop = t.source.Lost() // before looking at the stream
	defer stop()
	err := t.begin(ctx)
	if err == nil {
		t.begun.Store(true)
		t.serve(ctx)
		err = context.Cause(ctx)
	}
	left := t.leave(context.WithoutCancel(ctx))
	switch {
	case t.released.Load():
		return left
	case t.session.stopping.Err() != nil:
		return nil
	}
	return err
}

// begin takes the slice, and sets its durable consumer to the inbox's position.
func (t *tenure) begin(ctx context.Context) (err error) {
	if t.start, err = t.inbox.Own(ctx); err != nil {
		return err
	}
	t.id.Epoch = t.start.Epoch
	t.owns.Store(true)
	var made bool
	if t.durable, made, err = t.durables.Bind(ctx, t.id.Slice); err != nil {
		return err
	}
	if err := t.checkStream(ctx); err != nil {
		return err
	}
	if err := t.align(ctx, made); err != nil {
		return err
	}
	if err := t.inbox.Wake(ctx); err != nil || !t.ordered() {
		return err
	}
	keys, err := t.inbox.Held(ctx)
	t.lanes.hold(keys...)
	return err
}

// release gives up the slice, once running attempts have finished.
func (t *tenure) release() {
	t.released.Store(true)
	t.fail(errReleased)
}

// serve receives events and makes attempts until ctx ends. Then it takes no more events, lets
// running attempts finish, and gives the rest back.
func (t *tenure) serve(ctx context.Context) {
	var others, workers sync.WaitGroup
	holding, release := context.WithCancel(context.WithoutCancel(ctx))
	others.Go(func() { t.unacked.Keep(holding) })
	others.Go(func() { t.fail(t.receive(ctx)) })
	others.Go(func() { t.fail(t.takeDue(ctx)) })
	others.Go(func() {
		t.fail(t.durable.Watch(ctx, func(is *jetstream.ConsumerInfo) { t.ackFloor.Store(is.AckFloor.Stream) }))
	})
	if t.id.Slice.Number == 0 { // one per consumer
		a := auditor{run: t.run, inbox: t.inbox, database: t.database, fail: t.fail}
		others.Go(func() { a.count(ctx) })
		others.Go(func() { a.prune(ctx) })
	}
	for range t.Consumer.Workers {
		workers.Go(func() { t.runWorker(ctx) })
	}
	switch {
	case t.keeper.Working():
		t.log.InfoContext(ctx, "consumer handles events", "stream", t.stream, "types", t.Consumer.Handler.types, "slice", t.id.Slice.Number, "floor", t.start.Floor)
	case t.id.Slice.Of > 1:
		t.log.DebugContext(ctx, "a slice was taken", "slice", t.id.Slice.Number, "floor", t.start.Floor)
	}
	<-ctx.Done()
	left := t.lanes.close()
	workers.Wait()
	t.callers.End()
	release()
	others.Wait()
	t.giveBackAll(context.WithoutCancel(ctx), left, t.session.stopping.Err() == nil && !t.released.Load())
}

// giveBackAll gives back events that were not handled, so that they need not wait for ackWait to be
// delivered again. After a failure they are delivered after a delay.
func (t *tenure) giveBackAll(ctx context.Context, left []*work, failed bool) {
	t.giveBackUntried(ctx, left)
	t.unacked.Return(ctx, func(deliveries int) time.Duration {
		if !failed {
			return 0
		}
		return t.Consumer.delay(deliveries)
	})
}

// leave records that the session handles nothing of the slice any more. If that fails, and the
// process goes on, the session has to end.
func (t *tenure) leave(ctx context.Context) error {
	if !t.owns.Load() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, pingTime)
	defer cancel()
	if t.database.Writable(ctx) { // another server may have an older inbox
		t.save(ctx, t.inbox.Save)
	}
	return t.inbox.Leave(ctx)
}

// report saves the stream sequences. While the tenure cannot begin since attempts of a frozen
// process have not ended, it ends those instead. It is called by the session's goroutine.
func (t *tenure) report(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTime) // cancelling would close the connection
	defer cancel()
	if t.ordered() && !t.owns.Load() {
		return t.database.Depose(ctx, t.id.Slice)
	}
	t.save(ctx, func(ctx context.Context, floor, high uint64, stored time.Time) error {
		return t.database.Save(ctx, &t.id, floor, high, stored)
	})
	return nil
}

// save records up to which sequence the inbox has everything. Without it the next tenure looks
// longer at the inbox.
func (t *tenure) save(ctx context.Context, save func(ctx context.Context, floor, high uint64, stored time.Time) error) {
	floor, high, stored := t.unacked.Passed()
	if high == 0 {
		return
	}
	if !t.ordered() { // other processes hold events, too
		floor = t.ackFloor.Load()
	}
	if err := save(ctx, floor, high, stored); err != nil && ctx.Err() == nil {
		t.log.InfoContext(ctx, "the stream sequences were not saved", "err", err)
	}
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
