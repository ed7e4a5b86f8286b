package inbox

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/testenv"
)

// A fixture is a database with an ordered consumer named test, and a tenure of it.
type fixture struct {
	*testing.T
	pool   *pgxpool.Pool
	tenure Tenure
}

func newFixture(t *testing.T) *fixture {
	t.Parallel()
	h := &fixture{t, testenv.Postgres(t), Tenure{}}
	h.within(func(tx pgx.Tx) error {
		_, err := Register(t.Context(), tx, Registration{Consumer: "test", Stream: "EVENTS", Created: time.Now(), Ordered: true})
		return err
	})
	h.own()
	return h
}

// own makes the tenure own the consumer's only slice.
func (h *fixture) own() SliceState {
	h.Helper()
	var generation int32
	h.scan(&generation, `select generation from pgjet.consumer where name = 'test'`)
	h.tenure = Tenure{Consumer: "test", Ordered: true, Slice: Slice{0, 1}, Version: version(h.T, h.pool), Generation: generation, Session: "mine", Process: "host:1",
		DB: postgres.DB{Pool: h.pool}, Timeout: time.Minute}
	p, err := h.tenure.Own(h.Context())
	if err != nil {
		h.Fatal(err)
	}
	h.tenure.Epoch = p.Epoch
	return p
}

func (h *fixture) within(fn func(tx pgx.Tx) error) {
	h.Helper()
	if err := pgx.BeginFunc(h.Context(), h.pool, fn); err != nil {
		h.Fatal(err)
	}
}

func (h *fixture) exec(sql string, args ...any) {
	h.Helper()
	testenv.Exec(h.T, h.pool, sql, args...)
}

func (h *fixture) scan(to any, sql string, args ...any) {
	h.Helper()
	if err := h.pool.QueryRow(h.Context(), sql, args...).Scan(to); err != nil {
		h.Fatalf("%s: %v", sql, err)
	}
}

// is checks the result of a query, as text.
func (h *fixture) is(what, want, sql string, args ...any) {
	h.Helper()
	var got string
	h.scan(&got, `select coalesce(string_agg(r::text, ' ' order by r), '') from (`+sql+`) as q (r)`, args...)
	if got != want {
		h.Errorf("%s: %q, want %q", what, got, want)
	}
}

// message returns an event of a key with a stream sequence.
func (h *fixture) message(key string, seq uint64) *Message {
	return &Message{ID: uuid.Must(uuid.NewV7()), Generation: h.tenure.Generation, Seq: seq, Stream: "EVENTS", Subject: "events.00.a.b",
		Type: "a.b", Key: key, Header: map[string][]string{"ce-type": {"a.b"}}, Data: []byte(`{}`)}
}

func (h *fixture) intend(f NewIntent, all ...*Message) (fresh []bool) {
	h.Helper()
	h.within(func(tx pgx.Tx) (err error) {
		fresh, err = h.tenure.Intend(h.Context(), tx, all, f)
		return err
	})
	return fresh
}

// take takes the due intents.
func (h *fixture) take() (seqs []uint64, all []*Intent) {
	h.Helper()
	all, err := h.tenure.Take(h.Context(), TakeFilter{Most: 10, Suspect: true})
	if err != nil {
		h.Fatal(err)
	}
	for _, i := range all {
		seqs = append(seqs, i.Seq)
	}
	slices.Sort(seqs)
	return seqs, all
}

// TestMarkLost: the stream lost a message if it ends before it, or if the message there was stored
// at another time.
func TestMarkLost(t *testing.T) {
	at := time.Now().Truncate(time.Microsecond)
	for _, test := range []struct {
		seq, last uint64
		stored    time.Time
		lost      bool
	}{
		{0, 0, time.Time{}, false},
		{0, 5, at.Add(time.Second), false}, // nothing was delivered
		{5, 5, at, false},
		{5, 6, at.Add(300 * time.Nanosecond), false},
		{5, 4, time.Time{}, true},
		{5, 5, at.Add(time.Second), true},
		{5, 5, time.Time{}, false}, // pruned
		{1, 1, at.Add(time.Second), true},
	} {
		m := Mark{Seq: test.seq, Stored: at}
		if got := m.Lost(test.last, test.stored); got != test.lost {
			t.Errorf("Lost() = %t of %d where the stream ends at %d, stored %s later", got, test.seq, test.last, test.stored.Sub(at))
		}
	}
}

// TestIntend: which session has the event, when it is due, and which events it waits behind.
func TestIntend(t *testing.T) {
	h := newFixture(t)
	first, second, third := h.message("k", 1), h.message("k", 2), h.message("k", 3)
	if fresh := h.intend(NewIntent{Wait: time.Hour, Attempts: 2, Reason: "no\x00 answer"}, first); !fresh[0] {
		t.Error("the first is not fresh")
	}
	if fresh := h.intend(NewIntent{}, second, first, third); !reflect.DeepEqual(fresh, []bool{true, false, true}) {
		t.Errorf("fresh are %v; the first is there already", fresh)
	}
	h.is("what waits", "infinity", `select distinct due_at from pgjet.intent where stream_seq > 1`)
	h.is("attempts", "2 no� answer", `select attempts || ' ' || error from pgjet.intent where due_at between now() + interval '59 min' and now() + interval '61 min'`)
	h.is("of what waits", "0", `select distinct attempts from pgjet.intent where stream_seq > 1 and error is null`)
	h.intend(NewIntent{Attempts: 1, Taken: true}, h.message("taken", 4))
	h.is("taken", "mine", `select taken_by from pgjet.intent where stream_seq = 4 and taken_at is not null`)
	h.is("not taken", "3", `select count(*) from pgjet.intent where taken_by is null and taken_at is null`)
	h.intend(NewIntent{}, h.message("free", 5))
	if due, _ := h.take(); !slices.Equal(due, []uint64{5}) {
		t.Errorf("due are %v, want the one that nothing holds", due)
	}
}

