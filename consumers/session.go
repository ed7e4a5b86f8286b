package consumers

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/internal/gate"
	"github.com/pgjet/pgjet/consumers/internal/membership"
	"github.com/pgjet/pgjet/internal/lead"
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

// enter registers the consumer, and divides it into the configured number of slices.
func (s *session) enter(ctx context.Context) error {
	for {
		if s.ordered() {
			if err := failed("stand by", s.member.Enter(ctx, s.standby(ctx))); err != nil {
				return err
			}
		}
		if err := s.source.Check(); err != nil {
			return err
		}
		if err := s.register(ctx); err != nil {
			return err
		}
		if s.registered.Slices == s.Consumer.Slices {
			return nil
		}
		if done, err := s.divide(ctx); err != nil || done {
			return err
		}
		if !sleep(ctx, saveEvery) {
			return ctx.Err()
		}
	}
}

// standby returns a function to call when another session is in the way.
func (s *session) standby(ctx context.Context) func(lead.Holder) {
	return func(h lead.Holder) {
		err := fmt.Errorf("%w: the lead is %s", errStandby, h)
		if h.Foreign {
			err = fmt.Errorf("lead_taken: the lead is %s, which is no process of this consumer; find out what it is, and end it with pg_terminate_backend", h)
			_ = s.heartbeat(ctx, err) // the log has it, too
		}
		switch news := s.keeper.Waiting(err); {
		case news && h.Foreign:
			s.log.WarnContext(ctx, "not handling events", "err", err)
		case news:
			s.log.InfoContext(ctx, "another process is active, standing by", "holder", h.String())
		}
	}
}

// register registers the consumer, if it can use the stream and the durable consumers.
func (s *session) register(ctx context.Context) error {
	info, err := s.durables.Info(ctx)
	if err != nil {
		return err
	}
	if err := s.checkRetention(info.Config.MaxAge); err != nil {
		return err
	}
	if s.durables.Database, err = s.database.Identity(ctx); err != nil {
		return err
	}
	if err := s.durables.CheckOwners(ctx, s.Consumer.Slices); err != nil {
		return err
	}
	past, err := s.pastGeneration(ctx)
	if err != nil {
		return err
	}
	s.registered, err = s.database.Register(ctx, inbox.Registration{Consumer: s.Consumer.Name, Stream: s.stream, MoveFrom: s.Runner.MoveFrom, Created: info.Created,
		Ordered: s.ordered(), Effects: s.Consumer.Handler.effect != nil, Slices: s.Consumer.Slices, Past: past, Prefix: s.subjects.Prefix(), Types: s.Consumer.Handler.types, Where: s.here})
	s.created = info.Created
	if paused, ok := errors.AsType[*inbox.PausedError](err); ok {
		return s.awaitResume(ctx, paused)
	}
	return err
}

// checkRetention returns an error if the inbox could forget an event that the stream can still deliver.
func (r *run) checkRetention(maxAge time.Duration) error {
	keep := r.Runner.Retention
	if keep == 0 || maxAge > 0 && keep >= maxAge+deadRetention {
		return nil
	}
	age := "unlimited"
	if maxAge > 0 {
		age = maxAge.String()
	}
	return fmt.Errorf("retention_too_short: inbox retention %s < stream max age %s + %s for dead letters: an event that is delivered again would be handled again; raise the inbox retention, lower the max age, or keep the inbox for ever with 0",
		keep, age, deadRetention)
}

// pastGeneration returns the consumer's generation if the stream has lost its end since, otherwise
// 0. New events may then have the old sequences, so recorded sequences mean nothing.
func (s *session) pastGeneration(ctx context.Context) (int32, error) {
	mark, err := s.database.ReadMark(ctx)
	lost := false
	if err == nil {
		lost, err = s.durables.Lost(ctx, mark)
	}
	if err != nil || mark.Generation == 0 || !lost && s.moved.Load() != mark.Generation {
		return 0, err
	}
	s.log.WarnContext(ctx, "the stream lost its end since events of it were handled; all are delivered again, and those that the inbox has are skipped", "stream_seq", mark.Seq)
	return mark.Generation, nil
}

// awaitResume waits for the end of a pause, and returns why there is no session.
func (s *session) awaitResume(ctx context.Context, paused *inbox.PausedError) error {
	defer s.metrics.waits(nil)
	for due := time.Now(); ; {
		if s.keeper.Waiting(paused) {
			s.log.InfoContext(ctx, "not handling events", "err", paused)
		}
		if s.Runner.DB != nil && !time.Now().Before(due) { // no account is read in a pause
			s.lookAtAge(ctx)
			due = time.Now().Add(countEvery)
		}
		if err := s.heartbeat(ctx, paused); err != nil {
			return err
		}
		if !sleep(ctx, 2*pollEvery) {
			return paused
		}
		still, err := s.database.ReadPause(ctx)
		if err != nil {
			return err
		}
		if still == nil {
			return inbox.ErrSuperseded
		}
		paused = &inbox.PausedError{Consumer: s.Consumer.Name, Paused: *still}
	}
}

// lookAtAge measures how long events have waited in the pause: the stream may delete them soon.
func (s *session) lookAtAge(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	a, err := readAge(ctx, reader{s.Runner.DB, s.Consumer.Name}, s.js, s.stream, s.Consumer.Name)
	if err != nil {
		s.log.DebugContext(ctx, "cannot read how long events have waited", "err", err)
		return
	}
	s.metrics.waits(&a)
}

// divide divides the consumer into the configured number of slices. It reports false while
// processes work with another number.
func (s *session) divide(ctx context.Context) (done bool, err error) {
	divide := func() error {
		if err := s.database.Divide(ctx, s.Consumer.Slices); err != nil {
			return err
		}
		s.log.InfoContext(ctx, "the consumer was divided into another number of slices", "slices", s.Consumer.Slices, "before", s.registered.Slices)
		s.durables.Delete(ctx, s.registered.Slices)
		s.registered.Slices = s.Consumer.Slices
		return nil
	}
	if !s.ordered() {
		return true, failed("divide the consumer", divide())
	}
	done, err = s.member.Divide(ctx, divide, s.standby(ctx))
	return done, failed("divide the consumer", err)
}

// rebuildIfAsked deletes everything that the handlers wrote, if a replay of everything asks for it.
func (s *session) rebuildIfAsked(ctx context.Context) error {
	if !s.registered.Rebuild {
		return nil
	}
	if s.Consumer.Clear == nil {
		s.log.WarnContext(ctx, "this consumer has no Clear: what its handlers wrote before the replay stays")
	}
	return failed("rebuild", s.database.Rebuild(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if s.Consumer.Clear == nil {
			return nil
		}
		if err := s.Consumer.Clear(ctx, tx); err != nil {
			return fmt.Errorf("clear before the replay: %w", err)
		}
		return nil
	}))
}

// failed wraps err as a failure of the session, as opposed to one of a handler.
func failed(what string, err error) error {
	if err != nil {
		return &inbox.Error{What: what, Err: err}
	}
	return nil
}
