package consumers_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/replay"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

// TestBatch: many events are handled in one transaction, in the order of the stream; the failing
// one is retried alone.
func TestBatch(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.log()
	const count = 100
	for n := range count {
		b.publish(keyed(fmt.Sprint("key", n%7), n+1))
	}
	var calls, failed atomic.Int32
	b.startOn(b.js, consumers.Consumer{Handler: batch(20, func(ctx context.Context, tx pgx.Tx, all []events.Event) error {
		calls.Add(1)
		if !slices.IsSortedFunc(all, func(a, b events.Event) int { return int(a.Seq - b.Seq) }) || len(all) > 20 {
			t.Errorf("a batch of %d events is too large, or not in the order of the stream", len(all))
		}
		for _, e := range all {
			if err := record(ctx, tx, e); err != nil {
				return err
			}
			if e.Seq == 50 && failed.Add(1) < 5 {
				return errors.New("not yet")
			}
		}
		return nil
	})})
	b.settled()
	b.inOrder(count)
	if n := calls.Load(); n > 60 {
		t.Errorf("the handler was called %d times for %d events", n, count)
	}
	if n := b.count(`select attempts from pgjet.inbox where stream_seq = 50`); n < 3 || n > 4 {
		t.Errorf("the event that failed took %d attempts alone, want 3 or 4", n)
	}
}

// TestEffect: it runs in no transaction, after its intent was committed, and once.
func TestEffect(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	for n := range 20 {
		b.publish(event(n + 1))
	}
	var mu sync.Mutex
	attempts := make(map[int64]int)
	b.startOn(b.js, consumers.Consumer{Workers: 1, Unordered: true, Handler: effect(func(ctx context.Context, e events.Event) error {
		mu.Lock()
		defer mu.Unlock()
		attempts[e.Seq]++
		if n := b.count(`select count(*) from pgjet.intent where event_id = $1 and taken_by is not null and attempts = $2`, e.ID, attempts[e.Seq]); n != 1 {
			t.Errorf("attempt %d of event %d is not written down before it is made", attempts[e.Seq], e.Seq)
		}
		if n := b.count(`select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in transaction%'`); n != 0 {
			t.Errorf("%d transactions are open during the effect", n)
		}
		if e.Seq == 7 && attempts[e.Seq] < 3 {
			return errors.New("not yet")
		}
		return nil
	})})
	b.settled()
	for n := range int64(20) {
		if want := map[bool]int{true: 3, false: 1}[n == 6]; attempts[n+1] != want {
			t.Errorf("event %d had %d attempts, want %d", n+1, attempts[n+1], want)
		}
	}
	if n := b.count(`select count(*) from pgjet.inbox where state = 'done' and began is not null`); n != 20 {
		t.Errorf("%d events are done, want 20", n)
	}
}

// TestUnavailableSpendsNoAttempts: during an outage of something that all events need, one attempt
// at a time is made, none is counted, and no event becomes a dead letter.
func TestUnavailableSpendsNoAttempts(t *testing.T) {
	t.Parallel()
	for name, consumer := range map[string]func(func() error) consumers.Consumer{
		"handler": func(try func() error) consumers.Consumer {
			return consumers.Consumer{Handler: each(func(context.Context, pgx.Tx, events.Event) error { return try() })}
		},
		"effect": func(try func() error) consumers.Consumer {
			return consumers.Consumer{Unordered: true, Handler: effect(func(context.Context, events.Event) error { return try() })}
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newFixture(t)
			var up atomic.Bool
			var tries, done, during atomic.Int32
			c := consumer(func() error {
				if up.Load() {
					done.Add(1)
					return nil
				}
				tries.Add(1)
				during.Store(max(during.Load(), int32(b.count(`select count(*) from pgjet.intent`))))
				return consumers.Unavailable(errors.New("mail server is away"))
			})
			c.MaxAttempts = 2
			const count = 40
			for n := range count {
				b.publish(event(n + 1))
			}
			r, _ := b.startOn(b.js, c)
			b.blocked(r, "unavailable: mail server is away")
			testenv.Eventually(t, patience, "it tries again and again", func() bool { return tries.Load() > 5 })
			if n := during.Load(); n > 8+tries.Load() {
				t.Errorf("%d intents pile up during the outage, want at most one for each worker and each try", n)
			}
			up.Store(true)
			b.settled()
			if n := done.Load(); n != count {
				t.Errorf("%d events were handled, want %d", n, count)
			}
			if n := b.count(`select count(*) from pgjet.inbox where state = 'done' and attempts = 1`); n != count {
				t.Errorf("%d events were done at their first counted attempt, want all %d", n, count)
			}
			b.ready(r)
		})
	}
}