// TestEndsWake: the end of an event wakes the next one of its key; a dead letter does so unless it
// parks the key.
func TestEndsWake(t *testing.T) {
	h := newFixture(t)
	h.intend(NewIntent{}, h.message("k", 1), h.message("k", 2), h.message("k", 3))
	_, all := h.take()
	if len(all) != 1 || all[0].Seq != 1 || all[0].Attempts != 1 {
		t.Fatalf("taken are %+v, want the first", all)
	}
	h.within(func(tx pgx.Tx) error {
		return h.tenure.Again(h.Context(), tx, all[0], time.Hour, Ending{Attempt: 1, Began: time.Now(), Took: time.Second, Outcome: Retried, Error: "no answer"})
	})
	if due, _ := h.take(); len(due) > 0 {
		t.Errorf("due are %v while the first waits", due)
	}
	h.is("the log", "1 retried no answer", `select attempt || ' ' || outcome || ' ' || error from pgjet.attempt`)
	h.exec(`update pgjet.intent set due_at = now() where stream_seq = 1`)
	_, all = h.take()
	err := pgx.BeginFunc(h.Context(), h.pool, func(tx pgx.Tx) error {
		stale := *all[0]
		stale.Attempts--
		return h.tenure.Again(h.Context(), tx, &stale, 0, Ending{Began: time.Now(), Outcome: Retried})
	})
	if !errors.Is(err, ErrTaken) {
		t.Errorf("Again() = %v for an attempt that is over, want %v", err, ErrTaken)
	}
	h.within(func(tx pgx.Tx) error { return h.tenure.Finish(h.Context(), tx, all, time.Now(), time.Second) })
	h.is("the first", "done 2", `select state || ' ' || attempts from pgjet.inbox where stream_seq = 1 and began is not null`)
	_, all = h.take()
	if len(all) != 1 || all[0].Seq != 2 {
		t.Fatalf("taken are %+v, want the second", all)
	}
	parking := h.tenure
	parking.ParkKey = true
	bury := func(by *Tenure, i *Intent) (fresh bool, err error) {
		err = pgx.BeginFunc(h.Context(), h.pool, func(tx pgx.Tx) error {
			fresh, err = by.Bury(h.Context(), tx, Burial{Message: &i.Message, Taken: true, Ending: Ending{Attempt: i.Attempts, Began: time.Now(), Outcome: Dead, Error: "poison"}})
			return err
		})
		return fresh, err
	}
	other := h.tenure
	other.Session = "other"
	if _, err := bury(&other, all[0]); !errors.Is(err, ErrTaken) {
		t.Errorf("Bury() = %v of another session's, want %v", err, ErrTaken)
	}
	if fresh, err := bury(&parking, all[0]); err != nil || !fresh {
		t.Fatalf("Bury() = %t, %v", fresh, err)
	}
	if due, _ := h.take(); len(due) > 0 {
		t.Errorf("due are %v behind a dead letter that holds its key", due)
	}
	h.exec(`update pgjet.intent set taken_by = 'mine', attempts = 1, due_at = now()`)
	third := &Intent{Message: *h.message("k", 3), Attempts: 1}
	h.scan(&third.ID, `select event_id from pgjet.intent`)
	h.intend(NewIntent{}, h.message("k", 4))
	if fresh, err := bury(&h.tenure, third); err != nil || !fresh {
		t.Fatalf("Bury() = %t, %v", fresh, err)
	}
	if due, _ := h.take(); !slices.Equal(due, []uint64{4}) {
		t.Errorf("due are %v, want what waited behind one that died", due)
	}
}

// TestGiveBackBehind: an intent that is given back waits behind an earlier event of its key, unless
// it has a due time.
func TestGiveBackBehind(t *testing.T) {
	h := newFixture(t)
	h.intend(NewIntent{Wait: time.Hour}, h.message("k", 1))
	second := h.message("k", 2)
	for _, test := range []struct {
		wait time.Duration
		due  string
	}{{0, "infinity"}, {time.Hour, "later"}} {
		h.exec(`delete from pgjet.intent where stream_seq = 2`)
		h.exec(`delete from pgjet.inbox where stream_seq = 2`)
		h.intend(NewIntent{Attempts: 1, Taken: true}, second)
		if err := h.tenure.GiveBack(h.Context(), &Intent{Message: *second, Attempts: 1}, test.wait, false); err != nil {
			t.Fatal(err)
		}
		h.is("it is due", test.due+" 0", `select case due_at when 'infinity' then 'infinity' else 'later' end || ' ' || attempts from pgjet.intent where stream_seq = 2 and due_at > now()`)
	}
}

// TestBury: a burial records everything about the failure of an event from the stream, once.
func TestBury(t *testing.T) {
	h := newFixture(t)
	plain, panicked := h.message("k", 1), h.message("l", 2)
	id := strings.Repeat("0a", 16)
	for _, test := range []struct {
		b     Burial
		fresh bool
	}{
		{Burial{Message: plain, Ending: Ending{Attempt: 1, Began: time.Now(), Outcome: Dead, Error: "poison"}}, true},
		{Burial{Message: plain, Ending: Ending{Attempt: 1, Began: time.Now(), Outcome: Dead, Error: "again"}}, false},
		{Burial{Message: panicked, Stack: "main.go:7", Traceparent: "00-" + id + "-b7ad6b7169203331-01", Ending: Ending{Attempt: 3, Began: time.Now(), Outcome: Dead, Error: "panic"}}, true},
	} {
		h.within(func(tx pgx.Tx) error {
			fresh, err := h.tenure.Bury(h.Context(), tx, test.b)
			if fresh != test.fresh {
				t.Errorf("Bury(%s) = %t", test.b.Ending.Error, fresh)
			}
			return err
		})
	}
	h.is("dead letters", "panic 3 main.go:7 "+id+" poison 1 - -",
		`select error || ' ' || attempts || ' ' || coalesce(stack, '-') || ' ' || coalesce(trace_id, '-') from pgjet.dead_letter`)
	h.is("the inbox", "dead dead", `select state from pgjet.inbox`)
	h.is("the log", "2", `select count(*) from pgjet.attempt where outcome = 'dead'`)
}

