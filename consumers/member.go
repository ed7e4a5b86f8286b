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
	"github.com/pgjet/pgjet/internal/jserror"
	"github.com/pgjet/pgjet/internal/lead"
	"github.com/pgjet/pgjet/internal/natsconn"
	"github.com/pgjet/pgjet/internal/postgres"
)

var (
	errStandby  = errors.New("standby: another process is active")
	errReleased = errors.New("the slice goes to another process")
)

// A member is one session of a process: it is connected, known to the database, and shares the slices of the
// consumer with the other members. For each slice that it owns it has a [term].
type member struct {
	*run
	stopping context.Context //nolint:containedctx // ends when the runner is told to stop
	began    time.Time
	session  string // who takes intents

	// Set by begin, and read by all.
	is      inbox.Registered
	version inbox.Version
	created time.Time // of the stream

	// Of the goroutine of the session.
	terms    map[int]*term
	balanced time.Time // when that was looked at last
	shown    bool      // it is known as one that handles events
	foreign  error     // which slice a session has that is no process of the consumer, as of then
	lookout  lookout

	// Shared.
	data  database
	end   context.CancelCauseFunc // ends the session
	ended chan *term
	gate  *gate       // how many attempts of all slices may run
	solo  *solo       // an attempt at which a process died before has it alone
	alone atomic.Bool // there is one of those in hand

	workers chan struct{} // has an element for each that deals with a load
	waiting atomic.Int64  // pieces of work in the lanes of all terms
	unbegun atomic.Bool   // a term could not begin, which ended the session
}

// session handles events until something fails, or ctx ends.
func (r *run) session(ctx context.Context) error {
	m := &member{run: r, stopping: ctx, began: time.Now(), session: fmt.Sprintf("%s:%s", r.process, uuid.NewString()[:8]),
		terms: make(map[int]*term), ended: make(chan *term, inbox.Tokens), workers: make(chan struct{}, r.Consumer.Workers), gate: newGate(r.Consumer.Workers), solo: newSolo()}
	r.gate.Store(m.gate)
	m.data = r.connecting(m.session)
	defer m.data.Close()
	err := m.begin(ctx)
	if err != nil {
		return m.tell(ctx, m.explained(m.data.NameLock(ctx, err)))
	}
	defer func() { r.ended = append(r.ended, m.session) }()
	err = m.serve(ctx)
	r.cut = r.cut || err != nil && ctx.Err() == nil && !errors.Is(err, inbox.ErrSuperseded)
	m.data.Renew(err)
	err = m.explained(m.data.NameLock(ctx, err))
	if m.unbegun.Load() {
		return m.tell(ctx, err)
	}
	return err
}

// tell leaves why no session began in the database, for those who ask there, if it is
// at hand.
func (m *member) tell(ctx context.Context, err error) error {
	if ctx.Err() == nil && !errors.Is(err, inbox.ErrSuperseded) && (!m.data.Closed() || postgres.IsPooler(err)) {
		_ = m.heartbeat(ctx, err) // the log says it, too
	}
	return err
}

// begin connects, joins the other members if order asks for it, and makes the consumer known.
func (m *member) begin(ctx context.Context) (err error) {
	if m.version, err = m.data.Open(ctx); err != nil {
		return err
	}
	if err := m.awaitTables(ctx); err != nil {
		return err
	}
	// What could not be given back when earlier sessions ended, since the database was away.
	if err := m.data.Abandon(ctx, m.run.ended); err != nil {
		return err
	}
	m.run.ended = nil
	if err := m.join(ctx); err != nil {
		return err
	}
	if err := m.rebuildIfAsked(ctx); err != nil || !m.ordered() {
		return err
	}
	return m.asked("join the others", m.data.Join(ctx, m.membership(), m.standby(ctx)))
}

// The leads. A member has the first in shared mode, so that nobody divides the consumer anew; in the second one it
// says that it wants its share; and it has that of each slice alone.
func (r *run) active() string     { return "pgjet.active." + r.Consumer.Name }
func (r *run) membership() string { return "pgjet.member." + r.Consumer.Name }
func (r *run) ownership(slice int) string {
	return fmt.Sprintf("pgjet.slice.%s.%d", r.Consumer.Name, slice)
}

func (m *member) asked(what string, err error) error {
	if err != nil {
		return &inbox.Error{What: what, Err: err}
	}
	return nil
}

