package consumers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/testenv"
)

// TestModelIsTheInbox makes the same calls, drawn from a seed, to the inbox on PostgreSQL and to
// the simulation's model of it. Both give the same answers, and have the same rows. It makes one
// call after the other, also within transactions.
func TestModelIsTheInbox(t *testing.T) {
	for n := range 6 {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			seed, err := strconv.ParseUint(os.Getenv("PGJET_SEED"), 10, 64)
			if err != nil {
				seed = rand.Uint64() >> 20
			}
			t.Logf("seed %d", seed)
			newConformity(t, seed).run(250)
		})
	}
}

// A conformity compares the model with the inbox.
type conformity struct {
	testing.TB
	r        *rand.Rand
	db       *pgxpool.Pool
	w        *simWorld
	all      []*inbox.Message
	sessions []*simPair
	created  time.Time
	names    int
	calls    []string
}

// A simPair is a session of the inbox, and one of the model.
type simPair struct {
	real    *connection
	model   *simConnection
	tenures map[int]*simTenures // of slices
	is      inbox.Registered

	version, mirror inbox.Version
}

type simTenures struct {
	real, model    sliceInbox
	tenure, mirror *inbox.Tenure
}

func newConformity(t *testing.T, seed uint64) *conformity {
	w := newSimWorld(seed, "")
	w.instant, w.calm, w.c.Unordered = true, true, false
	return &conformity{TB: t, r: rand.New(rand.NewPCG(seed, 2)), db: testenv.Postgres(t), w: w, created: time.Unix(1000, 0)}
}

// same fails unless both answers are equal.
func (c *conformity) same(what string, model, real any, modelErr, realErr error) {
	c.Helper()
	say := func(answer any, err error) string {
		switch {
		case errors.Is(err, inbox.ErrSuperseded), errors.Is(err, inbox.ErrTaken), errors.Is(err, errUndone):
			return err.Error()
		case err != nil:
			return "an error"
		}
		return fmt.Sprintf("%v", answer)
	}
	m, r := say(model, modelErr), say(real, realErr)
	c.calls = append(c.calls, what+": "+r)
	if m != r {
		c.fail("%s: the model says %s (%v), and PostgreSQL %s (%v)", what, m, modelErr, r, realErr)
	}
}

func (c *conformity) fail(format string, args ...any) {
	c.Helper()
	c.Fatalf("%s\nafter\n%s", fmt.Sprintf(format, args...), strings.Join(c.calls[max(0, len(c.calls)-25):], "\n"))
}

func (c *conformity) run(steps int) {
	for _, key := range []string{"k1", "k2", "k3", "k4"} {
		for range 8 {
			c.all = append(c.all, &inbox.Message{ID: uuid.Must(uuid.NewV7()), Stream: "EVENTS", Subject: events.Subject("a.b", key), Type: "a.b", Key: key, Header: map[string][]string{}, Data: []byte(`{}`)})
		}
	}
	c.r.Shuffle(len(c.all), func(i, j int) { c.all[i], c.all[j] = c.all[j], c.all[i] })
	for n, m := range c.all {
		m.Seq = uint64(n + 1)
	}
	c.begin()
	c.begin()
	for range steps {
		c.step()
		c.compare()
	}
}

// begin begins a session, and registers the consumer.
func (c *conformity) begin() {
	c.names++
	name := fmt.Sprint("s", c.names)
	consumer, err := c.w.c.withDefaults()
	if err != nil {
		c.Fatal(err)
	}
	consumer.Name = "sim"
	r := &run{Runner: &Runner{DB: c.db}, Consumer: consumer, db: postgres.DB{Pool: c.db}, stream: "EVENTS", log: slog.New(slog.DiscardHandler), process: name}
	p := &simPair{real: &connection{run: r, session: name}, tenures: make(map[int]*simTenures)}
	p.model = &simConnection{p: &process{w: c.w, name: name, run: r, took: make(map[uuid.UUID]int)}, d: c.w.db, session: name, closed: true}
	var err2 error
	p.version, err = p.real.Open(c.Context())
	if p.mirror, err2 = p.model.Open(c.Context()); err != nil || err2 != nil {
		c.Fatal(err, err2)
	}
	c.Cleanup(p.real.Close)
	c.sessions = append(c.sessions, p)
	c.register(p)
}

