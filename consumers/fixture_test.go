package consumers_test

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

// spans are those of all tests.
var spans = tracetest.NewInMemoryExporter()

func TestMain(m *testing.M) {
	if what := os.Getenv(childVariable); what != "" {
		beChild(what)
	}
	otel.SetTracerProvider(trace.NewTracerProvider(trace.WithSyncer(spans)))
	testenv.Main(m)
}

// patience is shorter than JetStream's ackWait: tests must not depend on redelivery after it.
const patience = 20 * time.Second

type noted struct {
	Key string `json:"key"`
	N   int    `json:"n"`
}

func (noted) EventType() string  { return "note.made" }
func (n noted) EventKey() string { return n.Key }

// A fixture is a stream, a database, and consumers between them.
type fixture struct {
	*testing.T
	db *pgxpool.Pool
	js jetstream.JetStream
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	js, _ := testenv.JetStream(t)
	return newFixtureOn(t, testenv.Postgres(t), js)
}

func newFixtureOn(t *testing.T, db *pgxpool.Pool, js jetstream.JetStream) *fixture {
	t.Helper()
	b := &fixture{T: t, db: db, js: js}
	b.createStream()
	b.exec(`create table effect (n int not null)`)
	return b
}

// createStream creates the stream as "pgjet stream ensure" does.
func (b *fixture) createStream() {
	b.Helper()
	testenv.Eventually(b, patience, "the server makes a stream, after it has cleared away the one before", func() bool {
		_, err := b.js.CreateStream(b.Context(), jetstream.StreamConfig{
			Name: "EVENTS", Subjects: []string{events.AllSubjects}, Storage: jetstream.FileStorage,
			Discard: jetstream.DiscardNew, Duplicates: 100 * time.Millisecond,
			DenyDelete: true, DenyPurge: true, AllowAtomicPublish: true, AllowDirect: true,
		})
		return err == nil
	})
}

func (b *fixture) exec(sql string) {
	b.Helper()
	testenv.Exec(b, b.db, sql)
}

func event(n int) events.Event {
	e, err := events.New(noted{fmt.Sprint("k", n), n})
	if err != nil {
		panic(err)
	}
	e.Source, e.Seq, e.Time = "/test", int64(n), time.Now()
	return e
}

func (b *fixture) publish(all ...events.Event) {
	b.Helper()
	for _, e := range all {
		subject, header, body := e.Message()
		b.send(&nats.Msg{Subject: subject, Header: header, Data: body})
	}
}

func (b *fixture) send(msg *nats.Msg) {
	b.Helper()
	if _, err := b.js.PublishMsg(b.Context(), msg); err != nil {
		b.Fatal(err)
	}
}

func permanent(err error) error { return backoff.Permanent(err) }

// write is a handler that inserts a row as its effect.
func write(ctx context.Context, tx pgx.Tx, e events.Event) error {
	p, err := events.Decode[noted](e)
	if err != nil {
		return backoff.Permanent(err)
	}
	_, err = tx.Exec(ctx, `insert into effect (n) values ($1)`, p.N)
	return err
}

type handleFunc = func(ctx context.Context, tx pgx.Tx, e events.Event) error

// each is consumers.Handle for events of some types, by default noted.
func each(fn handleFunc, types ...string) consumers.Handler {
	var all []consumers.Typed
	for _, t := range orNoted(types) {
		all = append(all, consumers.OnType(t, fn))
	}
	return consumers.Handle(all...)
}

// batch is consumers.HandleBatch for events of some types, by default noted.
func batch(most int, fn func(ctx context.Context, tx pgx.Tx, all []events.Event) error, types ...string) consumers.Handler {
	return consumers.HandleBatch(most, fn, orNoted(types)...)
}

// effect is consumers.Effect for events of some types, by default noted.
func effect(fn func(ctx context.Context, e events.Event) error, types ...string) consumers.Handler {
	return consumers.Effect(fn, orNoted(types)...)
}

func orNoted(types []string) []string {
	if len(types) == 0 {
		return []string{noted{}.EventType()}
	}
	return types
}

// start runs a consumer until stop is called or the test ends.
func (b *fixture) start(handle handleFunc) (r *consumers.Runner, stop func()) {
	b.Helper()
	return b.startOn(b.js, consumers.Consumer{Handler: each(handle)})
}

func (b *fixture) startOn(js jetstream.JetStream, c consumers.Consumer) (r *consumers.Runner, stop func()) {
	b.Helper()
	c.Name = "test"
	c.Slices = cmp.Or(c.Slices, 1) // tests of slices ask for more
	c.MinRetry, c.MaxRetry = cmp.Or(c.MinRetry, 5*time.Millisecond), cmp.Or(c.MaxRetry, 50*time.Millisecond)
	r = &consumers.Runner{Consumer: c, DB: b.db, JS: js, Log: testenv.Logger(b)}
	return r, testenv.Run(b, r.Run)
}

func (b *fixture) count(query string, args ...any) (n int) {
	b.Helper()
	if err := b.db.QueryRow(b.Context(), query, args...).Scan(&n); err != nil {
		b.Fatal(err)
	}
	return n
}

func (b *fixture) info() *jetstream.ConsumerInfo {
	b.Helper()
	c, err := b.js.Consumer(b.Context(), "EVENTS", "test")
	if err != nil {
		return &jetstream.ConsumerInfo{NumAckPending: -1}
	}
	return c.CachedInfo()
}

// settled waits until every event is delivered and acknowledged.
func (b *fixture) settled() {
	b.Helper()
	testenv.Eventually(b, patience, "nothing is to be done any more", func() bool {
		stream, err := b.js.Stream(b.Context(), "EVENTS")
		if err != nil {
			return false
		}
		i := b.info() // its count of pending messages lags behind
		return i.NumAckPending == 0 && i.NumPending == 0 && i.Delivered.Stream > 0 && i.Delivered.Stream >= stream.CachedInfo().State.LastSeq &&
			b.count(`select count(*) from pgjet.intent`) == 0
	})
}

// once checks that each of the events 1 to n had one effect.
func (b *fixture) once(n int) {
	b.Helper()
	if rows, distinct := b.count(`select count(*) from effect`), b.count(`select count(distinct n) from effect`); rows != n || distinct != n {
		b.Errorf("%d effects of %d events, want %d of %d", rows, distinct, n, n)
	}
}

func (b *fixture) blocked(r *consumers.Runner, cause string) {
	b.Helper()
	testenv.Eventually(b, patience, "the consumer is blocked by "+cause, func() bool {
		err := r.Ready(b.Context())
		return err != nil && strings.Contains(err.Error(), cause)
	})
}

func (b *fixture) ready(r *consumers.Runner) {
	b.Helper()
	testenv.Eventually(b, patience, "the consumer is ready", func() bool { return r.Ready(b.Context()) == nil })
}

// handled waits until n events had their effect.
func (b *fixture) handled(n int) {
	b.Helper()
	testenv.Eventually(b, patience, fmt.Sprint(n, " events are handled"), func() bool {
		return b.count(`select count(*) from effect`) >= n
	})
}
