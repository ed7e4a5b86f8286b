package consumers_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
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
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

// other returns a fixture with a database of its own, on the same stream.
func (b *fixture) other() *fixture {
	b.Helper()
	o := &fixture{T: b.T, db: testenv.Postgres(b), js: b.js}
	o.exec(`create table effect (n int not null)`)
	return o
}

// runOn runs a consumer on a stream with a prefix until stop is called or the test ends.
func (b *fixture) runStream(js jetstream.JetStream, stream, prefix string, c consumers.Consumer) (r *consumers.Runner, stop func()) {
	b.Helper()
	r = &consumers.Runner{Consumer: c, DB: b.db, JS: js, Stream: stream, Prefix: prefix, Log: testenv.Logger(b)}
	return r, testenv.Run(b, r.Run)
}

func (b *fixture) identity() inbox.Identity {
	b.Helper()
	i, err := inbox.ReadIdentity(b.Context(), b.db)
	if err != nil {
		b.Fatal(err)
	}
	return i
}

// config returns the configuration of a durable consumer.
func (b *fixture) config(stream, durable string) jetstream.ConsumerConfig {
	b.Helper()
	c, err := b.js.Consumer(b.Context(), stream, durable)
	if err != nil {
		b.Fatalf("look at %s: %v", durable, err)
	}
	return c.CachedInfo().Config
}

// names returns the durable consumers of a stream, with the database that each names.
func (b *fixture) names(stream string) map[string]string {
	b.Helper()
	s, err := b.js.Stream(b.Context(), stream)
	if err != nil {
		b.Fatal(err)
	}
	all := make(map[string]string)
	list := s.ListConsumers(b.Context())
	for info := range list.Info() {
		all[info.Name] = inbox.IdentityIn(info.Config.Metadata).ID.String()
	}
	if err := list.Err(); err != nil {
		b.Fatal(err)
	}
	return all
}

// untouched checks that no table of consumers has a row, except for heartbeats.
func (b *fixture) untouched() {
	b.Helper()
	for _, table := range []string{"consumer", "slice", "inbox", "intent", "dead_letter", "attempt"} {
		if n := b.count(`select count(*) from pgjet.` + table); n != 0 {
			b.Errorf("%d rows in pgjet.%s, want none", n, table)
		}
	}
}

// TestAnotherServicesStream: a consumer reads the stream of another service, with that service's
// prefix, into its own inbox. So do others of the same name on another stream, and of another name
// on the same stream.
func TestAnotherServicesStream(t *testing.T) {
	t.Parallel()
	b := newFixture(t) // billing, with the stream EVENTS
	orders := b.other()
	const stream, prefix, count = "ORDERS", "acme.orders", 60
	subjects := events.SubjectsOf(prefix)
	if _, err := b.js.CreateStream(t.Context(), jetstream.StreamConfig{Name: stream, Subjects: []string{subjects.All()}, AllowDirect: true}); err != nil {
		t.Fatal(err)
	}
	for n := range count {
		e := keyed(fmt.Sprint("key", n%7), n+1)
		_, header, body := e.Message()
		b.send(&nats.Msg{Subject: subjects.Of(e.Type, e.Key), Header: header, Data: body})
	}
	b.publish(event(1), event(2))

	var calls sync.Map
	failing := func(ctx context.Context, tx pgx.Tx, e events.Event) error {
		n, _ := calls.LoadOrStore(e.ID, new(atomic.Int32))
		if n.(*atomic.Int32).Add(1) <= 2 && e.Seq%3 == 0 { // in a group, then alone: it waits as an intent of its slice
			return errors.New("not yet")
		}
		return record(ctx, tx, e)
	}
	b.log()
	billing, _ := b.runStream(b.js, stream, prefix, consumers.Consumer{Name: "test", Slices: 4, Handler: each(failing), MinRetry: time.Millisecond, MaxRetry: time.Millisecond})
	ledger, _ := orders.runStream(b.js, stream, prefix, consumers.Consumer{Name: "ledger", Slices: 1, Handler: each(write)})
	own, _ := orders.runStream(b.js, "EVENTS", "", consumers.Consumer{Name: "test", Slices: 1, Handler: effect(func(context.Context, events.Event) error { return nil })})
	testenv.Eventually(t, patience, "all events are handled", func() bool { return b.count(`select count(*) from done`) >= count })
	b.inOrder(count)
	orders.handled(count)
	testenv.Eventually(t, patience, "the consumer of the default stream has its own", func() bool {
		return orders.count(`select count(*) from pgjet.inbox where consumer = 'test' and state = 'done'`) == 2
	})
	for _, r := range []*consumers.Runner{billing, ledger, own} {
		b.ready(r)
	}
	if got, want := b.config(stream, "test-0of4").FilterSubjects[0], "acme.orders.00.note.made"; got != want {
		t.Errorf("a slice asks for %s, want %s", got, want)
	}
	if got, want := fmt.Sprint(b.config(stream, "ledger").FilterSubjects), "[acme.orders.*.note.made]"; got != want {
		t.Errorf("the consumer asks for %s, want %s", got, want)
	}
	testenv.Eventually(t, patience, "all is accounted for", func() bool {
		a, err := consumers.ReadAccount(t.Context(), b.db, b.js, stream, "test")
		return err == nil && a.Events == count && a.Done == count && a.Unaccounted == 0
	})
}

