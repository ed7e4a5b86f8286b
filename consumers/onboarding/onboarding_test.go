package onboarding_test

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/consumers/onboarding"
	"github.com/pgjet/pgjet/consumers/saga"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const (
	patience = 40 * time.Second
	canary   = "canary-7f3a"
	parent   = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
)

// A fixture is the user service's database, a stream, the other services, and the onboarding.
type fixture struct {
	*fakes
	db *pgxpool.Pool
	js jetstream.JetStream
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	js, _ := testenv.JetStream(t)
	b := &fixture{newFakes(t), testenv.Postgres(t), js}
	_, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{events.AllSubjects}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// start runs both parts of the onboarding, as db, until the test ends.
func (b *fixture) start(db *pgxpool.Pool) {
	b.Helper()
	b.startWith(db, 0)
}

// startWith is start with a timeout for each attempt; 0 is the default.
func (b *fixture) startWith(db *pgxpool.Pool, timeout time.Duration) {
	b.Helper()
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{}}
	b.Cleanup(client.CloseIdleConnections)
	o := onboarding.New(db, onboarding.Service{Name: "profiles", HTTP: client, URL: b.profiles.URL}, onboarding.Service{Name: "billing", HTTP: client, URL: b.billing.URL + "/"})
	d := o.Saga()
	d.Timeout = cmp.Or(timeout, d.Timeout)
	d.MinRetry, d.MaxRetry, d.MaxAttempts = time.Millisecond, 20*time.Millisecond, 3
	log := testenv.Logger(b)
	c := consumers.Runner{Consumer: o.Consumer(), DB: db, JS: b.js, Log: log}
	s := saga.Runner{Saga: d, DB: db, Log: log}
	testenv.Run(b, c.Run)
	testenv.Run(b, s.Run)
}

// signUp inserts a user as the user service does, and publishes their event that many times.
func (b *fixture) signUp(name string, times int) string {
	b.Helper()
	id := uuid.NewString()
	b.exec(`insert into users.users (id, email, name, password) values ($1, $2, $3, 'x')`, id, name+"-"+id[:8]+"@example.com", name)
	b.publish(events.UserCreated{UserID: id, Email: name + "@example.com", Name: name, CreatedAt: time.Now()}, times)
	return id
}

func (b *fixture) publish(p events.Payload, times int) {
	b.Helper()
	e, err := events.New(p)
	if err != nil {
		b.Fatal(err)
	}
	e.Source, e.Time, e.Traceparent = "/users", time.Now(), parent
	subject, header, body := e.Message()
	for range times {
		if _, err := b.js.PublishMsg(b.Context(), &nats.Msg{Subject: subject, Header: header, Data: body}); err != nil {
			b.Fatal(err)
		}
	}
}

func (b *fixture) exec(sql string, args ...any) {
	b.Helper()
	testenv.Exec(b, b.db, sql, args...)
}

func (b *fixture) text(sql string, args ...any) string {
	b.Helper()
	rows, _ := b.db.Query(b.Context(), sql, args...)
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		b.Fatal(err)
	}
	return strings.Join(all, " ")
}

// ends waits until the saga of a user is in a state.
func (b *fixture) ends(user, state string) {
	b.Helper()
	testenv.Eventually(b, patience, "the saga is "+state, func() bool {
		return b.text(`select state from pgjet.saga where key = $1`, user) == state
	})
}

// handled waits until that many messages are handled.
func (b *fixture) handled(n int) {
	b.Helper()
	testenv.Eventually(b, patience, "all events are handled", func() bool {
		a, err := consumers.ReadAccount(b.Context(), b.db, b.js, "EVENTS", onboarding.Name)
		return err == nil && a.Done == int64(n)
	})
}

// user returns state, reason and version, and the events in the outbox.
func (b *fixture) user(id string) string {
	b.Helper()
	return b.text(`select concat_ws(' ', state, reason, version) from users.users where id = $1`, id) + ": " +
		b.text(`select type from pgjet.outbox where key = $1 order by seq`, id)
}

