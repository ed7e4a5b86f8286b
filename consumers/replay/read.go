package replay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/natsconn"
)

// answerTimeout bounds how long the stream may send nothing while it has more.
const answerTimeout = 30 * time.Second

// A message is an event with its stream sequence.
type message struct {
	seq     uint64
	event   events.Event
	foreign bool // not an event of pgjet
	subject string
	header  nats.Header
	data    []byte
}

// subjects returns the filters of the durable consumers, limited to a type and a key.
func (r *Replay) subjects(eventType, key string) ([]string, error) {
	c := r.durables[0].CachedInfo().Config // those of other slices differ only in the partitions
	all := slices.Clone(c.FilterSubjects)
	if c.FilterSubject != "" {
		all = append(all, c.FilterSubject)
	}
	for n := range all {
		all[n] = events.AnyPartition(all[n])
	}
	slices.Sort(all)
	all = slices.Compact(all)
	subjects := events.SubjectsOf(events.PrefixOf(slices.Concat(all, r.stream.CachedInfo().Config.Subjects)...))
	if eventType != "" {
		subject := subjects.Of(eventType, key)
		if len(all) > 0 && !slices.ContainsFunc(all, func(filter string) bool { return covers(filter, subject) }) {
			return nil, fmt.Errorf("%w: consumer %s does not take events of type %s, only %s", ErrSelection, r.name, eventType, strings.Join(all, " "))
		}
		all = []string{subjects.Filter(eventType)}
	}
	if key != "" { // all events of a key are in one partition
		for i, filter := range all {
			if t := events.FilteredType(filter); t != filter {
				all[i] = subjects.Of(t, key)
			}
		}
	}
	return all, nil
}

// covers reports whether a filter matches a subject.
func covers(filter, subject string) bool {
	f, s := strings.Split(filter, "."), strings.Split(subject, ".")
	for i, token := range f {
		if token == ">" {
			return i < len(s)
		}
		if i >= len(s) || token != "*" && token != s[i] {
			return false
		}
	}
	return len(f) == len(s)
}

// A reading is a pass over a part of the stream.
type reading struct {
	consumer *natsconn.Reader
	page     int
	last     uint64 // consumer sequence
	pending  uint64
}

// ReaderNames returns the names of the consumers that read the stream for the plan and for the run
// of a replay. The user who replays needs the right to create, read and delete them.
func ReaderNames(consumer string) (plan, run string) {
	return "pgjet-plan-" + consumer, "pgjet-replay-" + consumer
}

// read begins a pass. Those of a plan and of a run may exist at the same time; the lock allows only
// one run.
func (r *Replay) read(ctx context.Context, page int, run bool, c jetstream.ConsumerConfig) (*reading, error) {
	name, forRun := ReaderNames(r.name)
	if run {
		name = forRun
	}
	consumer, err := natsconn.NewReader(ctx, r.js, r.stream.CachedInfo().Config.Name, name, c)
	if err != nil {
		return nil, fmt.Errorf("read stream %s: %w", r.stream.CachedInfo().Config.Name, r.explain(err))
	}
	return &reading{consumer: consumer, page: page, pending: consumer.CachedInfo().NumPending}, nil
}

// next returns the next messages, none at the end.
func (g *reading) next(ctx context.Context) ([]jetstream.Msg, error) {
	for deadline := time.Now().Add(answerTimeout); g.pending > 0; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		batch, err := g.consumer.FetchNoWait(g.page)
		if err != nil {
			return nil, err
		}
		var all []jetstream.Msg
		for msg := range batch.Messages() {
			meta, err := msg.Metadata()
			if err == nil && meta.Sequence.Consumer != g.last+1 {
				err = errors.New("messages were lost on the way here; replay again")
			}
			if err != nil {
				return nil, err
			}
			g.last, g.pending = meta.Sequence.Consumer, meta.NumPending
			all = append(all, msg)
		}
		if len(all) > 0 {
			return all, nil
		}
		if err := batch.Error(); err != nil {
			return nil, err
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("the stream sent nothing for %s, although it has more", answerTimeout)
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil, nil
}

// each calls fn with the messages of the plan, page by page.
func (r *Replay) each(ctx context.Context, p *Plan, headersOnly bool, page int, fn func([]message) error) error {
	if p.From > p.To {
		return nil
	}
	g, err := r.read(ctx, page, !headersOnly, jetstream.ConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: p.From,
		FilterSubjects: p.subjects, HeadersOnly: headersOnly,
	})
	if err != nil {
		return err
	}
	defer g.consumer.Close()
	for {
		msgs, err := g.next(ctx)
		if err != nil {
			return fmt.Errorf("read stream %s: %w", p.Stream, err)
		}
		chosen, end := p.choose(msgs)
		if len(chosen) > 0 {
			if err := fn(chosen); err != nil {
				return err
			}
		}
		if end || len(msgs) == 0 {
			return g.consumer.Confirm(ctx)
		}
	}
}

// choose returns the selected messages of msgs, and whether the range ends in them.
func (p *Plan) choose(msgs []jetstream.Msg) (chosen []message, end bool) {
	for _, msg := range msgs {
		meta, _ := msg.Metadata() // read before without an error
		if meta.Sequence.Stream > p.To {
			return chosen, true
		}
		e, err := events.FromMessage(msg.Headers(), msg.Data())
		m := message{meta.Sequence.Stream, e, err != nil, msg.Subject(), msg.Headers(), msg.Data()}
		if p.Key == "" || e.Key == p.Key { // the partition has other keys, too
			chosen = append(chosen, m)
		}
	}
	return chosen, false
}

// at returns the sequence of the first message that was stored at t or later, or the one after the
// last message if there is none.
func (r *Replay) at(ctx context.Context, state jetstream.StreamState, t time.Time) (uint64, error) {
	switch {
	case state.Msgs == 0 || t.After(state.LastTime):
		return state.LastSeq + 1, nil
	case !t.After(state.FirstTime):
		return state.FirstSeq, nil
	}
	g, err := r.read(ctx, 1, false, jetstream.ConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartTimePolicy, OptStartTime: &t, HeadersOnly: true,
	})
	if err != nil {
		return 0, err
	}
	defer g.consumer.Close()
	msgs, err := g.next(ctx)
	if err != nil || len(msgs) == 0 {
		return state.LastSeq + 1, err
	}
	meta, err := msgs[0].Metadata()
	if err != nil {
		return 0, err
	}
	return meta.Sequence.Stream, nil
}
