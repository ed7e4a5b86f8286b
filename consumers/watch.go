package consumers

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/internal/lead"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

const (
	saveEvery     = time.Second         // the place in the stream, and the sign of life
	attemptsKept  = 7 * 24 * time.Hour  // the attempt log
	deadRetention = 14 * 24 * time.Hour // dead letters that are done or discarded
	processesKept = time.Hour
	heldFor       = 3 * time.Second // others may hold a lock that attempts need before that is reported
)

var (
	balanceEvery = 500 * time.Millisecond
	countEvery   = 10 * time.Second // what the metrics show, and what got lost
	reclaimAfter = 5 * time.Second  // of a session
	pruneEvery   = time.Minute
	guardEvery   = 2 * time.Second // what somebody did to the durable consumer
)

// report saves the place in the stream, and, while the term cannot begin since attempts of a process that is frozen have not
// ended, ends those.
func (t *term) report(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTime) // cancelling would close the connection
	defer cancel()
	if t.ordered() && t.epoch.Load() == 0 {
		return t.data.Depose(ctx, t.tenure.Slice)
	}
	t.save(ctx, func(ctx context.Context, floor, high uint64, stored time.Time) error {
		return t.data.Save(ctx, &t.tenure, floor, high, stored)
	})
	return nil
}

// save writes down up to where the inbox has everything. One that is lost costs a
// longer look at the inbox, later.
func (t *term) save(ctx context.Context, save func(ctx context.Context, floor, high uint64, stored time.Time) error) {
	floor, high, stored := t.hands.passed()
	if high == 0 {
		return
	}
	if !t.ordered() { // other processes hold events, too
		floor = t.ackFloor.Load()
	}
	if err := save(ctx, floor, high, stored); err != nil && ctx.Err() == nil {
		t.log.InfoContext(ctx, "the place in the stream was not saved", "err", err)
	}
}

// heartbeat tells that the process lives, and why it handles nothing, if so.
func (m *member) heartbeat(ctx context.Context, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTime)
	defer cancel()
	b := inbox.Beat{Consumer: m.Consumer.Name, Process: m.process, Workers: m.Consumer.Workers, Types: m.Consumer.Handler.types}
	b.Attempts, b.Failed, b.Took, b.Error = m.recent.summary()
	if cause != nil {
		b.Cause = cause.Error()
	}
	return m.data.Tell(ctx, b)
}

// A lookout is what a session has seen of locks that attempts need.
type lookout struct {
	holder error     // seen last; nil without one
	since  time.Time // that it is that one
}

// lookAtLocks finds out whether a session keeps attempts from their lock, or from a table.
func (m *member) lookAtLocks(ctx context.Context) error {
	holder, err := m.lockHolder(ctx)
	if err != nil {
		return err
	}
	if fmt.Sprint(m.lookout.holder) != fmt.Sprint(holder) {
		m.lookout.holder, m.lookout.since = holder, time.Now()
	}
	var barred error
	if time.Since(m.lookout.since) >= heldFor {
		barred = holder
	}
	switch news := m.gate.bar(barred); {
	case news && barred != nil:
		m.log.WarnContext(ctx, "no attempt can begin", "err", barred)
	case news:
		m.log.InfoContext(ctx, "attempts can begin again")
	}
	return nil
}

// lockHolder returns which session keeps attempts from their lock, or from a table; nil if there is none.
func (m *member) lockHolder(ctx context.Context) (holder, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTime)
	defer cancel()
	h, err := m.data.Holder(ctx)
	switch {
	case err != nil:
		return nil, err
	case m.foreign != nil && len(m.terms) > 0: // else it stands by
		return m.foreign, nil
	case h != nil:
		return fmt.Errorf("lead_taken: the lock of this consumer's attempts is %s; unless that is a replay or a rebuild at work, end it with pg_terminate_backend", h), nil
	}
	lock, err := m.data.TableLock(ctx)
	if lock != nil {
		holder = sqlstate.Explain(lock, "")
	}
	return holder, err
}

