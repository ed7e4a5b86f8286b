package replay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/jserror"
	"github.com/pgjet/pgjet/internal/natsconn"
	"github.com/pgjet/pgjet/internal/operation"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

// afterwards bounds the cleanup after ctx has ended.
const afterwards = 30 * time.Second

// An Extended is what [Extend] has added.
type Extended struct {
	Types   []string // the added types; none if the durable consumer was not changed
	Earlier int      // events of these types that the stream held before, and that are delivered now
	Paused  bool     // an operator had paused the consumer, which stays paused
}

// Lacks returns the types that want asks for and the existing durable consumers of a stream do not
// deliver; want is one durable consumer for each slice. It returns none if they deliver types that
// want does not ask for: nobody may remove those.
func Lacks(ctx context.Context, js jetstream.JetStream, stream string, want []jetstream.ConsumerConfig) ([]string, error) {
	missing, _, err := lacks(ctx, js, stream, want)
	return missing, err
}

// lacks also returns the existing durable consumers.
func lacks(ctx context.Context, js jetstream.JetStream, stream string, want []jetstream.ConsumerConfig) (missing []string, all []jetstream.ConsumerConfig, err error) {
	for _, want := range want {
		durable, err := js.Consumer(ctx, stream, want.Durable)
		if class := natsconn.Of(err); class == jserror.ConsumerMissing || class == jserror.StreamMissing {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("look up durable consumer %s: %w", want.Durable, natsconn.Explain(js.Conn(), err, "operator --consumer "+want.Durable))
		}
		have := durable.CachedInfo().Config
		if have.FilterSubject != "" { // in the form that needs no other permission
			have.FilterSubject, have.FilterSubjects = "", []string{have.FilterSubject}
		}
		lacking := slices.DeleteFunc(slices.Clone(want.FilterSubjects), func(s string) bool { return slices.Contains(have.FilterSubjects, s) })
		all = append(all, have)
		if len(have.FilterSubjects) == 0 || len(have.FilterSubjects)+len(lacking) != len(want.FilterSubjects) { // without any filter it delivers everything
			continue
		}
		for _, subject := range lacking {
			if t := events.FilteredType(subject); !slices.Contains(missing, t) {
				missing = append(missing, t)
			}
		}
	}
	return missing, all, nil
}

// Extend makes the existing durable consumers of a consumer deliver further event types, since it
// has a new handler for them. It adds the types that [Lacks] returns for want. by is who asked for
// it; the operation is kept in pgjet.operation. If Extend fails, it undoes its changes and ends its
// pause, and may be called again. If one of the durable consumers belongs to another database, it
// returns an [*inbox.ForeignDurableError].
//
// Nothing is lost and nothing happens twice: events of those types that the stream already holds
// are delivered as well, and done ones are skipped. An ordered consumer is set back, and goes
// through the stream in order from the first of those events on. A consumer with effects gets them
// one by one. No process handles events meanwhile: the consumer is paused until everything is done.
func Extend(ctx context.Context, db *pgxpool.Pool, js jetstream.JetStream, stream, consumer string, want []jetstream.ConsumerConfig, by string) (Extended, error) {
	if err := natsconn.CheckVersion(js.Conn()); err != nil {
		return Extended{}, natsconn.Explain(js.Conn(), err, "operator")
	}
	missing, have, err := lacks(ctx, js, stream, want)
	if err != nil {
		return Extended{}, err
	}
	identity, err := inbox.ReadIdentity(ctx, db)
	if err != nil {
		return Extended{}, sqlstate.Wrap("look up consumer "+consumer, err)
	}
	for _, have := range have {
		if err := identity.Check(stream, have.Durable, have.Metadata); err != nil {
			return Extended{}, err
		}
	}
	unfinished, err := unfinished(ctx, db, consumer)
	if err != nil || len(missing) == 0 && !unfinished {
		return Extended{}, err
	}
	x := &extension{db: db, js: js, stream: stream, name: consumer, by: by, lacks: missing, before: have}
	for _, have := range have {
		i := slices.IndexFunc(want, func(w jetstream.ConsumerConfig) bool { return w.Durable == have.Durable })
		have.FilterSubjects = want[i].FilterSubjects
		x.want = append(x.want, have)
	}
	result, err := x.run(ctx)
	if err != nil {
		err = x.undo(ctx, err)
	}
	return result, err
}