func (c *conformity) register(p *simPair) {
	r := inbox.Registration{Consumer: "sim", Stream: "EVENTS", Created: c.created, Ordered: true}
	mirror, err := p.model.ReadMark(c.Context())
	mark, err2 := p.real.ReadMark(c.Context())
	c.same("mark", fmt.Sprint(mirror.Generation, mirror.Seq), fmt.Sprint(mark.Generation, mark.Seq), err, err2)
	if c.r.IntN(4) == 0 {
		r.Past = mark.Generation - int32(c.r.IntN(2))
	}
	model, err := p.model.Register(c.Context(), r)
	is, err2 := p.real.Register(c.Context(), r)
	if c.same("register", model, is, err, err2); err2 == nil {
		p.is = is
	}
	if p.is.Rebuild && c.r.IntN(3) > 0 {
		nothing := func(context.Context, pgx.Tx) error { return nil }
		c.same("rebuild", "", "", p.model.Rebuild(c.Context(), nothing), p.real.Rebuild(c.Context(), nothing))
	}
}

// die ends a session as if its process had died.
func (c *conformity) die(n int) {
	p := c.sessions[n]
	c.sessions = slices.Delete(c.sessions, n, n+1)
	p.real.Close()
	p.model.Close()
	testenv.Eventually(c, 10*time.Second, "its lock is free", func() (free bool) {
		err := c.db.QueryRow(c.Context(), `select pg_try_advisory_xact_lock_shared(hashtextextended('pgjet.process.' || $1, 0))`, p.real.session).Scan(&free)
		return err == nil && free
	})
	c.calls = append(c.calls, "session "+p.real.session+" dies")
	c.begin()
}

func (c *conformity) own(p *simPair, slice int) {
	t := &simTenures{}
	make := func(r func(*inbox.Tenure) sliceInbox, v inbox.Version) (*inbox.Tenure, sliceInbox) {
		tenure := &inbox.Tenure{Consumer: "sim", Ordered: true, ParkKey: c.w.c.ParkKey, Slice: inbox.Slice{Number: slice, Of: p.is.Slices}, Version: v,
			Generation: p.is.Generation, Session: p.real.session, Process: p.real.session, DB: p.real.db, Timeout: c.w.c.Timeout}
		return tenure, r(tenure)
	}
	t.tenure, t.real = make(p.real.Inbox, p.version)
	t.mirror, t.model = make(p.model.Inbox, p.mirror)
	model, err := t.model.Own(c.Context())
	real, err2 := t.real.Own(c.Context())
	model.Stored, real.Stored = model.Stored.UTC(), real.Stored.UTC()
	if c.same(fmt.Sprintf("%s owns %d", p.real.session, slice), model, real, err, err2); err2 == nil {
		t.tenure.Epoch, t.mirror.Epoch = real.Epoch, model.Epoch
		p.tenures[slice] = t
	}
}

// some returns a few events of the slice of a tenure, in the order of the stream.
func (c *conformity) some(t *simTenures) (all []*inbox.Message) {
	from, to := t.tenure.Slice.Tokens()
	for _, m := range c.all {
		if token := events.Partition(m.Subject); token >= from && token < to && c.r.IntN(5) == 0 {
			one := *m
			one.Generation = t.tenure.Generation
			all = append(all, &one)
		}
	}
	return all
}

// taken returns the intents that the session has according to the inbox.
func (c *conformity) taken(t *simTenures) (all []*inbox.Intent) {
	for _, i := range c.w.db.sorted(func(i *simIntent) bool { return i.taken == t.tenure.Session }) {
		all = append(all, i.out())
	}
	return all
}

// errUndone rolls a transaction back.
var errUndone = errors.New("undone")

func (c *conformity) step() {
	n := c.r.IntN(len(c.sessions))
	p := c.sessions[n]
	slice := c.r.IntN(max(1, p.is.Slices))
	t := p.tenures[slice]
	switch {
	case c.r.IntN(30) == 0:
		c.die(n)
		return
	case c.r.IntN(20) == 0:
		c.operate(p)
		return
	case t == nil || c.r.IntN(20) == 0:
		c.own(p, slice)
		return
	case c.r.IntN(2) == 0:
		c.attempt(t)
		return
	}
	c.ask(p, t)
}

func both[T any](c *conformity, what string, t *simTenures, ask func(r sliceInbox) (T, error)) {
	c.Helper()
	model, err := ask(t.model)
	real, err2 := ask(t.real)
	c.same(fmt.Sprintf("%s %s", t.tenure.Session, what), model, real, err, err2)
}

func nothing(err error) (string, error) { return "", err }

