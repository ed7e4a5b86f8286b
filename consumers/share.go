package consumers

import (
	"context"
	"fmt"
	"time"

	"github.com/pgjet/pgjet/internal/sqlstate"
)

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
