package inbox_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/replay"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/testenv"
)

// patience bounds everything that a test waits for.
const patience = 20 * time.Second

var decision = replay.Decision{By: "ann@host", Reason: "the test says so"}

// A fixture is a database with dead letters, and a pool with the rights of an operator.
type fixture struct {
	testing.TB
	admin, db *pgxpool.Pool
}

func newFixture(t testing.TB) *fixture {
	b := &fixture{TB: t, admin: testenv.Postgres(t)}
	config := b.admin.Config()
	config.ConnConfig.RuntimeParams["role"] = "pgjet_operator"
	db, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	b.db = db
	return b
}

func (b *fixture) exec(sql string, args ...any) {
	b.Helper()
	testenv.Exec(b, b.admin, sql, args...)
}

func (b *fixture) count(sql string, args ...any) (n int64) {
	b.Helper()
	if err := b.admin.QueryRow(b.Context(), `select count(*) from `+sql, args...).Scan(&n); err != nil {
		b.Fatalf("%s: %v", sql, err)
	}
	return n
}

// die makes n dead letters of keys k1 to kn, with sequences from first on. Their errors differ, and
// belong to one group.
func (b *fixture) die(consumer, group string, first, n int) {
	b.Helper()
	b.exec(`
		with d as (
			insert into pgjet.dead_letter (consumer, event_id, stream, generation, stream_seq, subject, type, key, header, data,
				error, error_group, attempts, at, stack, trace_id, process)
			select $1, gen_random_uuid(), 'EVENTS', 1, $3::int + i - 1, 'events.00.a.b', 'a.b', 'k' || i,
			       '{"ce-type": ["a.b"], "ce-secret": ["hidden"]}', convert_to('{"n": ' || i || ', "email": "ann@example.com"}', 'UTF8'),
			       $2::text || ': no ' || i || ' for ann@example.com', $2, 3, now() - make_interval(hours => i), 'main.go:7', 'abc', 'host:1'
			  from (select i from generate_series(1, $4) i) s
			returning *
		)
		insert into pgjet.inbox (consumer, event_id, state, attempts, generation, stream_seq)
		select consumer, event_id, 'dead', attempts, generation, stream_seq from d`, consumer, group, first, n)
}

// wait writes an intent that waits behind an earlier event of its key.
func (b *fixture) wait(consumer, key string, seq int) {
	b.Helper()
	b.exec(`
		with i as (
			insert into pgjet.inbox (consumer, event_id, state, attempts, generation, stream_seq)
			values ($1, gen_random_uuid(), 'intent', 0, 1, $3) returning *
		)
		insert into pgjet.intent (consumer, event_id, type, key, stream, generation, stream_seq, subject, header, data, due_at)
		select consumer, event_id, 'a.b', $2, 'EVENTS', 1, $3, 's', '{}', '{}', 'infinity' from i`, consumer, key, seq)
}

type verb func(context.Context, *pgxpool.Pool, inbox.Filter, replay.Decision) ([]inbox.Outcome, error)

// does runs a verb, checks its outcomes, and returns the ids.
func (b *fixture) does(v verb, f inbox.Filter, d replay.Decision, want ...inbox.Outcome) (ids []int64) {
	b.Helper()
	got, err := v(b.Context(), b.db, f, d)
	if err != nil {
		b.Fatal(err)
	}
	for i := range got {
		ids = append(ids, got[i].IDs...)
		got[i].IDs = nil
	}
	if !slices.EqualFunc(got, want, func(a, b inbox.Outcome) bool { return fmt.Sprint(a) == fmt.Sprint(b) }) {
		b.Errorf("outcome is %+v, want %+v", got, want)
	}
	return ids
}

func (b *fixture) list(f inbox.Filter) []inbox.Letter {
	b.Helper()
	all, err := inbox.Letters(b.Context(), b.db, f, 0)
	if err != nil {
		b.Fatal(err)
	}
	return all
}

func (b *fixture) states(f inbox.Filter) string {
	b.Helper()
	var all []string
	for _, l := range b.list(f) {
		all = append(all, l.State)
	}
	return strings.Join(all, " ")
}

