package producer_test

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/producer"
)

// ann signs Ann up, and returns her, her path and her token.
func ann(t *testing.T, srv *httptest.Server) (u producer.User, path, own string) {
	t.Helper()
	a := post(t, srv, signUp("ann@example.com", "Ann", password))
	if a.StatusCode != 201 {
		t.Fatalf("status = %d, want 201: %s", a.StatusCode, a.body)
	}
	u = a.user(t)
	return u, a.Header.Get("Location"), token(t, u.ID.String())
}

// announced returns the payload of the newest of n events in the outbox.
func announced[T events.Payload](t *testing.T, db *pgxpool.Pool, n int) (T, record) {
	t.Helper()
	records := outboxRecords(t, db)
	if len(records) != n {
		t.Fatalf("the outbox has %d events, want %d", len(records), n)
	}
	r := records[n-1]
	payload, err := events.Decode[T](events.Event{Type: r.Type, Key: r.Key, Data: r.Data})
	if err != nil {
		t.Fatal(err)
	}
	return payload, r
}

// wantRecent fails unless at is about now.
func wantRecent(t *testing.T, at time.Time) {
	t.Helper()
	if age := time.Since(at); age < -time.Minute || age > time.Minute {
		t.Errorf("the event says %v, want now", at)
	}
}

func TestRename(t *testing.T) {
	db := testenv.Postgres(t)
	srv := serve(t, db)
	u, path, own := ann(t, srv)
	a := call(t, srv, "PATCH", path, `{"name":" Annabel "}`, own)
	if a.StatusCode != 200 || a.Header.Get("ETag") != `"2"` {
		t.Fatalf("PATCH = %d, ETag %s, want 200, \"2\": %s", a.StatusCode, a.Header.Get("ETag"), a.body)
	}
	u.Name = "Annabel"
	if diff := cmp.Diff(u, a.user(t)); diff != "" {
		t.Errorf("renamed user (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(u, get(t, srv, path).user(t)); diff != "" {
		t.Errorf("GET afterwards (-want +got):\n%s", diff)
	}
	e, r := announced[events.UserRenamed](t, db, 2)
	wantRecent(t, e.RenamedAt)
	if diff := cmp.Diff(events.UserRenamed{UserID: u.ID.String(), Name: "Annabel", RenamedAt: e.RenamedAt}, e); diff != "" || r.Key != u.ID.String() {
		t.Errorf("event of key %s (-want +got):\n%s", r.Key, diff)
	}
	var xmin string
	if err := db.QueryRow(t.Context(), `select xmin::text from users.users`).Scan(&xmin); err != nil || xmin != r.Xid {
		t.Errorf("the name was changed in transaction %s, the event written in %s, want one (%v)", xmin, r.Xid, err)
	}

	for _, name := range []string{"Annabel", "  Annabel "} { // again
		a := call(t, srv, "PATCH", path, `{"name":"`+name+`"}`, own)
		if a.StatusCode != 200 || a.Header.Get("ETag") != `"2"` || a.user(t).Name != "Annabel" {
			t.Errorf("PATCH without a change = %d, ETag %s, want 200, \"2\": %s", a.StatusCode, a.Header.Get("ETag"), a.body)
		}
	}
	if n := count(t, db, "pgjet.outbox"); n != 2 {
		t.Errorf("%d events after a PATCH without a change, want 2", n)
	}
}

func TestBadRenames(t *testing.T) {
	db := testenv.Postgres(t)
	srv := serve(t, db)
	_, path, own := ann(t, srv)
	var tests []badInput
	for _, tt := range badBodies { // those that concern a sign-up's fields differ
		if tt.fields == "" {
			tests = append(tests, tt)
		}
	}
	tests = append(tests,
		badInput{name: "nothing", body: `{}`, status: 422, code: "name_required", fields: "name"},
		badInput{name: "null", body: `{"name":null}`, status: 422, code: "name_required", fields: "name"},
		badInput{name: "spaces", body: `{"name":"  "}`, status: 422, code: "name_required", fields: "name"},
		badInput{name: "too long", body: `{"name":"` + strings.Repeat("a", 201) + `"}`, status: 422, code: "name_too_long", fields: "name"},
		badInput{name: "line break", body: `{"name":"Ann\nBcc: eve@example.com"}`, status: 422, code: "control_character", fields: "name"},
		badInput{name: "number", body: `{"name":1}`, status: 400, code: "wrong_type", fields: "name"},
		badInput{name: "twice", body: `{"name":"Ann","name":"Bob"}`, status: 400, code: "duplicate_field", fields: "name"},
		badInput{name: "other case", body: `{"Name":"Bob"}`, status: 400, code: "unknown_field", fields: "Name"},
		badInput{name: "patch of operations", body: `[{"op":"replace","path":"/name","value":"Bob"}]`, status: 400, code: "json_object_required"},
	)
	for _, field := range []string{"roles", "email", "password", "state", "version", "id", "reason"} {
		tests = append(tests, badInput{name: field, body: `{"name":"Bob","` + field + `":"admin"}`, status: 400, code: "unknown_field", fields: field})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			req := request(t, "PATCH", srv.URL+path, strings.NewReader(tt.body))
			req.Header.Set("Authorization", "Bearer "+own)
			if tt.contentType != "" {
				req.Header.Set("Content-Type", tt.contentType)
			}
			if tt.contentType == "none" {
				req.Header.Del("Content-Type")
			}
			if tt.encoding != "" {
				req.Header.Set("Content-Encoding", tt.encoding)
			}
			a := do(t, req)
			p := wantProblem(t, a, tt.status, tt.code)
			if tt.fields != "" && (len(p.Errors) != 1 || p.Errors[0].Field != tt.fields) {
				t.Errorf("errors = %+v, want one for %s", p.Errors, tt.fields)
			}
			wantNoEcho(t, a, tt.body)
		})
	}
	if a := get(t, srv, path); a.user(t).Name != "Ann" || a.Header.Get("ETag") != `"1"` || count(t, db, "pgjet.outbox") != 1 {
		t.Errorf("afterwards the user is %s, want unchanged", a.body)
	}
}

