package console

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/status"
	"github.com/pgjet/pgjet/internal/operate"
)

// A board caches what many pages need and takes long to read: the status, and what may be changed.
type board struct {
	console *Console
	mu      sync.Mutex
	status  operate.Status
	at      time.Time
	asking  chan struct{} // closed when the status has been read; nil while nobody reads it
	changes int           // counts changes
	rights  operate.Rights
	rightAt time.Time
	samples []sample
}

// Status returns the status, which is at most a moment old. Reading it takes a second, the first
// time and after a change. If nobody has looked for a while, Status waits briefly and then returns
// the old status; see [board.stale].
func (b *board) Status(ctx context.Context) operate.Status {
	for {
		b.mu.Lock()
		known, age, old := b.status, time.Since(b.at), !b.at.IsZero()
		if age < statusFor || ctx.Err() != nil {
			b.mu.Unlock()
			return known
		}
		if b.asking == nil {
			if !b.console.begin(b.ask) {
				b.mu.Unlock()
				return known
			}
			b.asking = make(chan struct{})
		}
		asking := b.asking
		b.mu.Unlock()
		if age < 4*statusFor { // it is being read, and a live page will soon show it
			return known
		}
		var enough <-chan time.Time
		if old {
			enough = time.After(staleAfter)
		}
		select {
		case <-asking:
		case <-enough:
			return known
		case <-ctx.Done():
		}
	}
}

// stale returns the time of the status if it is old, else the zero time.
func (b *board) stale() (at time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.at.IsZero() && time.Since(b.at) > 4*statusFor {
		return b.at
	}
	return time.Time{}
}

func (b *board) ask() {
	b.mu.Lock()
	changes := b.changes
	b.mu.Unlock()
	ctx, cancel := context.WithTimeout(b.console.ended, pageTime)
	defer cancel()
	var s operate.Status
	err := guarded("the status", func() error {
		s = b.console.facts().Status(ctx)
		maskTexts(&s)
		b.measure(ctx)
		return nil
	})
	if err != nil {
		f := failureOf(err)
		b.console.logProblem(ctx, "status", f, err)
		s = operate.Status{Missing: []operate.Missing{{What: "database", Code: f.Code, Text: f.Text, Lack: "the status"}}}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.status = s
	if changes == b.changes { // else the status may be from before the change
		b.at = time.Now()
	}
	close(b.asking)
	b.asking = nil
}

// maskTexts masks mail addresses in the reasons of pauses and the errors of sagas, also where the
// findings repeat them. The author of a pause remains.
func maskTexts(s *operate.Status) {
	var texts []*string // that may repeat a reason
	sagas := func(code string, text *string) {
		if texts = append(texts, text); strings.HasPrefix(code, "saga_") {
			*text = inbox.Mask(*text)
		}
	}
	for i := range s.Findings {
		sagas(s.Findings[i].Code, &s.Findings[i].Text)
	}
	var reasons []*string
	for i := range s.Consumers {
		one := &s.Consumers[i]
		sagas(one.Why.Code, &one.Why.Text)
		for j := range one.Also {
			sagas(one.Also[j].Code, &one.Also[j].Text)
		}
		for j := range one.Slices {
			sagas(one.Slices[j].Why.Code, &one.Slices[j].Why.Text)
		}
		if one.Paused != nil {
			reasons = append(reasons, &one.Paused.Reason)
		}
	}
	for i := range s.Relays {
		if p := s.Relays[i].Paused; p != nil {
			reasons = append(reasons, &p.Reason)
		}
	}
	for _, reason := range reasons {
		was := *reason
		if *reason = inbox.Mask(was); *reason == was {
			continue
		}
		repeated := strings.NewReplacer(strconv.Quote(was), strconv.Quote(*reason), was, *reason)
		for _, text := range texts {
			*text = repeated.Replace(*text)
		}
	}
}

// forget makes the next page read the status again, after a change.
func (b *board) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.at = time.Time{}
	b.changes++
}

// Rights returns what may be changed: nothing, if the database does not answer.
func (b *board) Rights(ctx context.Context) operate.Rights {
	if b.console.config.ReadOnly {
		return operate.Rights{}
	}
	b.mu.Lock()
	r, at := b.rights, b.rightAt
	b.mu.Unlock()
	if time.Since(at) < rightsFor {
		return r
	}
	r, err := b.console.facts().Rights(ctx)
	if err != nil {
		return operate.Rights{}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rights, b.rightAt = r, time.Now()
	return r
}

// consumerIn returns the status of one consumer.
func consumerIn(s operate.Status, name string) (one status.Status, known bool) {
	i := slices.IndexFunc(s.Consumers, func(c status.Status) bool { return c.Name == name })
	if i < 0 {
		return one, false
	}
	return s.Consumers[i], true
}

// unlessKnown returns an error unless there is a consumer with this name: that the database could not
// be asked, or that the consumer does not exist.
func unlessKnown(s operate.Status, name string) error {
	if _, known := consumerIn(s, name); known {
		return nil
	}
	if i := slices.IndexFunc(s.Missing, func(m operate.Missing) bool { return m.What == "database" }); i >= 0 {
		return &missingError{s.Missing[i]}
	}
	return &operate.NotFoundError{What: "consumer " + operate.Plain(name), Looked: "no process has ever run it"}
}

// A missingError says why a server could not be asked.
type missingError struct{ operate.Missing }

func (e *missingError) Error() string { return e.Code + ": " + e.Text }

// dead returns how many dead letters wait for a decision, according to the last status.
func (b *board) dead() (n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.status.Consumers {
		n += c.DeadLetters
	}
	return n
}
