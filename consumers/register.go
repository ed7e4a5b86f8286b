package consumers

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/internal/attempt"
	"github.com/pgjet/pgjet/internal/lead"
)

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
		guarded := &attempt.Tx{Tx: tx, What: "function Clear"}
		err := s.Consumer.Clear(ctx, guarded)
		if err == nil {
			err = guarded.Misused()
		}
		if err != nil {
			return fmt.Errorf("clear before the replay: %w", err)
		}
		return nil
	}))
}