func TestIfMatch(t *testing.T) {
	db := testenv.Postgres(t)
	srv := serve(t, db)
	_, path, own := ann(t, srv)
	for i, tt := range []struct {
		match  []string
		status int
	}{
		{[]string{`"2"`}, 412},
		{[]string{`W/"1"`}, 412},
		{[]string{`1`}, 412},
		{[]string{``}, 412},
		{[]string{`"1`}, 412},
		{[]string{`"1" "2"`}, 412},
		{[]string{`"1", *`}, 412},
		{[]string{`"0", "2"`}, 412},
		{[]string{`"1"`}, 200},
		{[]string{`"1", "2"`}, 200},
		{[]string{`"x,y" , W/"z",,"3"`}, 200},
		{[]string{`"0"`, `"4"`}, 200},
		{[]string{`*`}, 200},
		{nil, 200},
	} {
		var header []string
		for _, m := range tt.match {
			header = append(header, "If-Match", m)
		}
		a := call(t, srv, "PATCH", path, fmt.Sprintf(`{"name":"Ann %d"}`, i), own, header...)
		if a.StatusCode != tt.status {
			t.Errorf("If-Match %q: status = %d, want %d: %s", tt.match, a.StatusCode, tt.status, a.body)
		}
		if tt.status == 412 {
			wantProblem(t, a, 412, "changed_meanwhile")
		}
	}
	wantProblem(t, call(t, srv, "DELETE", path, "", admin(t, srv), "If-Match", `"6"`), 412, "changed_meanwhile")
	wantProblem(t, call(t, srv, "DELETE", path, "", admin(t, srv), "If-Match", `W/"7"`), 412, "changed_meanwhile")
	if n := count(t, db, "pgjet.outbox"); n != 7 {
		t.Errorf("%d events, want 7: one sign-up and six changes", n)
	}
	if a := call(t, srv, "DELETE", path, "", admin(t, srv), "If-Match", `"7"`); a.StatusCode != 204 {
		t.Errorf("DELETE of the version that there is = %d, want 204: %s", a.StatusCode, a.body)
	}
	wantProblem(t, call(t, srv, "DELETE", path, "", admin(t, srv), "If-Match", `*`), 404, "user_not_found")
}

