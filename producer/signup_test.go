package producer_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/alexedwards/argon2id"
	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/producer"
)

// A record is a row of the outbox, with the transaction that inserted it.
type record struct {
	Type, Key   string
	Traceparent *string
	Header      *string
	Data        []byte
	Xid         string
}

func outboxRecords(t *testing.T, db *pgxpool.Pool) []record {
	t.Helper()
	rows, err := db.Query(t.Context(), `
		select type, key, traceparent, header::text, data::text::bytea as data, xid::text from pgjet.outbox order by seq`)
	if err != nil {
		t.Fatal(err)
	}
	records, err := pgx.CollectRows(rows, pgx.RowToStructByName[record])
	if err != nil {
		t.Fatal(err)
	}
	return records
}

func TestSignUp(t *testing.T) {
	db := testenv.Postgres(t)
	srv := serve(t, db)

	a := post(t, srv, signUp("Ann.Example@EXAMPLE.com", " Ann ", password))
	if a.StatusCode != http.StatusCreated {
		t.Fatalf("status = %d, want 201: %s", a.StatusCode, a.body)
	}
	u := a.user(t)
	if u.Email != "Ann.Example@example.com" || u.Name != "Ann" || u.ID.Version() != 7 || u.State != "pending" {
		t.Errorf("user = %+v, want a UUIDv7, pending, the domain in lower case, the name trimmed", u)
	}
	if age := time.Since(u.CreatedAt); age < -time.Minute || age > time.Minute {
		t.Errorf("created_at = %v, want now", u.CreatedAt)
	}
	if got, want := a.Header.Get("Location"), "/users/"+u.ID.String(); got != want {
		t.Errorf("Location = %q, want %q", got, want)
	}
	if got := a.Header.Get("ETag"); got != `"1"` {
		t.Errorf("ETag = %s, want \"1\"", got)
	}
	if got := a.Header.Get("Content-Type"); got != "application/json" {
		t.Errorf("Content-Type = %q, want application/json", got)
	}
	var fields map[string]any
	if err := json.Unmarshal(a.body, &fields); err != nil || len(fields) != 5 {
		t.Errorf("body = %s, want id, email, name, state and created_at only", a.body)
	}

	got := get(t, srv, a.Header.Get("Location"))
	if got.StatusCode != http.StatusOK {
		t.Fatalf("GET %s = %d, want 200", a.Header.Get("Location"), got.StatusCode)
	}
	if diff := cmp.Diff(u, got.user(t)); diff != "" {
		t.Errorf("GET returns another user (-created +got):\n%s", diff)
	}
	for name, want := range map[string]string{"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"} {
		if got := got.Header.Get(name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
}

func TestSignUpAppendsAnEventInItsTransaction(t *testing.T) {
	db := testenv.Postgres(t)
	srv := serve(t, db)
	u := post(t, srv, signUp("ann@example.com", "Ann", password)).user(t)

	records := outboxRecords(t, db)
	if len(records) != 1 {
		t.Fatalf("the outbox has %d records, want 1", len(records))
	}
	r := records[0]
	e, err := events.Decode[events.UserCreated](events.Event{Type: r.Type, Key: r.Key, Data: r.Data})
	if err != nil {
		t.Fatal(err)
	}
	want := events.UserCreated{UserID: u.ID.String(), Email: u.Email, Name: u.Name, CreatedAt: u.CreatedAt}
	if diff := cmp.Diff(want, e); diff != "" {
		t.Errorf("payload (-want +got):\n%s", diff)
	}
	if r.Key != u.ID.String() {
		t.Errorf("key = %q, want the user's id %s", r.Key, u.ID)
	}
	if strings.Contains(string(r.Data), password) || strings.Contains(string(r.Data), "argon2") {
		t.Errorf("the payload holds the password: %s", r.Data)
	}
	var xmin string
	if err := db.QueryRow(t.Context(), `select xmin::text from users.users`).Scan(&xmin); err != nil {
		t.Fatal(err)
	}
	if xmin != r.Xid {
		t.Errorf("the user was stored in transaction %s, the event in %s, want one", xmin, r.Xid)
	}
}

func TestPasswordIsHashed(t *testing.T) {
	db := testenv.Postgres(t)
	srv := serve(t, db)
	decomposed, composed := "cre\u0300me bru\u0302le\u0301e", "cr\u00e8me br\u00fbl\u00e9e"
	if a := post(t, srv, signUp("ann@example.com", "Ann", decomposed)); a.StatusCode != 201 {
		t.Fatalf("status = %d, want 201: %s", a.StatusCode, a.body)
	}
	var hash string
	if err := db.QueryRow(t.Context(), `select password from users.users`).Scan(&hash); err != nil {
		t.Fatal(err)
	}
	if want := "$argon2id$v=19$m=19456,t=2,p=1$"; !strings.HasPrefix(hash, want) {
		t.Errorf("hash = %q, want it to begin with %q", hash, want)
	}
	match, params, err := argon2id.CheckHash(composed, hash)
	if err != nil || !match {
		t.Errorf("the composed form of the password does not match (%v)", err)
	}
	if params.SaltLength != 16 || params.KeyLength != 32 {
		t.Errorf("salt and key have %d and %d bytes, want 16 and 32", params.SaltLength, params.KeyLength)
	}
}

// TestNoEventNoUser removes the outbox: then no one can sign up.
func TestNoEventNoUser(t *testing.T) {
	db := testenv.Postgres(t)
	srv := serve(t, db)
	if _, err := db.Exec(t.Context(), `alter table pgjet.outbox rename to gone`); err != nil {
		t.Fatal(err)
	}
	p := wantProblem(t, post(t, srv, signUp("ann@example.com", "Ann", password)), 500, "internal")
	if strings.Contains(p.Detail, "outbox") {
		t.Errorf("detail = %q shows internals", p.Detail)
	}
	if n := count(t, db, "users.users"); n != 0 {
		t.Errorf("%d users without an event", n)
	}
	if _, err := db.Exec(t.Context(), `alter table pgjet.gone rename to outbox`); err != nil {
		t.Fatal(err)
	}
	if a := post(t, srv, signUp("ann@example.com", "Ann", password)); a.StatusCode != 201 {
		t.Errorf("with the outbox back, status = %d, want 201: %s", a.StatusCode, a.body)
	}
}

// TestOneAccountForAnAddress has two hundred people sign up with one address at once,
// each with other letters in upper case.
func TestOneAccountForAnAddress(t *testing.T) {
	producer.CheapHash(t) // what follows the hash is what two hundred do at once
	db := testenv.Postgres(t)
	srv := quiet(t, db) // logs each request without a turn to hash
	codes, _ := together(t, 200, func(i int) answer {
		body := signUp(cased("annabel@example.com", i), "Ann", password)
		a := post(t, srv, body)
		for a.StatusCode == http.StatusServiceUnavailable { // no turn to hash
			a = post(t, srv, body)
		}
		if a.StatusCode == http.StatusConflict {
			if p := a.problem(t); len(p.Errors) != 1 || p.Errors[0].Field != "email" {
				t.Errorf("errors = %+v, want one for email", p.Errors)
			}
		}
		return a
	})
	if diff := cmp.Diff(map[string]int{"201": 1, "409 email_taken": 199}, codes); diff != "" {
		t.Errorf("answers (-want +got):\n%s", diff)
	}
	wantStored(t, db, 1, 1, 0)
}

// cased returns s with those of its letters in upper case whose bit is set in n.
func cased(s string, n int) string {
	b := []byte(s)
	for i := range b {
		if n>>i&1 == 1 {
			b[i] = bytes.ToUpper(b[i : i+1])[0]
		}
	}
	return string(b)
}