// join makes the consumer known, divided into as many slices as it shall have, and makes the session one of those that work with so many.
func (m *member) join(ctx context.Context) error {
	for {
		if m.ordered() {
			if err := m.asked("stand by", m.data.Join(ctx, m.active(), m.standby(ctx))); err != nil {
				return err
			}
		}
		if err := m.source.Check(); err != nil {
			return err
		}
		if err := m.register(ctx); err != nil {
			return err
		}
		if m.is.Slices == m.Consumer.Slices {
			return nil
		}
		if done, err := m.divide(ctx); err != nil || done {
			return err
		}
		if !sleep(ctx, saveEvery) {
			return ctx.Err()
		}
	}
}

// standby returns what to do about a session that is in the way.
func (m *member) standby(ctx context.Context) func(lead.Holder) {
	return func(h lead.Holder) {
		err := fmt.Errorf("%w: the lead is %s", errStandby, h)
		if h.Foreign {
			err = fmt.Errorf("lead_taken: the lead is %s, which is no process of this consumer; find out what it is, and end it with pg_terminate_backend", h)
			_ = m.heartbeat(ctx, err) // the log says it, too
		}
		switch news := m.keeper.Waiting(err); {
		case news && h.Foreign:
			m.log.WarnContext(ctx, "not handling events", "err", err)
		case news:
			m.log.InfoContext(ctx, "another process is active, standing by", "holder", h.String())
		}
	}
}

// register makes the consumer known.
func (m *member) register(ctx context.Context) error {
	info, err := m.streamInfo(ctx)
	if err != nil {
		return err
	}
	past, err := m.pastGeneration(ctx, info)
	if err != nil {
		return err
	}
	m.is, err = m.data.Register(ctx, inbox.Registration{Consumer: m.Consumer.Name, Stream: m.stream, MoveFrom: m.Runner.MoveFrom, Created: info.Created,
		Ordered: m.ordered(), Effects: m.Consumer.Handler.effect != nil, Slices: m.Consumer.Slices, Past: past, Prefix: m.subjects.Prefix(), Types: m.Consumer.Handler.types})
	m.created = info.Created
	if paused, ok := errors.AsType[*inbox.PausedError](err); ok {
		return m.awaitResume(ctx, paused)
	}
	return err
}

// divide divides the consumer into as many slices as it shall have. It reports false if processes work with another number: once those
// have ended it can.
func (m *member) divide(ctx context.Context) (done bool, err error) {
	if m.ordered() {
		err := m.data.Leave(ctx, m.active())
		if err == nil {
			done, err = m.data.Try(ctx, m.active())
		}
		if err != nil || !done {
			return false, m.asked("stand by", errors.Join(err, m.reportHolder(ctx)))
		}
	}
	if err := m.data.Divide(ctx, m.Consumer.Slices); err != nil {
		return false, m.asked("divide the consumer", err)
	}
	m.log.InfoContext(ctx, "the consumer was divided into another number of slices", "slices", m.Consumer.Slices, "before", m.is.Slices)
	m.forget(ctx, m.is.Slices)
	m.is.Slices = m.Consumer.Slices
	if m.ordered() {
		err = m.data.Join(ctx, m.active(), m.standby(ctx))
		if err == nil {
			err = m.data.Release(ctx, m.active())
		}
	}
	return true, m.asked("divide the consumer", err)
}

// reportHolder says who works with another number of slices.
func (m *member) reportHolder(ctx context.Context) error {
	holders, err := m.data.Holders(ctx, []string{m.active()})
	for _, h := range holders[m.active()] {
		m.standby(ctx)(h)
		break
	}
	return err
}

// forget deletes the durable consumers of another number of slices, if it may.
func (m *member) forget(ctx context.Context, slices int) {
	for _, name := range inbox.Durables(m.Consumer.Name, slices) {
		err := m.checkOwner(ctx, name)
		if _, others := errors.AsType[*inbox.ForeignDurableError](err); others {
			continue
		}
		if err == nil {
			err = m.js.DeleteConsumer(ctx, m.stream, name)
		}
		if err != nil && natsconn.Of(err) != jserror.ConsumerMissing {
			m.log.WarnContext(ctx, "a durable consumer is not needed any more, unless it names another database, and could not be deleted; run: nats consumer rm "+m.stream+" "+name, "err", err)
		}
	}
}