// locked reports whether a statement failed with err since somebody keeps it from a table. That is
// no fault of an event, and no attempt is counted.
func (t *term) locked(ctx context.Context, err error) bool {
	_, locked := errors.AsType[*lead.TableLock](t.room.NameLock(ctx, err))
	return locked
}

// prune forgets until ctx ends what is too old: of the attempt log, of dead letters that
// were dealt with, of processes that are gone, and of the inbox if Retention says so.
func (t *term) prune(ctx context.Context) {
	for {
		more, err := t.pruneSome(ctx)
		if err != nil && ctx.Err() == nil {
			t.log.WarnContext(ctx, "what is old was not pruned, will retry", "err", err)
		}
		if more && err == nil && ctx.Err() == nil {
			continue
		}
		if !sleep(ctx, pruneEvery) {
			return
		}
	}
}

// pruneSome deletes a little at a time, and reports whether there may be more.
func (t *term) pruneSome(ctx context.Context) (more bool, err error) {
	keep := inbox.Retention{Attempts: attemptsKept, Dead: deadRetention, Processes: processesKept, Inbox: t.Runner.Retention}
	if keep.Inbox > 0 {
		stream, err := t.js.Stream(ctx, t.stream)
		if err != nil {
			return false, err
		}
		keep.First = stream.CachedInfo().State.FirstSeq
	}
	return t.room.Prune(ctx, keep)
}

// count brings the metrics up to date until ctx ends, and notices events that got lost. A
// large inbox takes long to count: that may cost a fiftieth of the time.
func (t *term) count(ctx context.Context) {
	defer t.metrics.account(nil) // who owns the slice next says what is true then
	for {
		begun := time.Now()
		a, err := readAccount(ctx, t.room, t.js, t.stream, t.Consumer.Name)
		switch {
		case err == nil:
			t.ackFloor.Store(a.AckFloor)
			t.metrics.account(&a)
			t.reckon(ctx, a)
		case ctx.Err() == nil:
			t.log.InfoContext(ctx, "events were not counted", "err", err)
		}
		if !sleep(ctx, max(countEvery, 50*time.Since(begun))) {
			return
		}
	}
}

// A reckoning is what a session has counted as missing.
type reckoning struct {
	missing int64 // as of the last counts
	missed  int   // how often in a row
}

// reckon has events recovered that are missing time and again: those that are just on
// their way are not.
func (t *term) reckon(ctx context.Context, a Account) {
	switch {
	case a.Unaccounted <= 0:
		t.missing = 0
		if a.Delivered >= t.recovered.delivered { // it did help
			t.recovered = recovered{}
		}
	case t.missing == 0 || a.Unaccounted < t.missing:
		t.missing, t.missed = a.Unaccounted, 1
	case t.missed < 2:
		t.missed++
	default:
		t.missing = 0
		t.recover(ctx, a)
	}
}

// A recovered says how many events were missing when everything was last delivered once
// more, and up to where.
type recovered struct {
	events    int64
	delivered uint64
}

// recover has JetStream deliver everything once more, since it counts events as
// handled that the inbox does not know.
func (t *term) recover(ctx context.Context, a Account) {
	if t.recovered.events == a.Unaccounted { // it did not help
		return
	}
	t.recovered = recovered{a.Unaccounted, a.Delivered}
	t.log.ErrorContext(ctx, "JetStream counts events as delivered that the inbox does not know; it will deliver all once more, and what the inbox knows is skipped",
		"events", a.Unaccounted)
	// This session would give back what it gets now, which a limit may count as enough: the next one gets it.
	if err := t.data.Redeliver(ctx); err != nil {
		t.log.ErrorContext(ctx, "lost events were not recovered, will retry", "err", err)
		t.recovered = recovered{}
	}
	t.fail(inbox.ErrSuperseded)
}
