package replay_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"

	"github.com/pgjet/pgjet/consumers/replay"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

// TestReset: the next delivery is the first sequence of the plan, the consumer goes on, and the
// operation is recorded.
func TestReset(t *testing.T) {
	t.Parallel()
	b := newFixture(t, true, false)
	b.publish(repeat("note.made a", 6)...)
	b.deliver(6)
	b.know("done", 1, 2, 4, 6)
	b.exec(`update pgjet.slice set floor = 6`)
	result := b.mustRun(replay.Selection{FromSeq: 3})
	if got := b.deliver(1); !slices.Equal(got, []uint64{3}) {
		t.Errorf("the next delivery is %d, want 3", got)
	}
	if got := value[string](b, `select concat_ws(' ', floor, s.epoch, paused_at, rebuild) from pgjet.consumer c join pgjet.slice s on consumer = name`); got != "2 2 f" {
		t.Errorf("floor, epoch, pause and rebuild are %q, want 2 2 f", got)
	}
	if got := value[int](b, `select count(*) from pgjet.inbox`); got != 4 {
		t.Errorf("%d inbox rows are left, want all 4", got)
	}
	got := value[string](b, `select concat_ws(' ', kind, target, by, reason, detail->>'way', detail->>'from', detail->>'to',
		detail->'plan'->>'run', detail->'done'->>'step') from pgjet.operation where id = $1`, result.Operation)
	if want := "replay notes ann@host a test reset 3 6 2 handed over"; got != want {
		t.Errorf("the operation is %q, want %q", got, want)
	}
}

// TestResetNeverGoesForward: neither from the inbox's floor, nor past a pending rebuild.
func TestResetNeverGoesForward(t *testing.T) {
	t.Parallel()
	b := newFixture(t, true, false)
	b.publish(repeat("note.made a", 6)...)
	b.exec(`update pgjet.slice set floor = 1`)
	b.exec(`update pgjet.consumer set rebuild = true`)
	b.mustRun(replay.Selection{FromSeq: 4})
	if got := value[string](b, `select concat_ws(' ', floor, rebuild) from pgjet.consumer join pgjet.slice on consumer = name`); got != "1 t" {
		t.Errorf("floor and rebuild are %q, want 1 t", got)
	}
}

// TestResetWaitsForMessagesInHand: a late ack would count for the delivery after the reset.
func TestResetWaitsForMessagesInHand(t *testing.T) {
	t.Parallel()
	b := newFixture(t, true, false)
	b.publish("note.made a", "note.made a")
	batch, err := must(b.js.Consumer(t.Context(), "EVENTS", "notes")).Fetch(1)
	if err != nil {
		t.Fatal(err)
	}
	msg := <-batch.Messages()
	ended := make(chan error, 1)
	go func() {
		_, err := b.run(t.Context(), replay.Selection{All: true}, quiet)
		ended <- err
	}()
	testenv.Eventually(t, patience, "the consumer is paused", func() bool {
		return value[int](b, `select count(*) from pgjet.consumer where paused_at is not null`) == 1
	})
	if err := msg.DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if got := b.deliver(2); !slices.Equal(got, []uint64{1, 2}) {
		t.Errorf("deliveries are %d, want 1 and 2", got)
	}
}

// TestResetSkipsNothing: events that the consumer has yet to get stay before it.
func TestResetSkipsNothing(t *testing.T) {
	t.Parallel()
	b := newFixture(t, false, false)
	b.publish(repeat("note.made a", 6)...)
	b.deliver(2)
	b.know("done", 1, 2)
	b.mustRun(replay.Selection{FromSeq: 5})
	if got, want := b.deliver(4), []uint64{3, 4, 5, 6}; !slices.Equal(got, want) {
		t.Errorf("deliveries are %d, want %d", got, want)
	}
}