// awaitTables returns nil once nobody keeps the consumer from its tables, or the lock that somebody
// has held for long.
func (m *member) awaitTables(ctx context.Context) error {
	for began := time.Now(); ; {
		lock, err := m.data.TableLock(ctx)
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
func (m *member) awaitResume(ctx context.Context, paused *inbox.PausedError) error {
	for {
		if m.keeper.Waiting(paused) {
			m.log.InfoContext(ctx, "not handling events", "err", paused)
		}
		if err := m.heartbeat(ctx, paused); err != nil {
			return err
		}
		if !sleep(ctx, 2*pollEvery) {
			return paused
		}
		still, err := m.data.ReadPause(ctx)
		if err != nil {
			return err
		}
		if still == nil {
			return inbox.ErrSuperseded
		}
		paused = &inbox.PausedError{Consumer: m.Consumer.Name, Paused: *still}
	}
}

// rebuildIfAsked deletes what the handlers wrote, if a replay of everything asks for it.
func (m *member) rebuildIfAsked(ctx context.Context) error {
	if !m.is.Rebuild {
		return nil
	}
	if m.Consumer.Clear == nil {
		m.log.WarnContext(ctx, "this consumer has no Clear: what its handlers wrote before the replay stays")
	}
	return m.asked("rebuild", m.data.Rebuild(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if m.Consumer.Clear == nil {
			return nil
		}
		if err := m.Consumer.Clear(ctx, tx); err != nil {
			return fmt.Errorf("clear before the replay: %w", err)
		}
		return nil
	}))
}

// serve owns a share of the slices until something fails, or ctx ends. Then it takes no more, and keeps its slices until
// what has begun is finished.
func (m *member) serve(outer context.Context) error {
	ctx, end := context.WithCancelCause(outer)
	defer end(nil)
	m.end = end
	for saved := (time.Time{}); ctx.Err() == nil; m.await(ctx) {
		if err := m.tend(ctx, &saved); err != nil {
			end(err)
		}
	}
	holding := context.WithoutCancel(ctx)
	if m.ordered() && !m.data.Closed() {
		_ = m.data.Leave(holding, m.membership()) // if it fails, its end leaves
	}
	for len(m.terms) > 0 {
		m.await(holding)
		_, _ = m.current(holding) // a connection that says nothing is closed
	}
	holding, cancel := context.WithTimeout(holding, pingTime)
	defer cancel()
	_ = m.data.Farewell(holding, m.process) // if it fails, others take it for dead
	if err := context.Cause(ctx); outer.Err() == nil {
		return err
	}
	return nil
}

// await waits for a while, or until a term has ended, whose slice is free then.
func (m *member) await(ctx context.Context) {
	select {
	case t := <-m.ended:
		delete(m.terms, t.tenure.Slice.Number)
		if m.ordered() && !m.data.Closed() {
			_ = m.data.Release(context.WithoutCancel(ctx), m.ownership(t.tenure.Slice.Number)) // if it fails, so does all else
		}
	case <-time.After(pollEvery):
	case <-ctx.Done():
	}
}

// tend obeys operators, shares the slices, saves the places in the stream, and says that the process lives.
func (m *member) tend(ctx context.Context, saved *time.Time) error {
	current, err := m.current(ctx)
	switch {
	case err != nil:
		return ignoreEnd(ctx, err)
	case !current:
		return inbox.ErrSuperseded
	}
	if time.Since(m.balanced) >= balanceEvery {
		m.balanced = time.Now()
		if err := m.balance(ctx); err != nil {
			return ignoreEnd(ctx, m.asked("share the slices", err))
		}
	}
	if time.Since(*saved) < saveEvery {
		return nil
	}
	*saved = time.Now()
	for _, t := range m.terms {
		if err := t.report(ctx); err != nil {
			return ignoreEnd(ctx, err)
		}
	}
	m.owned.Store(int64(len(m.terms)))
	err = m.lookAtLocks(ctx)
	switch {
	case err != nil:
	case len(m.terms) > 0:
		m.shown = true
		err = m.heartbeat(ctx, m.gate.closed())
	case m.shown: // it stands by now
		m.shown = false
		err = m.data.Farewell(ctx, m.process)
	}
	return ignoreEnd(ctx, err)
}

// current reports whether nobody superseded or paused the session. It has the terms look for intents if some are due.
func (m *member) current(ctx context.Context) (current bool, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTime) // cancelling would close the connection
	defer cancel()
	var epochs []int64
	for _, t := range m.terms {
		if epoch := t.epoch.Load(); epoch > 0 {
			epochs = append(epochs, epoch)
		}
	}
	current, due, err := m.data.Current(ctx, m.version, epochs)
	if due {
		for _, t := range m.terms {
			t.nudge()
		}
	}
	return current, err
}

