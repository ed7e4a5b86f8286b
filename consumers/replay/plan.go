package replay

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/events"
)

// A Plan says what a replay will do. Its counts are exact for the moment at which each
// was taken; a consumer that runs changes them.
type Plan struct {
	Consumer string `json:"consumer"`
	Stream   string `json:"stream"`
	Way      string `json:"way"` // [ByReset] or [ByIntent]
	From     uint64 `json:"from"`
	To       uint64 `json:"to"` // inclusive; less than From if there is nothing to replay
	Type     string `json:"type,omitempty"`
	Key      string `json:"key,omitempty"`
	Rate     int    `json:"rate,omitempty"`
	Gone     uint64 `json:"gone"` // places of the range before the first that the stream still has

	Selected  int `json:"selected"`
	Run       int `json:"run"`        // no inbox row: will be delivered and run
	Again     int `json:"again"`      // done, and will run again
	Skipped   int `json:"skipped"`    // done, and left so
	Waiting   int `json:"waiting"`    // wait for an attempt already
	Dead      int `json:"dead"`       // dead letters, left alone
	Discarded int `json:"discarded"`  // given up for good, left alone
	OnTheWay  int `json:"on_the_way"` // not delivered yet, and will be without a replay
	Foreign   int `json:"foreign"`    // messages that are no events of ours

	Rebuild   bool   `json:"rebuild"`   // what its handlers wrote is cleared first
	Effects   bool   `json:"effects"`   // it has effects outside its database
	Paused    bool   `json:"paused"`    // and stays so
	Processes int    `json:"processes"` // that run now
	Refused   string `json:"refused"`   // why it needs [Selection.Force]; "" if it does not or has it

	Until     time.Time `json:"until"` // To in time, for whoever repeats this
	again     bool
	selection Selection
	subjects  []string
	last      uint64 // the last place that is selected
	elsewhere int    // done rows of another place than the stream has now
}

// Plan resolves a selection and reads the range once, headers only. It changes
// nothing. It returns [ErrSelection] if the range begins beyond the end of the stream,
// or the consumer does not take the type.
//
// A plan that runs events again is refused, which [Plan.Refused] says, if the consumer
// has effects outside its database, or if the stream no longer has all that the
// consumer would have to be rebuilt from.
func (r *Replay) Plan(ctx context.Context, s Selection) (*Plan, error) {
	p := &Plan{
		Consumer: r.name, Stream: r.stream.CachedInfo().Config.Name, Type: s.Type, Key: s.Key, Rate: s.Rate,
		Effects: r.effects, Paused: r.paused, Processes: r.processes, again: s.Again, selection: s,
	}
	var err error
	if p.subjects, err = r.subjects(s.Type, s.Key); err != nil {
		return nil, err
	}
	if err := r.resolve(ctx, s, p); err != nil {
		return nil, err
	}
	const chunk = 1000
	err = r.each(ctx, p, true, chunk, func(all []message) error { return r.count(ctx, p, all) })
	if err != nil {
		return nil, err
	}
	p.decide(s)
	return p, nil
}

// resolve sets the range of the plan.
func (r *Replay) resolve(ctx context.Context, s Selection, p *Plan) error {
	info, err := r.stream.Info(ctx)
	if err != nil {
		return fmt.Errorf("look up stream %s: %w", p.Stream, err)
	}
	state := info.State
	first, end := max(state.FirstSeq, 1), state.LastSeq+1
	p.From, p.To, p.Until = first, state.LastSeq, state.LastTime.Add(1)
	switch {
	case s.All:
		p.Gone = first - 1
	case s.FromSeq > end:
		return fmt.Errorf("%w: sequence %d is beyond the end of stream %s, whose last is %d", ErrSelection, s.FromSeq, p.Stream, state.LastSeq)
	case s.FromSeq > 0:
		p.From, p.Gone = max(s.FromSeq, first), max(s.FromSeq, first)-s.FromSeq
	default:
		if p.From, err = r.at(ctx, state, s.From); err != nil {
			return err
		}
		if p.From == first && state.Msgs > 0 && s.From.Before(state.FirstTime) {
			p.Gone = first - 1 // at most: nobody knows when those were stored
		}
	}
	if !s.Until.IsZero() && s.Until.Before(p.Until) {
		end, err := r.at(ctx, state, s.Until)
		if err != nil {
			return err
		}
		p.To, p.Until = end-1, s.Until
	}
	return nil
}

// count adds what the inbox knows of all.
func (r *Replay) count(ctx context.Context, p *Plan, all []message) error {
	ids := make([]uuid.UUID, len(all))
	for i, m := range all {
		ids[i] = m.event.ID
	}
	known, err := inbox.Rows(ctx, r.db, r.name, ids)
	if err != nil {
		return err
	}
	for _, m := range all {
		p.last = m.seq
		if m.foreign {
			p.Foreign++
			continue
		}
		p.Selected++
		row := known[m.event.ID]
		switch {
		case row.State == "" && r.onTheWay(m):
			p.OnTheWay++
		case row.State == "":
			p.Run++
		case row.State == "done" && p.again:
			p.Again++
		case row.State == "done":
			p.Skipped++
		case row.State == "intent":
			p.Waiting++
		case row.State == "dead":
			p.Dead++
		default:
			p.Discarded++
		}
		if row.State == "done" && (row.Generation != r.generation || row.Seq != m.seq) {
			p.elsewhere++
		}
	}
	return nil
}

// onTheWay reports whether a message without an inbox row comes by itself. Handed to a
// consumer that keeps the order, it would overtake what comes before it.
func (r *Replay) onTheWay(m message) bool {
	slice := events.Partition(m.subject) * r.slices / events.Partitions
	return r.ordered && m.seq > r.durables[slice].CachedInfo().AckFloor.Stream
}

// decide chooses the way, and says what stands against it.
func (p *Plan) decide(s Selection) {
	p.Way = ByReset
	switch {
	case !s.whole():
		p.Way = ByIntent
	case p.Effects:
		// Delivered by the stream, what was lost once would be a dead letter: it may have
		// happened. Here somebody who has read the plan wants it.
		p.Way = ByIntent
	case s.Again && !s.All && p.elsewhere > 0:
		// The inbox rows of a range are found by their place. Those of events that the
		// stream has at another place now have to be found one by one.
		p.Way = ByIntent
	}
	if p.Way == ByReset { // it delivers those too
		p.Run, p.OnTheWay = p.Run+p.OnTheWay, 0
	}
	p.Rebuild = s.Again && s.All && p.Way == ByReset
	switch {
	case s.Force || !s.Again:
	case p.Effects:
		p.Refused = fmt.Sprintf("%s has effects outside its database, such as mails, and would repeat %d of them", p.Consumer, p.Again)
	case p.Rebuild && p.Gone > 0:
		p.Refused = fmt.Sprintf("stream %s no longer has its first %d messages: what %s is rebuilt from would lack them", p.Stream, p.Gone, p.Consumer)
	}
}

// Empty reports whether running the plan would change nothing.
func (p *Plan) Empty() bool { return p.Run == 0 && p.Again == 0 }

// pageFor returns how many whole messages of a stream to hold at once.
func pageFor(state jetstream.StreamState) int {
	const most, memory = 200, 8 << 20
	if state.Msgs == 0 {
		return most
	}
	return int(min(most, max(1, memory/max(1, state.Bytes/state.Msgs))))
}
