package operate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/saga"
)

// An Entry is one step in the life of an event.
type Entry struct {
	At    *time.Time `json:"at"` // nil means now, or that it is unknown
	Event uuid.UUID  `json:"event"`
	Place string     `json:"place"` // outbox, quarantine, stream, operator, the name of a consumer, or "saga NAME"
	Text  string     `json:"text"`
}

// Timeline returns the steps of events in the order of time, followed by the present state. The
// times are those of the clocks of PostgreSQL, NATS and the processes, which may differ.
func Timeline(all []Event) []Entry {
	var entries []Entry
	for _, e := range all {
		entries = append(entries, e.entries()...)
	}
	slices.SortStableFunc(entries, func(a, b Entry) int {
		switch {
		case a.At == nil || b.At == nil:
			return cmp.Compare(map[bool]int{true: 1}[a.At == nil], map[bool]int{true: 1}[b.At == nil])
		default:
			return a.At.Compare(*b.At)
		}
	})
	return entries
}

func (e Event) entries() (all []Entry) {
	add := func(at *time.Time, place, format string, args ...any) {
		all = append(all, Entry{at, e.ID, place, fmt.Sprintf(format, args...)})
	}
	if r := e.Outbox; r != nil {
		if e.RequestID != "" {
			add(r.Time, "request", "%s, which appended it", e.RequestID)
		}
		add(r.Time, "outbox", "appended %s, seq %d, by transaction %s, %d bytes", e.Type, r.Seq, r.XID, r.Bytes)
	}
	if h := e.Quarantine; h != nil {
		add(&h.At, "quarantine", "set aside, %s now: %s", h.State, h.Reason)
	}
	if s := e.Stored; s != nil {
		took := ""
		if e.Outbox != nil && e.Outbox.Time != nil {
			took = fmt.Sprintf(", %s after the append", rounded(s.Time.Sub(*e.Outbox.Time)))
		}
		add(&s.Time, "stream", "stored as %s, sequence %d%s", s.Stream, s.Seq, took)
	}
	for _, h := range e.Consumers {
		if h.State != Waiting || !e.unpublished() {
			h.entries(e.Stored, add)
		}
	}
	for _, o := range e.Operations {
		add(&o.At, "operator", "%s of %s by %s: %s", o.Kind, o.Target, o.By, cmp.Or(o.Reason, "no reason given"))
	}
	for _, x := range e.Sagas {
		sagaEntries(x, add)
	}
	switch h := e.Quarantine; {
	case e.Stored != nil:
	case h != nil && h.State == "held":
		add(nil, "quarantine", "held until somebody decides -> pgjet relay quarantine ls")
	case h != nil && h.State == Dropped:
		add(nil, "quarantine", "dropped: no consumer gets it; what brings it back is: pgjet relay quarantine retry %d", h.Seq)
	case h != nil:
		add(nil, "quarantine", "to be published again -> pgjet relay status")
	case e.unpublished():
		add(nil, "outbox", "pending -> pgjet relay status")
	case e.Outbox != nil && e.absent:
		add(nil, "stream", "published, and not found in the stream")
	}
	return all
}

// unpublished reports whether it waits in the outbox or in quarantine, so that no consumer can have it.
func (e Event) unpublished() bool {
	return e.Stored == nil && (e.Quarantine != nil || e.Outbox != nil && !e.Outbox.Published)
}

type adder = func(at *time.Time, place, format string, args ...any)

func (h Handling) entries(stored *Stored, add adder) {
	var ended *time.Time // the end of the previous step: the attempt waited since then
	if stored != nil {
		ended = &stored.Time
	}
	for _, a := range h.Log {
		lasted, waited := "", ""
		if ended != nil && a.Began.After(*ended) {
			waited = ", which waited " + rounded(a.Began.Sub(*ended)).String()
		}
		ended = nil
		if a.Seconds != nil {
			lasted = " after " + rounded(seconds(*a.Seconds)).String()
			ended = new(a.Began.Add(seconds(*a.Seconds)))
		}
		text := fmt.Sprintf("attempt %d of %s%s: %s%s", a.Attempt, a.Process, waited, a.Outcome, lasted)
		if a.Error != "" {
			text += ": " + a.Error
		}
		add(&a.Began, h.Consumer, "%s", text)
	}
	switch h.State {
	case inbox.Done:
		logged := slices.ContainsFunc(h.Log, func(a inbox.Attempt) bool { return a.Outcome == inbox.Done })
		switch {
		case logged:
		case h.Began != nil && h.At != nil && h.At.After(*h.Began):
			add(h.At, h.Consumer, "done, %s after the attempt began", rounded(h.At.Sub(*h.Began)))
		default:
			add(h.At, h.Consumer, "done")
		}
	case Running:
		add(nil, h.Consumer, "an attempt is being made by %s", h.TakenBy)
	case Retrying, Waiting:
		add(nil, h.Consumer, "%s", h.waits())
	case Unknown:
		add(nil, h.Consumer, "unknown")
	}
	l := h.Letter
	if l == nil {
		return
	}
	add(&l.At, h.Consumer, "dead letter %d after %d attempts: %s", l.ID, l.Attempts, l.Error)
	if l.ChangedAt != nil && l.State != inbox.Dead {
		add(l.ChangedAt, h.Consumer, "dead letter %d was decided on by %s: %s", l.ID, l.ChangedBy, cmp.Or(l.ChangeReason, "no reason given"))
	}
	if l.State == inbox.Dead {
		add(nil, h.Consumer, "dead letter %d waits for a decision -> pgjet dead get %d", l.ID, l.ID)
	} else {
		add(nil, h.Consumer, "dead letter %d is %s", l.ID, l.State)
	}
}

// waits returns what the event waits for at the consumer.
func (h Handling) waits() string {
	text := "waits to be delivered"
	switch {
	case h.Behind:
		text = "waits behind an earlier event of its key"
	case h.DueAt != nil:
		text = fmt.Sprintf("waits for attempt %d, due at %s", h.Attempts+1, h.DueAt.Format(time.RFC3339))
	}
	if h.Error != "" {
		text += "; the last error: " + h.Error
	}
	return text + " -> pgjet consumer get " + Word(h.Consumer)
}

func sagaEntries(x saga.Record, add adder) {
	place := "saga " + x.Name
	began := x.StartedAt.UTC()
	add(&began, place, "begins, %s", x.ID)
	var steps []string
	for _, s := range x.Steps {
		text := s.Name + " " + s.State
		if s.Attempts > 1 {
			text += fmt.Sprintf(" at attempt %d", s.Attempts)
		}
		steps = append(steps, text)
	}
	text := x.State
	if x.Reason != "" {
		text += " (" + x.Reason + ")"
	}
	if len(steps) > 0 {
		text += ": " + strings.Join(steps, ", ")
	}
	if x.EndedAt != nil {
		ended := x.EndedAt.UTC()
		add(&ended, place, "%s", text)
		return
	}
	if x.Error != "" {
		text += "; the last error: " + inbox.Mask(x.Error)
	}
	add(nil, place, "%s -> pgjet saga get %s", text, x.ID)
}

// rounded returns d rounded for people.
func rounded(d time.Duration) time.Duration {
	if d.Abs() < 10*time.Millisecond {
		return d.Round(100 * time.Microsecond)
	}
	return d.Round(time.Millisecond)
}