// undo restores the filters of the durable consumers and ends the pause, after err.
func (x *extension) undo(ctx context.Context, err error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), afterwards)
	defer cancel()
	failed := x.restore(ctx)
	for failed == nil && x.paused {
		if _, failed = inbox.Resume(ctx, x.db, x.name, x.by, "types of events were not added: "+err.Error(), inbox.ExtendPause); failed == nil {
			break
		}
		select { // the connection may be lost, or the server restarting
		case <-time.After(500 * time.Millisecond):
			failed = nil
		case <-ctx.Done():
		}
	}
	switch {
	case failed == nil:
		return fmt.Errorf("%w; nothing was changed, do this again", err)
	case x.paused:
		return fmt.Errorf("%w; consumer %s is paused and stays so until this is done again (%w)", err, x.name, failed)
	}
	return fmt.Errorf("%w; do this again to finish it (%w)", err, failed)
}

// restore restores the filters of the durable consumers, also those that look unchanged: if the answer to
// a change was lost, the server may carry it out later.
func (x *extension) restore(ctx context.Context) error {
	if len(x.lacks) == 0 {
		return nil
	}
	for n, before := range x.before[:x.updated] {
		if slices.Equal(before.FilterSubjects, x.want[n].FilterSubjects) {
			continue
		}
		if _, err := x.js.UpdateConsumer(context.WithoutCancel(ctx), x.stream, before); err != nil && !x.unchanged(ctx, before) {
			return fmt.Errorf("restore the filters of durable consumer %s: %w", before.Durable, natsconn.Explain(x.js.Conn(), err, x.role()))
		}
	}
	return nil
}

// unchanged reports whether a durable consumer has its filters of before.
func (x *extension) unchanged(ctx context.Context, before jetstream.ConsumerConfig) bool {
	durable, err := x.js.Consumer(ctx, x.stream, before.Durable)
	if err != nil {
		return false
	}
	c := durable.CachedInfo().Config
	return len(c.FilterSubjects) == len(before.FilterSubjects) || c.FilterSubject != ""
}

func (x *extension) role() string { return "operator --consumer " + x.name }

// unfinished reports whether an earlier Extend was interrupted: its pause is left or, if the
// consumer had been paused before, only its operation.
func unfinished(ctx context.Context, db *pgxpool.Pool, name string) (bool, error) {
	p, err := inbox.ReadPause(ctx, db, name)
	if err != nil || p != nil && p.Reason == inbox.ExtendPause {
		return err == nil, sqlstate.Wrap("look up consumer "+name, err)
	}
	yes, err := operation.Unfinished(ctx, db, extendKind, name, nil)
	return yes, sqlstate.Wrap("look up consumer "+name, err)
}

// extendKind is the kind of the operation.
const extendKind = "consumer.extend"

type extension struct {
	db           *pgxpool.Pool
	js           jetstream.JetStream
	stream, name string
	by           string
	lacks        []string
	before, want []jetstream.ConsumerConfig // the same ones
	paused       bool                       // perhaps by this operation
	updated      int                        // so many of the durable consumers are, perhaps
}

func (x *extension) run(ctx context.Context) (result Extended, err error) {
	result.Types = x.lacks
	p, _, err := inbox.Pause(ctx, x.db, x.name, x.by, inbox.ExtendPause)
	_, unknown := errors.AsType[*inbox.UnknownError](err)
	if err != nil && !unknown {
		x.paused = sqlstate.CommitUnknown(err)
		return result, err
	}
	x.paused = p.Reason == inbox.ExtendPause
	result.Paused = !unknown && !x.paused
	if err := x.begun(ctx); err != nil {
		return result, err
	}
	// However short the pause is, no session from before it may handle another event.
	if err := inbox.Interrupt(ctx, x.db, x.name); err != nil {
		return result, err
	}
	if err := x.update(ctx); err != nil {
		return result, err
	}
	if unknown { // and no inbox has done events: everything is delivered anyway
		return result, x.done(ctx)
	}
	if result.Earlier, err = x.replay(ctx); err != nil {
		return result, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), afterwards)
	defer cancel()
	if err := x.done(ctx); err != nil || !x.paused {
		return result, err
	}
	_, err = inbox.Resume(ctx, x.db, x.name, x.by, "the durable consumer brings "+strings.Join(x.lacks, ", "), inbox.ExtendPause)
	return result, err
}

