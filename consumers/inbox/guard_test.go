package inbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// A waiting is an intent that a test inserts.
type waiting struct {
	seq    uint64
	key    string
	token  string // "" is 00
	taken  string // the session; "" if none
	deaths int
	tried  int
	due    string // an interval from now, or infinity; "" is now
}

// wait makes the intents of the consumer those in all.
func (h *fixture) wait(all ...waiting) {
	h.Helper()
	h.exec(`delete from pgjet.intent`)
	h.exec(`delete from pgjet.inbox`)
	for _, w := range all {
		due := w.due
		switch due {
		case "infinity":
		case "":
			due = "-1 s"
			fallthrough
		default:
			var at string
			h.scan(&at, `select (clock_timestamp() + $1::interval)::text`, due)
			due = at
		}
		token := w.token
		if token == "" {
			token = "00"
		}
		h.exec(`
			with r as (
				insert into pgjet.inbox (consumer, event_id, state, attempts, generation, stream_seq) values ('test', $1, 'intent', $2, $3, $4)
			)
			insert into pgjet.intent (consumer, event_id, type, key, stream, generation, stream_seq, subject, header, data, attempts, deaths, taken_by, taken_at, due_at)
			values ('test', $1, 'a.b', $5, 'EVENTS', $3, $4, 'events.' || $6::text || '.a.b', '{}', '', $2, $7, nullif($8, ''), case when $8 <> '' then now() end, $9::text::timestamptz)`,
			uuid.Must(uuid.NewV7()), w.tried, h.tenure.Generation, int64(w.seq), w.key, token, w.deaths, w.taken, due)
	}
}

func seqs(all []*Intent) (seqs []uint64) {
	for _, i := range all {
		seqs = append(seqs, i.Seq)
	}
	slices.Sort(seqs)
	return seqs
}

// halve divides the consumer into two slices, of which the tenure owns the first.
func (h *fixture) halve() {
	h.Helper()
	h.within(func(tx pgx.Tx) error { return Divide(h.Context(), tx, "test", 2) })
	h.tenure.Slice = Slice{0, 2}
	p, err := h.tenure.Own(h.Context())
	if err != nil {
		h.Fatal(err)
	}
	h.tenure.Epoch = p.Epoch
}

// lives makes a session live until the test ends.
func (h *fixture) lives(session string) {
	h.Helper()
	conn, err := pgx.ConnectConfig(h.Context(), h.pool.Config().ConnConfig)
	if err == nil {
		h.Cleanup(func() { _ = conn.Close(context.Background()) })
		err = Announce(h.Context(), conn, session)
	}
	if err != nil {
		h.Fatal(err)
	}
}

// TestTakeChooses: Take takes intents of its slice that are due, and that no living session has; of
// those at which a process died one, if it is asked to.
func TestTakeChooses(t *testing.T) {
	h := newFixture(t)
	h.halve()
	h.lives("other")
	for _, test := range []struct {
		want TakeFilter
		seqs []uint64
	}{
		{TakeFilter{Most: 10}, []uint64{1}},
		{TakeFilter{Most: 10, Dead: true}, []uint64{1}},
		{TakeFilter{Most: 10, Suspect: true}, []uint64{1, 4}},
		{TakeFilter{Most: 10, Dead: true, Suspect: true}, []uint64{1, 6}},
	} {
		h.wait(
			waiting{seq: 1, key: "a"},
			waiting{seq: 2, key: "b", token: "3f"},
			waiting{seq: 3, key: "c", due: "1 h"},
			waiting{seq: 4, key: "d", deaths: 1},
			waiting{seq: 5, key: "e", taken: "other", tried: 1, due: "-1 h"},
			waiting{seq: 6, key: "f", taken: "gone", tried: 1, due: "-1 min"},
			waiting{seq: 7, key: "g", taken: "mine", tried: 1, due: "-1 h"},
			waiting{seq: 8, key: "a"}, // behind the first
		)
		all, err := h.tenure.Take(t.Context(), test.want)
		if got := seqs(all); err != nil || !slices.Equal(got, test.seqs) {
			t.Errorf("Take(%+v) = %v, %v, want %v", test.want, got, err, test.seqs)
		}
	}
}

