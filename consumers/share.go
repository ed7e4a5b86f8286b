package consumers

import (
	"context"
	"fmt"
	"time"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

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

// share takes slices that no session owns, and releases some, so that the sessions share them
// evenly.
func (s *session) share(ctx context.Context) error {
	if !s.ordered() {
		if len(s.tenures) == 0 {
			s.own(ctx, 0)
		}
		return nil
	}
	asking, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTime) // cancelling would close the connection
	defer cancel()
	var mine []int
	for n, t := range s.tenures {
		if !t.released.Load() {
			mine = append(mine, n)
		}
	}
	plan, err := s.member.Plan(asking, s.registered.Slices, mine)
	if err != nil {
		return err
	}
	s.foreign = plan.Foreign
	for _, n := range plan.Give {
		s.log.InfoContext(ctx, "a slice goes to another process", "slice", n)
		s.tenures[n].release()
	}
	for _, n := range plan.Take {
		if taken, err := s.member.Take(asking, n); err != nil || !taken {
			return err
		}
		s.own(ctx, n)
	}
	if len(s.tenures) == 0 && plan.Other != nil {
		s.standby(ctx)(*plan.Other)
	}
	return nil
}

// own begins the tenure of a slice.
func (s *session) own(outer context.Context, slice int) {
	ctx, fail := context.WithCancelCause(outer)
	t := newTenure(s, slice, fail)
	s.tenures[slice] = t
	go func() {
		defer func() { s.ended <- t }()
		defer fail(nil)
		if err := t.handleSlice(ctx); err != nil {
			s.beginFailed.CompareAndSwap(false, !t.begun.Load())
			s.end(err)
		}
	}()
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

// checkLocks checks whether another session blocks attempts, by their lock or by a table.
func (s *session) checkLocks(ctx context.Context) error {
	holder, err := s.lockHolder(ctx)
	if err != nil {
		return err
	}
	if fmt.Sprint(s.holder) != fmt.Sprint(holder) {
		s.holder, s.since = holder, time.Now()
	}
	var barred error
	if time.Since(s.since) >= heldFor {
		barred = holder
	}
	switch news := s.gate.Bar(barred); {
	case news && barred != nil:
		s.log.WarnContext(ctx, "no attempt can begin", "err", barred)
	case news:
		s.log.InfoContext(ctx, "attempts can begin again")
	}
	return nil
}

// lockHolder returns the session that blocks attempts, by their lock or by a table; nil if there is
// none.
func (s *session) lockHolder(ctx context.Context) (holder, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTime)
	defer cancel()
	h, err := s.database.Holder(ctx)
	switch {
	case err != nil:
		return nil, err
	case s.foreign != nil && len(s.tenures) > 0: // else it stands by
		return s.foreign, nil
	case h != nil:
		return fmt.Errorf("lead_taken: the lock of this consumer's attempts is %s; unless that is a running replay or rebuild, end it with pg_terminate_backend", h), nil
	}
	lock, err := s.database.TableLock(ctx)
	if lock != nil {
		holder = sqlstate.Explain(lock, "")
	}
	return holder, err
}