// TestFresh: the first of two copies in one claim is fresh; if none is, the session still has to be
// current.
func TestFresh(t *testing.T) {
	h := newFixture(t)
	m := h.message("k", 1)
	copied := *m
	copied.Seq = 2
	claim := func(s Tenure, all ...*Message) (fresh []bool, err error) {
		err = s.Claim(h.Context(), all, func(_ pgx.Tx, is []bool) error {
			fresh = is
			return nil
		})
		return fresh, err
	}
	superseded := h.tenure
	superseded.Epoch--
	if _, err := claim(superseded, m, &copied); !errors.Is(err, ErrSuperseded) {
		t.Errorf("a superseded session: %v, want %v", err, ErrSuperseded)
	}
	if fresh, err := claim(h.tenure, m, &copied, h.message("l", 3)); err != nil || !reflect.DeepEqual(fresh, []bool{true, false, true}) {
		t.Errorf("fresh are %v (%v)", fresh, err)
	}
	if fresh, err := claim(h.tenure, &copied, m); err != nil || !reflect.DeepEqual(fresh, []bool{false, false}) {
		t.Errorf("fresh are %v (%v), want none", fresh, err)
	}
	h.is("places", "1 3", `select stream_seq from pgjet.inbox`)
	known, err := h.tenure.Known(h.Context(), []*Message{&copied, h.message("x", 9)})
	if err != nil || len(known) != 1 || known[m.ID] != 1 {
		t.Errorf("Known() = %v, %v; want the one at place 1", known, err)
	}
	place := uuid.Must(uuid.NewV7())
	for range 2 {
		if err := h.tenure.Copies(h.Context(), []uuid.UUID{place}, []int64{2}); err != nil {
			t.Fatal(err)
		}
	}
	if err := (&Tenure{}).Copies(h.Context(), nil, nil); err != nil { // makes no query
		t.Fatal(err)
	}
	rows, err := Rows(h.Context(), h.pool, "test", []uuid.UUID{m.ID, place, uuid.Max})
	want := map[uuid.UUID]Row{m.ID: {Done, h.tenure.Generation, 1}, place: {Done, h.tenure.Generation, 2}}
	if err != nil || !reflect.DeepEqual(rows, want) {
		t.Errorf("Rows() = %v, %v; want %v", rows, err, want)
	}
}

// TestSlice: the tokens of slices, and the names of their durable consumers.
func TestSlice(t *testing.T) {
	for _, test := range []struct {
		s        Slice
		from, to int
		durable  string
	}{
		{Slice{}, 0, 64, "c"}, {Slice{0, 1}, 0, 64, "c"}, {Slice{1, 2}, 32, 64, "c-1of2"}, {Slice{3, 8}, 24, 32, "c-3of8"}, {Slice{63, 64}, 63, 64, "c-63of64"},
	} {
		if from, to := test.s.Tokens(); from != test.from || to != test.to || test.s.Durable("c") != test.durable {
			t.Errorf("%+v has the tokens %d to %d and is called %s", test.s, from, to, test.s.Durable("c"))
		}
	}
	if got := Durables("c", 0); !slices.Equal(got, []string{"c"}) {
		t.Errorf("durables are %v", got)
	}
	if got := Durables("c", 2); !slices.Equal(got, []string{"c-0of2", "c-1of2"}) {
		t.Errorf("durables are %v", got)
	}
}