// update changes the durable consumers. It is not cancelled: the server could carry an interrupted change
// out after the filters were restored. Each request ends within the time limit of the JetStream client.
func (x *extension) update(ctx context.Context) error {
	for _, want := range x.want {
		x.updated++
		if _, err := x.js.UpdateConsumer(context.WithoutCancel(ctx), x.stream, want); err != nil {
			return fmt.Errorf("change durable consumer %s: %w", want.Durable, natsconn.Explain(x.js.Conn(), err, x.role()))
		}
	}
	return nil
}

// begun records what is about to be added.
func (x *extension) begun(ctx context.Context) error {
	if len(x.lacks) == 0 {
		return nil // recorded already
	}
	detail := map[string]any{"types": x.lacks, "done": false}
	noted, err := operation.Unfinished(ctx, x.db, extendKind, x.name, detail)
	if err == nil && !noted {
		_, _, err = operation.Note(ctx, x.db, operation.Operation{Kind: extendKind, Target: x.name, By: x.by, Reason: inbox.ExtendPause, Detail: detail})
	}
	if err != nil {
		return fmt.Errorf("record what is added to consumer %s: %w", x.name, err)
	}
	return nil
}

// done records that this extension, or the interrupted one before, is finished.
func (x *extension) done(ctx context.Context) error {
	if err := operation.Finish(ctx, x.db, extendKind, x.name); err != nil {
		return fmt.Errorf("record what was added to consumer %s: %w", x.name, err)
	}
	return nil
}

// replay has the events of the added types that the stream already holds delivered, and returns
// their number.
func (x *extension) replay(ctx context.Context) (earlier int, err error) {
	selection := Selection{All: true} // after an interrupted one the right place is unknown
	if len(x.lacks) > 0 {
		if selection, err = x.from(ctx); err != nil || selection.FromSeq == 0 {
			return 0, err
		}
	}
	r, err := Open(ctx, x.db, x.js, x.name)
	if errors.Is(err, ErrChanged) {
		return 0, nil // the stream was created again: all of it is delivered
	}
	if err != nil {
		return 0, err
	}
	defer r.Close()
	if err := r.Lock(ctx); err != nil {
		return 0, err
	}
	plan, err := r.Plan(ctx, selection)
	if err != nil {
		return 0, err
	}
	plans := []*Plan{plan}
	if plan.Effects && len(x.lacks) > 0 { // one by one; of the other types none is missing
		plans = nil
		for _, selection.Type = range x.lacks {
			if plan, err = r.Plan(ctx, selection); err != nil {
				return 0, err
			}
			plans = append(plans, plan)
		}
	}
	for _, plan := range plans {
		if _, err := r.Run(ctx, plan, Order{By: x.by, Reason: inbox.ExtendPause}); err != nil {
			return earlier, err
		}
		earlier += plan.Run
	}
	return earlier, nil
}

// from selects the stream from the first event of the added types on; FromSeq is 0 if there is
// none.
func (x *extension) from(ctx context.Context) (s Selection, err error) {
	stream, err := x.js.Stream(ctx, x.stream)
	if err != nil {
		return s, fmt.Errorf("look up stream %s: %w", x.stream, natsconn.Explain(x.js.Conn(), err, x.role()))
	}
	subjects := events.SubjectsOf(events.PrefixOf(x.want[0].FilterSubjects[0])) // want asks for the lacking types
	for _, t := range x.lacks {
		msg, err := stream.GetMsg(ctx, 1, jetstream.WithGetMsgSubject(subjects.Filter(t)))
		if natsconn.Of(err) == jserror.MessageMissing {
			continue
		}
		if err != nil {
			return s, fmt.Errorf("look for the first %s in stream %s: %w", t, x.stream, natsconn.Explain(x.js.Conn(), err, x.role()))
		}
		if s.FromSeq == 0 || msg.Sequence < s.FromSeq {
			s.FromSeq = msg.Sequence
		}
	}
	return s, nil
}
