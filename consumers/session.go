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
	// pingTime bounds a question to the database beside an attempt.
	pingTime = 5 * time.Second
	// pollEvery is how often a session looks whether intents are due, and what operators want.
	pollEvery = 250 * time.Millisecond
	saveEvery = time.Second     // the place in the stream, and the sign of life
	planEvery = pollEvery * 2   // how the slices are shared
	heldFor   = 3 * time.Second // others may hold a lock that attempts need before that is reported
)

// reclaimAfter is how long a session is in touch with the database before it takes intents of processes that are gone.
var reclaimAfter = 5 * time.Second

var errStandby = errors.New("standby: another process is active")

// A session is the time in which a process is connected, known to the database, and shares the slices of the consumer with
// other sessions. For each slice that it owns it has a [tenure].
type session struct {
	*run
	stopping context.Context //nolint:containedctx // ends when the runner has to stop
	name     string          // under which intents are taken
	began    time.Time
	database database
	member   *membership.Member
	end      context.CancelCauseFunc // ends the session
	refuse   context.CancelCauseFunc // ends it since one in a copy of the database goes first
	leave    func()                  // ends its announcements

	// Set by begin, and only read afterwards.
	here    rivals.Presence
	is      inbox.Registered
	version inbox.Version
	created time.Time // of the stream

	// Of the goroutine of the session.
	tenures map[int]*tenure // by the number of the slice
	planned time.Time       // when the slices were last shared
	listed  bool            // it is known as one that handles events
	foreign error           // which slice a session has that is no process of the consumer, as of then
	holder  error           // of a lock that attempts need, as seen last; nil without one
	since   time.Time       // that it is that one

	// Shared with the goroutines of its tenures.
	gate         *gate.Gate    // how many attempts of all slices may run
	solo         *gate.Solo    // an attempt at which a process died before has it alone
	suspectTaken atomic.Bool   // a tenure has taken one of those
	workers      chan struct{} // has an element for each that works on a load
	waiting      atomic.Int64  // pieces of work in the lanes of all tenures
	beginFailed  atomic.Bool   // a tenure could not begin, which ended the session
	ended        chan *tenure
}

// runSession handles events until something fails, one in a copy of the database goes first, or ctx ends.
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
	defer func() { s.unsettled = append(s.unsettled, s.name) }()
	err = s.serve(ctx)
	s.cut = s.cut || err != nil && ctx.Err() == nil && !errors.Is(err, inbox.ErrSuperseded)
	s.database.Renew(err)
	err = s.withReason(s.database.NameLock(ctx, err))
	if s.beginFailed.Load() {
		return s.report(ctx, err)
	}
	return err
}

// report writes down in the database, if it can be reached, why no session began, and returns err. Commands show it.
func (s *session) report(ctx context.Context, err error) error {
	if ctx.Err() == nil && !errors.Is(err, inbox.ErrSuperseded) && (!s.database.Closed() || postgres.IsPooler(err)) {
		_ = s.heartbeat(ctx, err) // the log says it, too
	}
	return err
}

// begin connects, makes the consumer known, and joins the other sessions if order asks for it.
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
	// What could not be given back when earlier sessions ended, since the database was away.
	if err := s.database.Abandon(ctx, s.unsettled); err != nil {
		return err
	}
	s.unsettled = nil
	if err := s.enter(ctx); err != nil {
		return err
	}
	if err := s.rebuildIfAsked(ctx); err != nil || !s.ordered() {
		return err
	}
	return failed("join the others", s.member.Join(ctx, s.standby(ctx)))
}

// awaitTables waits until no session keeps the inbox's tables locked, but not for long.
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