// due returns the sequences of a consumer's due intents.
func (b *fixture) due(consumer string) []int64 {
	b.Helper()
	rows, err := b.admin.Query(b.Context(), `
		select stream_seq from pgjet.intent where consumer = $1 and due_at <= clock_timestamp() order by stream_seq`, consumer)
	if err != nil {
		b.Fatal(err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		b.Fatal(err)
	}
	return all
}

func TestGroups(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.die("mailer", "no answer", 1, 3)
	b.die("mailer", "bad input", 4, 1)
	b.die("crm", "no answer", 5, 2)
	all, err := inbox.Groups(t.Context(), b.db, inbox.Filter{State: inbox.Dead})
	if err != nil || len(all) != 3 {
		t.Fatalf("%d groups (%v), want 3", len(all), err)
	}
	g := all[0]
	if g.Consumer != "mailer" || g.ErrorGroup != "no answer" || g.Count != 3 || g.SampleID != 3 || !strings.HasPrefix(g.Error, "no answer: no 3 ") {
		t.Errorf("the largest group is %+v", g)
	}
	if d := g.Last.Sub(g.First); d != 2*time.Hour {
		t.Errorf("first and last are %s apart, want 2h", d)
	}
	if all[1].ID == g.ID || all[1].Consumer != "crm" || len(g.ID) != len("g_12345678") {
		t.Errorf("groups are %+v; ids must differ by consumer", all)
	}
	for _, l := range b.list(inbox.Filter{Group: g.ID}) {
		if l.Group != g.ID || l.Consumer != "mailer" || l.ID > 3 {
			t.Errorf("group %s holds %+v", g.ID, l)
		}
	}
	b.does(replay.Discard, inbox.Filter{Group: g.ID}, decision, inbox.Outcome{Consumer: "mailer", Changed: 3})
	if all, err = inbox.Groups(t.Context(), b.db, inbox.Filter{State: inbox.Dead}); err != nil || len(all) != 2 {
		t.Errorf("%d groups are left (%v), want 2", len(all), err)
	}
}

func TestFilters(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.die("mailer", "no answer", 1, 3)
	b.die("crm", "bad input", 5, 2)
	all := b.list(inbox.Filter{})
	now := time.Now()
	for name, row := range map[string]struct {
		filter inbox.Filter
		want   []int64
	}{
		"all":               {inbox.Filter{}, []int64{1, 2, 3, 4, 5}},
		"consumer":          {inbox.Filter{Consumer: "crm"}, []int64{4, 5}},
		"key":               {inbox.Filter{Key: "k2"}, []int64{2, 5}},
		"key of a consumer": {inbox.Filter{Key: "k2", Consumer: "crm"}, []int64{5}},
		"type":              {inbox.Filter{Type: "a.b"}, []int64{1, 2, 3, 4, 5}},
		"another type":      {inbox.Filter{Type: "a"}, nil},
		"state":             {inbox.Filter{State: inbox.Done}, nil},
		"group":             {inbox.Filter{Group: all[4].Group}, []int64{4, 5}},
		"since":             {inbox.Filter{Since: now.Add(-90 * time.Minute)}, []int64{1, 4}},
		"until":             {inbox.Filter{Until: now.Add(-150 * time.Minute)}, []int64{3}},
		"ids":               {inbox.Filter{IDs: []int64{2, 4}}, []int64{2, 4}},
		"event ids":         {inbox.Filter{EventIDs: []uuid.UUID{all[2].EventID}}, []int64{3}},
		"ids of both kinds": {inbox.Filter{IDs: []int64{1}, EventIDs: []uuid.UUID{all[2].EventID}}, []int64{1, 3}},
		"up to":             {inbox.Filter{UpTo: 2}, []int64{1, 2}},
	} {
		var got []int64
		for _, l := range b.list(row.filter) {
			got = append(got, l.ID)
		}
		if !slices.Equal(got, row.want) {
			t.Errorf("%s: %v, want %v", name, got, row.want)
		}
	}
	if page, err := inbox.Letters(t.Context(), b.db, inbox.Filter{}, 3); err != nil || len(page) != 2 {
		t.Errorf("behind 3 are %d (%v), want 2", len(page), err)
	}
}

// TestRedrive: the whole event becomes an intent of its consumer, and the records show that.
func TestRedrive(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.die("mailer", "no answer", 1, 3)
	b.die("crm", "no answer", 1, 1)
	b.does(replay.Discard, inbox.Filter{IDs: []int64{3}}, decision, inbox.Outcome{Consumer: "mailer", Changed: 1})
	dry := decision
	dry.DryRun = true
	b.does(replay.Redrive, inbox.Filter{Consumer: "mailer"}, dry, inbox.Outcome{Consumer: "mailer", Changed: 2})
	if n := b.count(`pgjet.intent`); n != 0 {
		t.Errorf("a dry run made %d intents", n)
	}
	ids := b.does(replay.Redrive, inbox.Filter{Consumer: "mailer"}, decision, inbox.Outcome{Consumer: "mailer", Changed: 2})
	if !slices.Equal(ids, []int64{1, 2}) {
		t.Errorf("redriven are %v, want 1 and 2", ids)
	}
	same := b.count(`
		pgjet.intent i join pgjet.dead_letter d using (consumer, event_id, type, key, stream, generation, stream_seq, subject, header, data)
		 join pgjet.inbox x using (consumer, event_id)
		where x.state = 'intent' and d.state = 'redriven' and i.attempts = 0 and i.deaths = 0 and i.due_at <= clock_timestamp()
		  and d.changed_by = $1 and d.change_reason = $2`, decision.By, decision.Reason)
	if n := b.count(`pgjet.intent`); n != 2 || same != 2 {
		t.Errorf("%d intents, %d of them as they should be, want 2", n, same)
	}
	if got, want := b.states(inbox.Filter{}), "redriven redriven discarded dead"; got != want {
		t.Errorf("states are %s, want %s", got, want)
	}
	if n := b.count(`pgjet.operation where kind = 'dead.redrive' and target = 'mailer' and by = $1 and reason = $2
		and detail @> '{"filter": {"consumer": "mailer"}, "changed": 2, "ids": [1, 2]}'`, decision.By, decision.Reason); n != 1 {
		t.Errorf("noted %d times, want once", n)
	}
	b.does(replay.Redrive, inbox.Filter{IDs: []int64{1, 3}}, decision, inbox.Outcome{Consumer: "mailer", Other: 2})

	_, err := replay.Redrive(t.Context(), b.db, inbox.Filter{IDs: []int64{4, 99}}, decision)
	if missing, ok := errors.AsType[*inbox.NotFoundError](err); !ok || !slices.Equal(missing.Names, []string{"99"}) {
		t.Errorf("99: %v, want a NotFoundError", err)
	}
	if got := b.states(inbox.Filter{IDs: []int64{4}}); got != "dead" {
		t.Errorf("4 is %s though 99 does not exist", got)
	}
}

// TestRedriveQueues: in an ordered consumer, only the first intent of each key is due.
func TestRedriveQueues(t *testing.T) {
	for ordered, due := range map[bool]int64{true: 2, false: 1200} {
		b := newFixture(t)
		b.exec(`insert into pgjet.consumer (name, stream, stream_created, ordered) values ('mailer', 'EVENTS', now(), $1)`, ordered)
		b.die("mailer", "poison", 1, 1200)
		b.exec(`update pgjet.dead_letter set key = 'k' || stream_seq % 2`)
		b.does(replay.Redrive, inbox.Filter{Consumer: "mailer"}, decision, inbox.Outcome{Consumer: "mailer", Changed: 1200})
		if n := b.count(`pgjet.intent where due_at < 'infinity'`); n != due {
			t.Errorf("ordered %t: %d of 1200 are due, want %d", ordered, n, due)
		}
		if n := b.count(`pgjet.intent where due_at < 'infinity' and stream_seq <= 2`); n != 2 {
			t.Errorf("ordered %t: %d of the first of the two keys are due, want 2", ordered, n)
		}
	}
}

// TestRedriveBehindOneThatEnds: a redriven event does not wait behind an event that is just ending,
// and so no longer wakes later ones.
func TestRedriveBehindOneThatEnds(t *testing.T) {
	b := newFixture(t)
	b.exec(`insert into pgjet.consumer (name, stream, stream_created, ordered) values ('mailer', 'EVENTS', now(), true)`)
	b.wait("mailer", "k1", 1)
	b.exec(`update pgjet.intent set due_at = now()`)
	b.die("mailer", "poison", 2, 1)
	tx, err := b.admin.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(t.Context(), `delete from pgjet.intent where stream_seq = 1`); err != nil {
		t.Fatal(err)
	}
	if _, err := replay.Redrive(t.Context(), b.db, inbox.Filter{Consumer: "mailer"}, decision); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := b.count(`pgjet.intent where due_at < 'infinity'`); n != 1 {
		t.Error("it waits for ever")
	}
}

// TestRedriveTwiceAtOnce: each event gets one intent, and is counted once.
func TestRedriveTwiceAtOnce(t *testing.T) {
	t.Parallel()
	const n = 1200
	b := newFixture(t)
	b.die("mailer", "no answer", 1, n)
	results := make(chan int64)
	for range 2 {
		go func() {
			all, err := replay.Redrive(t.Context(), b.db, inbox.Filter{Consumer: "mailer"}, decision)
			if err != nil {
				t.Error(err)
			}
			changed := int64(0)
			for _, o := range all {
				changed += o.Changed
				if o.Done+o.Waiting > 0 || int(o.Changed) != len(o.IDs) {
					t.Errorf("outcome is %d done, %d waiting, %d changed with %d ids", o.Done, o.Waiting, o.Changed, len(o.IDs))
				}
			}
			results <- changed
		}()
	}
	if a, c := <-results, <-results; a+c != n {
		t.Errorf("redriven are %d and %d, want %d together", a, c, n)
	}
	if got := b.count(`pgjet.intent`); got != n {
		t.Errorf("%d intents, want %d", got, n)
	}
	var noted int64
	err := b.admin.QueryRow(t.Context(), `select sum((detail ->> 'changed')::int) from pgjet.operation`).Scan(&noted)
	if err != nil || noted != n {
		t.Errorf("noted are %d (%v), want %d", noted, err, n)
	}
}

// TestRedriveOfWhatIsNotDead: the inbox decides. An event that was handled meanwhile does not run
// again, a waiting event does not wait twice, and an event that the inbox forgot runs.
func TestRedriveOfWhatIsNotDead(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.die("mailer", "no answer", 1, 3)
	b.exec(`update pgjet.inbox set state = 'done' where stream_seq = 1`)
	b.exec(`delete from pgjet.inbox where stream_seq = 3`)
	b.exec(`update pgjet.inbox set state = 'intent' where stream_seq = 2`)
	b.exec(`insert into pgjet.intent (consumer, event_id, type, key, stream, generation, stream_seq, subject, header, data, attempts)
		select consumer, event_id, type, key, stream, generation, stream_seq, subject, header, data, 1 from pgjet.dead_letter where stream_seq = 2`)
	want := inbox.Outcome{Consumer: "mailer", Changed: 1, Done: 1, Waiting: 1}
	dry := decision
	dry.DryRun = true
	b.does(replay.Redrive, inbox.Filter{}, dry, want)
	ids := b.does(replay.Redrive, inbox.Filter{}, decision, want)
	if got := b.states(inbox.Filter{}); got != "done redriven redriven" || !slices.Equal(ids, []int64{2, 3}) {
		t.Errorf("states are %s, ids %v", got, ids)
	}
	if n := b.count(`pgjet.intent where attempts = 1 and stream_seq = 2`); n != 1 || b.count(`pgjet.intent`) != 2 {
		t.Errorf("the intent that was there is there %d times, want once, and one more", n)
	}
	if n := b.count(`pgjet.inbox where (stream_seq, state) in ((1, 'done'), (2, 'intent'), (3, 'intent'))`); n != 3 {
		t.Errorf("%d inbox rows are as they should be, want 3", n)
	}
}

// TestRate: a redrive with a rate is spread over time, and recorded once.
func TestRate(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.die("mailer", "no answer", 1, 30)
	slow := decision
	slow.Rate = 20
	began := time.Now()
	b.does(replay.Redrive, inbox.Filter{}, slow, inbox.Outcome{Consumer: "mailer", Changed: 30})
	if took := time.Since(began); took < 1400*time.Millisecond {
		t.Errorf("30 at 20 a second took %s", took)
	}
	if n := b.count(`pgjet.operation where detail @> '{"changed": 30}' and jsonb_array_length(detail -> 'ids') = 30`); n != 1 {
		t.Errorf("noted %d times, want once", n)
	}

	b.die("crm", "no answer", 1, 30)
	slow.Rate = 1
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	all, err := replay.Redrive(ctx, b.db, inbox.Filter{}, slow)
	if !errors.Is(err, context.DeadlineExceeded) || len(all) != 1 || all[0].Changed != 1 {
		t.Errorf("interrupted: %+v, %v", all, err)
	}
	if n := b.count(`pgjet.dead_letter where consumer = 'crm' and state = 'redriven'`); n != 1 {
		t.Errorf("%d are redriven, want the 1 that was counted", n)
	}
}

// TestLaterOnesStay: events that become dead letters after the redrive began are not redriven.
func TestLaterOnesStay(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.die("mailer", "no answer", 1, 2)
	slow := decision
	slow.Rate = 1
	ended := make(chan error)
	go func() {
		all, err := replay.Redrive(t.Context(), b.db, inbox.Filter{}, slow)
		if err == nil && (len(all) != 1 || all[0].Changed != 2) {
			err = fmt.Errorf("outcome is %+v, want 2", all)
		}
		ended <- err
	}()
	testenv.Eventually(t, patience, "one is redriven", func() bool { return b.count(`pgjet.dead_letter where state = 'redriven'`) == 1 })
	b.die("mailer", "no answer", 9, 1)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if got, want := b.states(inbox.Filter{}), "redriven redriven dead"; got != want {
		t.Errorf("states are %s, want %s", got, want)
	}
}

// TestDiscard: the row stays, with the reason; events that waited behind it go on.
func TestDiscard(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.die("mailer", "no answer", 1, 1) // 1, of k1
	b.die("mailer", "no answer", 5, 1) // 2, of k1
	b.wait("mailer", "k1", 9)
	b.wait("mailer", "k1", 8)
	b.wait("mailer", "k2", 7)
	b.wait("crm", "k1", 6)
	f := inbox.Filter{Consumer: "mailer", Key: "k1"}
	b.does(replay.Discard, inbox.Filter{IDs: []int64{2}}, decision, inbox.Outcome{Consumer: "mailer", Changed: 1})
	if got := b.due("mailer"); len(got) != 0 {
		t.Errorf("%v are due behind an earlier dead letter", got)
	}
	b.does(replay.Discard, f, decision, inbox.Outcome{Consumer: "mailer", Changed: 1})
	if got := b.due("mailer"); !slices.Equal(got, []int64{8}) || len(b.due("crm")) > 0 {
		t.Errorf("%v are due, want the first of the key, 8; of the other consumer %v, want none", got, b.due("crm"))
	}
	for _, l := range b.list(f) {
		if l.State != inbox.Discarded || l.ChangeReason != decision.Reason || l.ChangedBy != decision.By || l.ChangedAt == nil {
			t.Errorf("discarded: %+v", l)
		}
	}
	if n := b.count(`pgjet.inbox where state = 'discarded'`); n != 2 {
		t.Errorf("%d inbox rows are discarded, want 2", n)
	}
	b.does(replay.Redrive, f, decision)
	b.exec(`update pgjet.intent set due_at = 'tomorrow' where stream_seq = 8`)

	b.does(replay.Reopen, f, decision, inbox.Outcome{Consumer: "mailer", Changed: 2})
	if n := b.count(`pgjet.inbox where state = 'dead'`); n != 2 || b.states(f) != "dead dead" {
		t.Errorf("%d inbox rows are dead, want 2; states %s", n, b.states(f))
	}
	b.does(replay.Discard, f, decision, inbox.Outcome{Consumer: "mailer", Changed: 2})
	if got := b.due("mailer"); len(got) != 0 {
		t.Errorf("%v are due: a retry that waits was not meant", got)
	}
	b.does(replay.Reopen, f, decision, inbox.Outcome{Consumer: "mailer", Changed: 2})
	b.does(replay.Redrive, f, decision, inbox.Outcome{Consumer: "mailer", Changed: 2})
	if n := b.count(`pgjet.operation`); n != 6 {
		t.Errorf("%d operations, want 6: those that changed nothing are not noted", n)
	}
	e, err := inbox.ReadLetter(t.Context(), b.db, 1)
	if err != nil || len(e.Operations) != 5 || e.Operations[0].Kind != "dead.discard" || e.Operations[4].Kind != "dead.redrive" {
		t.Errorf("operations are %+v (%v)", e.Operations, err)
	}
}

// TestDoneWakes: an event that was handled meanwhile does not block its key.
func TestDoneWakes(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.die("mailer", "no answer", 1, 1)
	b.wait("mailer", "k1", 9)
	b.exec(`update pgjet.inbox set state = 'done' where stream_seq = 1`)
	b.does(replay.Redrive, inbox.Filter{}, decision, inbox.Outcome{Consumer: "mailer", Done: 1})
	if got := b.due("mailer"); !slices.Equal(got, []int64{9}) {
		t.Errorf("%v are due, want 9", got)
	}
}

// TestWakesWhatIsBeingParked: an event that an attempt is just parking behind the dead letter is
// woken.
func TestWakesWhatIsBeingParked(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		v     verb
		inbox string
	}{
		"behind what is discarded":   {replay.Discard, "dead"},
		"behind what is done by now": {replay.Redrive, "done"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newFixture(t)
			b.exec(`insert into pgjet.consumer (name, stream, stream_created, ordered) values ('mailer', 'EVENTS', now(), true)`)
			b.die("mailer", "no answer", 1, 1)
			b.exec(`update pgjet.inbox set state = $1`, row.inbox)
			b.parkMeanwhile(row.v)
			if got := b.due("mailer"); !slices.Equal(got, []int64{9}) {
				t.Errorf("%v are due, want 9", got)
			}
		})
	}
}

