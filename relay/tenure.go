package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/jserror"
	"github.com/pgjet/pgjet/relay/protocol"
)

// Polling: how long to wait before looking again. It doubles while the outbox is
// quiet.
const (
	pollBusy = time.Millisecond
	pollIdle = 50 * time.Millisecond
	// pollAsleep is the longest wait once nothing was published for asleepAfter: an idle
	// relay should cost next to nothing.
	pollAsleep  = 100 * time.Millisecond
	asleepAfter = 10 * time.Second
)

// A step that sends at least busyStep events is followed by a pause of pollBusy, even if
// hints arrive, unless there is a backlog. Larger steps leave more of the machine to the
// services that write.
const busyStep = 4

const (
	// saveEvery is the least time between two checkpoints.
	saveEvery = 100 * time.Millisecond
	// stepTime bounds one query to the database. A longer one ends the session, nothing
	// else.
	stepTime = 10 * time.Second
	// stopTime is how long a step may go on after the relay was stopped, and then how long
	// cleaning up may take.
	stopTime = 2 * time.Second
)

// controlEvery is how often a leader reads the operators' control.
var controlEvery = time.Second

// lookEvery is how often a relay that has nothing to publish checks the stream.
var lookEvery = 10 * time.Second

// A tenure is one session of a relay: a pair of connections, and the lead while it lasts.
type tenure struct {
	*Relay
	db      *database
	link    *link
	session *protocol.Session

	counted protocol.Stats // of session, as the metrics have them
	saved   time.Time      // when the last checkpoint was written
	checked time.Time
	looked  time.Time
	adopted int64    // from the control at the beginning
	works   bool     // nothing is known that keeps it from publishing
	before  int64    // how many events it had done when something last did; see done
	untidy  bool     // tidy failed
	weak    []string // settings of the stream that weaken what pgjet promises
	due     due      // when to look for scheduled events
}

// run takes the lead, resyncs, and publishes until something fails or ctx ends.
func (t *tenure) run(ctx context.Context) (err error) {
	if t.db, err = takeLead(ctx, t.Relay, &t.keeper); err != nil {
		return err
	}
	defer t.db.close()
	t.spare.end()
	t.epoch.Store(t.db.epoch)
	defer t.epoch.Store(0)
	defer t.metrics.looked(nil)
	defer func() {
		err = t.db.withHolder(ctx, err)
		t.note(ctx, err)
	}()
	if t.link, err = dial(ctx, t.Relay, t.db.here); err != nil {
		return err
	}
	defer t.link.close()
	weak, err := t.link.checkSettings(t.Retention)
	if err != nil {
		return err
	}
	if err := t.listen(ctx); err != nil || ctx.Err() != nil {
		return err
	}
	defer t.link.others.Announce(ctx, t.link.nc, events.LeadSubject(t.Stream))()
	t.weak = weak
	t.warnOf(ctx)
	t.session = &protocol.Session{DB: t.db, Stream: t.link,
		Chains: t.link.chains(), Batches: t.link.batches(), Owned: t.link.owned.Load(), Source: t.Source, Careful: t.careful}
	defer func() { t.careful = t.session.Careful }()
	if err := t.db.found(ctx); err != nil {
		return err
	}
	w, err := t.db.control(ctx)
	if err != nil {
		return err
	}
	t.adopted = w.adopted
	if err := t.session.Resync(ctx); err != nil {
		return t.halted(ctx, err)
	}
	t.Relay.link.Store(t.link)
	defer t.Relay.link.Store(nil)
	return t.publish(ctx)
}

// warnOf logs what weakens the promises of the stream, each item once.
func (t *tenure) warnOf(ctx context.Context) {
	weak := slices.Concat(t.weak, t.link.unsure())
	for _, w := range weak {
		if !slices.Contains(t.warned, w) {
			t.Log.WarnContext(ctx, "the stream works, but its settings weaken what pgjet promises", "setting", w)
		}
	}
	t.warned = weak
}

// note records in the database why the session ended, if the database still answers.
func (t *tenure) note(ctx context.Context, err error) {
	switch {
	case unclear(err) && ctx.Err() == nil:
		return // the next session finds out
	case unclear(err):
		err = nil
	}
	cause := "stopped"
	if err != nil {
		cause = report(err)
		t.metrics.ended(err)
	}
	if !t.db.conn.IsClosed() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = t.db.noteCause(ctx, cause) // the log has it, too
		if causeOf(err) == OutboxCopied {
			_ = t.db.forgetPlace(ctx) // if that fails, the next session ends as this one did
		}
	}
}

