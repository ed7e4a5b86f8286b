package consumers_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/devserver"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/migrations"
)

// newOriginal returns a fixture on a PostgreSQL server of its own, whose database can be copied.
func newOriginal(t *testing.T) (*fixture, *devserver.Postgres) {
	t.Helper()
	server := testenv.PostgresServer(t)
	db := testenv.PoolAt(t, server.URL())
	if _, err := migrations.Up(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	js, _ := testenv.JetStream(t)
	return newFixtureOn(t, db, js), server
}

// copied copies the fixture's database by template, and connects the fixture again. Nothing may use
// it meanwhile.
func (b *fixture) copied(server *devserver.Postgres) *fixture {
	b.Helper()
	b.db.Close()
	u, err := url.Parse(server.URL())
	if err != nil {
		b.Fatal(err)
	}
	in := func(name string) string { u.Path = "/" + name; return u.String() }
	admin, err := pgx.Connect(b.Context(), in("postgres"))
	if err != nil {
		b.Fatal(err)
	}
	defer admin.Close(b.Context())
	testenv.Eventually(b, patience, "the database is copied", func() bool {
		_, err := admin.Exec(b.Context(), `create database clone template pgjet`)
		return err == nil
	})
	b.db = testenv.PoolAt(b, server.URL())
	return &fixture{T: b.T, db: testenv.PoolAt(b, in("clone")), js: b.js}
}

// sends publishes the events from to to, and waits until the fixture has handled them.
func (b *fixture) sends(from, to int) {
	b.Helper()
	for n := from; n <= to; n++ {
		e := event(n)
		e.Key = fmt.Sprint("key", n%7)
		b.publish(e)
	}
	b.handled(to)
}

// TestCopyBesideItsOriginal: the consumers of a copy are refused beside those of the original,
// which handle everything once and stay ready. The copy goes on when the original stops, and is
// refused again when the original is back.
func TestCopyBesideItsOriginal(t *testing.T) {
	consumers.SetCountEvery(t, 500*time.Millisecond) // by this the unordered copy notices what the original handled
	for name, c := range map[string]consumers.Consumer{
		"ordered":   {Name: "test", Slices: 2},
		"unordered": {Name: "test", Unordered: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, server := newOriginal(t)
			c.Handler, c.MinRetry, c.MaxRetry = each(write), time.Millisecond, time.Millisecond
			_, stop := b.runStream(b.js, "EVENTS", "", c)
			b.sends(1, 20)
			stop()
			clone := b.copied(server)
			original, stop := b.runStream(b.js, "EVENTS", "", c)
			b.ready(original)
			copied, _ := clone.runStream(b.js, "EVENTS", "", c)
			clone.blocked(copied, "outbox_copied: a copy of this database handles events of stream EVENTS by process ")
			says := copied.Ready(t.Context()).Error()
			for _, want := range []string{"database pgjet at ", ", clone at ", "select pgjet.new_identity()"} {
				if !strings.Contains(says, want) || strings.Contains(says, "adopt") {
					t.Errorf("it says %q, want %q in it", says, want)
				}
			}
			b.sends(21, 60)
			if err := original.Ready(t.Context()); err != nil {
				t.Errorf("the original is not ready: %v", err)
			}
			b.once(60)
			if n := clone.count(`select count(*) from effect`); n != 20 {
				t.Errorf("the copy has handled %d events, want the 20 from before", n)
			}
			if n := clone.count(`select count(*) from pgjet.process where cause like 'outbox_copied: %'`); n != 1 {
				t.Errorf("%d processes of the copy say why they handle nothing, want 1", n)
			}
			stop()

			clone.ready(copied) // the original has stopped
			clone.handled(60)
			clone.once(60)

			original, _ = b.runStream(b.js, "EVENTS", "", c)
			clone.blocked(copied, "outbox_copied: ")
			b.ready(original)
			b.sends(61, 80)
			b.once(80)
		})
	}
}

// TestCopyThatRan: a copy that ran while the original was stopped handles nothing in any session
// once the original is back.
func TestCopyThatRan(t *testing.T) {
	t.Parallel()
	b, server := newOriginal(t)
	_, stop := b.start(write)
	b.sends(1, 10)
	stop()
	clone := b.copied(server)
	copied, _ := clone.start(write)
	clone.ready(copied)
	b.start(write)
	clone.blocked(copied, "outbox_copied: ")
	before := clone.count(`select count(*) from effect`)
	testenv.Exec(t, clone.db, `truncate pgjet.process`)
	for range 2 { // sessions; each reports why it ended
		testenv.Eventually(t, patience, "another session in the copy has ended", func() bool {
			return clone.count(`select count(*) from pgjet.process where cause like 'outbox_copied: %'`) == 1
		})
		b.sends(b.count(`select count(*) from effect`)+1, b.count(`select count(*) from effect`)+5)
		testenv.Exec(t, clone.db, `truncate pgjet.process`)
	}
	if n := clone.count(`select count(*) from effect`); n != before {
		t.Errorf("the copy handled %d more events", n-before)
	}
}

// TestTwoProcessesOfOneDatabase: processes of one database do not refuse each other, nor those of
// another database with an identity of its own.
func TestTwoProcessesOfOneDatabase(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	other := b.other()
	c := consumers.Consumer{Name: "test", Slices: 2, Handler: each(write)}
	first, _ := b.runStream(b.js, "EVENTS", "", c)
	b.ready(first)
	heard := make(chan *nats.Msg, 100)
	if _, err := b.js.Conn().ChanSubscribe(events.HandleSubject("EVENTS", "test"), heard); err != nil {
		t.Fatal(err)
	}
	second, _ := b.runStream(b.js, "EVENTS", "", c)
	foreign, _ := other.runStream(b.js, "EVENTS", "", c)
	b.ready(second)
	other.blocked(foreign, "foreign_durable: ")
	for range 12 { // each has announced itself several times
		select {
		case <-heard:
		case <-time.After(patience):
			t.Fatal("nobody announces itself")
		}
	}
	for n, r := range []*consumers.Runner{first, second} {
		if err := r.Ready(t.Context()); err != nil {
			t.Errorf("process %d: %v", n+1, err)
		}
	}
	b.sends(1, 20)
	b.once(20)
}

// TestRestoredElsewhere: a consumer whose database was moved listens first, and then goes on.
func TestRestoredElsewhere(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	_, stop := b.start(write)
	b.sends(1, 5)
	stop()
	testenv.Exec(t, b.db, `update pgjet.consumer set place = '1/1', server_start = server_start - interval '1 day'`)
	before := b.count(`select (extract(epoch from placed_at) * 1e6)::bigint from pgjet.consumer`)
	began := time.Now()
	r, _ := b.start(write)
	b.ready(r)
	if took := time.Since(began); took < 1500*time.Millisecond {
		t.Errorf("it began after %s, want it to listen first", took)
	}
	b.sends(6, 10)
	b.once(10)
	if n := b.count(`select count(*) from pgjet.consumer where place <> '1/1' and (extract(epoch from placed_at) * 1e6)::bigint > $1 and server_start = pg_postmaster_start_time()`, before); n != 1 {
		t.Error("where it runs now is not recorded")
	}
}