// TestOneEventIsNoOutage: events that report an outage, each for itself, do not stop the others.
func TestOneEventIsNoOutage(t *testing.T) {
	t.Parallel()
	var done atomic.Int32
	one := func(e events.Event) error {
		if e.Seq <= 4 {
			return consumers.Unavailable(errors.New("it hangs up on this one"))
		}
		done.Add(1)
		return nil
	}
	for name, c := range map[string]consumers.Consumer{
		"effect":  {Workers: 2, Unordered: true, Handler: effect(func(_ context.Context, e events.Event) error { return one(e) })},
		"handler": {Workers: 2, Handler: each(func(_ context.Context, _ pgx.Tx, e events.Event) error { return one(e) })},
		"batch": {Handler: batch(0, func(_ context.Context, _ pgx.Tx, all []events.Event) (err error) {
			for _, e := range all {
				err = errors.Join(err, one(e))
			}
			if err != nil {
				done.Store(0) // undone
			}
			return err
		})},
	} {
		t.Run(name, func(t *testing.T) {
			done.Store(0)
			b := newFixture(t)
			for n := range 12 {
				b.publish(event(n + 1))
			}
			b.startOn(b.js, c)
			testenv.Eventually(t, patience, "the others are handled", func() bool {
				return b.count(`select count(*) from pgjet.inbox where state = 'done'`) == 8
			})
		})
	}
}

// TestOutageTakesFew: however many intents are due, a process holds only a few during an outage.
func TestOutageTakesFew(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.publish(event(1))
	var tries atomic.Int32
	b.startOn(b.js, consumers.Consumer{Unordered: true, Handler: effect(func(context.Context, events.Event) error {
		tries.Add(1)
		return consumers.Unavailable(errors.New("away"))
	})})
	testenv.Eventually(t, patience, "there is an outage", func() bool { return tries.Load() > 2 })
	for range 12 {
		before := tries.Load()
		b.exec(`insert into pgjet.intent (consumer, event_id, type, key, stream, generation, stream_seq, subject, header, data)
			select consumer, gen_random_uuid(), type, key, stream, 1, 1, subject, header, data
			  from (select * from pgjet.intent limit 1) i, generate_series(1, 40)`)
		testenv.Eventually(t, patience, "the process has looked in between", func() bool { return tries.Load() > before })
	}
	if n := b.count(`select count(*) from pgjet.intent where taken_by is not null`); n > 120 {
		t.Errorf("%d intents are taken during an outage", n)
	}
}

// TestHiddenFailuresEnd: a handler that hides a failed statement, or ends its transaction, counts
// as any other failing handler.
func TestHiddenFailuresEnd(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.publish(event(1), event(2), event(3))
	b.startOn(b.js, consumers.Consumer{MaxAttempts: 3, Handler: each(func(ctx context.Context, tx pgx.Tx, e events.Event) error {
		switch e.Seq {
		case 1:
			_, _ = tx.Exec(ctx, `select 1/0`)
		case 2:
			_ = tx.Rollback(ctx)
		default:
			return write(ctx, tx, e)
		}
		return nil
	})})
	b.settled()
	if n := b.count(`select count(*) from pgjet.dead_letter where attempts = 3 and (error like '%hid that a statement failed' or error like '%tried to end its transaction%')`); n != 2 {
		t.Errorf("%d dead letters after three attempts, want 2", n)
	}
}

// TestForgottenIntentsWake: an intent that waits behind nothing is handled by the next session,
// whether its consumer was ordered once or the process that should have woken it died.
func TestForgottenIntentsWake(t *testing.T) {
	t.Parallel()
	for _, unordered := range []bool{true, false} {
		b := newFixture(t)
		_, stop := b.startOn(b.js, consumers.Consumer{MinRetry: time.Hour, MaxRetry: time.Hour, Handler: each(func(context.Context, pgx.Tx, events.Event) error {
			return errors.New("not yet")
		})})
		for n := range 3 {
			b.publish(keyed("a", n+1))
		}
		testenv.Eventually(t, patience, "two wait behind the first", func() bool {
			return b.count(`select count(*) from pgjet.intent where due_at = 'infinity'`) == 2
		})
		stop()
		b.exec(`update pgjet.intent set due_at = 'infinity'`)
		b.startOn(b.js, consumers.Consumer{Unordered: unordered, Handler: each(write)})
		b.settled()
		b.once(3)
	}
}