// TestPlaceOfASlice: a session finds what the previous one saved, also after a division.
func TestPlaceOfASlice(t *testing.T) {
	h := newFixture(t)
	stored := time.Now().Truncate(time.Microsecond)
	save := func(floor, high uint64, stored time.Time) {
		t.Helper()
		if err := h.tenure.Save(h.Context(), h.pool, floor, high, stored); err != nil {
			t.Fatal(err)
		}
	}
	mark := func() (m Mark) {
		t.Helper()
		m, err := ReadMark(h.Context(), h.pool, "test")
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	if m := mark(); m.Seq != 0 || !m.Stored.IsZero() || m.Generation != h.tenure.Generation {
		t.Errorf("the mark of what began is %+v", m)
	}
	if m, err := ReadMark(h.Context(), h.pool, "nobody"); err != nil || m != (Mark{}) {
		t.Errorf("the mark of nobody is %+v, %v", m, err)
	}
	save(3, 7, stored)
	save(0, 5, stored.Add(time.Hour)) // neither decreases
	if m := mark(); m.Seq != 7 || !m.Stored.Equal(stored) {
		t.Errorf("the mark is %+v, want 7 at %s", m, stored)
	}
	for what, change := range map[string]func(*Tenure){"superseded": func(s *Tenure) { s.Epoch-- }, "of a restored inbox": func(s *Tenure) { s.Version.File++ }} {
		s := h.tenure
		change(&s)
		err := errors.Join(s.Save(h.Context(), h.pool, 9, 9, stored), s.Lost(h.Context(), 9), s.Redelivered(h.Context()))
		if p := h.own(); err != nil || p.Floor != 3 || p.High != 7 || p.LostUntil != 0 || !p.Orphaned {
			t.Errorf("a session that is %s left the place %+v (%v)", what, p, err)
		}
	}
	h.within(func(tx pgx.Tx) error { return Redeliver(h.Context(), tx, "test") })
	if err := h.tenure.Lost(h.Context(), 6); err != nil {
		t.Fatal(err)
	}
	p := h.own()
	if got := p.Mark(); !p.Redeliver || p.LostUntil != 6 || got.Seq != 7 || !got.Stored.Equal(stored) {
		t.Errorf("the place is %+v", p)
	}
	if got := (&SliceState{High: 7}).Mark(); got != (Mark{}) {
		t.Errorf("the mark is %+v although its time is unknown", got)
	}
	h.within(func(tx pgx.Tx) error { return Divide(h.Context(), tx, "test", 4) })
	if n, err := Slices(h.Context(), h.pool, "test"); err != nil || n != 4 {
		t.Errorf("%d slices (%v), want 4", n, err)
	}
	if n, err := Slices(h.Context(), h.pool, "nobody"); err != nil || n != 1 {
		t.Errorf("nobody has %d slices (%v), want 1", n, err)
	}
	h.is("slices", "(0,3,7,6,t) (1,3,7,6,t) (2,3,7,6,t) (3,3,7,6,t)", `select (slice, floor, high, lost_until, redeliver) from pgjet.slice where stored is not null`)
	if _, err := h.tenure.Own(h.Context()); !errors.Is(err, ErrSuperseded) {
		t.Errorf("Own() = %v with another number of slices, want %v", err, ErrSuperseded)
	}
	s := h.tenure
	s.Slice, s.Process = Slice{2, 4}, "host:2"
	p, err := s.Own(h.Context())
	if err != nil || p.Orphaned {
		t.Fatalf("Own() = %+v, %v", p, err)
	}
	s.Epoch = p.Epoch
	owners, err := Owners(h.Context(), h.pool, "test")
	if err != nil || len(owners) != 4 || owners[2].Process != "host:2" || owners[2].Since == nil || owners[1].Process != "" {
		t.Errorf("owners are %+v (%v)", owners, err)
	}
	if err := errors.Join(s.Redelivered(h.Context()), s.Leave(h.Context())); err != nil {
		t.Fatal(err)
	}
	h.is("slices that are to be delivered once more", "0 1 3", `select slice from pgjet.slice where redeliver`)
	h.is("owners", "0", `select count(*) from pgjet.slice where process is not null`)
	unordered := h.tenure
	unordered.Ordered, unordered.Slice = false, Slice{0, 4}
	if p, err = unordered.Own(h.Context()); err != nil || p.Floor != 3 || p.High != 7 {
		t.Errorf("Own() = %+v, %v without an order", p, err)
	}
	unordered.Consumer = "nobody"
	if _, err := unordered.Own(h.Context()); !errors.Is(err, ErrSuperseded) {
		t.Errorf("Own() = %v of nobody", err)
	}
}

// TestOwnLate: a session that registered before a pause or a replay of everything owns nothing
// afterwards. It would handle events whose effects are about to be deleted.
func TestOwnLate(t *testing.T) {
	h := newFixture(t)
	refused := func(why string) {
		t.Helper()
		for _, ordered := range []bool{true, false} {
			late := h.tenure
			late.Ordered = ordered
			if _, err := late.Own(h.Context()); !errors.Is(err, ErrSuperseded) {
				t.Errorf("Own() = %v %s, ordered: %t; want %v", err, why, ordered, ErrSuperseded)
			}
		}
	}
	if _, _, err := Pause(h.Context(), h.pool, "test", "ann@host", "a test"); err != nil {
		t.Fatal(err)
	}
	refused("in a pause")
	h.within(func(tx pgx.Tx) error { return SetBack(h.Context(), tx, "test", 1, true) })
	if _, err := Resume(h.Context(), h.pool, "test", "ann@host", "a test", ""); err != nil {
		t.Fatal(err)
	}
	refused("before the rebuild")
	if err := Supersede(h.Context(), h.pool, "test", func(tx pgx.Tx) error {
		_, err := Rebuilt(h.Context(), tx, "test")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	h.own()
}

// TestLeave: leaving gives back the session's intents of this slice alone.
func TestLeave(t *testing.T) {
	h := newFixture(t)
	h.intend(NewIntent{Attempts: 1, Taken: true}, h.message("k", 1))
	h.exec(`insert into pgjet.intent (consumer, event_id, type, key, stream, generation, stream_seq, subject, header, data, attempts, taken_by)
		select consumer, gen_random_uuid(), type, key, stream, generation, 2, subject, header, data, 1, 'other' from pgjet.intent`)
	if err := h.tenure.Leave(h.Context()); err != nil {
		t.Fatal(err)
	}
	h.is("who has what", "1 - 0 2 other 1", `select stream_seq || ' ' || coalesce(taken_by, '-') || ' ' || attempts from pgjet.intent`)
	if err := Abandon(h.Context(), h.pool, "test", nil); err != nil {
		t.Fatal(err)
	}
	h.is("who has what", "1 - 0 2 other 1", `select stream_seq || ' ' || coalesce(taken_by, '-') || ' ' || attempts from pgjet.intent`)
	if err := Abandon(h.Context(), h.pool, "test", []string{"other"}); err != nil {
		t.Fatal(err)
	}
	h.is("who has what", "1 - 0 2 - 0", `select stream_seq || ' ' || coalesce(taken_by, '-') || ' ' || attempts from pgjet.intent`)
}

// TestCurrent: a session is current until it is superseded or paused, or the inbox is restored. Due
// intents of other sessions are reported.
func TestCurrent(t *testing.T) {
	h := newFixture(t)
	current := func() (current, due bool) {
		t.Helper()
		current, due, err := Current(h.Context(), h.pool, "test", "mine", h.tenure.Version, []int64{h.tenure.Epoch})
		if err != nil {
			t.Fatal(err)
		}
		return current, due
	}
	if is, due := current(); !is || due {
		t.Errorf("current %t, due %t", is, due)
	}
	h.intend(NewIntent{}, h.message("k", 1))
	if is, due := current(); !is || !due {
		t.Errorf("current %t, due %t with one that is due", is, due)
	}
	h.take()
	if is, due := current(); !is || due {
		t.Errorf("current %t, due %t with one that is its own", is, due)
	}
	if err := Interrupt(h.Context(), h.pool, "test"); err != nil {
		t.Fatal(err)
	}
	if is, _ := current(); is {
		t.Error("current after it was ended")
	}
}

// TestPrune: only old rows are pruned, and never those that are still needed.
func TestPrune(t *testing.T) {
	h := newFixture(t)
	h.exec(`insert into pgjet.attempt (consumer, event_id, attempt, began, process, outcome)
		select 'test', gen_random_uuid(), 1, now() - make_interval(hours => n), 'host:1', 'done' from generate_series(0, 4) n`)
	h.exec(`insert into pgjet.process (consumer, process, workers, seen_at) select 'test', 'host:' || n, 1, now() - make_interval(hours => n) from generate_series(0, 4) n`)
	h.exec(`insert into pgjet.dead_letter (consumer, event_id, stream, generation, stream_seq, subject, type, key, header, data, error, error_group, attempts, state, changed_at)
		select 'test', gen_random_uuid(), 'EVENTS', 1, n, 's', 'a.b', 'k', '{}', '', '', '', 1, (array['dead', 'done', 'discarded', 'redriven'])[n], now() - interval '1 day' from generate_series(1, 4) n`)
	h.exec(`insert into pgjet.inbox (consumer, event_id, state, attempts, generation, stream_seq, at)
		select 'test', gen_random_uuid(), case when n = 3 then 'dead' else 'done' end, 1, $1, n, now() - interval '1 day' from generate_series(1, 10) n`, h.tenure.Generation)
	h.exec(`insert into pgjet.inbox (consumer, event_id, state, attempts, generation, stream_seq, at) select 'test', gen_random_uuid(), 'done', 1, $1, 5, now()`, h.tenure.Generation)
	prune := func(keep Retention) (more bool) {
		t.Helper()
		more, err := h.tenure.Prune(h.Context(), keep)
		if err != nil {
			t.Fatal(err)
		}
		return more
	}
	if prune(Retention{Attempts: 150 * time.Minute, Dead: time.Hour, Processes: 150 * time.Minute, First: 8}) {
		t.Error("more is true with nothing left")
	}
	h.is("attempts", "3", `select count(*) from pgjet.attempt`)
	h.is("processes", "3", `select count(*) from pgjet.process`)
	h.is("dead letters", "dead redriven", `select state from pgjet.dead_letter`)
	h.is("the inbox, which is kept for ever", "11", `select count(*) from pgjet.inbox`)
	prune(Retention{Attempts: time.Hour, Dead: time.Hour, Processes: time.Hour, Inbox: time.Hour, First: 8})
	h.is("places in the inbox", "3 5 8 9 10", `select stream_seq from pgjet.inbox`)
	h.exec(`insert into pgjet.attempt (consumer, event_id, attempt, began, process, outcome)
		select 'test', gen_random_uuid(), 1, now() - interval '1 day', 'host:1', 'done' from generate_series(1, 10001)`)
	keep := Retention{Attempts: time.Hour, Dead: time.Hour, Processes: time.Hour}
	if !prune(keep) {
		t.Error("more is false after 10000 of 10001 rows")
	}
	if prune(keep) {
		t.Error("more is true after the last row")
	}
}

// TestSigns: the heartbeat of a process, and its removal.
func TestSigns(t *testing.T) {
	h := newFixture(t)
	for _, b := range []Beat{
		{Workers: 2, Types: []string{"a.b"}},
		{Workers: 3, Cause: "paused", Attempts: 5, Failed: 1, Took: time.Second, Error: "no answer"},
	} {
		b.Consumer, b.Process = "test", "host:1"
		if err := Heartbeat(h.Context(), h.pool, b); err != nil {
			t.Fatal(err)
		}
	}
	h.is("the process", "3 paused 5 1 00:00:01 no answer", `select workers || ' ' || cause || ' ' || attempts || ' ' || failed || ' ' || took || ' ' || error from pgjet.process where types is null`)
	if err := RemoveProcess(h.Context(), h.pool, "test", "host:1"); err != nil {
		t.Fatal(err)
	}
	h.is("processes", "0", `select count(*) from pgjet.process`)
	if lock, err := TableLock(h.Context(), h.pool); err != nil || lock != nil {
		t.Errorf("TableLock() = %+v, %v", lock, err)
	}
	if holder, err := Holder(h.Context(), h.pool, "test"); err != nil || holder != nil {
		t.Errorf("Holder() = %+v, %v", holder, err)
	}
	h.within(func(tx pgx.Tx) error {
		if err := Lock(h.Context(), tx, "test", 0); err != nil {
			return err
		}
		holder, err := Holder(h.Context(), h.pool, "test")
		if err == nil && (holder == nil || holder.PID == nil) {
			err = fmt.Errorf("Holder() = %+v while operators hold the lock", holder)
		}
		return err
	})
}

// TestCountEvents: CountEvents counts only the given part of the stream, in this generation.
func TestCountEvents(t *testing.T) {
	h := newFixture(t)
	h.exec(`insert into pgjet.inbox (consumer, event_id, state, attempts, generation, stream_seq)
		select 'test', gen_random_uuid(), (array['done', 'intent', 'dead', 'discarded', 'done', 'done'])[n], 1, $1, n from generate_series(1, 6) n`, h.tenure.Generation)
	c, err := CountEvents(h.Context(), h.pool, "test", 1, 5)
	if err != nil || c.Done != 2 || c.Waiting != 1 || c.Dead != 2 || c.At.Location() != time.UTC {
		t.Errorf("CountEvents() = %+v, %v", c, err)
	}
	id, seq, err := h.tenure.LastKnown(h.Context(), 5)
	if err != nil || seq != 5 || id == uuid.Nil {
		t.Errorf("LastKnown() = %s, %d, %v; want place 5", id, seq, err)
	}
	if _, seq, err = h.tenure.LastKnown(h.Context(), 10_006); err != nil || seq != 6 {
		t.Errorf("LastKnown() = %d, %v; want 6, at the edge of the window", seq, err)
	}
	if _, seq, err = h.tenure.LastKnown(h.Context(), 10_007); err != nil || seq != 0 {
		t.Errorf("LastKnown() = %d, %v; want none near the floor", seq, err)
	}
}

// TestPause: who paused the consumer, why, whether the operation still runs, and each way to end
// it.
func TestPause(t *testing.T) {
	h := newFixture(t)
	ctx := h.Context()
	if _, _, err := Pause(ctx, h.pool, "nobody", "ann", ""); err == nil || !strings.Contains(err.Error(), `no consumer "nobody", there is: test`) {
		t.Errorf("Pause() of nobody: %v", err)
	}
	if _, _, err := Pause(ctx, h.pool, "test", "ann", ReplayPause+"1"); err == nil {
		t.Error("a pause with the reason of a replay is taken")
	}
	if p, err := Resume(ctx, h.pool, "test", "ann", "", ""); err != nil || p != nil {
		t.Errorf("Resume() = %+v, %v of what is not paused", p, err)
	}
	if p, err := ReadPause(ctx, h.pool, "test"); err != nil || p != nil {
		t.Errorf("ReadPause() = %+v, %v of what is not paused", p, err)
	}
	if p, err := ReadPause(ctx, h.pool, "nobody"); err != nil || p != nil {
		t.Errorf("ReadPause() = %+v, %v of nobody", p, err)
	}
	p, news, err := Pause(ctx, h.pool, "test", "ann", "deploy")
	if err != nil || !news || p.By != "ann" || p.Reason != "deploy" || p.At.Location() != time.UTC {
		t.Fatalf("Pause() = %+v, %t, %v", p, news, err)
	}
	if p, news, err = Pause(ctx, h.pool, "test", "bob", "too"); err != nil || news || p.By != "ann" {
		t.Errorf("Pause() = %+v, %t, %v of what ann paused", p, news, err)
	}
	if p, err := ReadPause(ctx, h.pool, "test"); err != nil || p == nil || p.By != "ann" || p.Interrupted {
		t.Errorf("ReadPause() = %+v, %v", p, err)
	}
	h.within(func(tx pgx.Tx) error { return PauseForReplay(ctx, tx, "test", 7) }) // still ann's pause
	h.within(func(tx pgx.Tx) error {
		id, err := EndReplayPause(ctx, tx, "test")
		if id != 0 {
			t.Errorf("EndReplayPause() = %d of what ann paused", id)
		}
		return err
	})
	if p, err := Resume(ctx, h.pool, "test", "ann", "", "another reason"); err != nil || p != nil {
		t.Errorf("Resume() = %+v, %v of another pause", p, err)
	}
	if p, err := Resume(ctx, h.pool, "test", "ann", "", ""); err != nil || p == nil || p.By != "ann" || p.Reason != "deploy" {
		t.Errorf("Resume() = %+v, %v", p, err)
	}
	h.is("operations", "consumer.pause ann consumer.resume ann", `select kind || ' ' || by from pgjet.operation`)
	h.within(func(tx pgx.Tx) error { return PauseForReplay(ctx, tx, "test", 7) })
	h.exec(`update pgjet.consumer set paused_at = now() - interval '1 min'`)
	if p, err := ReadPause(ctx, h.pool, "test"); err != nil || p == nil || !p.Interrupted || !strings.Contains(p.Advice("test"), "run the replay again") {
		t.Errorf("ReadPause() = %+v, %v of a replay that died", p, err)
	}
	if p, news, err = Pause(ctx, h.pool, "test", "ann", "mine now"); err != nil || !news || p.Reason != "mine now" {
		t.Errorf("Pause() = %+v, %t, %v of what a replay paused", p, news, err)
	}
	h.exec(`update pgjet.consumer set pause_reason = $1`, ReplayPause+"7")
	h.within(func(tx pgx.Tx) error {
		id, err := EndReplayPause(ctx, tx, "test")
		if id != 7 {
			t.Errorf("EndReplayPause() = %d, want 7", id)
		}
		return err
	})
	if p, news, err = Pause(ctx, h.pool, "test", "ann", ExtendPause); err != nil || !news {
		t.Errorf("Pause() = %+v, %t, %v to add types", p, news, err)
	}
	if !strings.Contains(p.Advice("test"), "consumer ensure test --apply") {
		t.Errorf("the advice is %q", p.Advice("test"))
	}
	text := (&PausedError{"test", Paused{By: "ann", Reason: "deploy"}}).Error()
	if !strings.Contains(text, "pgjet consumer resume ends it") {
		t.Errorf("the error is %q", text)
	}
	if text = (&PausedError{"test", Paused{Interrupted: true}}).Error(); !strings.Contains(text, "run the replay again") {
		t.Errorf("the error is %q", text)
	}
	if text = (&UnknownError{Name: "x"}).Error(); !strings.Contains(text, "no process of any consumer has run yet") {
		t.Errorf("the error is %q", text)
	}
}

// TestSetBack: the consumer begins at the earlier sequence, and only sessions that are not paused
// end.
func TestSetBack(t *testing.T) {
	h := newFixture(t)
	if err := h.tenure.Save(h.Context(), h.pool, 9, 9, time.Now()); err != nil {
		t.Fatal(err)
	}
	epoch := func() (n int64) {
		h.scan(&n, `select epoch from pgjet.consumer`)
		return n
	}
	before := epoch()
	h.within(func(tx pgx.Tx) error { return SetBack(h.Context(), tx, "test", 5, false) })
	h.is("the place", "4", `select floor from pgjet.slice`)
	if epoch() != before+1 {
		t.Errorf("the epoch is %d, want the one after %d", epoch(), before)
	}
	h.exec(`update pgjet.consumer set paused_at = now()`)
	h.within(func(tx pgx.Tx) error { return SetBack(h.Context(), tx, "test", 7, true) })
	h.is("the floor", "4", `select floor from pgjet.slice`) // it does not increase
	if epoch() != before+1 {
		t.Errorf("the epoch is %d, want that of before", epoch())
	}
	h.is("rebuild", "true", `select rebuild from pgjet.consumer`)
	h.within(func(tx pgx.Tx) error {
		for _, want := range []bool{true, false} {
			if asked, err := Rebuilt(h.Context(), tx, "test"); err != nil || asked != want {
				return fmt.Errorf("Rebuilt() = %t, %w, want %t", asked, err, want)
			}
		}
		return nil
	})
}

// TestForget: events that are done from the sequence on run again, and waiting ones are delivered
// again in order.
func TestForget(t *testing.T) {
	h := newFixture(t)
	fill := func() {
		h.exec(`delete from pgjet.inbox`)
		h.exec(`delete from pgjet.intent`)
		h.exec(`insert into pgjet.inbox (consumer, event_id, state, attempts, generation, stream_seq) select 'test', gen_random_uuid(), 'done', 1, $1, n from generate_series(1, 4) n`, h.tenure.Generation)
		h.intend(NewIntent{Wait: time.Hour}, h.message("k", 5), h.message("l", 2))
	}
	for _, test := range []struct {
		all            bool
		inbox, intents string
	}{{false, "1 2 2", "2"}, {true, "2", "2"}} {
		fill()
		h.within(func(tx pgx.Tx) error { return Forget(h.Context(), tx, "test", h.tenure.Generation, 3, test.all) })
		h.is("the inbox", test.inbox, `select stream_seq from pgjet.inbox`)
		h.is("what waits", test.intents, `select stream_seq from pgjet.intent`)
	}
	err := pgx.BeginFunc(h.Context(), h.pool, func(tx pgx.Tx) error {
		return Forget(h.Context(), tx, "test", h.tenure.Generation+1, 3, false)
	})
	if err == nil || !strings.Contains(err.Error(), "1 events of the stream as it was") {
		t.Errorf("Forget() = %v with what nobody can place", err)
	}
}

// TestHandOver: new events become intents, and the first of each key is due; events that are done
// become intents only with Again.
func TestHandOver(t *testing.T) {
	h := newFixture(t)
	a, b, c, late := h.message("k", 1), h.message("k", 2), h.message("l", 3), h.message("m", 4)
	take := func(o HandOver) (taken int) {
		t.Helper()
		o.Consumer, o.Generation = "test", h.tenure.Generation
		h.within(func(tx pgx.Tx) (err error) {
			taken, err = o.Run(h.Context(), tx)
			return err
		})
		return taken
	}
	if n := take(HandOver{Ordered: true, Events: []*Message{a, b, a, c, late}, Late: []uuid.UUID{late.ID}}); n != 3 {
		t.Errorf("%d are taken, want 3: one will be delivered anyway, one is there twice", n)
	}
	if due, _ := h.take(); !slices.Equal(due, []uint64{1, 3}) {
		t.Errorf("due are %v, want the first of each key", due)
	}
	if n := take(HandOver{Ordered: true, Events: []*Message{a}}); n != 0 {
		t.Errorf("%d are taken of what waits", n)
	}
	h.exec(`delete from pgjet.intent`)
	h.exec(`update pgjet.inbox set state = 'done'`)
	if n := take(HandOver{Events: []*Message{a, b}}); n != 0 {
		t.Errorf("%d are taken of what is done", n)
	}
	if n := take(HandOver{Events: []*Message{a, b}, Again: true}); n != 2 {
		t.Errorf("%d are taken of two that are to run again", n)
	}
	if due, _ := h.take(); !slices.Equal(due, []uint64{1}) { // the tenure is ordered
		t.Errorf("due are %v", due)
	}
	h.is("without an order, nothing is held back", "0", `select count(*) from pgjet.intent where due_at = 'infinity'`)
}

// TestQuiet: no attempt is running once no transaction of an attempt is open and no living process
// has an intent.
func TestQuiet(t *testing.T) {
	h := newFixture(t)
	quiet := func() (quiet bool) {
		t.Helper()
		quiet, err := Quiet(h.Context(), h.pool, "test", 50*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		return quiet
	}
	if !quiet() {
		t.Error("not quiet with nothing")
	}
	h.within(func(tx pgx.Tx) error {
		_, err := tx.Exec(h.Context(), `select pg_advisory_xact_lock_shared(`+attempts+`)`, "test")
		if quiet() {
			t.Error("quiet during an attempt")
		}
		return err
	})
	conn, err := h.pool.Acquire(h.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := Announce(h.Context(), conn.Conn(), "mine"); err != nil {
		t.Fatal(err)
	}
	h.intend(NewIntent{Attempts: 1, Taken: true}, h.message("k", 1))
	if quiet() {
		t.Error("quiet while a process that lives has an intent")
	}
	if err := conn.Conn().Close(h.Context()); err != nil {
		t.Fatal(err)
	}
	conn.Release()
	testenv.Eventually(t, patience, "its lock is gone", quiet)
}

const patience = 20 * time.Second

// TestRetry: events that wait for their time are due now, nothing else changes, and it is recorded
// as one operation.
func TestRetry(t *testing.T) {
	h := newFixture(t)
	later := h.message("k", 1)
	h.intend(NewIntent{Wait: time.Hour}, later, h.message("l", 2))
	h.intend(NewIntent{}, h.message("k", 3), h.message("due", 4))
	h.intend(NewIntent{Attempts: 1, Taken: true}, h.message("runs", 5))
	for _, test := range []struct {
		r    Retry
		want []RetryOutcome
	}{
		{Retry{IDs: []uuid.UUID{uuid.Max}}, []RetryOutcome{}},
		{Retry{IDs: []uuid.UUID{later.ID}}, []RetryOutcome{{"test", 1, 0, 0, 0}}},
		{Retry{Consumer: "test"}, []RetryOutcome{{"test", 1, 2, 1, 1}}},
		{Retry{Consumer: "test"}, []RetryOutcome{{"test", 0, 3, 1, 1}}},
	} {
		got, err := test.r.Run(h.Context(), h.pool)
		if err != nil || !slices.Equal(got, test.want) {
			t.Errorf("%+v: %+v, %v; want %+v", test.r, got, err, test.want)
		}
	}
	if _, err := (Retry{Consumer: "nobody"}).Run(h.Context(), h.pool); err == nil {
		t.Error("nobody is retried")
	}
	h.is("operations", "1 1", `select detail ->> 'retried' from pgjet.operation where kind = 'consumer.retry' and jsonb_array_length(detail -> 'events') = 1`)
}

// TestRetryPages: a retry of several pages is one operation, which names a thousand events.
func TestRetryPages(t *testing.T) {
	h := newFixture(t)
	h.exec(`insert into pgjet.intent (consumer, event_id, type, key, stream, generation, stream_seq, subject, header, data, due_at)
		select 'test', gen_random_uuid(), 'a.b', 'k' || n, 'EVENTS', 1, n, 's', '{}', '', now() + interval '1 hour' from generate_series(1, $1) n`, 2*retryPage+1)
	got, err := (Retry{Consumer: "test"}).Run(h.Context(), h.pool)
	if err != nil || len(got) != 1 || got[0].Retried != 2*retryPage+1 {
		t.Errorf("retried are %+v, %v", got, err)
	}
	h.is("operations", fmt.Sprint(2*retryPage+1, " 1000"), `select (detail ->> 'retried') || ' ' || jsonb_array_length(detail -> 'events') from pgjet.operation`)
}

// TestSum: outcomes are added by consumer, in the order of names.
func TestSum(t *testing.T) {
	got := Sum(Sum(nil, []Outcome{{"b", 1, 2, 3, 4, []int64{1}}}), []Outcome{{"a", 1, 0, 0, 0, nil}, {"b", 10, 20, 30, 40, []int64{2}}})
	if want := []Outcome{{"a", 1, 0, 0, 0, nil}, {"b", 11, 22, 33, 44, []int64{1, 2}}}; !reflect.DeepEqual(got, want) {
		t.Errorf("Sum() = %+v, want %+v", got, want)
	}
}

// TestIdentity: a durable consumer that names a database belongs to that one.
func TestIdentity(t *testing.T) {
	h := newFixture(t)
	own, err := ReadIdentity(h.Context(), h.pool)
	if err != nil || own.ID == uuid.Nil || own.Database != h.pool.Config().ConnConfig.Database {
		t.Fatalf("ReadIdentity() = %v, %v", own, err)
	}
	given := map[string]string{"team": "crm"}
	for _, metadata := range []map[string]string{nil, given} {
		named := own.Named(metadata)
		if IdentityIn(named) != own || len(named) != len(metadata)+2 {
			t.Errorf("%v becomes %v", metadata, named)
		}
		if err := own.Check("EVENTS", "test", named); err != nil {
			t.Errorf("its own: %v", err)
		}
	}
	if len(given) != 1 {
		t.Error("what was given is changed")
	}
	if err := own.Check("EVENTS", "test", given); err != nil || IdentityIn(given) != (Identity{}) {
		t.Errorf("one that names nobody: %v", err)
	}
	other := Identity{uuid.Must(uuid.NewV7()), "app2"}
	err = own.Check("EVENTS", "test", other.Named(nil))
	if e, ok := errors.AsType[*ForeignDurableError](err); !ok || e.Owner != other || e.Own != own || !strings.Contains(err.Error(), ForeignDurable) {
		t.Errorf("another's: %v", err)
	}
}

// TestLockGivesUp: Lock gives up after the given time, at least a millisecond.
func TestLockGivesUp(t *testing.T) {
	h := newFixture(t)
	h.within(func(tx pgx.Tx) error {
		if err := Lock(h.Context(), tx, "test", 0); err != nil {
			return err
		}
		err := pgx.BeginFunc(h.Context(), h.pool, func(other pgx.Tx) error { return Lock(h.Context(), other, "test", time.Nanosecond) })
		if !LockedOut(err) {
			t.Errorf("Lock() = %v, want that it gave up", err)
		}
		return nil
	})
}

// TestFind: Find reports exactly the names that do not exist.
func TestFind(t *testing.T) {
	h := newFixture(t)
	find := func(f Filter) string {
		if err := f.Find(h.Context(), h.pool); err != nil {
			return err.Error()
		}
		return ""
	}
	h.exec(`insert into pgjet.dead_letter (consumer, event_id, stream, generation, stream_seq, subject, type, key, header, data, error, error_group, attempts)
		values ('gone', $1, 'EVENTS', 1, 1, 's', 'a.b', 'k', '{}', '', '', '', 1)`, uuid.Max)
	for _, test := range []struct {
		f    Filter
		want string
	}{
		{Filter{}, ""},
		{Filter{Consumer: "test"}, ""},
		{Filter{Consumer: "gone"}, ""},
		{Filter{Consumer: "nobody"}, `no consumer "nobody"`},
		{Filter{IDs: []int64{1}, EventIDs: []uuid.UUID{uuid.Max}}, ""},
		{Filter{IDs: []int64{1, 2}}, "no such dead letter: 2;"},
		{Filter{EventIDs: []uuid.UUID{uuid.Max, uuid.Nil}}, "no such dead letter: " + uuid.Nil.String()},
	} {
		if got := find(test.f); (got == "") != (test.want == "") || !strings.Contains(got, test.want) {
			t.Errorf("%+v: %q, want %q", test.f, got, test.want)
		}
	}
	var f Filter
	if err := f.Freeze(h.Context(), h.pool); err != nil || f.UpTo != 1 {
		t.Errorf("frozen at %d (%v), want 1", f.UpTo, err)
	}
	h.exec(`delete from pgjet.dead_letter`)
	if err := f.Freeze(h.Context(), h.pool); err != nil || f.UpTo != 1 {
		t.Errorf("with none frozen at %d (%v), want 1: 0 is no limit", f.UpTo, err)
	}
}

// TestRunIsNoted: an operation on dead letters records its progress page by page, its total, and
// how it ended.
func TestRunIsNoted(t *testing.T) {
	h := newFixture(t)
	for n := range 3 {
		m := h.message(fmt.Sprint("key", n), uint64(n+1))
		h.within(func(tx pgx.Tx) error {
			fresh, err := h.tenure.Bury(t.Context(), tx, Burial{Message: m, Ending: Ending{Attempt: 1, Began: time.Now(), Outcome: Dead, Error: "poison"}})
			if err == nil && !fresh {
				err = errors.New("it is known already")
			}
			return err
		})
	}
	noted := func(want string) {
		t.Helper()
		h.is("the operation", want, `select state || ' ' || done || '/' || total from pgjet.operation where kind = 'dead.redrive'`)
	}
	r := &Run{Change: Redrive, Filter: Filter{Consumer: "test"}, By: "ann@host", Reason: "mended", Totals: map[string]int64{"test": 3}}
	for page, want := range []string{"running 2/3", "running 3/3"} {
		if _, n, err := r.Next(t.Context(), h.pool, 2); err != nil || n != 2-page {
			t.Fatalf("Next() = %d, %v", n, err)
		}
		noted(want)
	}
	failure := errors.New("failure")
	if err := r.End(t.Context(), h.pool, failure); !errors.Is(err, failure) {
		t.Errorf("End() = %v, want %v", err, failure)
	}
	noted("failed 3/3")
	if err := r.End(t.Context(), h.pool, nil); err != nil {
		t.Errorf("End() = %v", err)
	}
	noted("done 3/3")
}