// ask makes a call outside of transactions.
func (c *conformity) ask(p *simPair, t *simTenures) {
	ctx, key := c.Context(), fmt.Sprint("k", 1+c.r.IntN(4))
	taken := func(all []*inbox.Intent, err error) (string, error) {
		var ids []string
		for _, i := range all {
			ids = append(ids, fmt.Sprintf("%s %d %d", c.name(i.ID), i.Attempts, i.Deaths))
		}
		slices.Sort(ids)
		return fmt.Sprint(ids), err
	}
	switch c.r.IntN(13) {
	case 0:
		both(c, "wakes", t, func(r sliceInbox) (string, error) { return nothing(r.Wake(ctx)) })
	case 1:
		both(c, "holds", t, func(r sliceInbox) (string, error) {
			keys, err := r.Held(ctx)
			slices.Sort(keys)
			return fmt.Sprint(keys), err
		})
	case 2:
		both(c, "asks for "+key, t, func(r sliceInbox) (bool, error) { return r.Holds(ctx, key) })
	case 3:
		all := c.some(t)
		both(c, "knows", t, func(r sliceInbox) (map[uuid.UUID]uint64, error) { return r.Known(ctx, all) })
	case 4, 5, 6:
		want := inbox.TakeFilter{Most: 100, Dead: c.r.IntN(2) == 0} // the choice among many depends on the clock
		want.Suspect = c.r.IntN(2) == 0 && c.suspects(t) < 2
		both(c, fmt.Sprintf("takes %+v", want), t, func(r sliceInbox) (string, error) { return taken(r.Take(ctx, want)) })
	case 7:
		most := 1 + c.r.IntN(4)
		both(c, fmt.Sprintf("takes the next %d of %s", most, key), t, func(r sliceInbox) (string, error) { return taken(r.TakeNext(ctx, []string{key}, most)) })
	case 8:
		if all := c.taken(t); len(all) > 0 {
			i, wait, counts := all[c.r.IntN(len(all))], c.wait(), c.r.IntN(2) == 0
			both(c, fmt.Sprintf("gives %s back for %s %t", c.name(i.ID), wait, counts), t, func(r sliceInbox) (string, error) { return nothing(r.GiveBack(ctx, i, wait, counts)) })
		}
	case 9:
		floor, high := uint64(c.r.IntN(30)), uint64(c.r.IntN(30))
		both(c, fmt.Sprintf("saves %d %d", floor, high), t, func(r sliceInbox) (string, error) {
			return nothing(r.Save(ctx, floor, high, time.Unix(int64(high), 0)))
		})
	case 10:
		until := uint64(c.r.IntN(30))
		both(c, fmt.Sprintf("lost until %d", until), t, func(r sliceInbox) (string, error) {
			return nothing(errors.Join(r.Lost(ctx, until), r.Redelivered(ctx)))
		})
	case 11:
		floor := uint64(c.r.IntN(30))
		both(c, fmt.Sprintf("knew last below %d", floor), t, func(r sliceInbox) (string, error) {
			id, seq, err := r.LastKnown(ctx, floor)
			if seq == 0 {
				id = uuid.Nil
			}
			return fmt.Sprint(id, seq), err
		})
	case 12:
		both(c, "leaves", t, func(r sliceInbox) (string, error) { return nothing(r.Leave(ctx)) })
		delete(p.tenures, t.tenure.Slice.Number)
	}
}

// suspects returns the number of intents at which a process died, or that another session has.
func (c *conformity) suspects(t *simTenures) int {
	return len(c.w.db.sorted(func(i *simIntent) bool { return i.deaths > 0 || i.taken != "" && i.taken != t.tenure.Session }))
}

func (c *conformity) wait() time.Duration { return time.Duration(c.r.IntN(2)) * time.Hour }