func TestResetAgain(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name    string
		s       replay.Selection
		left    string // inbox rows
		rebuild bool
		intents string
	}{
		{"a range", replay.Selection{FromSeq: 3, Again: true}, "1 done, 2 done, 5 dead, 8 intent", false, "8"},
		{"all", replay.Selection{All: true, Again: true}, "5 dead, 8 intent", true, "8"},
		{"not again", replay.Selection{FromSeq: 3}, "1 done, 2 done, 3 done, 5 dead, 6 done, 7 intent, 8 intent", false, "7 8"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			b := newFixture(t, true, false)
			b.publish(repeat("note.made a", 8)...)
			b.know("done", 1, 2, 3, 6)
			b.know("dead", 5)
			b.know("intent", 7, 8)
			b.exec(`insert into pgjet.intent (consumer, event_id, type, key, stream, generation, stream_seq, subject, header, data)
				select consumer, event_id, 'note.made', 'a', 'EVENTS', 1, stream_seq, 's', '{}', '' from pgjet.inbox where state = 'intent'`)
			b.exec(`insert into pgjet.dead_letter (consumer, event_id, stream, stream_seq, subject, header, data, error, attempts, state)
				select consumer, event_id, 'EVENTS', stream_seq, 's', '{}', '', 'e', 1, case state when 'dead' then state else 'redriven' end
				  from pgjet.inbox where stream_seq in (5, 8)`)
			b.mustRun(row.s)
			if got := value[string](b, `select string_agg(stream_seq || ' ' || state, ', ' order by stream_seq) from pgjet.inbox`); got != row.left {
				t.Errorf("the inbox has %q, want %q", got, row.left)
			}
			if got := value[bool](b, `select rebuild from pgjet.consumer`); got != row.rebuild {
				t.Errorf("rebuild is %t, want %t", got, row.rebuild)
			}
			if got := b.intents(); got != row.intents {
				t.Errorf("intents are %q, want %q", got, row.intents)
			}
		})
	}
}

// TestAgainFindsWhatMoved: after the stream was lost and refilled, events have other sequences than
// in the inbox.
func TestAgainFindsWhatMoved(t *testing.T) {
	t.Parallel()
	b := newFixture(t, true, false)
	b.publish(repeat("note.made a", 4)...)
	b.deliver(4)
	b.know("done", 1, 2, 3, 4)
	b.exec(`update pgjet.inbox set stream_seq = stream_seq + 100, generation = 0 where stream_seq < 4`)
	if p := b.plan(replay.Selection{FromSeq: 2, Again: true}); p.Way != replay.ByIntent || p.Again != 3 {
		t.Errorf("the plan of a range is %s for %d, want intent for 3", p.Way, p.Again)
	}
	if p := b.plan(replay.Selection{All: true, Again: true}); p.Way != replay.ByReset || p.Again != 4 {
		t.Errorf("the plan for all is %s for %d, want reset for 4", p.Way, p.Again)
	}
	b.mustRun(replay.Selection{All: true, Again: true})
	if got := value[int](b, `select count(*) from pgjet.inbox`); got != 0 {
		t.Errorf("%d inbox rows are left, want none", got)
	}
}

// TestPauses: an operator's pause stays, and that of a dead replay ends.
func TestPauses(t *testing.T) {
	t.Parallel()
	b := newFixture(t, true, false)
	b.publish("note.made a")
	pause := func() string {
		return value[string](b, `select coalesce(paused_by || ': ' || pause_reason, '') from pgjet.consumer`)
	}
	b.exec(`update pgjet.consumer set paused_at = now(), paused_by = 'ann', pause_reason = 'upgrade'`)
	b.mustRun(replay.Selection{All: true})
	if got := pause(); got != "ann: upgrade" {
		t.Errorf("the pause is %q, want that of ann", got)
	}
	b.exec(`update pgjet.consumer set paused_at = now(), paused_by = 'ann', pause_reason = 'replay, operation 1'`)
	b.mustRun(replay.Selection{All: true})
	if got := pause(); got != "" {
		t.Errorf("the pause is %q, want none", got)
	}
}

