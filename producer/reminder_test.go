package producer_test

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/producer"
)

// TestReminder: a sign-up schedules the event that the user is still pending, once, and their deletion cancels it.
func TestReminder(t *testing.T) {
	db := testenv.Postgres(t)
	srv := serve(t, db)
	body := signUp("ann@example.com", "Ann", password)
	u := call(t, srv, "POST", "/users", body, "", "Idempotency-Key", "first").user(t)
	call(t, srv, "POST", "/users", body, "", "Idempotency-Key", "first")
	if a := post(t, srv, signUp("ann@example.com", "Ann", password)); a.StatusCode != 409 {
		t.Errorf("the second sign-up is answered with %d", a.StatusCode)
	}
	var (
		id        uuid.UUID
		kind, key string
		due       time.Time
		data      []byte
	)
	if err := db.QueryRow(t.Context(), `select id, type, key, due, data::text::bytea from pgjet.scheduled`).Scan(&id, &kind, &key, &due, &data); err != nil {
		t.Fatal(err)
	}
	p, err := events.Decode[events.UserStillPending](events.Event{Type: kind, Key: key, Data: data})
	if err != nil || id != events.ReminderID(u.ID) || key != u.ID.String() || !due.Equal(u.CreatedAt.Add(24*time.Hour)) || p.Email != u.Email || p.UserID != key || !p.CreatedAt.Equal(u.CreatedAt) {
		t.Errorf("scheduled is %s %s of %s for %s, %+v, %v", id, kind, key, due, p, err)
	}
	if n := count(t, db, "pgjet.scheduled"); n != 1 {
		t.Errorf("%d events are scheduled, want 1", n)
	}
	if a := call(t, srv, "DELETE", "/users/"+u.ID.String(), "", admin(t, srv)); a.StatusCode != 204 {
		t.Fatalf("DELETE = %d", a.StatusCode)
	}
	if n := count(t, db, "pgjet.scheduled"); n != 0 {
		t.Errorf("%d events are scheduled for a deleted user", n)
	}
}

// TestNoReminder: remind_after says when the event is due, and 0 that there is none.
func TestNoReminder(t *testing.T) {
	db := testenv.Postgres(t)
	tuning := producer.DefaultTuning()
	tuning.RemindAfter = 0
	api, srv := serveTuned(t, db, tuning, testenv.Logger(t))
	if a := post(t, srv, signUp("ann@example.com", "Ann", password)); a.StatusCode != 201 {
		t.Fatalf("status = %d", a.StatusCode)
	}
	if n := count(t, db, "pgjet.scheduled"); n != 0 {
		t.Errorf("%d events are scheduled, want none", n)
	}
	tuning.RemindAfter = time.Minute
	api.Tune(tuning)
	u := post(t, srv, signUp("bob@example.com", "Bob", password)).user(t)
	var due time.Time
	if err := db.QueryRow(t.Context(), `select due from pgjet.scheduled`).Scan(&due); err != nil || !due.Equal(u.CreatedAt.Add(time.Minute)) {
		t.Errorf("the reminder is due at %s, %v; want a minute after %s", due, err, u.CreatedAt)
	}
}