// balance begins terms of slices that nobody owns, and ends some, so that the members share them evenly.
func (m *member) balance(ctx context.Context) error {
	if !m.ordered() {
		if len(m.terms) == 0 {
			m.own(ctx, 0)
		}
		return nil
	}
	asking, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTime) // cancelling would close the connection
	defer cancel()
	all, err := m.owners(asking)
	if err != nil {
		return err
	}
	m.foreign = all.foreign
	var mine []*term
	for _, t := range m.terms {
		if !t.over.Load() {
			mine = append(mine, t)
		}
	}
	want := share(m.is.Slices, all.owned, m.data.PID())
	for _, t := range mine[min(want, len(mine)):] {
		m.log.InfoContext(ctx, "a slice goes to another process", "slice", t.tenure.Slice.Number)
		t.release()
	}
	for _, s := range all.free[:min(max(0, want-len(mine)), len(all.free))] {
		if taken, err := m.data.Try(asking, m.ownership(s)); err != nil || !taken {
			return err
		}
		m.own(ctx, s)
	}
	if len(m.terms) == 0 && all.other != nil {
		m.standby(ctx)(*all.other)
	}
	return nil
}

// owners are who has the leads of the slices.
type owners struct {
	owned   map[int64]int // how many each member has, by its process id
	free    []int         // slices that nobody has
	other   *lead.Holder  // of a slice, not this session; nil if there is none
	foreign error         // which slice a session has that is no process of the consumer; nil if there is none
}

// owners looks who has which slices. A session that is no process of the consumer may hold any of the locks: it is no member.
func (m *member) owners(ctx context.Context) (all owners, err error) {
	names := []string{m.membership()}
	for s := range m.is.Slices {
		names = append(names, m.ownership(s))
	}
	holders, err := m.data.Holders(ctx, names)
	if err != nil {
		return all, err
	}
	all.owned = make(map[int64]int)
	for _, h := range holders[m.membership()] {
		if h.PID != nil && !h.Foreign {
			all.owned[*h.PID] = 0
		}
	}
	me := m.data.PID()
	for n := range m.is.Slices {
		s := (n + int(me)) % m.is.Slices // not all members the same first
		held := holders[m.ownership(s)]
		if len(held) == 0 && m.terms[s] == nil {
			all.free = append(all.free, s)
		}
		for _, h := range held {
			if h.PID != nil {
				if _, member := all.owned[*h.PID]; member {
					all.owned[*h.PID]++
				}
			}
			switch {
			case h.PID != nil && *h.PID == me:
			case h.Foreign:
				all.foreign = fmt.Errorf("lead_taken: the lead of slice %d is %s, which is no process of this consumer; find out what it is, and end it with pg_terminate_backend", s, h)
				fallthrough
			default:
				all.other = &h
			}
		}
	}
	return all, nil
}

// share returns how many of the slices a member shall own: as many as each other, and one more if there are some over and it
// owns as many already, or more than others. Who owns how many of them decides who has to give some up.
func share(slices int, owned map[int64]int, me int64) int {
	if len(owned) == 0 {
		return 0
	}
	each, over := slices/len(owned), slices%len(owned)
	for pid, n := range owned {
		if n > owned[me] || n == owned[me] && pid < me {
			over--
		}
	}
	if over > 0 {
		each++
	}
	return each
}

// own begins the term of a slice.
func (m *member) own(outer context.Context, slice int) {
	t := newTerm(m, slice)
	m.terms[slice] = t
	ctx, fail := context.WithCancelCause(outer)
	t.fail = fail
	go func() {
		defer func() { m.ended <- t }()
		defer fail(nil)
		if err := t.session(ctx); err != nil {
			m.unbegun.CompareAndSwap(false, !t.begun.Load())
			m.end(err)
		}
	}()
}
