package pgjettest

import (
	"cmp"
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

// patience is the longest wait for any condition. An overloaded machine needs less.
const patience = 30 * time.Second

// Database returns a pool on a fresh database with pgjet's tables, in which the SQL in
// schema has run, for tests that need no NATS. The database is dropped when the test ends.
// If the test has not released a connection by then, it fails.
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
	service Service
	relay   *relay.Relay
	mu      sync.Mutex
	runners map[string]*running
}

// A running is a consumer that runs.
type running struct {
	*consumers.Runner
	from  *Path // whose events it handles
	ended chan struct{}
	err   error // once it has ended
}

// A Service is what distinguishes a service from others in one account of NATS. Its zero value has the defaults of a relay.
type Service struct {
	Stream string // "" is EVENTS
	Prefix string // what the subjects of its events begin with; "" is events
	Source string // the CloudEvents source of its events; "" is pgjet
}

// Start returns a Path: a database of the test's own, as [Database] makes it, a NATS server
// of its own with the stream EVENTS, and a relay between them. All of them end with the
// test. The output of the test has the warnings of the relay and the consumers.
func Start(t testing.TB, schema ...string) *Path {
	t.Helper()
	return Service{}.Start(t, schema...)
}

// Start is the function Start for a service with a stream, a prefix and a source of its own.
func (s Service) Start(t testing.TB, schema ...string) *Path {
	t.Helper()
	js, url := testenv.JetStream(t)
	return s.start(t, js, url, schema)
}

// StartBeside returns the Path of a further service, with a database of its own, at the
// NATS server of p. Streams and prefixes of services at one server must differ. With
// [Path.ConsumeFrom] one handles the other's events.
func (s Service) StartBeside(p *Path, schema ...string) *Path {
	p.t.Helper()
	return s.start(p.t, p.JS, p.NATSURL, schema)
}

func (s Service) start(t testing.TB, js jetstream.JetStream, natsURL string, schema []string) *Path {
	t.Helper()
	s.Stream, s.Prefix = cmp.Or(s.Stream, events.DefaultStream), cmp.Or(s.Prefix, events.Prefix)
	p := &Path{t: t, service: s, DatabaseURL: testenv.DatabaseWith(t, schema...), JS: js, NATSURL: natsURL, runners: make(map[string]*running)}
	p.DB = testenv.PoolAt(t, p.DatabaseURL)
	config := relay.StreamConfig(s.Stream, 1)
	config.Subjects = []string{events.SubjectsOf(s.Prefix).All()}
	own, err := relay.ReadOutbox(t.Context(), p.DB, s.Source)
	if err != nil {
		t.Fatal(err)
	}
	own.Own(&config)
	switch created, _, err := relay.EnsureStream(t.Context(), js, config); {
	case err != nil:
		t.Fatalf("the stream %s of the prefix %s: %v", s.Stream, s.Prefix, err)
	case !created:
		t.Fatalf("the stream %s is another service's: give this one a Stream and a Prefix of its own", s.Stream)
	}
	p.relay = &relay.Relay{
		Database: p.DB.Config().ConnConfig, NATSURL: natsURL, Log: p.log(),
		Stream: s.Stream, Prefix: s.Prefix, Source: s.Source,
	}
	testenv.Run(t, p.relay.Run)
	return p
}

// log returns a logger for warnings, into the output of the test.
func (p *Path) log() *slog.Logger { return testenv.LoggerFrom(p.t, slog.LevelWarn) }

// Eventually waits until cond holds, and fails the test if it does not within 30 s, naming
// the condition what.
func Eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	testenv.Eventually(t, patience, what, cond)
}

// Consume runs consumers until the test ends. A consumer that sets no waits between attempts has short ones: 10 ms, at most 1 s.
func (p *Path) Consume(all ...consumers.Consumer) {
	p.t.Helper()
	p.ConsumeFrom(p, all...)
}

// ConsumeFrom is [Path.Consume] for consumers of another service's events. Their inbox and
// effects are in the database of p.
func (p *Path) ConsumeFrom(other *Path, all ...consumers.Consumer) {
	p.t.Helper()
	for _, c := range all {
		if c.MinRetry == 0 && c.MaxRetry == 0 {
			c.MinRetry, c.MaxRetry = 10*time.Millisecond, time.Second
		}
		p.consume(other, c)
	}
}