// TestFailedResetIsUndone: when JetStream refuses, the consumer goes on as before, and done events
// stay done. The same replay may be run again.
func TestFailedResetIsUndone(t *testing.T) {
	t.Parallel()
	b := newFixture(t, true, false)
	b.publish(repeat("note.made a", 3)...)
	b.deliver(3)
	r := b.open()
	if err := r.Lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.know("done", 1, 2, 3)
	p, err := r.Plan(t.Context(), replay.Selection{FromSeq: 2, Again: true})
	if err != nil {
		t.Fatal(err)
	}
	config := must(b.js.Consumer(t.Context(), "EVENTS", "notes")).CachedInfo().Config
	if err := b.js.DeleteConsumer(t.Context(), "EVENTS", "notes"); err != nil {
		t.Fatal(err)
	}
	result, err := r.Run(t.Context(), p, replay.Order{By: "ann@host", Reason: "a test"})
	if err == nil || !strings.Contains(err.Error(), "goes on as before") || result.Step != "undone" {
		t.Errorf("Run() = %+v, %v; want an error that says what became of the consumer", result, err)
	}
	r.Close()
	if got := value[string](b, `select concat_ws(', ', paused_by, pause_reason, floor, rebuild, detail->'done'->>'step', (select count(*) from pgjet.inbox where state = 'done'))
		from pgjet.consumer c, pgjet.slice, pgjet.operation`); got != "0, f, undone, 3" {
		t.Errorf("the consumer and the operation are %q, want no pause, and nothing forgotten", got)
	}
	if _, err := b.js.CreateConsumer(t.Context(), "EVENTS", config); err != nil {
		t.Fatal(err)
	}
	b.deliver(3)
	b.mustRun(replay.Selection{FromSeq: 2, Again: true})
	if got := b.deliver(1); !slices.Equal(got, []uint64{2}) || value[int](b, `select count(*) from pgjet.consumer where paused_at is not null`) != 0 {
		t.Errorf("the next delivery is %d, want 2 and no pause", got)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestIntents: whole messages, in order per key, and only those that are to run.
func TestIntents(t *testing.T) {
	t.Parallel()
	b := newFixture(t, true, false)
	b.publish("note.made a", "note.made b", "note.kept a", "note.made a", "-", "other.made a", "note.made a", "note.made b", "note.made a")
	b.know("done", 1, 4)
	b.know("intent", 7)
	b.exec(`insert into pgjet.intent (consumer, event_id, type, key, stream, generation, stream_seq, subject, header, data)
		values ('notes', $1, 'note.made', 'a', 'EVENTS', 1, 7, 's', '{}', '')`, b.ids[7])
	b.deliver(7) // up to 8; 9 will be delivered without a replay
	result := b.mustRun(replay.Selection{All: true, Rate: 1000})
	if got, want := b.intents(), "2 3 7* 8*"; got != want || result.Handed != 3 || result.Next != 0 {
		t.Errorf("intents are %q of %+v, want %q, 3 handed over", got, result, want)
	}
	got := value[string](b, `select concat_ws(' ', type, key, stream, generation, subject, header->'ce-type'->>0, encode(data, 'escape'), attempts)
		from pgjet.intent where event_id = $1`, b.ids[3])
	if want := "note.kept a EVENTS 1 " + events.Subject("note.kept", "a") + ` note.kept {"n":1} 0`; got != want {
		t.Errorf("an intent is %q, want %q", got, want)
	}
	if n := value[int](b, `select count(*) from pgjet.inbox where state = 'intent' and attempts = 0`); n != 3 {
		t.Errorf("%d inbox rows say intent, want 3", n)
	}
	if again := b.mustRun(replay.Selection{All: true, Rate: 1000}); again.Handed != 0 || b.intents() != "2 3 7* 8*" {
		t.Errorf("a second replay hands over %d: %q", again.Handed, b.intents())
	}
	b.know("done", 9) // and its ack is on its way
	b.exec(`update pgjet.intent set taken_by = 'here:1', due_at = now() where stream_seq = 7`)
	if again := b.mustRun(replay.Selection{All: true, Again: true, Key: "a"}); again.Handed != 3 || b.intents() != "1 2 3* 4* 7 8* 9*" {
		t.Errorf("again hands over %d: %q, want 3", again.Handed, b.intents())
	}
}

func TestIntentsOfAnUnorderedConsumer(t *testing.T) {
	t.Parallel()
	b := newFixture(t, false, false)
	b.publish(repeat("note.made a", 4)...)
	b.know("done", 3)
	b.mustRun(replay.Selection{All: true, Key: "a"})
	if got, want := b.intents(), "1 2 4"; got != want {
		t.Errorf("intents are %q, want %q, all due", got, want)
	}
}

// TestInterruptedHandOver: events that were handed over stay so, and continuing where the replay
// stopped hands over the rest; also again.
func TestInterruptedHandOver(t *testing.T) {
	t.Parallel()
	for _, again := range []bool{false, true} {
		b := newFixture(t, false, false)
		b.publish(repeat("note.made a", 1000)...)
		if again {
			b.exec(`insert into pgjet.inbox (consumer, event_id, state, attempts, generation, stream_seq)
				select 'notes', id, 'done', 1, 1, row_number() over () from unnest($1::uuid[]) id`, b.ids[1:])
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		s := replay.Selection{All: true, Key: "a", Again: again}
		result, err := b.run(ctx, s, func(_ int64, done, _ int) {
			if done >= 300 {
				cancel()
			}
		})
		n := value[int](b, `select count(*) from pgjet.intent`)
		if !errors.Is(err, context.Canceled) || result.Handed != n || n < 300 || n == 1000 || result.Next != uint64(n)+1 {
			t.Fatalf("Run() = %+v, %v with %d intents; want an interrupted one", result, err, n)
		}
		if got := value[int](b, `select (detail->'done'->'next')::int from pgjet.operation`); got != n+1 {
			t.Errorf("the operation tells to go on at %d, want %d", got, n+1)
		}
		// The consumer is done with some; those must not run twice.
		b.exec(`update pgjet.inbox set state = 'done' where stream_seq <= 100`)
		b.exec(`delete from pgjet.intent where stream_seq <= 100`)
		s.All, s.FromSeq = false, result.Next
		rest := b.mustRun(s)
		if left := value[int](b, `select count(*) from pgjet.intent`); rest.Handed != 1000-n || left != 900 {
			t.Errorf("again=%t: the rest was %d events, with %d intents; want %d and 900", again, rest.Handed, left, 1000-n)
		}
	}
}

// TestTwiceInTheStream: an event is handed over once, however often the stream has it.
func TestTwiceInTheStream(t *testing.T) {
	t.Parallel()
	b := newFixture(t, false, false)
	b.publish("note.made a")
	msg := must(must(b.js.Stream(t.Context(), "EVENTS")).GetMsg(t.Context(), 1))
	for range 2 {
		must(b.js.PublishMsg(t.Context(), &nats.Msg{Subject: msg.Subject, Header: nats.Header{
			"ce-specversion": {"1.0"}, "ce-id": msg.Header["ce-id"], "ce-source": {"/test"}, "ce-type": {"note.made"}, "ce-subject": {"a"},
			"ce-time": msg.Header["ce-time"], "Pgjet-Seq": {"1"},
		}, Data: msg.Data}))
	}
	if result := b.mustRun(replay.Selection{All: true, Key: "a"}); result.Handed != 1 || b.intents() != "1" {
		t.Errorf("%d were handed over, as %q; want 1", result.Handed, b.intents())
	}
}

// TestInterruptedPage: a page that is about to be committed is committed, and reported.
func TestInterruptedPage(t *testing.T) {
	t.Parallel()
	b := newFixture(t, false, false)
	b.publish("note.made a", "note.made a")
	tx := must(b.db.Begin(t.Context()))
	defer tx.Rollback(context.WithoutCancel(t.Context()))
	if _, err := tx.Exec(t.Context(), `select pg_advisory_xact_lock_shared(hashtextextended('pgjet.consumer.notes', 0))`); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan replay.Result, 1)
	go func() {
		result, err := b.run(ctx, replay.Selection{All: true, Rate: 1}, quiet)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Run() = %v, want that it was interrupted", err)
		}
		ended <- result
	}()
	b.waitForLock()
	cancel()
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if result := <-ended; result.Handed != 1 || result.Next != 2 || b.intents() != "1" {
		t.Errorf("Run() = %+v with intents %q, want one", result, b.intents())
	}
}

// TestWatch: a watched replay ends when the consumer has got everything, and has attempted what it
// can.
func TestWatch(t *testing.T) {
	t.Parallel()
	for _, s := range []replay.Selection{{All: true}, {All: true, Rate: 1000}} {
		b := newFixture(t, true, false)
		b.publish("note.made a", "note.made a", "note.made b", "note.made a")
		b.deliver(4)
		b.know("dead", 1) // a consumer may park the key behind it
		b.exec(`insert into pgjet.dead_letter (consumer, event_id, key, generation, stream, stream_seq, subject, header, data, error, attempts, at)
			select consumer, event_id, 'a', 1, 'EVENTS', stream_seq, 's', '{}', '', 'e', 1, now() - interval '1 h' from pgjet.inbox`)
		r := b.open()
		if err := r.Lock(t.Context()); err != nil {
			t.Fatal(err)
		}
		p := must(r.Plan(t.Context(), s))
		reports, ended := make(chan int, 1000), make(chan error, 1)
		var result replay.Result
		go func() {
			var err error
			result, err = r.Run(t.Context(), p, replay.Order{By: "ann@host", Reason: "a test", Watch: true, Progress: func(_ int64, done, _ int) { reports <- done }})
			ended <- err
		}()
		for range 4 {
			select {
			case <-reports:
			case err := <-ended:
				t.Fatalf("by %s: Run() = %+v, %v before the consumer has tried anything", p.Way, result, err)
			}
		}
		if p.Way == replay.ByReset {
			b.deliver(4)
		} else {
			b.exec(`delete from pgjet.intent where key = 'b'`)
		}
		select {
		case err := <-ended:
			if want := map[string]int{replay.ByIntent: 2}[p.Way]; err != nil || result.Step != "done" || result.Waiting != want || result.Dead != 0 {
				t.Errorf("by %s: Run() = %+v, %v; want done, and %d that wait", p.Way, result, err, want)
			}
		case <-time.After(patience):
			t.Fatalf("by %s: the replay does not end", p.Way)
		}
	}
}

func TestRate(t *testing.T) {
	t.Parallel()
	b := newFixture(t, false, false)
	b.publish(repeat("note.made a", 20)...)
	begun := time.Now()
	b.mustRun(replay.Selection{All: true, Rate: 10})
	if took := time.Since(begun); took < 1800*time.Millisecond {
		t.Errorf("20 events at 10 per second took %s", took)
	}
}

func TestOneReplayAtATime(t *testing.T) {
	t.Parallel()
	b := newFixture(t, true, false)
	first, second := b.open(), b.open()
	if err := first.Lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := second.Lock(t.Context()); !errors.Is(err, replay.ErrBusy) {
		t.Errorf("Lock() = %v, want ErrBusy", err)
	}
	first.Close()
	for range 20 {
		r := b.open()
		if err := r.Lock(t.Context()); err != nil {
			t.Fatalf("after the other one has ended: %v", err)
		}
		r.Close()
	}
}

// TestReplayWaitsForAttempts: a running transaction of the consumer ends before anything is
// changed.
func TestReplayWaitsForAttempts(t *testing.T) {
	t.Parallel()
	for _, s := range []replay.Selection{{All: true}, {All: true, Key: "a"}} {
		b := newFixture(t, true, false)
		b.publish("note.made a")
		b.deliver(1)
		tx := must(b.db.Begin(t.Context()))
		defer tx.Rollback(context.WithoutCancel(t.Context()))
		if _, err := tx.Exec(t.Context(), `select pg_advisory_xact_lock_shared(hashtextextended('pgjet.consumer.notes', 0))`); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() {
			_, err := b.run(t.Context(), s, quiet)
			ended <- err
		}()
		b.waitForLock()
		if n := value[int](b, `select count(*) from pgjet.consumer where epoch > 1 or exists (select from pgjet.intent)`); n != 0 {
			t.Error("the replay did not wait")
		}
		if err := tx.Rollback(t.Context()); err != nil && !errors.Is(err, pgx.ErrTxClosed) {
			t.Fatal(err)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// TestReplayOfAnotherStream: a plan is for the stream that it was made with.
func TestReplayOfAnotherStream(t *testing.T) {
	t.Parallel()
	for _, s := range []replay.Selection{{All: true}, {All: true, Key: "a"}} {
		b := newFixture(t, false, false)
		b.publish("note.made a")
		r := b.open()
		if err := r.Lock(t.Context()); err != nil {
			t.Fatal(err)
		}
		p := must(r.Plan(t.Context(), s))
		b.exec(`update pgjet.consumer set generation = 2`)
		if _, err := r.Run(t.Context(), p, replay.Order{By: "ann@host", Reason: "a test"}); !errors.Is(err, replay.ErrChanged) {
			t.Errorf("Run() = %v, want ErrChanged", err)
		}
	}
}

// TestKilledReplay: the next replay ends the pause of one that was killed, also if it has nothing
// to do or hands events over one by one, but never an operator's pause.
func TestKilledReplay(t *testing.T) {
	t.Parallel()
	b := newFixture(t, true, false)
	b.publish("note.made a")
	for _, s := range []struct{ reason, want string }{
		{"replay, operation 1", ", undone"},
		{"types of events are added to the durable consumer", "types of events are added to the durable consumer, paused"},
		{"upgrade", "upgrade, paused"},
	} {
		b.exec(`truncate pgjet.operation restart identity;
			insert into pgjet.operation (kind, target, by, reason, detail) values ('replay', 'notes', 'ann', 'why', '{"done": {"step": "paused"}}');
			update pgjet.consumer set paused_at = now(), paused_by = 'ann', pause_reason = '` + s.reason + `'`)
		r := b.open()
		if err := r.Lock(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.Close()
		if got := value[string](b, `select concat(pause_reason, ', ', detail->'done'->>'step') from pgjet.consumer, pgjet.operation`); got != s.want {
			t.Errorf("the pause and the replay are %q, want %q", got, s.want)
		}
	}
}