// TestActive: a user becomes active once, however often the event is delivered; every call has one
// key and the trace of the sign-up; and the saga stores nothing about the person.
func TestActive(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.start(b.db)
	id := b.signUp(canary, 3)
	b.ends(id, saga.Done)
	b.publish(events.UserCreated{UserID: id, Email: "e", Name: "n"}, 1) // another event of the same user
	b.handled(4)
	if got := b.user(id); got != "active 2: user.activated" {
		t.Errorf("the user is %s", got)
	}
	if got := b.calls(id); got != "profiles PUT /profiles/U, billing POST /accounts" || b.keys("") != 2 || len(b.requests) != 2 {
		t.Errorf("calls are %s with %d keys: %v", got, b.keys(""), b.requests)
	}
	for _, r := range b.requests {
		if !strings.Contains(r.Trace, "4bf92f3577b34da6a3ce929d0e0e4736") {
			t.Errorf("%s has the trace %q, want the sign-up's", r.Call, r.Trace)
		}
	}
	if b.names[id] != canary || b.users["acc-1"] != id {
		t.Errorf("profile %q, account of %q", b.names[id], b.users["acc-1"])
	}
	if got := b.text(`select traceparent from pgjet.outbox`); !strings.Contains(got, "4bf92f3577b34da6a3ce929d0e0e4736") {
		t.Errorf("the event's trace is %q", got)
	}
	if got := b.text(`select s::text from pgjet.saga s`); strings.Contains(got, canary) || !strings.Contains(got, "acc-1") {
		t.Errorf("the saga keeps a name, or not the account: %s", got)
	}
}

func TestDeclined(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.set(func(w http.ResponseWriter, r *http.Request) bool { return r.Method == "POST" && declined(w) }, nil)
	b.start(b.db)
	id := b.signUp("Ann", 2)
	b.ends(id, saga.Undone)
	if got := b.user(id); got != "rejected billing_declined 2: user.rejected" {
		t.Errorf("the user is %s", got)
	}
	if got := b.calls(id); got != "profiles PUT /profiles/U, billing POST /accounts, profiles DELETE /profiles/U" {
		t.Errorf("calls are %s", got)
	}
	var e events.UserRejected
	if err := json.Unmarshal([]byte(b.text(`select data::text from pgjet.outbox`)), &e); err != nil {
		t.Fatal(err)
	}
	if e.UserID != id || e.Name != "Ann" || !strings.HasSuffix(e.Email, "@example.com") || e.Reason != "billing_declined" || time.Since(e.RejectedAt) > time.Minute {
		t.Errorf("the event says %+v", e)
	}
}

// TestReminderIsCancelled: a user who is active or rejected gets no reminder.
func TestReminderIsCancelled(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	declines := atomic.Bool{}
	b.set(func(w http.ResponseWriter, r *http.Request) bool {
		return r.Method == "POST" && declines.Load() && declined(w)
	}, nil)
	b.start(b.db)
	for _, state := range []string{saga.Done, saga.Undone} {
		declines.Store(state == saga.Undone)
		id := uuid.NewString()
		b.exec(`insert into pgjet.scheduled (id, due, type, key, data) values ($1, now() + interval '1 hour', 'user.still_pending', $2, '{}'), (gen_random_uuid(), now(), 'other', $2, '{}')`,
			events.ReminderID(uuid.MustParse(id)), id)
		b.exec(`insert into users.users (id, email, name, password) values ($1, $2, 'Ann', 'x')`, id, id+"@example.com")
		b.publish(events.UserCreated{UserID: id, Email: "ann@example.com", Name: "Ann", CreatedAt: time.Now()}, 1)
		b.ends(id, state)
		if got := b.text(`select type from pgjet.scheduled where key = $1`, id); got != "other" {
			t.Errorf("of a user whose saga is %s, %q is scheduled, want what is no reminder", state, got)
		}
	}
}

// TestOutage: during any kind of outage of billing, no attempt counts.
func TestOutage(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	n := 0
	b.set(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != "POST" {
			return false
		}
		b.mu.Lock()
		n++
		now := n
		b.mu.Unlock()
		switch {
		case now > 24:
			return false
		case now%4 == 0:
			panic(http.ErrAbortHandler)
		}
		return status(w, []int{http.StatusServiceUnavailable, http.StatusTooManyRequests, http.StatusBadGateway}[now%3])
	}, nil)
	b.start(b.db)
	id := b.signUp("Ann", 1)
	b.ends(id, saga.Done)
	if got := b.text(`select steps -> 1 ->> 'attempts' from pgjet.saga`); got != "1" {
		t.Errorf("billing took %s attempts, want 1", got)
	}
	if got := b.user(id); got != "active 2: user.activated" {
		t.Errorf("the user is %s", got)
	}
}

// TestHangs: a service that takes longer than the attempt may is an outage, too. No user is
// rejected for it.
func TestHangs(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	var calls atomic.Int32
	b.set(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == "POST" && calls.Add(1) <= 4 { // more than MaxAttempts
			<-r.Context().Done()
		}
		return false
	}, nil)
	b.startWith(b.db, 300*time.Millisecond)
	id := b.signUp("Ann", 1)
	b.ends(id, saga.Done)
	if got := b.user(id); got != "active 2: user.activated" {
		t.Errorf("the user is %s", got)
	}
}