type renamed struct {
	Key string `json:"key"`
	To  string `json:"to"`
}

func (renamed) EventType() string  { return "note.renamed" }
func (n renamed) EventKey() string { return n.Key }

// TestTypedHandlers: each type goes to its handler, with its envelope; so do the types of a
// pattern. A type without a handler is a dead letter.
func TestTypedHandlers(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	ren, err := events.New(renamed{"k1", "x"})
	if err != nil {
		t.Fatal(err)
	}
	ren.Source, ren.Time = "/test", time.Now()
	newer := ren
	newer.ID, newer.Type = event(3).ID, "note.made.v2"
	odd := event(4)
	odd.Data = []byte(`{"n":"four"}`)
	b.publish(event(1), ren, odd)
	subject, header, body := newer.Message()
	b.send(&nats.Msg{Subject: strings.TrimSuffix(subject, ".v2"), Header: header, Data: body})
	other := event(5)
	other.Type = "other.thing.done"
	b.publish(other)
	var got []string
	var mu sync.Mutex
	note := func(e events.Event, what string) error {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, what+" "+e.Type)
		if id := map[string]uuid.UUID{"note.renamed": ren.ID, "other.thing.done": other.ID}[e.Type]; id != uuid.Nil && id != e.ID || e.Source != "/test" || e.Key == "" {
			t.Errorf("the handler of %s was given event %s of %s, key %q", e.Type, e.ID, e.Source, e.Key)
		}
		return nil
	}
	b.startOn(b.js, consumers.Consumer{Handler: consumers.Handle(
		consumers.On(func(_ context.Context, _ pgx.Tx, e events.Event, n noted) error { return note(e, fmt.Sprint(n.N)) }),
		consumers.On(func(_ context.Context, _ pgx.Tx, e events.Event, n renamed) error { return note(e, n.To) }),
		consumers.OnType("other.>", func(_ context.Context, _ pgx.Tx, e events.Event) error { return note(e, string(e.Data)) }),
	)})
	b.settled()
	slices.Sort(got)
	if want := []string{"1 note.made", "x note.renamed", `{"key":"k5","n":5} other.thing.done`}; !slices.Equal(got, want) {
		t.Errorf("handlers got %v, want %v", got, want)
	}
	for reason, want := range map[string]int{"unknown_type: this consumer has no handler for note.made.v2": 1, "%cannot unmarshal%": 1} {
		if n := b.count(`select count(*) from pgjet.dead_letter where error like $1`, reason); n != want {
			t.Errorf("%d dead letters say %q, want %d", n, reason, want)
		}
	}
}

