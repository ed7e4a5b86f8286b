package replay_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers/replay"
	"github.com/pgjet/pgjet/events"
)

// newKnown returns a fixture whose inbox has events in each state.
func newKnown(t *testing.T, ordered bool) *fixture {
	b := newFixture(t, ordered, false)
	b.publish("note.made a", "note.made b", "note.kept a", "other.made a", "note.made a", // 1 to 5
		"-", "note.made c", "note.made a", "note.kept b", "note.made a") // 6 to 10
	b.know("done", 1, 2)
	b.know("intent", 3)
	b.know("dead", 5)
	b.know("discarded", 7)
	b.deliver(7) // up to 8; 9 and 10 are not delivered yet
	return b
}

func TestPlanCounts(t *testing.T) {
	t.Parallel()
	b := newKnown(t, true)
	loose := newKnown(t, false)
	type counts struct{ selected, run, again, skipped, waiting, dead, discarded, onTheWay, foreign int }
	for _, row := range []struct {
		name string
		b    *fixture
		s    replay.Selection
		way  string
		want counts
	}{
		{"everything", b, replay.Selection{All: true}, replay.ByReset, counts{8, 3, 0, 2, 1, 1, 1, 0, 1}},
		{"everything again", b, replay.Selection{All: true, Again: true}, replay.ByReset, counts{8, 3, 2, 0, 1, 1, 1, 0, 1}},
		{"from a place", b, replay.Selection{FromSeq: 2}, replay.ByReset, counts{7, 3, 0, 1, 1, 1, 1, 0, 1}},
		{"a type", b, replay.Selection{All: true, Type: "note.kept"}, replay.ByIntent, counts{2, 0, 0, 0, 1, 0, 0, 1, 0}},
		{"a key", b, replay.Selection{All: true, Key: "a"}, replay.ByIntent, counts{5, 1, 0, 1, 1, 1, 0, 1, 0}},
		{"a type and a key", b, replay.Selection{All: true, Type: "note.made", Key: "a"}, replay.ByIntent, counts{4, 1, 0, 1, 0, 1, 0, 1, 0}},
		{"a rate", b, replay.Selection{All: true, Rate: 9}, replay.ByIntent, counts{8, 1, 0, 2, 1, 1, 1, 2, 1}},
		{"a rate, unordered", loose, replay.Selection{All: true, Rate: 9}, replay.ByIntent, counts{8, 3, 0, 2, 1, 1, 1, 0, 1}},
		{"an unknown key", b, replay.Selection{All: true, Key: "z"}, replay.ByIntent, counts{}},
		{"the end", b, replay.Selection{FromSeq: 11}, replay.ByReset, counts{}},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := row.b.plan(row.s)
			got := counts{p.Selected, p.Run, p.Again, p.Skipped, p.Waiting, p.Dead, p.Discarded, p.OnTheWay, p.Foreign}
			if got != row.want || p.Way != row.way {
				t.Errorf("plan is %s %+v, want %s %+v", p.Way, got, row.way, row.want)
			}
		})
	}
}

// TestPlanChangesNothing: even a plan of several pages changes nothing.
func TestPlanChangesNothing(t *testing.T) {
	t.Parallel()
	b := newKnown(t, true)
	b.publish(repeat("note.made d", 2500)...)
	before := b.dump()
	p := b.plan(replay.Selection{All: true, Again: true})
	if p.Selected != 2508 || p.Run != 2503 {
		t.Errorf("plan selects %d and runs %d, want 2508 and 2503", p.Selected, p.Run)
	}
	if after := b.dump(); after != before {
		t.Errorf("the plan changed something: it was\n%s\nand is\n%s", before, after)
	}
}

