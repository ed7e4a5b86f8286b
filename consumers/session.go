package consumers

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/internal/gate"
	"github.com/pgjet/pgjet/consumers/internal/membership"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/rivals"
)

const (
	// pingTime bounds a query outside of attempts.
	pingTime = 5 * time.Second
	// pollEvery is how often a session looks for due intents and operators' decisions.
	pollEvery = 250 * time.Millisecond
	saveEvery = time.Second     // of the stream sequences, and the heartbeat
	planEvery = pollEvery * 2   // of the sharing of slices
	heldFor   = 3 * time.Second // another session may hold a lock that attempts need for that long before it is reported
)

// reclaimAfter is how long a session has to reach the database before it takes intents of dead
// processes.
var reclaimAfter = 5 * time.Second

var errStandby = errors.New("standby: another process is active")

// A session is the time in which a process is connected, has announced itself in the database, and
// shares the consumer's slices with other sessions. It has a [tenure] for each slice that it owns.
type session struct {
	*run
	stopping context.Context //nolint:containedctx // ends when the runner has to stop
	name     string          // in taken_by of its intents
	began    time.Time
	database database
	member   *membership.Member
	end      context.CancelCauseFunc // ends the session
	refuse   context.CancelCauseFunc // ends it since a consumer of a copy of the database goes first
	leave    func()                  // ends its announcements

	// Set by begin, and constant afterwards.
	here       rivals.Presence
	registered inbox.Registered
	version    inbox.Version
	created    time.Time // of the stream

	// Used only by the session's goroutine.
	tenures map[int]*tenure // by the number of the slice
	planned time.Time       // when the slices were last shared
	listed  bool            // it is recorded as a process that handles events
	foreign error           // says that another program locks a slice, as last seen
	holder  error           // of a lock that attempts need, as last seen; nil without one
	since   time.Time       // when holder became what it is

	// Shared with the goroutines of its tenures.
	gate         *gate.Gate    // how many attempts of all slices may run
	solo         *gate.Solo    // an attempt at which a process died before runs alone in it
	suspectTaken atomic.Bool   // a tenure has taken such an attempt
	workers      chan struct{} // has an element for each busy worker
	waiting      atomic.Int64  // number of works in the lanes of all tenures
	beginFailed  atomic.Bool   // a tenure could not begin, which ended the session
	ended        chan *tenure
}

// runSession handles events until something fails, a consumer of a copy of the database goes first,
// or ctx ends.
func (r *run) runSession(outer context.Context) error {
	ctx, refuse := context.WithCancelCause(outer)
	defer refuse(nil)
	s := &session{run: r, stopping: ctx, began: time.Now(), name: fmt.Sprintf("%s:%s", r.process, uuid.NewString()[:8]), refuse: refuse, leave: func() {},
		tenures: make(map[int]*tenure), ended: make(chan *tenure, inbox.Tokens), workers: make(chan struct{}, r.Consumer.Workers), gate: gate.New(r.Consumer.Workers), solo: gate.NewSolo()}
	r.lastGate.Store(s.gate)
	s.database = r.newDatabase(s.name)
	s.member = membership.New(s.database, r.Consumer.Name)
	defer s.database.Close()
	err := s.handle(ctx)
	s.leave()
	if copied, is := errors.AsType[*copiedError](context.Cause(ctx)); is && outer.Err() == nil {
		return s.refused(outer, copied)
	}
	return err
}

// handle handles events until something fails, or ctx ends.
func (s *session) handle(ctx context.Context) error {
	err := s.begin(ctx)
	if err != nil {
		return s.report(ctx, s.withReason(s.database.NameLock(ctx, err)))
	}
	defer func() { s.pastSessions = append(s.pastSessions, s.name) }()
	err = s.serve(ctx)
	s.interrupted = s.interrupted || err != nil && ctx.Err() == nil && !errors.Is(err, inbox.ErrSuperseded)
	s.database.Renew(err)
	err = s.withReason(s.database.NameLock(ctx, err))
	if s.beginFailed.Load() {
		return s.report(ctx, err)
	}
	return err
}

// report records in the database, if reachable, why no session began, and returns err. Commands
// show it.
func (s *session) report(ctx context.Context, err error) error {
	if ctx.Err() == nil && !errors.Is(err, inbox.ErrSuperseded) && (!s.database.Closed() || postgres.IsPooler(err)) {
		_ = s.heartbeat(ctx, err) // the log has it, too
	}
	return err
}