func TestIfNoneMatch(t *testing.T) {
	srv := serve(t, testenv.Postgres(t))
	_, path, own := ann(t, srv)
	for _, tt := range []struct {
		match  []string
		status int
	}{
		{[]string{`"1"`}, 304}, {[]string{`W/"1"`}, 304}, {[]string{`*`}, 304}, {[]string{`"7", W/"1"`}, 304}, {[]string{`"7"`, `"1"`}, 304},
		{[]string{`"2"`}, 200}, {[]string{`1`}, 200}, {[]string{``}, 200}, {[]string{`"1`}, 200}, {nil, 200},
	} {
		var header []string
		for _, m := range tt.match {
			header = append(header, "If-None-Match", m)
		}
		a := call(t, srv, "GET", path, "", own, header...)
		if a.StatusCode != tt.status || a.Header.Get("ETag") != `"1"` || (len(a.body) == 0) != (tt.status == 304) {
			t.Errorf("If-None-Match %q: %d, ETag %s, body %q, want %d", tt.match, a.StatusCode, a.Header.Get("ETag"), a.body, tt.status)
		}
	}
}

// No answer shows whether another user's id exists.
func TestOthersDoNotExist(t *testing.T) {
	srv := serve(t, testenv.Postgres(t))
	u, path, _ := ann(t, srv)
	nobody := "/users/" + uuid.Must(uuid.NewV7()).String()
	other := token(t, uuid.NewString())
	for _, method := range []string{"GET", "PATCH"} {
		body := map[string]string{"PATCH": `{"name":"Eve"}`}[method]
		a, b := call(t, srv, method, path, body, other), call(t, srv, method, nobody, body, other)
		wantProblem(t, a, 404, "user_not_found")
		if string(a.body) != string(b.body) {
			t.Errorf("%s: somebody else %s, nobody %s, want the same", method, a.body, b.body)
		}
		wantProblem(t, call(t, srv, method, path, body, ""), 401, "token_invalid")
	}
	for _, tok := range []string{other, token(t, u.ID.String())} {
		wantProblem(t, call(t, srv, "DELETE", path, "", tok), 403, "forbidden")
		wantProblem(t, call(t, srv, "DELETE", nobody, "", tok), 403, "forbidden")
	}
	if a := call(t, srv, "PATCH", path, `{"name":"Anna"}`, admin(t, srv)); a.StatusCode != 200 {
		t.Errorf("PATCH by an admin = %d, want 200: %s", a.StatusCode, a.body)
	}
}

func TestDelete(t *testing.T) {
	db := testenv.Postgres(t)
	srv := serve(t, db)
	body := signUp("ann@example.com", "Ann", password)
	a := call(t, srv, "POST", "/users", body, "", "Idempotency-Key", "first")
	u, path := a.user(t), a.Header.Get("Location")
	if a := call(t, srv, "DELETE", path, "", admin(t, srv)); a.StatusCode != 204 || len(a.body) != 0 {
		t.Fatalf("DELETE = %d %s, want 204", a.StatusCode, a.body)
	}
	e, r := announced[events.UserDeleted](t, db, 2)
	wantRecent(t, e.DeletedAt)
	if e.UserID != u.ID.String() || r.Key != u.ID.String() {
		t.Errorf("event of key %s: %+v, want of user %s", r.Key, e, u.ID)
	}
	if n, m := count(t, db, "users.users"), count(t, db, "users.idempotency"); n != 0 || m != 0 {
		t.Errorf("%d users and %d kept answers are left, want none", n, m)
	}
	wantProblem(t, get(t, srv, path), 404, "user_not_found")
	wantProblem(t, call(t, srv, "PATCH", path, `{"name":"Bob"}`, admin(t, srv)), 404, "user_not_found")
	wantProblem(t, call(t, srv, "DELETE", path, "", admin(t, srv)), 404, "user_not_found")
	if n := count(t, db, "pgjet.outbox"); n != 2 {
		t.Errorf("%d events, want 2", n)
	}
	again := call(t, srv, "POST", "/users", body, "", "Idempotency-Key", "first")
	if again.StatusCode != 201 || again.user(t).ID == u.ID || again.Header.Get("Idempotent-Replayed") != "" {
		t.Errorf("signing up again = %d %s, want 201 and another user", again.StatusCode, again.body)
	}
}