func TestPlanIsWithinTheStream(t *testing.T) {
	t.Parallel()
	b := newFixture(t, true, false)
	b.publish(repeat("note.made a", 10)...)
	stream, err := b.js.Stream(t.Context(), "EVENTS")
	if err == nil {
		err = stream.Purge(t.Context(), jetstream.WithPurgeSequence(4))
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct{ seq, from, gone, selected uint64 }{{1, 4, 3, 7}, {3, 4, 1, 7}, {4, 4, 0, 7}, {10, 10, 0, 1}, {11, 11, 0, 0}} {
		p := b.plan(replay.Selection{FromSeq: row.seq})
		if p.From != row.from || p.Gone != row.gone || p.Selected != int(row.selected) || p.To != 10 {
			t.Errorf("from %d the plan is %d to %d, %d gone, %d selected; want %d to 10, %d, %d",
				row.seq, p.From, p.To, p.Gone, p.Selected, row.from, row.gone, row.selected)
		}
	}
	if p := b.plan(replay.Selection{All: true}); p.From != 4 || p.Gone != 3 {
		t.Errorf("the plan for all is from %d, %d gone; want 4 and 3", p.From, p.Gone)
	}
	_, err = b.open().Plan(t.Context(), replay.Selection{FromSeq: 12})
	if !errors.Is(err, replay.ErrSelection) || !strings.Contains(err.Error(), "12") || !strings.Contains(err.Error(), "10") {
		t.Errorf("from 12: %v, want ErrSelection that names 12 and the last, 10", err)
	}
	_, err = b.open().Plan(t.Context(), replay.Selection{All: true, Type: "other.made"})
	if !errors.Is(err, replay.ErrSelection) || !strings.Contains(err.Error(), "other.made") {
		t.Errorf("a type that it does not take: %v, want ErrSelection that names it", err)
	}
}

func TestPlanFromTime(t *testing.T) {
	t.Parallel()
	b := newFixture(t, true, false)
	if p := b.plan(replay.Selection{From: time.Now().Add(-time.Hour)}); p.Selected != 0 || p.From != 1 || p.To != 0 {
		t.Errorf("plan of an empty stream is %d to %d, want 1 to 0", p.From, p.To)
	}
	var at []time.Time
	for i := range 5 {
		b.publish("note.made a")
		stream, err := b.js.Stream(t.Context(), "EVENTS")
		if err != nil {
			t.Fatal(err)
		}
		msg, err := stream.GetMsg(t.Context(), uint64(i)+1)
		if err != nil {
			t.Fatal(err)
		}
		at = append(at, msg.Time)
	}
	for _, row := range []struct {
		from, until time.Time
		first, last uint64
	}{
		{at[0].Add(-time.Hour), time.Time{}, 1, 5},
		{at[0], time.Time{}, 1, 5},
		{at[2], time.Time{}, 3, 5},
		{at[2].Add(1), time.Time{}, 4, 5},
		{at[4], time.Time{}, 5, 5},
		{at[4].Add(1), time.Time{}, 6, 5},
		{at[4].Add(time.Hour), time.Time{}, 6, 5},
		{at[1], at[3], 2, 3},
		{at[1], at[3].Add(1), 2, 4},
		{at[1], at[4].Add(time.Hour), 2, 5},
		{at[1], at[0], 2, 0},
	} {
		p := b.plan(replay.Selection{From: row.from, Until: row.until})
		if p.From != row.first || p.To != row.last || p.Selected != int(max(row.last+1, row.first)-row.first) {
			t.Errorf("from %s until %s is %d to %d with %d events, want %d to %d", row.from, row.until, p.From, p.To, p.Selected, row.first, row.last)
		}
	}
}

// TestPlanNarrowsFilters: to a type that a wildcard covers, and to one key of a partition.
func TestPlanNarrowsFilters(t *testing.T) {
	t.Parallel()
	b := newFixture(t, false, false)
	_, err := b.js.UpdateConsumer(t.Context(), "EVENTS", jetstream.ConsumerConfig{
		Durable: "notes", AckPolicy: jetstream.AckExplicitPolicy, MaxDeliver: -1, FilterSubject: "events.*.note.>",
	})
	if err != nil {
		t.Fatal(err)
	}
	same := "" // another key in the partition of a
	for i := 0; same == ""; i++ {
		if key := fmt.Sprint("k", i); events.Subject("note.made", key) == events.Subject("note.made", "a") {
			same = key
		}
	}
	b.publish("note.made a", "note.made "+same, "note.kept.long a", "note.kept b", "other.made a")
	for s, want := range map[replay.Selection]int{
		{All: true}: 4, {All: true, Key: "a"}: 2, {All: true, Key: same}: 1, {All: true, Type: "note.made"}: 2,
		{All: true, Type: "note.made", Key: "a"}: 1, {All: true, Type: "note.kept.long"}: 1,
	} {
		if p := b.plan(s); p.Selected != want {
			t.Errorf("type %q and key %q select %d, want %d", s.Type, s.Key, p.Selected, want)
		}
	}
	for _, none := range []string{"note", "other.made"} {
		if _, err := b.open().Plan(t.Context(), replay.Selection{All: true, Type: none}); !errors.Is(err, replay.ErrSelection) {
			t.Errorf("type %s: %v, want ErrSelection", none, err)
		}
	}
}

func TestPlanRefusesToRepeatEffects(t *testing.T) {
	t.Parallel()
	b := newFixture(t, false, true)
	b.publish("note.made a", "note.made b")
	b.know("done", 1)
	for _, row := range []struct {
		s    replay.Selection
		want bool
	}{
		{replay.Selection{All: true}, false},
		{replay.Selection{All: true, Again: true}, true},
		{replay.Selection{All: true, Again: true, Key: "a"}, true},
		{replay.Selection{All: true, Again: true, Force: true}, false},
	} {
		p := b.plan(row.s)
		if (p.Refused != "") != row.want {
			t.Errorf("%+v is refused with %q, want %t", row.s, p.Refused, row.want)
		}
		if row.want {
			r := b.open()
			if err := r.Lock(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := r.Run(t.Context(), p, replay.Order{By: "ann@host", Reason: "a test"}); !errors.Is(err, replay.ErrRefused) {
				t.Errorf("Run() = %v, want ErrRefused", err)
			}
			r.Close()
		}
	}
}

// TestPlanRefusesToRebuildFromLess: a consumer can only be rebuilt from what the stream still has.
func TestPlanRefusesToRebuildFromLess(t *testing.T) {
	t.Parallel()
	b := newFixture(t, true, false)
	b.publish(repeat("note.made a", 3)...)
	stream, err := b.js.Stream(t.Context(), "EVENTS")
	if err == nil {
		err = stream.Purge(t.Context(), jetstream.WithPurgeSequence(2))
	}
	if err != nil {
		t.Fatal(err)
	}
	for s, want := range map[replay.Selection]bool{
		{All: true}: false, {All: true, Again: true}: true, {FromSeq: 2, Again: true}: false, {All: true, Again: true, Force: true}: false,
	} {
		if p := b.plan(s); (p.Refused != "") != want {
			t.Errorf("%+v is refused with %q, want %t", s, p.Refused, want)
		}
	}
}

func TestPlanTellsWhoRuns(t *testing.T) {
	t.Parallel()
	b := newFixture(t, true, false)
	b.exec(`insert into pgjet.process (consumer, process, workers, seen_at) values
		('notes', 'here:1', 1, now()), ('notes', 'here:2', 1, now()), ('notes', 'gone:3', 1, now() - interval '1 min'), ('other', 'here:4', 1, now()), ('notes', 'forged:5', 1, '9999-01-01')`)
	if p := b.plan(replay.Selection{All: true}); p.Processes != 2 || p.Paused {
		t.Errorf("%d processes, paused %t; want 2 and not", p.Processes, p.Paused)
	}
	b.exec(`update pgjet.consumer set paused_at = now(), paused_by = 'ann', pause_reason = 'upgrade'`)
	if p := b.plan(replay.Selection{All: true}); !p.Paused {
		t.Error("the plan does not tell of the pause")
	}
	b.exec(`update pgjet.consumer set pause_reason = 'replay, operation 7'`)
	if p := b.plan(replay.Selection{All: true}); p.Paused {
		t.Error("the plan names a pause that an earlier replay left, and that this one ends")
	}
}

// An aheadJetStream is a JetStream whose answers are older than what processes of the consumer have
// seen.
type aheadJetStream struct {
	jetstream.JetStream
	moveOn func()
}

func (a aheadJetStream) Stream(ctx context.Context, name string) (jetstream.Stream, error) {
	s, err := a.JetStream.Stream(ctx, name)
	a.moveOn()
	return s, err
}

// TestOpenWhileEventsAreHandled: an event that was handled after the stream was looked up does not
// look like a lost end of the stream.
func TestOpenWhileEventsAreHandled(t *testing.T) {
	t.Parallel()
	b := newFixture(t, true, false)
	ahead := aheadJetStream{b.js, func() {
		b.publish("note.made a")
		s, err := b.js.Stream(t.Context(), "EVENTS")
		if err != nil {
			t.Fatal(err)
		}
		last := s.CachedInfo().State
		b.exec(fmt.Sprintf(`update pgjet.slice set high = %d, stored = '%s'`, last.LastSeq, last.LastTime.Truncate(time.Microsecond).Format(time.RFC3339Nano)))
	}}
	r, err := replay.Open(t.Context(), b.operator, ahead, "notes")
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
}

func TestOpen(t *testing.T) {
	t.Parallel()
	b := newFixture(t, true, false)
	fails := func(why, consumer string, want error) {
		t.Helper()
		if _, err := replay.Open(t.Context(), b.operator, b.js, consumer); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", why, err, want)
		}
	}
	fails("no row", "nobody", replay.ErrNoConsumer)
	b.exec(`insert into pgjet.consumer (name, stream, stream_created) select 'half', stream, stream_created from pgjet.consumer`)
	fails("no durable consumer", "half", replay.ErrNoConsumer)
	b.exec(`update pgjet.slice set high = 1000000, stored = now()`)
	fails("a stream that lost its end", "notes", replay.ErrChanged)
	b.exec(`update pgjet.slice set stored = null`)
	b.exec(`update pgjet.consumer set stream_created = stream_created - interval '1 day'`)
	fails("a stream created again", "notes", replay.ErrChanged)
	b.exec(`update pgjet.consumer set stream = 'NONE'`)
	fails("no stream", "notes", replay.ErrNoConsumer)
	if _, err := replay.Open(t.Context(), b.poolOf("pgjet_writer"), b.js, "notes"); err == nil {
		t.Error("a writer may open a replay")
	}
}