// attempt makes calls in a transaction, which may commit.
func (c *conformity) attempt(t *simTenures) {
	ctx, all := c.Context(), c.some(t)
	undo := error(nil)
	if c.r.IntN(4) == 0 {
		undo = errUndone
	}
	end := inbox.Ending{Attempt: 1, Began: time.Now(), Outcome: inbox.Retried, Error: "e"}
	var one *inbox.Intent
	if taken := c.taken(t); len(taken) > 0 {
		one = taken[c.r.IntN(len(taken))]
		if end.Attempt = one.Attempts; c.r.IntN(6) == 0 {
			one.Attempts++
		}
	}
	within := func(what string, fn func(r sliceInbox, tx pgx.Tx) (string, error)) {
		both(c, fmt.Sprintf("%s (%v)", what, undo), t, func(r sliceInbox) (answer string, err error) {
			err = r.Check(ctx, func(tx pgx.Tx) (err error) {
				answer, err = fn(r, tx)
				return cmp.Or(err, undo)
			})
			return answer, err
		})
	}
	switch k := c.r.IntN(8); {
	case k < 2 && len(all) > 0:
		some := c.r.IntN(len(all) + 1)
		both(c, fmt.Sprintf("claims %s but the first %d (%v)", c.names2(all), some, undo), t, func(r sliceInbox) (answer string, err error) {
			err = r.Claim(ctx, all, func(tx pgx.Tx, fresh []bool) error {
				answer = fmt.Sprint(fresh)
				var back []*inbox.Message
				for n, m := range all[:some] {
					if fresh[n] {
						back = append(back, m)
					}
				}
				return cmp.Or(r.Unclaim(ctx, tx, back), undo)
			})
			return answer, err
		})
	case k < 4 && len(all) > 0:
		f := inbox.NewIntent{Wait: c.wait(), Attempts: c.r.IntN(2), Taken: c.r.IntN(3) == 0}
		if f.Taken {
			f.Attempts = 1
		}
		within(fmt.Sprintf("intends %s %+v", c.names2(all), f), func(r sliceInbox, tx pgx.Tx) (string, error) {
			fresh, err := r.Intend(ctx, tx, all, f)
			return fmt.Sprint(fresh), err
		})
	case k == 4 && len(all) > 0:
		within("buries "+c.names2(all[:1]), func(r sliceInbox, tx pgx.Tx) (string, error) {
			fresh, err := r.Bury(ctx, tx, inbox.Burial{Message: all[0], Ending: end})
			return fmt.Sprint(fresh), err
		})
	case k == 5 && one != nil:
		within(fmt.Sprintf("buries the intent %s %d", c.name(one.ID), one.Attempts), func(r sliceInbox, tx pgx.Tx) (string, error) {
			end.Attempt = one.Attempts
			fresh, err := r.Bury(ctx, tx, inbox.Burial{Message: &one.Message, Taken: true, Ending: end})
			return fmt.Sprint(fresh), err
		})
	case k == 6 && one != nil:
		wait := c.wait()
		within(fmt.Sprintf("%s %d again after %s", c.name(one.ID), one.Attempts, wait), func(r sliceInbox, tx pgx.Tx) (string, error) {
			return nothing(r.Again(ctx, tx, one, wait, end))
		})
	case one != nil:
		within(fmt.Sprintf("finishes %s %d", c.name(one.ID), one.Attempts), func(r sliceInbox, tx pgx.Tx) (string, error) {
			return nothing(r.Finish(ctx, tx, []*inbox.Intent{one}, time.Now(), time.Second))
		})
	}
}

func (c *conformity) name(id uuid.UUID) string {
	for _, m := range c.all {
		if m.ID == id {
			return fmt.Sprintf("%s:%d", m.Key, m.Seq)
		}
	}
	return "?"
}

func (c *conformity) names2(all []*inbox.Message) string {
	var names []string
	for _, m := range all {
		names = append(names, c.name(m.ID))
	}
	return fmt.Sprint(names)
}

