package console

import (
	"fmt"
	"math"
	"time"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/internal/operate"
)

// A track is a line of the picture: what happened to an event at one place. The list below the
// picture says the same in words.
type track struct {
	Place string
	Marks []mark
}

// A mark is a bar on a line of trackLength.
type mark struct {
	X, Width int
	Look     string // a class, as for a badge; "wait" is a thin line
	Text     string
}

// trackLength is the length of a line, and leastMark that of the shortest bar.
const trackLength, leastMark = 1000, 6

// tracks draws an event. Time is logarithmic, so that milliseconds at the beginning are visible
// beside hours at the end.
func tracks(e operate.Event, now time.Time) []track {
	begin, end := span(e, now)
	if begin.IsZero() {
		return nil
	}
	ms := func(t time.Time) float64 { return max(0, t.Sub(begin).Seconds()*1000) }
	place := func(t time.Time) int {
		return int((trackLength - leastMark) * math.Log1p(ms(t)) / max(math.Log1p(ms(end)), 1e-9))
	}
	bar := func(from, to time.Time, look, text string) mark {
		x := min(place(from), trackLength-leastMark)
		return mark{x, max(place(to)-x, leastMark), look, text}
	}
	var all []track
	if e.Outbox != nil && e.Outbox.Time != nil {
		all = append(all, track{"outbox", []mark{bar(*e.Outbox.Time, *e.Outbox.Time, "busy", "appended")}})
	}
	if e.Stored != nil {
		all = append(all, track{"stream", []mark{bar(e.Stored.Time, e.Stored.Time, "busy", "stored")}})
	}
	for _, h := range e.Consumers {
		if marks := handled(h, now, bar); len(marks) > 0 {
			all = append(all, track{h.Consumer, marks})
		}
	}
	return all
}

// span returns the times of the first and the last thing that happened to an event. While the event
// waits, the last is now.
func span(e operate.Event, now time.Time) (begin, end time.Time) {
	see := func(t *time.Time) {
		if t == nil {
			return
		}
		if begin.IsZero() || t.Before(begin) {
			begin = *t
		}
		if t.After(end) {
			end = *t
		}
	}
	if e.Outbox != nil {
		see(e.Outbox.Time)
	}
	if e.Stored != nil {
		see(&e.Stored.Time)
	}
	for _, h := range e.Consumers {
		see(h.Began)
		see(h.At)
		for _, a := range h.Log {
			see(&a.Began)
		}
		if h.State == operate.Retrying || h.State == operate.Running || h.State == operate.Waiting {
			see(&now)
		}
	}
	return begin, end
}

// handled draws the attempts at one consumer, and the waits between them.
func handled(h operate.Handling, now time.Time, bar func(from, to time.Time, look, text string) mark) (marks []mark) {
	var ended time.Time
	wait := func(until time.Time) {
		if !ended.IsZero() && until.After(ended) {
			marks = append(marks, bar(ended, until, "wait", "waits "+lasts(until.Sub(ended))))
		}
	}
	for _, a := range h.Log {
		wait(a.Began)
		ended = a.Began
		if a.Seconds != nil {
			ended = a.Began.Add(secondsOf(*a.Seconds))
		}
		look := map[string]string{inbox.Done: "good", inbox.Retried: "retry"}[a.Outcome]
		if look == "" {
			look = "bad"
		}
		marks = append(marks, bar(a.Began, ended, look, fmt.Sprintf("attempt %d: %s", a.Attempt, a.Outcome)))
	}
	switch {
	case h.State == operate.Retrying || h.State == operate.Running:
		wait(now)
	case h.State == inbox.Done && len(h.Log) == 0 && h.At != nil:
		from := *h.At
		if h.Began != nil && h.Began.Before(from) {
			from = *h.Began
		}
		marks = append(marks, bar(from, *h.At, "good", "done"))
	}
	return marks
}
