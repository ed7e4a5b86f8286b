package replay_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers/replay"
	"github.com/pgjet/pgjet/internal/testenv"
)

// TestFailsHalfWay: whatever fails between the pause and its end, the consumer is not paused any
// more, and done events stay done.
func TestFailsHalfWay(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]struct {
		begin func(b *fixture, cancel func()) // when the consumer is paused
		user  string
		says  string
	}{
		"reset is denied":          {func(*fixture, func()) {}, "mute", "permission_denied: "},
		"ctx ends":                 {func(_ *fixture, cancel func()) { cancel() }, "admin", context.Canceled.Error()},
		"the durable is deleted":   {func(b *fixture, _ func()) { b.deleteDurable() }, "admin", "consumer_missing: "},
		"the database is cut off":  {func(b *fixture, _ func()) { b.cutOff(); b.deleteDurable() }, "admin", "consumer_missing: "},
		"the stream is deleted":    {func(b *fixture, _ func()) { _ = b.js.DeleteStream(b.Context(), "EVENTS") }, "admin", "missing: "},
		"an attempt does not stop": {func(b *fixture, cancel func()) { cancel() }, "mute", "goes on as before"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := testenv.NATSWith(t, `no_auth_user: admin
				authorization { users: [ { user: admin, password: x },
					{ user: mute, password: x, permissions: { publish: { deny: "$JS.API.CONSUMER.RESET.>" } } } ] }`)
			b := newFixtureOn(t, testenv.Connect(t, n.URL()), true, false)
			b.publish(repeat("note.made a", 5)...)
			b.deliver(3)
			b.know("done", 1, 2, 3)
			c, err := b.js.Consumer(t.Context(), "EVENTS", "notes")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Fetch(1); err != nil { // delivered to a client: the replay waits for it
				t.Fatal(err)
			}
			testenv.Eventually(t, patience, "a message is in hand", func() bool {
				info, err := c.Info(t.Context())
				return err == nil && info.NumAckPending == 1
			})
			r, err := replay.Open(t.Context(), b.operator, b.connect(n.URL(), fault.user), "notes")
			if err == nil {
				err = r.Lock(t.Context())
			}
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			p := must(r.Plan(t.Context(), replay.Selection{All: true, Again: true}))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan error, 1)
			go func() {
				_, err := r.Run(ctx, p, replay.Order{By: "ann@host", Reason: "a test"})
				ended <- err
			}()
			paused := func() int {
				return value[int](b, `select count(*) from pgjet.consumer where paused_at is not null`)
			}
			testenv.Eventually(t, patience, "the consumer is paused", func() bool { return paused() == 1 })
			fault.begin(b, cancel)
			err = <-ended
			if err == nil || !strings.Contains(err.Error(), fault.says) || !strings.Contains(err.Error(), "goes on as before") {
				t.Errorf("Run() = %v, want it to say %q", err, fault.says)
			}
			if fault.says == context.Canceled.Error() && !errors.Is(err, context.Canceled) {
				t.Errorf("Run() = %v, want that it was interrupted", err)
			}
			if done := value[int](b, `select count(*) from pgjet.inbox where state = 'done'`); paused() != 0 || done != 3 {
				t.Errorf("%d consumers are paused, and %d events are done, want none and 3", paused(), done)
			}
		})
	}
}

func (b *fixture) connect(url, user string) jetstream.JetStream {
	b.Helper()
	nc, err := nats.Connect(url, nats.UserInfo(user, "x"), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(nc.Close)
	return must(jetstream.New(nc))
}

func (b *fixture) deleteDurable() {
	if err := b.js.DeleteConsumer(b.Context(), "EVENTS", "notes"); err != nil {
		b.Error(err)
	}
}

// cutOff ends the connections of the replay's pool.
func (b *fixture) cutOff() {
	b.exec(`select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()`)
}

// TestOldServerIsRefused before anything is changed.
func TestOldServerIsRefused(t *testing.T) {
	t.Parallel()
	js, url := testenv.JetStream(t)
	b := newFixtureOn(t, js, true, false)
	_, err := replay.Open(t.Context(), b.operator, testenv.Connect(t, testenv.OtherVersion(t, url, "2.11.9")), "notes")
	if err == nil || !strings.HasPrefix(err.Error(), "nats_outdated: the server runs nats-server 2.11.9") {
		t.Errorf("Open() = %v, want that the server is too old", fmt.Sprint(err))
	}
}

// slowPauses makes the commit of a pause last, and take place also if it is cancelled.
const slowPauses = `
	create function slow() returns trigger language plpgsql as $$ begin
		perform pg_sleep(2);
		return null;
	exception when query_canceled then
		begin
			perform pg_sleep(1);
		exception when query_canceled then -- the request comes twice now and then
			null;
		end;
		return null;
	end $$;
	create constraint trigger slow after update on pgjet.consumer deferrable initially deferred
		for each row when (new.paused_at is not null) execute function slow()`

// interruptedCommit returns a context that ends during such a commit.
func interruptedCommit(t *testing.T, db *pgxpool.Pool) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer cancel()
		testenv.Eventually(t, patience, "the pause is committed", func() bool {
			var sleeps bool
			err := db.QueryRow(t.Context(), `select exists (select from pg_stat_activity
				where datname = current_database() and wait_event = 'PgSleep' and query ilike 'commit%')`).Scan(&sleeps)
			return err == nil && sleeps
		})
	}()
	return ctx
}

// TestReplayPauseWithoutAnAnswer: the same for a replay.
func TestReplayPauseWithoutAnAnswer(t *testing.T) {
	t.Parallel()
	js, _ := testenv.JetStream(t)
	b := newFixtureOn(t, js, true, false)
	b.publish("note.made a")
	b.deliver(1)
	b.know("done", 1)
	b.exec(slowPauses)
	r, err := replay.Open(t.Context(), b.operator, js, "notes")
	if err == nil {
		err = r.Lock(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p := must(r.Plan(t.Context(), replay.Selection{All: true, Again: true}))
	_, err = r.Run(interruptedCommit(t, b.db), p, replay.Order{By: "ann@host", Reason: "a test"})
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "goes on as before") {
		t.Errorf("Run() = %v, want that it was interrupted and undone", err)
	}
	if paused := value[int](b, `select count(*) from pgjet.consumer where paused_at is not null`); paused != 0 {
		t.Error("the consumer is paused")
	}
}
