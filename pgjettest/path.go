package pgjettest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/outbox"
	"github.com/pgjet/pgjet/relay"
)

// patience is how long something is waited for. It is more than an overloaded machine needs.
const patience = 30 * time.Second

// Database returns a pool on a fresh database with pgjet's tables, and what the SQL in schema makes, for tests that need
// no NATS. It is dropped when the test ends. A connection that the test has not given back then fails the test.
func Database(t testing.TB, schema ...string) *pgxpool.Pool {
	t.Helper()
	return testenv.PoolAt(t, testenv.DatabaseWith(t, schema...))
}

// A Path leads from a test's outbox to its consumers. [Start] makes one. Its methods belong to the test that made it.
type Path struct {
	DB          *pgxpool.Pool // on the test's database
	DatabaseURL string        // of that database, for database/sql or another process
	JS          jetstream.JetStream
	NATSURL     string // of the NATS server

	t       testing.TB
	relay   *relay.Relay
	mu      sync.Mutex
	runners map[string]*running
}

// A running consumer.
type running struct {
	*consumers.Runner
	ended chan struct{}
	err   error // once it has ended
}

// Start returns a Path: a database of the test's own, as [Database] makes it, a NATS server of its own with the stream EVENTS, and a
// relay between them. All of it ends when the test does. What goes wrong in the relay and in consumers is
// in the output of the test.
func Start(t testing.TB, schema ...string) *Path {
	t.Helper()
	p := &Path{t: t, DatabaseURL: testenv.DatabaseWith(t, schema...), runners: make(map[string]*running)}
	p.DB = testenv.PoolAt(t, p.DatabaseURL)
	p.JS, p.NATSURL = testenv.JetStream(t)
	if _, _, err := relay.EnsureStream(t.Context(), p.JS, relay.StreamConfig(events.DefaultStream, 1)); err != nil {
		t.Fatal(err)
	}
	p.relay = &relay.Relay{Database: p.DB.Config().ConnConfig, NATSURL: p.NATSURL, Log: p.log()}
	testenv.Run(t, p.relay.Run)
	return p
}

// log returns where what is wrong is logged.
func (p *Path) log() *slog.Logger { return testenv.LoggerFrom(p.t, slog.LevelWarn) }

// Eventually waits until cond holds, and fails the test if it does not within 30 s, naming what it waited for.
func Eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	testenv.Eventually(t, patience, what, cond)
}

// Consume runs consumers until the test ends. A consumer that sets no waits between attempts has short ones: 10 ms, at most 1 s.
func (p *Path) Consume(all ...consumers.Consumer) {
	p.t.Helper()
	for _, c := range all {
		if c.MinRetry == 0 && c.MaxRetry == 0 {
			c.MinRetry, c.MaxRetry = 10*time.Millisecond, time.Second
		}
		p.consume(c)
	}
}

func (p *Path) consume(c consumers.Consumer) {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.runners[c.Name] != nil {
		p.t.Fatalf("consumer %s runs already", c.Name)
	}
	r := &running{Runner: &consumers.Runner{Consumer: c, DB: p.DB, JS: p.JS, Log: p.log()}, ended: make(chan struct{})}
	p.runners[c.Name] = r
	ctx, stop := context.WithCancel(p.t.Context())
	go func() {
		defer close(r.ended)
		r.err = r.Run(ctx)
	}()
	p.t.Cleanup(func() {
		stop()
		if <-r.ended; r.err != nil {
			p.t.Errorf("consumer %s: %v", c.Name, r.err)
		}
	})
}

// Append appends events in a transaction of its own: those to which a consumer of another service's events should react, say.
func (p *Path) Append(payloads ...events.Payload) {
	p.t.Helper()
	err := pgx.BeginFunc(p.t.Context(), p.DB, func(tx pgx.Tx) error { return outbox.Append(p.t.Context(), tx, payloads...) })
	if err != nil {
		p.t.Fatal(err)
	}
}

// RequireDone waits until a consumer is done with the events with these ids, which [RequireAppended] returns. If
// [Path.Consume] runs the consumer, none means all that it handles of what is in the outbox now. What its handler did is committed
// then. The test fails as soon as one is a dead letter, or if they take 30 s; the failure shows how far each has come.
func (p *Path) RequireDone(consumer string, ids ...uuid.UUID) {
	p.t.Helper()
	p.await(consumer, "done", ids, func(all []fate) error {
		for _, f := range all {
			if f.state == "dead" || f.state == "discarded" {
				return errors.New("set aside")
			}
		}
		return nil
	})
}

// RequireDead waits, as [Path.RequireDone] does, until these events are dead letters of a consumer, and returns the error of the last one. It fails
// the test as soon as one is done.
func (p *Path) RequireDead(consumer string, ids ...uuid.UUID) string {
	p.t.Helper()
	all := p.await(consumer, "dead", ids, func(all []fate) error {
		for _, f := range all {
			if f.state == "done" {
				return errors.New("done")
			}
		}
		return nil
	})
	return all[len(all)-1].err
}

