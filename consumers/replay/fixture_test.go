package replay_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers/replay"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const patience = time.Minute

// A fixture is a stream, a durable consumer of note.made and note.kept, and its database.
type fixture struct {
	*testing.T
	db       *pgxpool.Pool // of the owner
	operator *pgxpool.Pool // with the rights of an operator
	js       jetstream.JetStream
	ids      []uuid.UUID // of the message with each sequence
}

func newFixture(t *testing.T, ordered, effects bool) *fixture {
	t.Helper()
	js, _ := testenv.JetStream(t)
	return newFixtureOn(t, js, ordered, effects)
}

func newFixtureOn(t *testing.T, js jetstream.JetStream, ordered, effects bool) *fixture {
	t.Helper()
	b := &fixture{T: t, db: testenv.Postgres(t), js: js, ids: make([]uuid.UUID, 1)}
	b.operator = b.poolOf("pgjet_operator")
	stream, err := js.CreateStream(t.Context(), jetstream.StreamConfig{
		Name: "EVENTS", Subjects: []string{events.AllSubjects}, Storage: jetstream.FileStorage, AllowDirect: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = stream.CreateConsumer(t.Context(), jetstream.ConsumerConfig{
		Durable: "notes", AckPolicy: jetstream.AckExplicitPolicy, MaxDeliver: -1,
		FilterSubjects: []string{events.Filter("note.made"), events.Filter("note.kept")},
	})
	if err != nil {
		t.Fatal(err)
	}
	b.exec(`insert into pgjet.consumer (name, stream, stream_created, ordered, effects) values ('notes', 'EVENTS', $1, $2, $3)`,
		stream.CachedInfo().Created, ordered, effects)
	b.exec(`insert into pgjet.slice (consumer, slice, epoch) select name, 0, epoch from pgjet.consumer`)
	return b
}

func (b *fixture) poolOf(role string) *pgxpool.Pool {
	b.Helper()
	config := b.db.Config()
	config.AfterConnect = func(ctx context.Context, c *pgx.Conn) error {
		_, err := c.Exec(ctx, "set role "+role)
		return err
	}
	pool, err := pgxpool.NewWithConfig(b.Context(), config)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(pool.Close)
	return pool
}

func (b *fixture) exec(sql string, args ...any) {
	b.Helper()
	testenv.Exec(b, b.db, sql, args...)
}

// value returns the only value of a query.
func value[T any](b *fixture, sql string, args ...any) (v T) {
	b.Helper()
	if err := b.db.QueryRow(b.Context(), sql, args...).Scan(&v); err != nil {
		b.Fatal(err)
	}
	return v
}

// publish stores one event for each "type key", or a message that is no event for "-".
func (b *fixture) publish(all ...string) {
	b.Helper()
	for _, one := range all {
		msg := &nats.Msg{Subject: "events.00.note.made", Data: []byte("?")}
		id := uuid.Nil
		if eventType, key, ok := strings.Cut(one, " "); ok {
			id = uuid.Must(uuid.NewV7())
			e := events.Event{ID: id, Type: eventType, Key: key, Source: "/test", Time: time.Now(), Seq: int64(len(b.ids)), Data: []byte(`{"n":1}`)}
			subject, header, data := e.Message()
			msg = &nats.Msg{Subject: subject, Header: header, Data: data}
		}
		if _, err := b.js.PublishMsg(b.Context(), msg); err != nil {
			b.Fatal(err)
		}
		b.ids = append(b.ids, id)
	}
}

// know writes inbox rows for the events with these sequences.
func (b *fixture) know(state string, seqs ...int) {
	b.Helper()
	for _, seq := range seqs {
		b.exec(`insert into pgjet.inbox (consumer, event_id, state, attempts, generation, stream_seq) values ('notes', $1, $2, 1, 1, $3)`,
			b.ids[seq], state, seq)
	}
}

// deliver makes the durable consumer deliver n messages, acknowledges them, and returns their
// sequences.
func (b *fixture) deliver(n int) (seqs []uint64) {
	b.Helper()
	c, err := b.js.Consumer(b.Context(), "EVENTS", "notes")
	if err != nil {
		b.Fatal(err)
	}
	batch, err := c.Fetch(n, jetstream.FetchMaxWait(5*time.Second))
	if err != nil {
		b.Fatal(err)
	}
	for msg := range batch.Messages() {
		meta, err := msg.Metadata()
		if err == nil {
			err = msg.DoubleAck(b.Context())
		}
		if err != nil {
			b.Fatal(err)
		}
		seqs = append(seqs, meta.Sequence.Stream)
	}
	return seqs
}

func (b *fixture) open() *replay.Replay {
	b.Helper()
	r, err := replay.Open(b.Context(), b.operator, b.js, "notes")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(r.Close)
	return r
}

func (b *fixture) plan(s replay.Selection) *replay.Plan {
	b.Helper()
	p, err := b.open().Plan(b.Context(), s)
	if err != nil {
		b.Fatal(err)
	}
	return p
}

func quiet(int64, int, int) {}

// run plans and runs, and closes.
func (b *fixture) run(ctx context.Context, s replay.Selection, progress replay.Progress) (replay.Result, error) {
	b.Helper()
	r := b.open()
	defer r.Close()
	if err := r.Lock(b.Context()); err != nil {
		b.Fatal(err)
	}
	p, err := r.Plan(b.Context(), s)
	if err != nil {
		b.Fatal(err)
	}
	return r.Run(ctx, p, replay.Order{By: "ann@host", Reason: "a test", Progress: progress})
}

func (b *fixture) mustRun(s replay.Selection) replay.Result {
	b.Helper()
	result, err := b.run(b.Context(), s, quiet)
	if err != nil {
		b.Fatal(err)
	}
	return result
}

// intents returns the sequences of all intents in the order of the stream, with a star for those
// that wait for another.
func (b *fixture) intents() string {
	b.Helper()
	return value[string](b, `
		select coalesce(string_agg(stream_seq || case when due_at = 'infinity' then '*' else '' end, ' ' order by stream_seq), '')
		  from pgjet.intent where consumer = 'notes'`)
}

// waitForLock waits until a session waits for the consumer's transactions.
func (b *fixture) waitForLock() {
	b.Helper()
	testenv.Eventually(b, patience, "the replay waits", func() bool {
		return value[int](b, `select count(*) from pg_locks where locktype = 'advisory' and not granted
			and database = (select oid from pg_database where datname = current_database())`) == 1
	})
}

// dump returns everything that a replay could change.
func (b *fixture) dump() string {
	b.Helper()
	var all []string
	for _, table := range []string{"consumer", "inbox", "intent", "dead_letter", "operation"} {
		all = append(all, value[string](b, `select coalesce(string_agg(t::text, e'\n' order by t::text), '') from pgjet.`+table+` t`))
	}
	c, err := b.js.Consumer(b.Context(), "EVENTS", "notes")
	if err != nil {
		b.Fatal(err)
	}
	info := c.CachedInfo()
	return strings.Join(append(all, fmt.Sprint(info.Delivered, info.AckFloor.Stream, info.NumPending, info.NumAckPending)), "\n--\n")
}

func repeat(one string, n int) []string { return slices.Repeat([]string{one}, n) }
