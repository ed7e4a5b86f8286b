package producer_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pgjet/pgjet/internal/auth"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/producer"
)

// patientTuning keeps answers for longer than a test runs.
func patientTuning() producer.Tuning {
	tuning := producer.DefaultTuning()
	tuning.Cache.TTL = time.Hour
	return tuning
}

// TestListIsCached: a change by another process stays unseen until Changed is called, the
// service's own changes are seen at once, and the switch works while the service runs.
func TestListIsCached(t *testing.T) {
	db := testenv.Postgres(t)
	api, srv := serveTuned(t, db, patientTuning(), testenv.Logger(t))
	holds := func(what string, want int) {
		t.Helper()
		for _, query := range []string{"", "?limit=200", "?limit=200"} {
			if n := len(list(t, srv, query).ids); n != want {
				t.Errorf("%s: GET /users%s lists %d users, want %d", what, query, n, want)
			}
		}
	}
	holds("at first", 0)
	ids := addUsers(t, db, 2)
	holds("changed beside it", 0)
	api.Changed(ids[0])
	holds("after Changed", 2)
	ids = append(ids, addUsers(t, db, 1)...)
	api.Forget()
	holds("after Forget", 3)
	u := post(t, srv, signUp("ann@example.com", "Ann", password)).user(t)
	holds("after a sign-up", 4)
	change := request(t, http.MethodPatch, srv.URL+"/users/"+u.ID.String(), strings.NewReader(`{"name":"Anna"}`))
	change.Header.Set("Authorization", "Bearer "+admin(t, srv))
	if a := do(t, change); a.StatusCode != http.StatusOK {
		t.Fatalf("PATCH = %d %s", a.StatusCode, a.body)
	}
	if a := get(t, srv, "/users?limit=200"); !strings.Contains(string(a.body), `"Anna"`) {
		t.Errorf("the list after a rename is %s", a.body)
	}
	remove := request(t, http.MethodDelete, srv.URL+"/users/"+ids[0], nil)
	remove.Header.Set("Authorization", "Bearer "+admin(t, srv))
	if a := do(t, remove); a.StatusCode != http.StatusNoContent {
		t.Fatalf("DELETE = %d %s", a.StatusCode, a.body)
	}
	holds("after a deletion", 3)

	addUsers(t, db, 1)
	off := patientTuning()
	off.Cache.Enabled = false
	api.Tune(off)
	holds("switched off", 4)
	addUsers(t, db, 1)
	holds("still off", 5)
	api.Tune(patientTuning())
	holds("switched on", 5)
	addUsers(t, db, 1)
	holds("on again", 5)
}

// TestCachedListIsForAdmins: a list that was cached for an admin is not shown to others.
func TestCachedListIsForAdmins(t *testing.T) {
	_, srv := serveTuned(t, testenv.Postgres(t), patientTuning(), testenv.Logger(t))
	u := post(t, srv, signUp("ann@example.com", "Ann", password)).user(t)
	if n := len(list(t, srv, "").ids); n != 1 {
		t.Fatalf("the list has %d users, want 1", n)
	}
	req := request(t, http.MethodGet, srv.URL+"/users", nil)
	wantProblem(t, do(t, req), http.StatusUnauthorized, "token_invalid")
	req.Header.Set("Authorization", "Bearer "+token(t, u.ID.String()))
	wantProblem(t, do(t, req), http.StatusForbidden, "forbidden")
}

// TestProfileIsCached: for the user and for admins, until the user changes, and for no one
// else.
func TestProfileIsCached(t *testing.T) {
	var asked atomic.Int64
	srv, id := profiles(t, func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) == 1 {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		fmt.Fprintf(w, `{"user_id":%q,"name":"Ann"}`, strings.TrimPrefix(r.URL.Path, "/profiles/"))
	})
	wantProblem(t, getProfile(t, srv, id, id), http.StatusNotFound, "profile_not_found") // which is not kept
	for _, asks := range []struct{ id, who string }{{id, id}, {id, auth.Admin}, {strings.ToUpper(id), auth.Admin}} {
		if a := getProfile(t, srv, asks.id, asks.who, asks.who); a.StatusCode != http.StatusOK || asked.Load() != 2 {
			t.Errorf("%s gets %d %s, and profiles was asked %d times, want 200 and 2", asks.who, a.StatusCode, a.body, asked.Load())
		}
	}
	other := uuid.Must(uuid.NewV7()).String()
	wantProblem(t, getProfile(t, srv, id, other), http.StatusNotFound, "user_not_found")
	remove := request(t, http.MethodDelete, srv.URL+"/users/"+id, nil)
	remove.Header.Set("Authorization", "Bearer "+admin(t, srv))
	if a := do(t, remove); a.StatusCode != http.StatusNoContent {
		t.Fatalf("DELETE = %d %s", a.StatusCode, a.body)
	}
	wantProblem(t, getProfile(t, srv, id, id), http.StatusUnauthorized, "token_invalid")
	wantProblem(t, getProfile(t, srv, id, auth.Admin), http.StatusNotFound, "user_not_found")
}