// begin connects, registers the consumer, and joins the other sessions if the consumer is ordered.
func (s *session) begin(ctx context.Context) (err error) {
	if s.version, err = s.database.Open(ctx); err != nil {
		return err
	}
	if err := s.awaitTables(ctx); err != nil {
		return err
	}
	if err := s.meet(ctx); err != nil {
		return err
	}
	// Intents that earlier sessions could not give back, since the database was unreachable.
	if err := s.database.Abandon(ctx, s.pastSessions); err != nil {
		return err
	}
	s.pastSessions = nil
	if err := s.enter(ctx); err != nil {
		return err
	}
	if err := s.rebuildIfAsked(ctx); err != nil || !s.ordered() {
		return err
	}
	return failed("join the others", s.member.Join(ctx, s.standby(ctx)))
}

// awaitTables waits until no session locks the inbox's tables, but at most for heldFor.
func (s *session) awaitTables(ctx context.Context) error {
	for began := time.Now(); ; {
		lock, err := s.database.TableLock(ctx)
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

// serve owns a share of the slices until something fails, or ctx ends. Then it takes no more
// events, and keeps its slices until running attempts have finished.
func (s *session) serve(outer context.Context) error {
	ctx, end := context.WithCancelCause(outer)
	defer end(nil)
	s.end = end
	for saved := (time.Time{}); ctx.Err() == nil; s.await(ctx) {
		if err := s.poll(ctx, &saved); err != nil {
			end(err)
		}
	}
	holding := context.WithoutCancel(ctx)
	if s.ordered() && !s.database.Closed() {
		_ = s.member.Leave(holding) // if it fails, the end of the session leaves
	}
	for len(s.tenures) > 0 {
		s.await(holding)
		_, _ = s.current(holding) // the server closes an idle connection
	}
	holding, cancel := context.WithTimeout(holding, pingTime)
	defer cancel()
	_ = s.database.RemoveProcess(holding, s.process) // if it fails, the process looks as if it had died
	if err := context.Cause(ctx); outer.Err() == nil {
		return err
	}
	return nil
}

// await waits for pollEvery, or until a tenure has ended, and then frees its slice.
func (s *session) await(ctx context.Context) {
	select {
	case t := <-s.ended:
		delete(s.tenures, t.id.Slice.Number)
		if s.ordered() && !s.database.Closed() {
			_ = s.member.Release(context.WithoutCancel(ctx), t.id.Slice.Number) // if it fails, the session does too
		}
	case <-time.After(pollEvery):
	case <-ctx.Done():
	}
}

// poll follows operators' decisions, shares the slices, saves the stream sequences, and sends the
// heartbeat.
func (s *session) poll(ctx context.Context, saved *time.Time) error {
	current, err := s.current(ctx)
	switch {
	case err != nil:
		return ignoreEnd(ctx, err)
	case !current:
		return inbox.ErrSuperseded
	}
	if time.Since(s.planned) >= planEvery {
		s.planned = time.Now()
		if err := s.share(ctx); err != nil {
			return ignoreEnd(ctx, failed("share the slices", err))
		}
	}
	if time.Since(*saved) < saveEvery {
		return nil
	}
	*saved = time.Now()
	for _, t := range s.tenures {
		if err := t.report(ctx); err != nil {
			return ignoreEnd(ctx, err)
		}
	}
	s.owned.Store(int64(len(s.tenures)))
	err = s.checkLocks(ctx)
	switch {
	case err != nil:
	case len(s.tenures) > 0:
		s.listed = true
		err = s.heartbeat(ctx, s.gate.Closed())
	case s.listed: // it stands by now
		s.listed = false
		err = s.database.RemoveProcess(ctx, s.process)
	}
	return ignoreEnd(ctx, err)
}

// current reports whether the session was neither superseded nor paused. If intents are due, it
// makes the tenures look for them.
func (s *session) current(ctx context.Context) (current bool, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTime) // cancelling would close the connection
	defer cancel()
	var epochs []int64
	for _, t := range s.tenures {
		if t.owns.Load() {
			epochs = append(epochs, t.id.Epoch)
		}
	}
	current, due, err := s.database.Current(ctx, s.version, epochs)
	if due {
		for _, t := range s.tenures {
			t.lanes.nudge()
		}
	}
	return current, err
}

// heartbeat records that the process lives, and why it handles nothing, if so.
func (s *session) heartbeat(ctx context.Context, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTime)
	defer cancel()
	b := inbox.Beat{Consumer: s.Consumer.Name, Process: s.process, Workers: s.Consumer.Workers, Types: s.Consumer.Handler.types}
	b.Attempts, b.Failed, b.Took, b.Error = s.recent.Summary()
	if cause != nil {
		b.Cause = cause.Error()
	}
	return s.database.Heartbeat(ctx, b)
}

// failed wraps err as a failure of the session, as opposed to one of a handler.
func failed(what string, err error) error {
	if err != nil {
		return &inbox.Error{What: what, Err: err}
	}
	return nil
}