// TestNoEventNoChange removes the outbox: then nothing can be changed.
func TestNoEventNoChange(t *testing.T) {
	db := testenv.Postgres(t)
	srv := serve(t, db)
	u, path, own := ann(t, srv)
	rename := func(from, to string) {
		t.Helper()
		if _, err := db.Exec(t.Context(), fmt.Sprintf(`alter table pgjet.%s rename to %s`, from, to)); err != nil {
			t.Fatal(err)
		}
	}
	rename("outbox", "gone")
	wantProblem(t, call(t, srv, "PATCH", path, `{"name":"Annabel"}`, own), 500, "internal")
	wantProblem(t, call(t, srv, "DELETE", path, "", admin(t, srv)), 500, "internal")
	wantProblem(t, call(t, srv, "POST", "/users", signUp("bob@example.com", "Bob", password), "", "Idempotency-Key", "k"), 500, "internal")
	a := get(t, srv, path)
	if diff := cmp.Diff(u, a.user(t)); diff != "" || a.Header.Get("ETag") != `"1"` {
		t.Errorf("a user changed without an event (-want +got):\n%s", diff)
	}
	if n := count(t, db, "users.idempotency"); n != 0 {
		t.Errorf("%d answers are kept, want none: nobody signed up", n)
	}
	rename("gone", "outbox")
	if a := call(t, srv, "PATCH", path, `{"name":"Annabel"}`, own); a.StatusCode != 200 {
		t.Errorf("with the outbox back, PATCH = %d, want 200: %s", a.StatusCode, a.body)
	}
}

// TestRenamesAtOnce has many rename one user: each change has its event, and the
// events stand in the order of the changes.
func TestRenamesAtOnce(t *testing.T) {
	const n = 40
	db := testenv.Postgres(t)
	srv := serve(t, db)
	_, path, own := ann(t, srv)
	var mu sync.Mutex
	names := map[string]string{} // by version
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			name := fmt.Sprintf("Ann %d", i)
			a := call(t, srv, "PATCH", path, `{"name":"`+name+`"}`, own)
			if a.StatusCode != 200 {
				t.Errorf("PATCH = %d, want 200: %s", a.StatusCode, a.body)
			}
			mu.Lock()
			defer mu.Unlock()
			names[a.Header.Get("ETag")] = name
		})
	}
	wg.Wait()
	records := outboxRecords(t, db)
	if len(records) != n+1 {
		t.Fatalf("%d events, want %d", len(records), n+1)
	}
	last := time.Time{}
	for i, r := range records[1:] {
		var e events.UserRenamed
		if err := json.Unmarshal(r.Data, &e); err != nil {
			t.Fatal(err)
		}
		if version := fmt.Sprintf("%q", fmt.Sprint(i+2)); names[version] != e.Name || e.RenamedAt.Before(last) {
			t.Errorf("event %d gives the name %q at %v, want that of version %s, %q, after %v", i, e.Name, e.RenamedAt, version, names[version], last)
		}
		last = e.RenamedAt
	}
}

// TestOneChangeOfAVersion has several requests change the same version: all but one are
// refused.
func TestOneChangeOfAVersion(t *testing.T) {
	db := testenv.Postgres(t)
	srv := serve(t, db)
	_, path, own := ann(t, srv)
	gate := closeGate(t, db, "update on users.users", "")
	first := make(chan answer)
	go func() { first <- call(t, srv, "PATCH", path, `{"name":"Anna"}`, own, "If-Match", `"1"`) }()
	gate.await()
	late := make(chan answer)
	go func() { late <- call(t, srv, "PATCH", path, `{"name":"Annabel"}`, own, "If-Match", `"1"`) }()
	go func() { late <- call(t, srv, "DELETE", path, "", admin(t, srv), "If-Match", `"1"`) }()
	testenv.Eventually(t, 20*time.Second, "all three wait", func() bool {
		return count(t, db, `pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`) == 3
	})
	gate.open()
	if a := <-first; a.StatusCode != 200 {
		t.Errorf("PATCH = %d, want 200: %s", a.StatusCode, a.body)
	}
	for range 2 {
		wantProblem(t, <-late, 412, "changed_meanwhile")
	}
	if n := count(t, db, "pgjet.outbox"); n != 2 {
		t.Errorf("%d events, want 2", n)
	}
}