// TestForeignDurable: a consumer whose durable consumers belong to another database reports that,
// and changes neither those nor its own tables. The other one goes on.
func TestForeignDurable(t *testing.T) {
	t.Parallel()
	for _, slices := range []int{1, 4} {
		t.Run(fmt.Sprint(slices, " slices"), func(t *testing.T) {
			b := newFixture(t)
			c := consumers.Consumer{Name: "test", Slices: slices, Handler: each(write)}
			ours, _ := b.runStream(b.js, "", "", c)
			b.publish(event(1), event(2))
			b.handled(2)
			durable := inbox.Durables("test", slices)[0]
			before := b.config("EVENTS", durable)

			o := b.other()
			theirs, _ := o.runStream(b.js, "", "", c)
			o.blocked(theirs, "foreign_durable: ")
			err := theirs.Ready(t.Context()).Error()
			for _, part := range []string{durable, b.identity().String(), o.identity().String(), "nothing was changed", "nats consumer info EVENTS " + durable} {
				if !strings.Contains(err, part) {
					t.Errorf("the reason does not say %q: %s", part, err)
				}
			}
			b.publish(event(3), event(4))
			b.handled(4)
			b.ready(ours)
			b.once(4)
			o.untouched()
			if after := b.config("EVENTS", durable); fmt.Sprint(after) != fmt.Sprint(before) {
				t.Errorf("the durable consumer was changed from %v to %v", before, after)
			}
			if cause := o.count(`select count(*) from pgjet.process where consumer = 'test' and cause like 'foreign_durable: %'`); cause != 1 {
				t.Errorf("%d processes say why they handle nothing, want 1", cause)
			}
		})
	}
}

// TestForeignDurableOfOneSlice: one of several is enough.
func TestForeignDurableOfOneSlice(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	o := b.other()
	c := consumers.Consumer{Name: "test", Slices: 4, Handler: each(write)}
	configs, err := c.Configs("")
	if err != nil {
		t.Fatal(err)
	}
	configs[3].Metadata = o.identity().Named(nil)
	if _, _, err := consumers.Ensure(t.Context(), b.js, "EVENTS", configs[3]); err != nil {
		t.Fatal(err)
	}
	r, _ := b.runStream(b.js, "", "", c)
	b.blocked(r, "foreign_durable: durable consumer test-3of4 of stream EVENTS belongs to "+o.identity().String())
	b.untouched()
	if names := b.names("EVENTS"); len(names) != 1 {
		t.Errorf("there are the durable consumers %v, want that of the other database alone", names)
	}
}

// TestDurablesOfBefore: durable consumers without a database, such as those of an earlier version,
// get the name of the database that uses them, and are not changed otherwise.
func TestDurablesOfBefore(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	c := consumers.Consumer{Name: "test", Slices: 2, Handler: each(write)}
	configs, err := c.Configs("")
	if err != nil {
		t.Fatal(err)
	}
	for _, config := range configs {
		config.Metadata, config.Description = map[string]string{"team": "billing"}, "for Ann"
		if created, _, err := consumers.Ensure(t.Context(), b.js, "EVENTS", config); !created {
			t.Fatal(err)
		}
	}
	b.publish(event(1), event(2), event(3))
	r, stop := b.runStream(b.js, "", "", c)
	b.handled(3)
	b.ready(r)
	for _, name := range inbox.Durables("test", 2) {
		config := b.config("EVENTS", name)
		if got := inbox.IdentityIn(config.Metadata); got != b.identity() {
			t.Errorf("%s names %v, want %v", name, got, b.identity())
		}
		if config.Metadata["team"] != "billing" || config.Description != "for Ann" {
			t.Errorf("%s lost what it was given: %v %q", name, config.Metadata, config.Description)
		}
	}
	stop()

	// The database is restored elsewhere, or moved: its identity stays.
	o := b.other()
	o.exec(fmt.Sprintf(`update pgjet.identity set id = '%s'`, b.identity().ID))
	r, _ = o.runStream(b.js, "", "", c)
	o.ready(r)
	b.publish(event(4))
	o.handled(1)
}

// A readOnly is JetStream for a user who may not change durable consumers, in an account that does
// not import such requests.
type readOnly struct{ jetstream.JetStream }