func (p *Path) consume(from *Path, c consumers.Consumer) {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.runners[c.Name] != nil {
		p.t.Fatalf("consumer %s runs already", c.Name)
	}
	r := &running{from: from, ended: make(chan struct{}), Runner: &consumers.Runner{
		Consumer: c, DB: p.DB, JS: p.JS, Stream: from.service.Stream, Prefix: from.service.Prefix, Log: p.log(),
	}}
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

// Append appends events in a transaction of its own, such as events to which a consumer of
// another service should react.
func (p *Path) Append(payloads ...events.Payload) {
	p.t.Helper()
	err := pgx.BeginFunc(p.t.Context(), p.DB, func(tx pgx.Tx) error { return outbox.Append(p.t.Context(), tx, payloads...) })
	if err != nil {
		p.t.Fatal(err)
	}
}

// RequireDone waits until a consumer is done with the events with these ids, which
// [RequireAppended] returns. The work of its handler is committed then. Without ids it
// waits for all events in the outbox now that the consumer handles, which [Path.Consume]
// must run; with [Path.ConsumeFrom], the outbox is the other service's. The test fails as
// soon as one event is a dead letter, or after 30 s. The failure shows how far each event
// has come.
func (p *Path) RequireDone(consumer string, ids ...uuid.UUID) {
	p.t.Helper()
	p.await(consumer, "done", ids, func(all []progress) error {
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
	all := p.await(consumer, "dead", ids, func(all []progress) error {
		for _, f := range all {
			if f.state == "done" {
				return errors.New("done")
			}
		}
		return nil
	})
	return all[len(all)-1].err
}

// await waits until all events are in a state. It fails the test once failed returns an
// error.
func (p *Path) await(consumer, state string, ids []uuid.UUID, failed func([]progress) error) []progress {
	p.t.Helper()
	p.mu.Lock()
	r := p.runners[consumer] // nil if others run it
	p.mu.Unlock()
	if len(ids) == 0 {
		ids = p.handled(consumer, r)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		all, err := p.progressOf(consumer, r, ids)
		if err != nil {
			p.t.Fatal(err)
		}
		open := slices.DeleteFunc(slices.Clone(all), func(f progress) bool { return f.state == state })
		if r != nil && r.hasEnded() {
			p.t.Fatalf("consumer %s ended: %v", consumer, r.err)
		}
		switch why := failed(all); {
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

// handled returns the ids of the events that a consumer handles, among all in the outbox
// that it reads.
func (p *Path) handled(consumer string, r *running) (ids []uuid.UUID) {
	p.t.Helper()
	if r == nil {
		p.t.Fatalf("Consume runs no consumer %q: name the events that it should be done with, or give it to Consume", consumer)
	}
	all := appended(p.t, r.from.DB)
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

// A progress is how far a consumer has come with an event.
type progress struct {
	id                    uuid.UUID
	kind, key, state, err string
	attempts              int
	behind                bool
}

// progressOf reads the progress of events from the consumer's tables and from the outbox of
// its events.
func (p *Path) progressOf(consumer string, r *running, ids []uuid.UUID) (all []progress, err error) {
	texts := make([]string, len(ids))
	for i, id := range ids {
		texts[i] = id.String()
	}
	from := p
	if r != nil {
		from = r.from
	}
	found, err := from.DB.Query(p.t.Context(), `
		select w.id, coalesce(o.type, ''), coalesce(o.key, '')
		  from unnest($1::text[]::uuid[]) with ordinality as w (id, n)
		  left join pgjet.outbox o on o.id = w.id
		 order by w.n`, texts)
	if err != nil {
		return nil, err
	}
	all, err = pgx.CollectRows(found, func(row pgx.CollectableRow) (f progress, err error) {
		return f, row.Scan(&f.id, &f.kind, &f.key)
	})
	if err != nil {
		return nil, err
	}
	found, err = p.DB.Query(p.t.Context(), `
		select w.n, coalesce(i.state, ''), coalesce(n.error, d.error, ''),
		       coalesce(n.attempts, d.attempts, i.attempts, 0), coalesce(n.due_at = 'infinity', false)
		  from unnest($2::text[]::uuid[]) with ordinality as w (id, n)
		  left join pgjet.inbox i on i.consumer = $1 and i.event_id = w.id
		  left join pgjet.intent n on n.consumer = $1 and n.event_id = w.id
		  left join pgjet.dead_letter d on d.consumer = $1 and d.event_id = w.id`, consumer, texts)
	if err != nil {
		return nil, err
	}
	var n, attempts int
	var state, failure string
	var behind bool
	_, err = pgx.ForEachRow(found, []any{&n, &state, &failure, &attempts, &behind}, func() error {
		f := &all[n-1]
		f.state, f.err, f.attempts, f.behind = state, failure, attempts, behind
		return nil
	})
	return all, err
}

func (f progress) String() string {
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

func lines(all []progress) string {
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

// obstacles describes what is wrong with the relay and the consumer.
func (p *Path) obstacles(r *running) string {
	ctx, cancel := context.WithTimeout(p.t.Context(), 5*time.Second)
	defer cancel()
	s := ""
	from := p
	if r != nil {
		from = r.from
	}
	if err := from.relay.Ready(ctx); err != nil {
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