// parkMeanwhile runs a verb on all while an attempt parks event 9 of k1.
func (b *fixture) parkMeanwhile(v verb) {
	b.Helper()
	tx, err := b.admin.Begin(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(b.Context(), `select pg_advisory_xact_lock_shared(hashtextextended('pgjet.consumer.mailer', 0))`); err != nil {
		b.Fatal(err)
	}
	ended := make(chan error)
	go func() {
		_, err := v(b.Context(), b.db, inbox.Filter{}, decision)
		ended <- err
	}()
	testenv.Eventually(b, patience, "it waits for the attempt, or does not", func() bool {
		return b.count(`pg_locks where locktype = 'advisory' and not granted and database = (select oid from pg_database where datname = current_database())`) > 0 ||
			b.count(`pgjet.dead_letter where state <> 'dead'`) > 0
	})
	_, err = tx.Exec(b.Context(), `
		insert into pgjet.intent (consumer, event_id, type, key, stream, generation, stream_seq, subject, header, data, due_at)
		values ('mailer', gen_random_uuid(), 'a.b', 'k1', 'EVENTS', 1, 9, 's', '{}', '{}', 'infinity')`)
	if err == nil {
		err = tx.Commit(b.Context())
	}
	if err := errors.Join(err, <-ended); err != nil {
		b.Fatal(err)
	}
}

func TestGet(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.die("mailer", "no answer", 1, 1)
	b.exec(`insert into pgjet.attempt (consumer, event_id, attempt, began, took, process, outcome, error)
		select consumer, event_id, i, now() + make_interval(secs => i), case when i = 2 then interval '1.5s' end, 'host:1', 'died', 'for ann@example.com'
		  from pgjet.dead_letter, generate_series(1, 2) i`)
	e, err := inbox.ReadLetter(t.Context(), b.db, 1)
	if err != nil {
		t.Fatal(err)
	}
	if string(e.Data) != `{"n": 1, "email": "ann@example.com"}` || e.Bytes != len(e.Data) || e.Header["ce-secret"][0] != "hidden" {
		t.Errorf("the message is %s with %v", e.Data, e.Header)
	}
	if e.Stack != "main.go:7" || e.TraceID != "abc" || e.Process != "host:1" || e.Subject != "events.00.a.b" || e.ErrorGroup != "no answer" {
		t.Errorf("%+v", e)
	}
	if len(e.AttemptLog) != 2 || e.AttemptLog[0].Seconds != nil || *e.AttemptLog[1].Seconds != 1.5 {
		t.Errorf("attempts are %+v", e.AttemptLog)
	}
	e.Mask()
	text, err := json.Marshal(e)
	if err != nil || strings.Contains(string(text), "ann@") || strings.Contains(string(text), "hidden") || !strings.Contains(string(text), "a.b") {
		t.Errorf("masked it is %s (%v)", text, err)
	}
	if _, err := inbox.ReadLetter(t.Context(), b.db, 2); err == nil {
		t.Error("got one that does not exist")
	}
}

func TestExport(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.die("mailer", "no answer", 1, 2)
	b.exec(`update pgjet.dead_letter set data = '\x00ff' where id = 2`)
	var all []inbox.DeadMessage
	err := inbox.Export(t.Context(), b.db, inbox.Filter{}, func(m inbox.DeadMessage) error {
		all = append(all, m)
		return nil
	})
	if err != nil || len(all) != 2 || len(all[0].Data) == 0 || len(all[1].Data) > 0 || string(all[1].DataBase64) != "\x00\xff" {
		t.Errorf("exported %+v (%v)", all, err)
	}
}

func TestMask(t *testing.T) {
	for in, want := range map[string]string{
		`550 <ann@example.com>: no such user`: `550 <…@…>: no such user`,
		`to=ann.lee+x@example.com, again`:     `to=…@…, again`,
		`"ann@example.com" at 3 @ noon`:       `"…@…" at 3 @ noon`,
	} {
		if got := inbox.Mask(in); got != want {
			t.Errorf("Mask(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestProgress(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.die("mailer", "no answer", 1, 5)
	b.exec(`update pgjet.dead_letter set state = (array['redriven', 'done', 'dead', 'discarded'])[id] where id < 5`)
	b.exec(`delete from pgjet.dead_letter where id = 5`)
	p, err := inbox.ReadProgress(t.Context(), b.db, []int64{1, 2, 3, 4, 5})
	if want := (inbox.Progress{Redriven: 1, Done: 2, Dead: 1, Discarded: 1}); err != nil || p != want {
		t.Errorf("progress is %+v (%v), want %+v", p, err, want)
	}
}

// TestGiveBack: an intent is due after exactly the wait that was given, including fractions of a
// second.
func TestGiveBack(t *testing.T) {
	b := newFixture(t)
	b.wait("test", "k", 1)
	b.exec(`update pgjet.intent set taken_by = 'me', attempts = 1`)
	i := &inbox.Intent{}
	if err := b.admin.QueryRow(t.Context(), `select event_id from pgjet.intent`).Scan(&i.ID); err != nil {
		t.Fatal(err)
	}
	const wait = time.Hour + 700*time.Millisecond
	var before, due time.Time
	if err := b.admin.QueryRow(t.Context(), `select clock_timestamp()`).Scan(&before); err != nil {
		t.Fatal(err)
	}
	tenure := inbox.Tenure{Consumer: "test", Session: "me", DB: postgres.DB{Pool: b.admin}}
	if err := tenure.GiveBack(t.Context(), i, wait, false); err != nil {
		t.Fatal(err)
	}
	if err := b.admin.QueryRow(t.Context(), `select due_at from pgjet.intent where attempts = 0 and taken_by is null`).Scan(&due); err != nil {
		t.Fatal(err)
	}
	if got := due.Sub(before); got < wait || got > wait+time.Minute {
		t.Errorf("it is due after %s, want %s", got, wait)
	}
}