// enter makes the consumer known, divided into as many slices as it has to be.
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
		if s.is.Slices == s.Consumer.Slices {
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

// standby returns what to do about another session that is in the way.
func (s *session) standby(ctx context.Context) func(lead.Holder) {
	return func(h lead.Holder) {
		err := fmt.Errorf("%w: the lead is %s", errStandby, h)
		if h.Foreign {
			err = fmt.Errorf("lead_taken: the lead is %s, which is no process of this consumer; find out what it is, and end it with pg_terminate_backend", h)
			_ = s.heartbeat(ctx, err) // the log says it, too
		}
		switch news := s.keeper.Waiting(err); {
		case news && h.Foreign:
			s.log.WarnContext(ctx, "not handling events", "err", err)
		case news:
			s.log.InfoContext(ctx, "another process is active, standing by", "holder", h.String())
		}
	}
}

// register makes the consumer known, if the stream and its durable consumers are ones that it can use.
func (s *session) register(ctx context.Context) error {
	info, err := s.durables.Info(ctx)
	if err != nil {
		return err
	}
	if err := s.remembers(info.Config.MaxAge); err != nil {
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
	s.is, err = s.database.Register(ctx, inbox.Registration{Consumer: s.Consumer.Name, Stream: s.stream, MoveFrom: s.Runner.MoveFrom, Created: info.Created,
		Ordered: s.ordered(), Effects: s.Consumer.Handler.effect != nil, Slices: s.Consumer.Slices, Past: past, Prefix: s.subjects.Prefix(), Types: s.Consumer.Handler.types, Where: s.here})
	s.created = info.Created
	if paused, ok := errors.AsType[*inbox.PausedError](err); ok {
		return s.awaitResume(ctx, paused)
	}
	return err
}

// remembers refuses an inbox that forgets an event while the stream can still deliver it.
func (r *run) remembers(maxAge time.Duration) error {
	keep := r.Runner.Retention
	if keep == 0 || maxAge > 0 && keep >= maxAge+deadRetention {
		return nil
	}
	age := "unlimited"
	if maxAge > 0 {
		age = maxAge.String()
	}
	return fmt.Errorf("retention_too_short: inbox retention %s < stream max age %s + %s for dead letters: an event that comes again would be handled again; raise the one, lower the other, or keep the inbox for ever with 0",
		keep, age, deadRetention)
}

// pastGeneration returns the generation of the consumer if the stream has lost its end since: what comes in its place may stand in another
// order, so that places say nothing. It returns 0 if not.
func (s *session) pastGeneration(ctx context.Context) (int32, error) {
	mark, err := s.database.ReadMark(ctx)
	lost := false
	if err == nil {
		lost, err = s.durables.Lost(ctx, mark)
	}
	if err != nil || mark.Generation == 0 || !lost && s.moved.Load() != mark.Generation {
		return 0, err
	}
	s.log.WarnContext(ctx, "the stream lost its end since events of it were handled; all are delivered once more, and what the inbox has is skipped", "stream_seq", mark.Seq)
	return mark.Generation, nil
}

// awaitResume waits for the end of a pause, and returns why there is no session.
func (s *session) awaitResume(ctx context.Context, paused *inbox.PausedError) error {
	for {
		if s.keeper.Waiting(paused) {
			s.log.InfoContext(ctx, "not handling events", "err", paused)
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

// divide divides the consumer into as many slices as it has to be. It reports false if processes work with another number: once those
// have ended it can.
func (s *session) divide(ctx context.Context) (done bool, err error) {
	divide := func() error {
		if err := s.database.Divide(ctx, s.Consumer.Slices); err != nil {
			return err
		}
		s.log.InfoContext(ctx, "the consumer was divided into another number of slices", "slices", s.Consumer.Slices, "before", s.is.Slices)
		s.durables.Delete(ctx, s.is.Slices)
		s.is.Slices = s.Consumer.Slices
		return nil
	}
	if !s.ordered() {
		return true, failed("divide the consumer", divide())
	}
	done, err = s.member.Divide(ctx, divide, s.standby(ctx))
	return done, failed("divide the consumer", err)
}

// rebuildIfAsked deletes what the handlers wrote, if a replay of everything asks for it.
func (s *session) rebuildIfAsked(ctx context.Context) error {
	if !s.is.Rebuild {
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

// failed returns err as a failure of the session's, not of a handler's.
func failed(what string, err error) error {
	if err != nil {
		return &inbox.Error{What: what, Err: err}
	}
	return nil
}