func (readOnly) UpdateConsumer(context.Context, string, jetstream.ConsumerConfig) (jetstream.Consumer, error) {
	return nil, nats.ErrNoResponders
}

// TestDurableThatNobodyMayChange: a consumer works with a durable consumer without a database
// although NATS does not let it write the name.
func TestDurableThatNobodyMayChange(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	c := consumers.Consumer{Name: "test", Slices: 1, Handler: each(write)}
	configs, err := c.Configs("")
	if err == nil {
		_, _, err = consumers.Ensure(t.Context(), b.js, "EVENTS", configs[0])
	}
	if err != nil {
		t.Fatal(err)
	}
	b.publish(event(1))
	r, _ := b.runStream(readOnly{b.js}, "", "", c)
	b.handled(1)
	b.ready(r)
	if _, named := b.config("EVENTS", "test").Metadata["pgjet.inbox"]; named {
		t.Error("the durable consumer was changed")
	}
}

// TestDurableChangesHands: a session ends soon after its durable consumer was given to another
// database.
func TestDurableChangesHands(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	o := b.other()
	r, _ := b.runStream(b.js, "", "", consumers.Consumer{Name: "test", Slices: 1, Handler: each(write)})
	b.publish(event(1))
	b.handled(1)
	want := b.config("EVENTS", "test")
	want.Metadata = o.identity().Named(nil)
	for _, wrong := range []uuid.UUID{uuid.Nil, uuid.New(), o.identity().ID} {
		if news, err := consumers.Claim(t.Context(), b.js, "EVENTS", want, wrong); news || err == nil || !strings.HasPrefix(err.Error(), "foreign_durable: ") {
			t.Errorf("Claim() from %s = %t, %v, want foreign_durable", wrong, news, err)
		}
	}
	if news, err := consumers.Claim(t.Context(), b.js, "EVENTS", want, b.identity().ID); !news || err != nil {
		t.Fatalf("Claim() = %t, %v, want that it was changed", news, err)
	}
	b.blocked(r, "foreign_durable: ")
	if got := inbox.IdentityIn(b.config("EVENTS", "test").Metadata); got != o.identity() {
		t.Errorf("the durable consumer names %v, want %v", got, o.identity())
	}
}

// TestDivideLeavesOthersAlone: changing the number of slices deletes no durable consumers of
// another database, for example of the original of a copy.
func TestDivideLeavesOthersAlone(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	_, stop := b.runStream(b.js, "", "", consumers.Consumer{Name: "test", Slices: 2, Handler: each(write)})
	b.publish(event(1))
	b.handled(1)
	stop()
	was := b.identity().ID.String()
	b.exec(`select pgjet.new_identity()`)
	r, _ := b.runStream(b.js, "", "", consumers.Consumer{Name: "test", Slices: 4, Handler: each(write)})
	b.ready(r)
	testenv.Eventually(t, patience, "the new slices have durable consumers", func() bool { return len(b.names("EVENTS")) >= 6 })
	now := b.identity().ID.String()
	want := map[string]string{"test-0of2": was, "test-1of2": was, "test-0of4": now, "test-1of4": now, "test-2of4": now, "test-3of4": now}
	if got := b.names("EVENTS"); !maps.Equal(got, want) {
		t.Errorf("there are the durable consumers %v, want %v", got, want)
	}
}

// TestStreamOfAnotherPrefix: a stream that does not store the consumer's prefix is refused before
// anything is created.
func TestStreamOfAnotherPrefix(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	c := consumers.Consumer{Name: "test", Slices: 1, Handler: each(write)}
	r, _ := b.runStream(b.js, "", "acme.orders", c)
	b.blocked(r, "stream_differs: stream EVENTS stores events.>, and this consumer needs subjects that begin with acme.orders")
	b.untouched()
	configs, err := c.Configs("acme.orders")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := consumers.Ensure(t.Context(), b.js, "EVENTS", configs[0]); err == nil || !strings.Contains(err.Error(), "stream_differs") {
		t.Errorf("Ensure() = %v, want stream_differs", err)
	}
	if names := b.names("EVENTS"); len(names) != 0 {
		t.Errorf("there are the durable consumers %v, want none", names)
	}
	if err := (&consumers.Runner{Consumer: c, DB: b.db, JS: b.js, Prefix: "a.*"}).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "prefix") {
		t.Errorf("Run() = %v, want an error about the prefix", err)
	}
}

// TestMirror: a consumer may read a mirror, whose subjects are those of another stream.
func TestMirror(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	if _, err := b.js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "COPY", Mirror: &jetstream.StreamSource{Name: "EVENTS"}}); err != nil {
		t.Fatal(err)
	}
	b.publish(event(1))
	r, _ := b.runStream(b.js, "COPY", "", consumers.Consumer{Name: "test", Slices: 1, Handler: each(write)})
	b.handled(1)
	b.ready(r)
}