// TestLostAnswers: a call whose answer was lost has one effect, or is undone.
func TestLostAnswers(t *testing.T) {
	t.Parallel()
	for _, refused := range []bool{false, true} {
		t.Run(fmt.Sprint("refused ", refused), func(t *testing.T) {
			t.Parallel()
			b := newFixture(t)
			lost := map[string]int{}
			lose := func(r *http.Request) bool {
				b.mu.Lock()
				defer b.mu.Unlock()
				lost[r.Method+r.URL.Path]++
				return lost[r.Method+r.URL.Path] <= 2
			}
			b.set(func(w http.ResponseWriter, r *http.Request) bool {
				b.mu.Lock()
				again := lost["POST/accounts"] >= 2
				b.mu.Unlock()
				return refused && again && r.Method == "POST" && declined(w)
			}, lose)
			b.start(b.db)
			id := b.signUp("Ann", 1)
			state, profiles, user := saga.Done, 1, "active 2: user.activated"
			if refused {
				state, profiles, user = saga.Undone, 0, "rejected billing_declined 2: user.rejected"
			}
			b.ends(id, state)
			if p, a := b.left(); p != profiles || a != profiles || b.opened != 1 {
				t.Errorf("%d profiles and %d accounts are left of %d, want %d", p, a, b.opened, profiles)
			}
			if got := b.user(id); got != user {
				t.Errorf("the user is %s", got)
			}
			if b.keys("billing POST") != 1 || b.keys("profiles PUT") != 1 {
				t.Errorf("not one key for each step: %v", b.requests)
			}
		})
	}
}

// TestGivenUp: a service fails permanently.
func TestGivenUp(t *testing.T) {
	t.Parallel()
	for path, reason := range map[string]string{"/profiles/": "profile_failed", "/accounts": "billing_failed"} {
		t.Run(reason, func(t *testing.T) {
			t.Parallel()
			b := newFixture(t)
			b.set(func(w http.ResponseWriter, r *http.Request) bool {
				return r.Method != "DELETE" && strings.HasPrefix(r.URL.Path, path) && status(w, http.StatusInternalServerError)
			}, nil)
			b.start(b.db)
			id := b.signUp("Ann", 1)
			b.ends(id, saga.Undone)
			if got := b.user(id); got != "rejected "+reason+" 2: user.rejected" {
				t.Errorf("the user is %s", got)
			}
		})
	}
}

// TestRefusedByTheTable: a value that the table does not accept is no outage.
func TestRefusedByTheTable(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.exec(`create function refuse() returns trigger language plpgsql as $$ begin raise 'no' using errcode = '22P02'; end $$`)
	b.exec(`create trigger refuse before update on users.users for each row when (new.state = 'active') execute function refuse()`)
	b.start(b.db)
	id := b.signUp("Ann", 1)
	b.ends(id, saga.Undone)
	if p, a := b.left(); p+a != 0 {
		t.Errorf("%d profiles and %d accounts are left", p, a)
	}
	if got := b.user(id); !strings.HasPrefix(got, "rejected ") {
		t.Errorf("the user is %s", got)
	}
}

// TestDeletedMeanwhile: whenever the user is deleted, nothing is left, and there is no event.
func TestDeletedMeanwhile(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"PUT", "POST", "declined"} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			b := newFixture(t)
			b.set(func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method == at || r.Method == "POST" && at == "declined" {
					b.exec(`delete from users.users`)
				}
				return r.Method == "POST" && at == "declined" && declined(w)
			}, nil)
			id := b.signUp("Ann", 1)
			b.start(b.db)
			b.ends(id, saga.Undone)
			if p, a := b.left(); p+a != 0 {
				t.Errorf("%d profiles and %d accounts are left", p, a)
			}
			if got := b.text(`select type from pgjet.outbox`); got != "" {
				t.Errorf("there are events: %s", got)
			}
		})
	}
}

// TestDecidedOn: for a user who is active, rejected or gone no saga begins, even if the earlier one
// is forgotten.
func TestDecidedOn(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.start(b.db)
	id := b.signUp("Ann", 1)
	b.ends(id, saga.Done)
	b.exec(`delete from pgjet.saga`)
	for n, change := range []string{`update users.users set name = 'Bob'`, `update users.users set state = 'rejected'`, `delete from users.users`} {
		b.exec(change)
		b.publish(events.UserCreated{UserID: id, Email: "e", Name: "n"}, 1)
		b.handled(2 + n)
	}
	if got := b.text(`select id::text from pgjet.saga`); got != "" {
		t.Errorf("a saga began again: %s", got)
	}
}