// operate acts as an operator, and changes the stream.
func (c *conformity) operate(p *simPair) {
	ctx, w := c.Context(), c.w
	alone := func(what string, model func() error, real func(tx pgx.Tx) error) {
		c.Helper()
		w.mu.Lock()
		err := model()
		w.mu.Unlock()
		c.same(what, "", "", err, pgx.BeginFunc(ctx, c.db, real))
	}
	switch c.r.IntN(8) {
	case 0, 1:
		change, to := inbox.Redrive, "intent"
		if c.r.IntN(3) == 0 {
			change, to = inbox.Discard, inbox.Discarded
		}
		w.mu.Lock()
		ids := w.dead()
		err := w.db.redrive(ctx, w.operator, ids, to)
		w.mu.Unlock()
		var err2 error
		if len(ids) > 0 {
			run := inbox.Run{Change: change, Filter: inbox.Filter{EventIDs: ids}, By: "test", Reason: "test"}
			_, _, err2 = run.Next(ctx, c.db, 100)
		}
		c.same(change.Kind, "", "", err, err2)
	case 2, 3:
		var all []*inbox.Message
		for _, m := range c.all {
			if c.r.IntN(4) == 0 {
				one := *m
				one.Generation = w.db.generation
				all = append(all, &one)
			}
		}
		alone("hand over "+c.names2(all), func() error { return w.db.handOver(ctx, w.operator, all) }, func(tx pgx.Tx) error {
			_, err := inbox.HandOver{Consumer: "sim", Ordered: true, Generation: w.db.generation, Again: true, Events: all}.Run(ctx, tx)
			return err
		})
	case 4:
		from := 1 + uint64(c.r.IntN(30))
		all := c.r.IntN(3) == 0
		alone(fmt.Sprintf("forget from %d, all: %t", from, all), func() error {
			if w.db.unplaced() {
				return errors.New("an error")
			}
			w.db.forget(from, all)
			w.db.interrupt()
			return nil
		}, func(tx pgx.Tx) error {
			return errors.Join(inbox.SetBack(ctx, tx, "sim", from, all), inbox.Forget(ctx, tx, "sim", w.db.generation, from, all))
		})
	case 5:
		c.same("redeliver", "", "", p.model.Redeliver(ctx), p.real.Redeliver(ctx))
	case 6:
		c.created = c.created.Add(time.Second)
		c.register(p)
		clear(p.tenures)
	case 7:
		n := 1 << c.r.IntN(3)
		c.same(fmt.Sprintf("divide into %d", n), "", "", p.model.Divide(ctx, n), p.real.Divide(ctx, n))
		for _, p := range c.sessions {
			p.is.Slices = n
			clear(p.tenures)
		}
	}
}

// compare compares the rows.
func (c *conformity) compare() {
	c.Helper()
	var model []string
	add := func(format string, args ...any) { model = append(model, fmt.Sprintf(format, args...)) }
	for n, s := range c.w.db.slices {
		stored := int64(0)
		if !s.stored.IsZero() {
			stored = s.stored.Unix()
		}
		add("slice %d epoch %d floor %d high %d stored %d lost %d redeliver %t owned %t", n, s.epoch, s.floor, s.high, stored, s.lost, s.redeliver, s.owned)
	}
	for id, row := range c.w.db.inbox {
		add("row %s %s attempts %d at %d/%d", id, row.state, row.attempts, row.generation, row.seq)
	}
	for id, i := range c.w.db.intents {
		due := "later"
		switch {
		case i.due.Equal(far):
			due = "never"
		case i.due.Before(time.Now().Add(time.Minute)):
			due = "now"
		}
		add("intent %s attempts %d deaths %d at %d/%d taken by %q due %s", id, i.attempts, i.deaths, i.Generation, i.Seq, i.taken, due)
	}
	for id, l := range c.w.db.letters {
		add("letter %s %s attempts %d at %d/%d", id, l.state, l.attempts, l.Generation, l.Seq)
	}
	rows, err := c.db.Query(c.Context(), `
		select format('slice %s epoch %s floor %s high %s stored %s lost %s redeliver %s owned %s', slice, epoch, floor, high,
			coalesce(extract(epoch from stored)::bigint, 0), lost_until,
			case when redeliver then 'true' else 'false' end, case when process is not null then 'true' else 'false' end) from pgjet.slice
		union all select format('row %s %s attempts %s at %s/%s', event_id, state, attempts, generation, stream_seq) from pgjet.inbox
		union all select format('intent %s attempts %s deaths %s at %s/%s taken by "%s" due %s', event_id, attempts, deaths, generation, stream_seq, coalesce(taken_by, ''),
			case when due_at = 'infinity' then 'never' when due_at < clock_timestamp() + interval '1 minute' then 'now' else 'later' end) from pgjet.intent
		union all select format('letter %s %s attempts %s at %s/%s', event_id, state, attempts, generation, stream_seq) from pgjet.dead_letter`)
	if err != nil {
		c.Fatal(err)
	}
	real, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		c.Fatal(err)
	}
	slices.Sort(model)
	slices.Sort(real)
	if !slices.Equal(model, real) {
		var only []string
		for _, line := range model {
			if !slices.Contains(real, line) {
				only = append(only, "model:      "+line)
			}
		}
		for _, line := range real {
			if !slices.Contains(model, line) {
				only = append(only, "PostgreSQL: "+line)
			}
		}
		for n := range only {
			for _, m := range c.all {
				only[n] = strings.ReplaceAll(only[n], m.ID.String(), c.name(m.ID))
			}
		}
		c.fail("the rows differ:\n%s", strings.Join(only, "\n"))
	}
}
