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

// A Plan is what a replay will do. Each count is exact for the moment at which it was taken; a
// running consumer changes them.
type Plan struct {
	Consumer string `json:"consumer"`
	Stream   string `json:"stream"`
	Way      string `json:"way"` // [ByReset] or [ByIntent]
	From     uint64 `json:"from"`
	To       uint64 `json:"to"` // inclusive; less than From if there is nothing to replay
	Type     string `json:"type,omitempty"`
	Key      string `json:"key,omitempty"`
	Rate     int    `json:"rate,omitempty"`
	Gone     uint64 `json:"gone"` // sequences of the range before the first message that the stream still has

	Selected  int `json:"selected"`
	Run       int `json:"run"`        // no inbox row: will be delivered and run
	Again     int `json:"again"`      // done, and will run again
	Skipped   int `json:"skipped"`    // done, and will not run
	Waiting   int `json:"waiting"`    // wait for an attempt already
	Dead      int `json:"dead"`       // dead letters, not touched
	Discarded int `json:"discarded"`  // given up for good, not touched
	OnTheWay  int `json:"on_the_way"` // not delivered yet; will be, without a replay
	Foreign   int `json:"foreign"`    // messages that are no events of pgjet

	Rebuild   bool   `json:"rebuild"`   // everything that its handlers wrote is deleted first
	Effects   bool   `json:"effects"`   // it has effects outside its database
	Paused    bool   `json:"paused"`    // and stays so
	Processes int    `json:"processes"` // that run now
	Refused   string `json:"refused"`   // why it needs [Selection.Force]; "" if it does not or has it

	Until     time.Time `json:"until"` // To as a time, for a repetition
	again     bool
	selection Selection
	subjects  []string
	last      uint64 // the last selected sequence
	elsewhere int    // done rows with another sequence than the stream has now
}

// Plan resolves a selection and reads the range once, headers only. It changes nothing. It returns
// [ErrSelection] if the range begins beyond the end of the stream, or the consumer does not handle
// the type.
//
// A plan that runs events again is refused, with the reason in [Plan.Refused], if the consumer has
// effects outside its database, or if the stream no longer has everything from which the consumer
// would be rebuilt.
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
			p.Gone = first - 1 // at most: it is unknown when those were stored
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

// count adds the states of all in the inbox to the plan.
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

// onTheWay reports whether a message without an inbox row will be delivered without a replay. As an
// intent of an ordered consumer it would overtake earlier events.
func (r *Replay) onTheWay(m message) bool {
	slice := events.Partition(m.subject) * r.slices / events.Partitions
	return r.ordered && m.seq > r.durables[slice].CachedInfo().AckFloor.Stream
}

// decide chooses the way, and records reasons for a refusal.
func (p *Plan) decide(s Selection) {
	p.Way = ByReset
	switch {
	case !s.whole():
		p.Way = ByIntent
	case p.Effects:
		// If the stream delivered an event that was lost once, it would be a dead letter, since it
		// may have happened. Here an operator has read the plan and wants it.
		p.Way = ByIntent
	case s.Again && !s.All && p.elsewhere > 0:
		// The inbox rows of a range are found by their sequences. Events that have another sequence
		// in the stream now have to be found one by one.
		p.Way = ByIntent
	}
	if p.Way == ByReset { // that way delivers those, too
		p.Run, p.OnTheWay = p.Run+p.OnTheWay, 0
	}
	p.Rebuild = s.Again && s.All && p.Way == ByReset
	switch {
	case s.Force || !s.Again:
	case p.Effects:
		p.Refused = fmt.Sprintf("%s has effects outside its database, such as mails, and would repeat %d of them", p.Consumer, p.Again)
	case p.Rebuild && p.Gone > 0:
		p.Refused = fmt.Sprintf("stream %s no longer has its first %d messages: a rebuild of %s would lack them", p.Stream, p.Gone, p.Consumer)
	}
}

// Empty reports whether running the plan would change nothing.
func (p *Plan) Empty() bool { return p.Run == 0 && p.Again == 0 }

// pageFor returns how many whole messages of a stream to hold in memory.
func pageFor(state jetstream.StreamState) int {
	const most, memory = 200, 8 << 20
	if state.Msgs == 0 {
		return most
	}
	return int(min(most, max(1, memory/max(1, state.Bytes/state.Msgs))))
}