// TestOperatorsCauseNoWarning: a pause, its end and a replay are ordinary, and the log says so.
func TestOperatorsCauseNoWarning(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	var log bytes.Buffer
	r := &consumers.Runner{DB: b.db, JS: b.js, Log: slog.New(slog.NewTextHandler(&log, nil)), Consumer: consumers.Consumer{Name: "test", Slices: 1, Handler: each(write)}}
	stop := testenv.Run(t, r.Run)
	for n := range 5 {
		b.publish(event(n + 1))
	}
	b.settled()
	if _, _, err := inbox.Pause(t.Context(), b.db, "test", "ann@host", "a test"); err != nil {
		t.Fatal(err)
	}
	b.blocked(r, "paused by ann@host")
	if _, err := inbox.Resume(t.Context(), b.db, "test", "ann@host", "", ""); err != nil {
		t.Fatal(err)
	}
	b.publish(event(6))
	b.settled()
	p, err := replay.Open(t.Context(), b.db, b.js, "test")
	if err == nil {
		err = p.Lock(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	plan, err := p.Plan(t.Context(), replay.Selection{All: true})
	if err != nil {
		t.Fatal(err)
	}
	plan.Run = 1 // as if something was to do: the durable consumer is set back, at once
	if _, err := p.Run(t.Context(), plan, replay.Order{By: "ann@host", Reason: "a test"}); err != nil {
		t.Fatal(err)
	}
	b.publish(event(7))
	b.settled()
	stop()
	if text := log.String(); strings.Contains(text, "level=WARN") || !strings.Contains(text, `level=INFO msg="a session ended, the next one begins"`) {
		t.Errorf("the log is\n%s", text)
	}
}

// TestPause: no attempt begins after an operator paused the consumer, until the pause ends.
func TestPause(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	r, _ := b.start(write)
	b.publish(event(1))
	b.settled()
	b.exec(`update pgjet.consumer set paused_at = now(), paused_by = 'ana', pause_reason = 'upgrade'`)
	b.publish(event(2))
	b.blocked(r, `paused by ana`)
	b.publish(event(3))
	if n := b.count(`select count(*) from effect`); n != 1 {
		t.Errorf("%d events were handled, want the one before the pause", n)
	}
	b.exec(`update pgjet.consumer set paused_at = null`)
	b.settled()
	b.once(3)
}

// TestAccount: nothing vanishes.
func TestAccount(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	for n := range 30 {
		b.publish(event(n + 1))
	}
	hold := make(chan struct{})
	b.startOn(b.js, consumers.Consumer{MinRetry: time.Minute, MaxRetry: time.Minute, Handler: each(func(ctx context.Context, tx pgx.Tx, e events.Event) error {
		switch {
		case e.Seq <= 4:
			return errors.New("not yet")
		case e.Seq <= 6:
			return permanent(errors.New("never"))
		case e.Seq > 27:
			<-hold
		}
		return write(ctx, tx, e)
	})})
	b.handled(21)
	account := func() consumers.Account {
		a, err := consumers.ReadAccount(t.Context(), b.db, b.js, "EVENTS", "test")
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	testenv.Eventually(t, patience, "the account adds up", func() bool {
		a := account()
		return a.Done == 21 && a.Retrying+a.Dead == 6 && a.InFlight == 3 && a.Unaccounted == 0 && a.Lag == 0
	})
	close(hold)
	b.handled(24)
	b.exec(`delete from pgjet.inbox where stream_seq in (10, 11)`)
	testenv.Eventually(t, patience, "what the inbox forgot is missed", func() bool { return account().Unaccounted == 2 })
}

// TestInboxMustNotForget: an inbox that would forget events that can be delivered again is refused.
func TestInboxMustNotForget(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	r := &consumers.Runner{DB: b.db, JS: b.js, Log: testenv.Logger(b), Retention: time.Hour,
		Consumer: consumers.Consumer{Name: "test", Slices: 1, Handler: each(write, "note.made")}}
	testenv.Run(t, r.Run)
	b.blocked(r, "inbox retention 1h0m0s < stream max age unlimited")
}

func TestMisfitsAreRefused(t *testing.T) {
	none := func(context.Context, pgx.Tx, events.Event) error { return nil }
	for want, c := range map[string]consumers.Consumer{
		"Name is empty":                        {Handler: each(write, "a")},
		"Name is longer":                       {Name: strings.Repeat("a", 256), Handler: each(write, "a")},
		"has no Handler":                       {Name: "a"},
		"Workers are 10001, more than 10000":   {Name: "a", Handler: each(write, "a"), Workers: 10_001},
		"Handle was given no":                  {Name: "a", Handler: consumers.Handle()},
		"Typed that is zero":                   {Name: "a", Handler: consumers.Handle(onNote(), consumers.Typed{})},
		"two handlers for note":                {Name: "a", Handler: consumers.Handle(onNote(), consumers.OnType("a", none), onNote())},
		"two handlers for a":                   {Name: "a", Handler: each(none, "a", "a")},
		"for note.> and for note.made overlap": {Name: "a", Handler: consumers.Handle(consumers.OnType("note.>", none), onNote())},
		"for note.made and for *.made overlap": {Name: "a", Handler: consumers.Handle(onNote(), consumers.OnType("*.made", none))},
		"for user.* and for user.> overlap":    {Name: "a", Handler: each(none, "user.*", "user.>")},
		"of On for note.made is nil":           {Name: "a", Handler: consumers.Handle(consumers.On[noted](nil))},
		"OnQueue for note.made is nil":         {Name: "a", Handler: consumers.Handle(consumers.OnQueue[noted](nil))},
		`OnType for "a" is nil`:                {Name: "a", Handler: each(nil, "a")},
		`"a.>.b" is no event type`:             {Name: "a", Handler: each(none, "a.>.b")},
		`for type ""`:                          {Name: "a", Handler: consumers.Handle(consumers.On(func(context.Context, pgx.Tx, events.Event, events.Event) error { return nil }))},
		"the zero value of events.Payload":     {Name: "a", Handler: consumers.Handle(consumers.On(func(context.Context, pgx.Tx, events.Event, events.Payload) error { return nil }))},
		"HandleBatch was given a nil":          {Name: "a", Handler: batch(0, nil)},
		"Effect was given a nil":               {Name: "a", Handler: effect(nil)},
		"was given no types":                   {Name: "a", Handler: consumers.Effect(noEffect)},
		"at most -1 events":                    {Name: "a", Handler: batch(-1, noBatch)},
		"its Slices are 3":                     {Name: "a", Handler: each(write, "a"), Slices: 3},
		"its Slices are 128":                   {Name: "a", Handler: each(write, "a"), Slices: 128},
		"it is Unordered and has Slices":       {Name: "a", Handler: each(write, "a"), Slices: 2, Unordered: true},
		"is that of a slice":                   {Name: "a-1of8", Handler: each(write, "a")},
		"with that of a slice":                 {Name: strings.Repeat("a", 252), Handler: each(write, "a")},
		"no order":                             {Name: "a", Handler: each(write, "a"), Unordered: true, ParkKey: true},
		"it has a Group":                       {Name: "a", Handler: effect(noEffect), Group: 2},
		"Workers is negative":                  {Name: "a", Handler: each(write, "a"), Workers: -1},
		"Group is negative":                    {Name: "a", Handler: each(write, "a"), Group: -1},
		"Timeout is negative":                  {Name: "a", Handler: each(write, "a"), Timeout: -1},
		"Timeout is 1":                         {Name: "a", Handler: each(write, "a"), Timeout: 1000 * time.Hour},
		"MinRetry is negative":                 {Name: "a", Handler: each(write, "a"), MinRetry: -1},
		"MaxRetry is negative":                 {Name: "a", Handler: each(write, "a"), MaxRetry: -1},
		"more than MaxRetry":                   {Name: "a", Handler: each(write, "a"), MinRetry: 2, MaxRetry: 1},
		"its Timeout is 20ns, less than 1ms":   {Name: "a", Handler: each(write, "a"), Timeout: 20},
		"its MinRetry is 1µs, less than 1ms":   {Name: "a", Handler: each(write, "a"), MinRetry: time.Microsecond},
		"its MaxRetry is 60ns, less than 1ms":  {Name: "a", Handler: each(write, "a"), MaxRetry: 60},
		"MaxAttempts is neg":                   {Name: "a", Handler: each(write, "a"), MaxAttempts: -2},
		"Rate is -1":                           {Name: "a", Handler: each(write, "a"), Rate: -1},
		"Rate is NaN":                          {Name: "a", Handler: each(write, "a"), Rate: math.NaN()},
		"Rate is +Inf":                         {Name: "a", Handler: each(write, "a"), Rate: math.Inf(1)},
		"Burst is negative":                    {Name: "a", Handler: each(write, "a"), Rate: 1, Burst: -1},
		"a Burst but no Rate":                  {Name: "a", Handler: each(write, "a"), Burst: 1},
		"has no DB":                            {Name: "a", Handler: each(write, "a"), Rate: 0.1, MaxAttempts: consumers.Unlimited},
	} {
		if err := (&consumers.Runner{Consumer: c}).Run(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Run() = %v, want an error with %q", err, want)
		}
	}
}

func noEffect(context.Context, events.Event) error { return nil }

func noBatch(context.Context, pgx.Tx, []events.Event) error { return nil }

// TestNamesAndTypesAreRefused: Run refuses at once the names and types that JetStream refuses.
func TestNamesAndTypesAreRefused(t *testing.T) {
	for _, name := range []string{" ", "a b", "a.b", "a*", ">", "a/b", `a\b`, "a\tb", "a\x00", "a\u00a0b", "a\u200b", "a\xff"} {
		c := consumers.Consumer{Name: name, Handler: each(write, "a")}
		if err := (&consumers.Runner{Consumer: c}).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "Name must not have") {
			t.Errorf("a consumer %q: Run() = %v, want a refusal of its name", name, err)
		}
	}
	for _, c := range []struct {
		want  string
		types []string
	}{
		{"is no event type", []string{""}}, {"is no event type", []string{"."}}, {"is no event type", []string{"a."}}, {"is no event type", []string{".a"}},
		{"is no event type", []string{"a..b"}}, {"is no event type", []string{"a b"}}, {"is no event type", []string{"a", ""}}, {"is no event type", []string{"a.>.b"}},
		{"is no event type", []string{"a*"}}, {"is no event type", []string{"a.b>"}}, {"is no event type", []string{"ä"}}, {"is no event type", []string{strings.Repeat("a", 200)}},
		{"overlap", []string{"user.>", "user.created"}}, {"overlap", []string{"user.created", ">"}}, {"overlap", []string{"*.created", "user.*"}},
		{"overlap", []string{"user.*", "b", "user.created"}}, {"overlap", []string{"user.>", "user.*.x"}},
		{"has no DB", []string{"user.>", "user"}}, {"has no DB", []string{"user.*", "user.a.b"}}, {"has no DB", []string{"a.*.c", "a.*.d"}},
		{"has no DB", []string{"a", "a"}}, {"has no DB", []string{">"}},
	} {
		c2 := consumers.Consumer{Name: "a", Handler: consumers.Effect(noEffect, c.types...)}
		if err := (&consumers.Runner{Consumer: c2}).Run(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("types %q: Run() = %v, want an error with %q", c.types, err, c.want)
		}
	}
}

// TestTypesOfHandle: a consumer gets the types of On and those of OnType.
func TestTypesOfHandle(t *testing.T) {
	for want, types := range map[string][]string{
		"[events.*.note.made]":                       nil,
		"[events.*.note.made events.*.note.renamed]": {"note.renamed"},
		"[events.*.note.made events.*.other.>]":      {"other.>"},
	} {
		all := []consumers.Typed{onNote()}
		for _, pattern := range types {
			all = append(all, consumers.OnType(pattern, write))
		}
		c, err := consumers.Consumer{Name: "a", Slices: 1, Handler: consumers.Handle(all...)}.Configs("")
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(c[0].FilterSubjects); got != want {
			t.Errorf("types %q: subjects %s, want %s", types, got, want)
		}
	}
}

func onNote() consumers.Typed {
	return consumers.On(func(context.Context, pgx.Tx, events.Event, noted) error { return nil })
}

// TestEnsure: a missing durable consumer is created; the differences of an existing one are
// returned, and it is not changed.
func TestEnsure(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	wants, err := consumers.Consumer{Name: "test", Slices: 1, Handler: each(write, "note.made")}.Configs("")
	if err != nil {
		t.Fatal(err)
	}
	want := wants[0]
	ensure := func(want jetstream.ConsumerConfig) (bool, []string) {
		created, differences, err := consumers.Ensure(t.Context(), b.js, "EVENTS", want)
		if err != nil {
			t.Fatal(err)
		}
		return created, differences
	}
	if created, d := ensure(want); !created || len(d) > 0 {
		t.Errorf("Ensure() = %t, %v, want it created", created, d)
	}
	if created, d := ensure(want); created || len(d) > 0 {
		t.Errorf("Ensure() = %t, %v, want no difference", created, d)
	}
	want.MaxDeliver, want.FilterSubjects = 3, []string{"events.*.other"}
	created, d := ensure(want)
	if created || len(d) != 2 {
		t.Errorf("Ensure() = %t, %v, want two differences", created, d)
	}
	if got := b.info().Config; got.MaxDeliver != -1 {
		t.Errorf("the durable consumer was changed: %+v", got)
	}
}

// TestDoublesAreAccountedFor: an event that the stream has twice is handled once, and does not
// count as missing.
func TestDoublesAreAccountedFor(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]consumers.Consumer{
		"effect":    {Unordered: true, Handler: effect(func(context.Context, events.Event) error { return nil })},
		"handler":   {Handler: each(write)},
		"unordered": {Unordered: true, Handler: each(write)},
		"batch":     {Handler: batch(0, func(context.Context, pgx.Tx, []events.Event) error { return nil })},
	} {
		t.Run(name, func(t *testing.T) {
			b := newFixture(t)
			for n := range 10 {
				e := event(n + 1)
				b.publish(e)
				if n%3 == 0 {
					b.publish(e)
				}
			}
			_, stop := b.startOn(b.js, c)
			accounted := func(n int64) func() bool {
				return func() bool {
					a, err := consumers.ReadAccount(t.Context(), b.db, b.js, "EVENTS", "test")
					return err == nil && a.Done == n && a.Unaccounted == 0 && a.AckPending == 0
				}
			}
			testenv.Eventually(t, patience, "every message is accounted for", accounted(14))
			stop()
			b.publish(event(11))
			b.startOn(b.js, c)
			testenv.Eventually(t, patience, "also by the next process", accounted(15))
			if n := b.count(`select count(*) from pgjet.inbox where attempts > 0`); n != 11 {
				t.Errorf("%d events were tried, want 11", n)
			}
		})
	}
}