// TestDecidedMeanwhile: a decision of another program while the saga runs stays.
func TestDecidedMeanwhile(t *testing.T) {
	t.Parallel()
	for _, state := range []string{"active", "rejected"} {
		for _, declines := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s declines %t", state, declines), func(t *testing.T) {
				t.Parallel()
				b := newFixture(t)
				b.set(func(w http.ResponseWriter, r *http.Request) bool {
					if r.Method != "POST" {
						return false
					}
					b.exec(`update users.users set state = $1, reason = 'by hand'`, state)
					return declines && declined(w)
				}, nil)
				b.start(b.db)
				id := b.signUp("Ann", 1)
				ended := saga.Undone
				if state == "active" && !declines {
					ended = saga.Done
				}
				b.ends(id, ended)
				if got := b.user(id); got != state+" by hand 1: " {
					t.Errorf("the user is %s", got)
				}
			})
		}
	}
}

// TestBadEvent is a dead letter at once.
func TestBadEvent(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.start(b.db)
	b.publish(events.UserCreated{UserID: "17", Email: "e", Name: "n"}, 1)
	testenv.Eventually(t, patience, "it is a dead letter", func() bool {
		return b.text(`select error from pgjet.dead_letter where attempts = 1`) == "user_id is no UUID"
	})
}

// TestLeastRights: the rights in docs/cli.md suffice.
func TestLeastRights(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	role := "onboarding_" + uuid.NewString()[:8]
	b.exec(`create role ` + role + ` login in role pgjet_consumer, pgjet_writer`)
	t.Cleanup(func() {
		if _, err := b.db.Exec(context.Background(), `drop owned by `+role+`; drop role `+role); err != nil {
			t.Error(err)
		}
	})
	b.exec(`grant usage on schema users to ` + role)
	b.exec(`grant select (id, email, name, state, version), update (state, reason, version) on users.users to ` + role)
	config := b.db.Config().Copy()
	config.ConnConfig.User = role
	db, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	b.set(func(w http.ResponseWriter, r *http.Request) bool {
		return r.Method == "POST" && b.text(`select name from users.users where id = $1`, r.Header.Get("X-User")) == "Bob" && declined(w)
	}, nil)
	b.start(db)
	ann, bob := b.signUp("Ann", 1), b.signUp("Bob", 1)
	b.ends(ann, saga.Done)
	b.ends(bob, saga.Undone)
}

// TestManyUsers: 200 at the same time, with services that fail in many ways; then the data of all
// three agree.
func TestManyUsers(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	b := newFixture(t)
	random := rand.New(rand.NewPCG(seed, 3))
	roll := func(n int) int {
		b.mu.Lock()
		defer b.mu.Unlock()
		return random.IntN(n)
	}
	b.set(func(w http.ResponseWriter, r *http.Request) bool {
		user := r.Header.Get("X-User")
		switch {
		case r.Method == "POST" && user[35] < '4': // the same in each attempt
			return declined(w)
		case roll(8) == 0:
			return status(w, http.StatusServiceUnavailable)
		}
		return roll(20) == 0 && status(w, http.StatusInternalServerError)
	}, func(r *http.Request) bool {
		return roll(10) == 0 && (r.Method != "POST" || r.Header.Get("X-User")[35] >= '4')
	})
	b.start(b.db)
	b.start(pool(t, b.db))
	for range 200 {
		b.signUp("Ann", 1+roll(2))
	}
	testenv.Eventually(t, 2*time.Minute, "all are decided on", func() bool {
		return b.text(`select count(*)::text from pgjet.saga where ended_at is not null`) == "200"
	})
	if got := b.text(`select u.id::text from users.users u where state = 'pending' or 1 <> (select count(*) from pgjet.outbox
		where key = u.id::text and type = case u.state when 'active' then 'user.activated' else 'user.rejected' end)
		or 1 <> (select count(*) from pgjet.outbox where key = u.id::text)`); got != "" {
		t.Errorf("users without one event of their state: %s", got)
	}
	active := b.text(`select count(*)::text from users.users where state = 'active'`)
	if p, a := b.left(); fmt.Sprint(p) != active || fmt.Sprint(a) != active {
		t.Errorf("%d profiles and %d accounts of %s active users", p, a, active)
	}
	for account, user := range b.users {
		if b.text(`select state from users.users where id = $1`, user) != "active" || b.names[user] == "" {
			t.Errorf("account %s is of a user who is not active or has no profile", account)
		}
	}
	t.Logf("%s users are active", active)
}

func pool(t testing.TB, db *pgxpool.Pool) *pgxpool.Pool {
	t.Helper()
	own, err := pgxpool.NewWithConfig(context.Background(), db.Config())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(own.Close)
	return own
}