// await waits until all events are in a state, or hopeless returns why that will not be.
func (p *Path) await(consumer, state string, ids []uuid.UUID, hopeless func([]fate) error) []fate {
	p.t.Helper()
	p.mu.Lock()
	r := p.runners[consumer] // nil if others run it
	p.mu.Unlock()
	if len(ids) == 0 {
		ids = p.handled(consumer, r)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		all, err := p.fates(consumer, ids)
		if err != nil {
			p.t.Fatal(err)
		}
		open := slices.DeleteFunc(slices.Clone(all), func(f fate) bool { return f.state == state })
		if r != nil && r.hasEnded() {
			p.t.Fatalf("consumer %s ended: %v", consumer, r.err)
		}
		switch why := hopeless(all); {
		case len(open) == 0:
			return all
		case why != nil:
			p.t.Fatalf("consumer %s: want %s, but an event is %v:\n%s", consumer, state, why, lines(open))
		case time.Now().After(deadline):
			p.t.Fatalf("consumer %s: after %s not %s:\n%s%s", consumer, patience, state, lines(open), p.obstacles(r))
		}
	}
}

func (r *running) hasEnded() bool {
	select {
	case <-r.ended:
		return true
	default:
		return false
	}
}

// handled returns the ids of the events in the outbox that a consumer handles.
func (p *Path) handled(consumer string, r *running) (ids []uuid.UUID) {
	p.t.Helper()
	if r == nil {
		p.t.Fatalf("Consume runs no consumer %q: name the events that it should be done with, or give it to Consume", consumer)
	}
	all := appended(p.t, p.DB)
	for _, e := range all {
		if r.Consumer.Handler.Handles(e.Type) {
			ids = append(ids, e.ID)
		}
	}
	if len(ids) == 0 {
		p.t.Fatalf("nothing that consumer %s handles was appended, but %s", consumer, list(all))
	}
	return ids
}

// A fate is what became of an event at a consumer.
type fate struct {
	id                    uuid.UUID
	kind, key, state, err string
	attempts              int
	behind                bool
}

// fates looks at the consumer's rows of events.
func (p *Path) fates(consumer string, ids []uuid.UUID) ([]fate, error) {
	texts := make([]string, len(ids))
	for i, id := range ids {
		texts[i] = id.String()
	}
	found, err := p.DB.Query(p.t.Context(), `
		select w.id::text, coalesce(o.type, ''), coalesce(o.key, ''), coalesce(i.state, ''), coalesce(n.error, d.error, ''),
		       coalesce(n.attempts, d.attempts, i.attempts, 0), coalesce(n.due_at = 'infinity', false)
		  from unnest($2::text[]::uuid[]) with ordinality as w (id, n)
		  left join pgjet.outbox o on o.id = w.id
		  left join pgjet.inbox i on i.consumer = $1 and i.event_id = w.id
		  left join pgjet.intent n on n.consumer = $1 and n.event_id = w.id
		  left join pgjet.dead_letter d on d.consumer = $1 and d.event_id = w.id
		 order by w.n`, consumer, texts)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(found, func(row pgx.CollectableRow) (f fate, err error) {
		var id string
		if err := row.Scan(&id, &f.kind, &f.key, &f.state, &f.err, &f.attempts, &f.behind); err != nil {
			return f, err
		}
		f.id, err = uuid.Parse(id)
		return f, err
	})
}

func (f fate) String() string {
	what := fmt.Sprintf("%s %s, key %s", f.kind, f.id, f.key)
	if f.kind == "" {
		return f.id.String() + ": it is not in the outbox"
	}
	switch {
	case f.state == "":
		return what + ": not delivered yet"
	case f.behind:
		return what + ": waits behind an earlier event of its key"
	case f.err != "":
		return fmt.Sprintf("%s: %s, attempts: %d, error: %s", what, words[f.state], f.attempts, f.err)
	}
	return fmt.Sprintf("%s: %s, attempts: %d", what, words[f.state], f.attempts)
}

var words = map[string]string{"done": "done", "dead": "a dead letter", "discarded": "discarded", "intent": "to be tried again"}

func lines(all []fate) string {
	var b strings.Builder
	for i, f := range all {
		if i == mostListed {
			fmt.Fprintf(&b, "  … and %d more\n", len(all)-i)
			break
		}
		fmt.Fprintf(&b, "  %s\n", f)
	}
	return b.String()
}

// obstacles says what is wrong with those on the way.
func (p *Path) obstacles(r *running) string {
	ctx, cancel := context.WithTimeout(p.t.Context(), 5*time.Second)
	defer cancel()
	s := ""
	if err := p.relay.Ready(ctx); err != nil {
		s += fmt.Sprintf("the relay: %v\n", err)
	}
	if r == nil {
		return s
	}
	if err := r.Ready(ctx); err != nil {
		s += fmt.Sprintf("the consumer: %v\n", err)
	}
	return s
}