// halted returns err. If err is a halt, it first waits until an operator has decided or the
// stream has changed: the next session looks again.
func (t *tenure) halted(ctx context.Context, err error) error {
	if foreign, is := errors.AsType[*protocol.ForeignError](err); is {
		return &ForeignOutboxError{Stream: t.Stream, Own: outboxOf(t.db.here), Why: foreign.Error()}
	}
	if _, halt := errors.AsType[*protocol.HaltError](err); !halt {
		return err
	}
	state, stateErr := t.link.State(ctx)
	t.obstruct(ctx, slog.LevelWarn, err)
	for stateErr == nil {
		if on, err := t.idle(ctx); !on {
			return err
		}
		w, controlErr := t.db.control(ctx)
		if controlErr != nil {
			return controlErr
		}
		var now protocol.State
		if now, stateErr = t.link.State(ctx); now != state || w.adopted != t.adopted {
			return err
		}
	}
	return stateErr
}

// obstruct records why nothing is published, while the session goes on.
func (t *tenure) obstruct(ctx context.Context, level slog.Level, err error) {
	t.works, t.before = false, t.done()
	if t.keeper.Waiting(err) {
		t.Log.Log(ctx, level, "not publishing", "err", err)
	}
	_ = t.db.noteCause(ctx, report(err)) // if the database is lost, the next call says so
}

// done returns how many events the session has published or set aside.
func (t *tenure) done() int64 { return t.session.Stats.Published + t.session.Stats.Quarantined }

// work records that the session publishes, once a step has shown that: it found nothing to
// publish, or the stream has confirmed an append. Until then, the cause of the session
// before may last.
func (t *tenure) work(ctx context.Context, found int) error {
	if t.works || found > 0 && t.done() == t.before {
		return nil
	}
	t.works = true
	if t.keeper.Working() {
		position, stored := t.session.Position()
		t.Log.InfoContext(ctx, "relay leads", "epoch", t.db.epoch,
			"outbox_seq", position.Floor, "stream_seq", t.session.Last(), "stored_since_checkpoint", stored)
	}
	return t.db.noteCause(context.WithoutCancel(ctx), "") // even if the relay is being stopped
}

// publish moves events until something fails. When ctx ends, it finishes the current page,
// saves a checkpoint, and returns nil.
func (t *tenure) publish(ctx context.Context) error {
	wait, last := pollBusy, time.Now()
	for {
		if err := t.link.rivalry(); err != nil {
			return err
		}
		n, err := t.step(ctx)
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return t.finish(ctx)
		}
		if err := t.work(ctx, n); err != nil {
			return err
		}
		if n > 0 {
			wait, last = pollBusy, time.Now()
		} else if err := t.look(ctx); err != nil {
			return err
		}
		if n >= protocol.Backlog {
			continue // there may be more
		}
		hints := t.link.hints
		if n >= busyStep {
			hints = nil
		}
		select {
		case <-time.After(t.due.within(wait)):
			wait = min(2*wait, longestPoll(time.Since(last)))
		case <-hints:
			wait = pollBusy
		case <-t.link.others.Conflict():
		case <-t.link.closed:
			return t.link.lost()
		case <-ctx.Done():
		}
	}
}

// longestPoll returns how long a relay without hints may sleep, after it had nothing to
// publish for idle.
func longestPoll(idle time.Duration) time.Duration {
	if idle > asleepAfter {
		return pollAsleep
	}
	return pollIdle
}

// look checks now and then, while there is nothing to publish, that the stream still ends
// as expected: a loss must not go unnoticed until the next event.
func (t *tenure) look(ctx context.Context) error {
	if time.Since(t.looked) < lookEvery || ctx.Err() != nil {
		return nil
	}
	if t.looked.IsZero() { // resync has just looked
		t.looked = time.Now()
		return nil
	}
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), stepTime)
	defer cancel()
	if err := t.session.Confirm(work); err != nil {
		return err
	}
	state, err := t.link.State(work)
	t.looked = time.Now()
	if err == nil && state.Last != t.session.Last() {
		err = fmt.Errorf("the stream ends with sequence %d, not %d: %w", state.Last, t.session.Last(), errWrongEnd)
	}
	return err
}

// errWrongEnd is what the stream would answer to the next append.
var errWrongEnd = &protocol.Refusal{Code: jserror.WrongLastSequence, Text: "wrong last sequence"}

// finish confirms what was sent and saves a checkpoint.
func (t *tenure) finish(ctx context.Context) error {
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	defer t.count(work)
	return errors.Join(t.session.Confirm(work), t.session.Save(work))
}

// step publishes a page, and does other work that is due.
func (t *tenure) step(ctx context.Context) (int, error) {
	// A transaction of a million events is one step, which may take long.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(stopTime, cancel) })()
	defer t.count(work)
	if time.Since(t.checked) >= controlEvery {
		if err := t.serveOperators(ctx, work); err != nil || ctx.Err() != nil {
			return 0, err
		}
	}
	if err := t.moveDue(work); err != nil {
		return 0, err
	}
	n, err := t.session.Step(work)
	if err == nil && time.Since(t.saved) >= saveEvery {
		err = t.session.Save(work)
		t.saved = time.Now()
	}
	return n, err
}