// TestTakeNextStops: TakeNext takes nothing of a key from an intent on that has to run alone, to
// wait for its time, or that another session has.
func TestTakeNextStops(t *testing.T) {
	h := newFixture(t)
	for what, second := range map[string]waiting{
		"was attempted":       {seq: 2, key: "k", tried: 1},
		"killed a process":    {seq: 2, key: "k", deaths: 1},
		"waits for its time":  {seq: 2, key: "k", due: "1 h"},
		"is another's":        {seq: 2, key: "k", taken: "other"},
		"is being taken":      {seq: 2, key: "k"},
		"is of no other kind": {seq: 2, key: "k", due: "infinity"},
	} {
		h.wait(waiting{seq: 1, key: "k"}, second, waiting{seq: 3, key: "k", due: "infinity"})
		tx, err := h.pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want := []uint64{1}
		switch what {
		case "is being taken":
			if _, err := tx.Exec(t.Context(), `select from pgjet.intent where stream_seq = 2 for update`); err != nil {
				t.Fatal(err)
			}
		case "is of no other kind":
			want = []uint64{1, 2, 3}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		all, err := h.tenure.TakeNext(ctx, []string{"k"}, 10)
		if got := seqs(all); err != nil || !slices.Equal(got, want) {
			t.Errorf("TakeNext() = %v, %v where the second %s, want %v", got, err, what, want)
		}
		cancel()
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	h.wait(waiting{seq: 2, key: "k"})
	h.exec(`insert into pgjet.dead_letter (consumer, event_id, attempts, generation, stream_seq, type, key, stream, subject, header, data, error, error_group)
		values ('test', gen_random_uuid(), 1, $1, 1, 'a.b', 'k', 'EVENTS', 's', '{}', '', 'e', 'e')`, h.tenure.Generation)
	for _, test := range []struct {
		park  bool
		state string
		n     int
	}{{true, Dead, 0}, {true, Discarded, 1}, {false, Dead, 1}} {
		h.exec(`update pgjet.dead_letter set state = $1`, test.state)
		h.exec(`update pgjet.intent set taken_by = null, attempts = 0`)
		h.tenure.ParkKey = test.park
		holds, err := h.tenure.Holds(t.Context(), "k")
		held, err2 := h.tenure.Held(t.Context())
		if err = errors.Join(err, err2); err != nil || !holds || !slices.Equal(held, []string{"k"}) {
			t.Errorf("Holds() = %t, Held() = %v, %v with an intent", holds, held, err)
		}
		all, err := h.tenure.TakeNext(t.Context(), []string{"k"}, 10)
		if err != nil || len(all) != test.n {
			t.Errorf("TakeNext() = %v, %v behind a letter that is %s, where keys are parked: %t", seqs(all), err, test.state, test.park)
		}
	}
	h.exec(`delete from pgjet.intent`)
	for state, want := range map[string]string{Dead: "[k] true", Discarded: "[] false"} {
		h.exec(`update pgjet.dead_letter set state = $1`, state)
		h.tenure.ParkKey = true
		holds, err := h.tenure.Holds(t.Context(), "k")
		held, err2 := h.tenure.Held(t.Context())
		if got := fmt.Sprint(held, holds); errors.Join(err, err2) != nil || got != want {
			t.Errorf("held are %s with a letter that is %s, want %s (%v)", got, state, want, errors.Join(err, err2))
		}
	}
}

// TestSliceLeavesOthersAlone: a tenure wakes, holds and gives back the intents of its own slice.
func TestSliceLeavesOthersAlone(t *testing.T) {
	h := newFixture(t)
	h.halve()
	h.wait(
		waiting{seq: 1, key: "a", due: "infinity"},
		waiting{seq: 2, key: "a", due: "infinity"},
		waiting{seq: 3, key: "b", token: "3f", due: "infinity"},
	)
	if held, err := h.tenure.Held(t.Context()); err != nil || !slices.Equal(held, []string{"a"}) {
		t.Errorf("Held() = %v, %v", held, err)
	}
	if err := h.tenure.Wake(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.is("what is due", "1", `select stream_seq from pgjet.intent where due_at < 'infinity'`)
	h.wait(waiting{seq: 1, key: "a", taken: "mine", tried: 1}, waiting{seq: 2, key: "b", token: "3f", taken: "mine", tried: 1})
	old := h.tenure
	old.Epoch--
	if err := old.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.is("slices with an owner, once a superseded session has left", "0", `select slice from pgjet.slice where process is not null`)
	if err := h.tenure.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.is("what is taken", "2", `select stream_seq from pgjet.intent where taken_by is not null`)
	h.is("slices with an owner", "", `select slice from pgjet.slice where process is not null`)
}

// TestIntentIsOfItsSession: a session changes no intent that another one has, and the end of an
// event does not shorten the wait of the next one after a failure.
func TestIntentIsOfItsSession(t *testing.T) {
	h := newFixture(t)
	h.wait(waiting{seq: 1, key: "k", tried: 1}, waiting{seq: 2, key: "k", tried: 1, due: "1 h"})
	_, all := h.take()
	if len(all) != 1 {
		t.Fatalf("took %d", len(all))
	}
	other := h.tenure
	other.Session = "other"
	h.within(func(tx pgx.Tx) error {
		err := other.Again(t.Context(), tx, all[0], 0, Ending{Attempt: 2, Began: time.Now(), Outcome: Retried})
		if !errors.Is(err, ErrTaken) {
			t.Errorf("Again() = %v for another session's intent, want %v", err, ErrTaken)
		}
		_, err = other.Bury(t.Context(), tx, Burial{Message: &all[0].Message, Taken: true, Ending: Ending{Attempt: 2, Began: time.Now(), Outcome: Dead}})
		if !errors.Is(err, ErrTaken) {
			t.Errorf("Bury() = %v for another session's intent, want %v", err, ErrTaken)
		}
		_, err = h.tenure.Bury(t.Context(), tx, Burial{Message: &all[0].Message, Taken: true, Ending: Ending{Attempt: 1, Began: time.Now(), Outcome: Dead}})
		if !errors.Is(err, ErrTaken) {
			t.Errorf("Bury() = %v for an attempt that is over, want %v", err, ErrTaken)
		}
		return nil
	})
	if err := other.GiveBack(t.Context(), all[0], 0, false); err != nil {
		t.Fatal(err)
	}
	h.is("who has it", "1 mine 2", `select stream_seq || ' ' || taken_by || ' ' || attempts from pgjet.intent where taken_by is not null`)
	h.within(func(tx pgx.Tx) error { return h.tenure.Finish(t.Context(), tx, all, time.Now(), 0) })
	h.is("what waits for its time", "2", `select stream_seq from pgjet.intent where due_at > clock_timestamp() + interval '30 min' and due_at < 'infinity'`)
}

// TestPausedOwnsNothing: a session of a paused consumer, or on a restored inbox, owns no slice and
// is not current.
func TestPausedOwnsNothing(t *testing.T) {
	h := newFixture(t)
	current := func(v Version) bool {
		t.Helper()
		is, _, err := Current(t.Context(), h.pool, "test", "mine", v, []int64{h.tenure.Epoch})
		if err != nil {
			t.Fatal(err)
		}
		return is
	}
	restored := h.tenure.Version
	restored.File++
	if !current(h.tenure.Version) || current(restored) {
		t.Error("a session is not current, or one of a restored inbox is")
	}
	h.exec(`update pgjet.consumer set paused_at = now()`)
	if current(h.tenure.Version) {
		t.Error("a session of a paused consumer is current")
	}
	if _, err := h.tenure.Own(t.Context()); !errors.Is(err, ErrSuperseded) {
		t.Errorf("Own() = %v of a paused consumer, want %v", err, ErrSuperseded)
	}
}

// TestDividesSlicesThatDiffer: each new slice begins where the least advanced of the old ones was,
// and has the last message that was delivered to any of them.
func TestDividesSlicesThatDiffer(t *testing.T) {
	h := newFixture(t)
	h.halve()
	h.exec(`update pgjet.slice set floor = 5 + slice, high = 9 - slice, stored = timestamptz '2026-01-02 UTC' - slice * interval '1 h', lost_until = slice, redeliver = slice = 1`)
	h.within(func(tx pgx.Tx) error { return Divide(h.Context(), tx, "test", 1) })
	h.is("the slice", "(0,5,9,1,t,00)", `select (slice, floor, high, lost_until, redeliver, to_char(stored at time zone 'UTC', 'HH24')) from pgjet.slice`)
	p := h.own()
	if err := errors.Join(h.tenure.Lost(t.Context(), 6), h.tenure.Lost(t.Context(), 3)); err != nil {
		t.Fatal(err)
	}
	h.is("until where events were lost", "6", `select lost_until from pgjet.slice`)
	h.exec(`insert into pgjet.inbox (consumer, event_id, state, attempts, generation, stream_seq) values ('test', gen_random_uuid(), 'done', 1, $1, 4), ('test', gen_random_uuid(), 'done', 1, $2, 3)`,
		h.tenure.Generation-1, h.tenure.Generation)
	if _, seq, err := h.tenure.LastKnown(t.Context(), p.Floor); err != nil || seq != 3 {
		t.Errorf("LastKnown() = %d, %v, want that of the stream as it is now", seq, err)
	}
}

// TestStreamMadeAnewPlaces: a stream that was created again, or has lost its end, is delivered from
// its start, and the rows of events get their new sequences. A session that does not know of it yet
// leaves those alone.
func TestStreamMadeAnewPlaces(t *testing.T) {
	h := newFixture(t)
	h.exec(`update pgjet.slice set floor = 3, high = 4, stored = now(), lost_until = 2`)
	m := h.message("k", 9)
	h.exec(`insert into pgjet.inbox (consumer, event_id, state, attempts, generation, stream_seq) values ('test', $1, 'done', 1, $2, 9)`, m.ID, m.Generation)
	before, was := h.tenure, h.tenure.Generation
	register := func(past int32) (is Registered) {
		t.Helper()
		h.within(func(tx pgx.Tx) (err error) {
			var created time.Time
			h.scan(&created, `select stream_created from pgjet.consumer`)
			is, err = Register(t.Context(), tx, Registration{Consumer: "test", Stream: "EVENTS", Created: created, Ordered: true, Past: past})
			return err
		})
		return is
	}
	if is := register(was - 1); is.Generation != was {
		t.Errorf("the generation is %d, want %d", is.Generation, was)
	}
	h.is("the slice", "(3,4,f,2,f)", `select (floor, high, stored is null, lost_until, redeliver) from pgjet.slice`)
	if is := register(was); is.Generation != was+1 {
		t.Errorf("the generation is %d after the stream lost its end, want %d", is.Generation, was+1)
	}
	h.is("the slice", "(0,0,t,0,t)", `select (floor, high, stored is null, lost_until, redeliver) from pgjet.slice`)
	h.own()
	now, then := *m, *m
	now.Generation, now.Seq = was+1, 2
	for _, of := range []struct {
		s *Tenure
		m *Message
	}{{&h.tenure, &now}, {&before, &then}} {
		known, err := of.s.Known(t.Context(), []*Message{of.m})
		if err != nil || known[m.ID] != 2 {
			t.Errorf("Known() = %v, %v of the session in generation %d, want 2", known, err, of.s.Generation)
		}
	}
	h.is("the row", "(2,2)", `select (generation, stream_seq) from pgjet.inbox`)
}

// TestBuriesWhatTheNewStreamDelivered: an event that was delivered again, from a stream that was
// created again, keeps its new sequence when its intent, which has the old one, becomes a dead
// letter.
func TestBuriesWhatTheNewStreamDelivered(t *testing.T) {
	h := newFixture(t)
	h.wait(waiting{seq: 5, key: "k"})
	_, all := h.take()
	if len(all) != 1 {
		t.Fatalf("took %d", len(all))
	}
	h.exec(`update pgjet.inbox set generation = generation + 1, stream_seq = 9`)
	h.within(func(tx pgx.Tx) error {
		fresh, err := h.tenure.Bury(t.Context(), tx, Burial{Message: &all[0].Message, Taken: true, Ending: Ending{Attempt: 1, Began: time.Now(), Outcome: Dead}})
		if !fresh {
			t.Error("Bury() = false")
		}
		return err
	})
	h.is("the row", "(dead,2,9)", `select (state, generation, stream_seq) from pgjet.inbox`)
}

// TestHandsOverWhatIsKnown: an event that JetStream will deliver becomes an intent nevertheless if
// the inbox has it: its delivery would be skipped.
func TestHandsOverWhatIsKnown(t *testing.T) {
	h := newFixture(t)
	m := h.message("k", 1)
	h.exec(`insert into pgjet.inbox (consumer, event_id, state, attempts, generation, stream_seq) values ('test', $1, 'done', 1, $2, 1)`, m.ID, m.Generation)
	h.within(func(tx pgx.Tx) error {
		n, err := HandOver{Consumer: "test", Ordered: true, Generation: m.Generation, Again: true, Events: []*Message{m}, Late: []uuid.UUID{m.ID}}.Run(t.Context(), tx)
		if n != 1 {
			t.Errorf("Run() = %d, want 1", n)
		}
		return err
	})
}
