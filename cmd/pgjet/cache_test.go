package main

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/internal/auth"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/producer"
)

// TestCacheAcrossProcesses: a user service that follows the events shows a rename by another one
// long before its cached answers expire. One that does not follow them shows it when they expire.
func TestCacheAcrossProcesses(t *testing.T) {
	t.Parallel()
	database, nats := testenv.DatabaseURL(t), testenv.NATS(t).URL()
	js, db := ensureStream(t, nats), openDB(t, database)
	relay := startRelay(t, database, nats)
	relay.Ready(relay.Admin)
	issuer, err := auth.Generate()
	if err != nil {
		t.Fatal(err)
	}
	const operator = "ffffffff-ffff-ffff-ffff-ffffffffffff" // sorts last: no page shows it
	_, err = db.Exec(t.Context(), `
		insert into users.users (id, email, name, password, roles) values ($1, 'operator@example.com', 'Operator', '', '{admin}')`, operator)
	if err != nil {
		t.Fatal(err)
	}
	admin, _, err := issuer.Issue(auth.Identity{Subject: operator, Roles: []string{auth.Admin}}, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	const ttl = 3 * time.Second
	one := serveUsers(t, db, issuer, nil, time.Hour)
	following := serveUsers(t, db, issuer, js, time.Hour)
	alone := serveUsers(t, db, issuer, nil, ttl)
	id := signUp(t, one, "ann@example.com")
	name := func(users string) string {
		t.Helper()
		status, _, body := request(t, http.MethodGet, users+"/users", "", map[string]string{"Authorization": "Bearer " + admin})
		var page struct{ Users []struct{ Name string } }
		if err := json.Unmarshal([]byte(body), &page); err != nil || status != http.StatusOK || len(page.Users) > 1 {
			t.Fatalf("GET /users = %d %s (%v), want 200 and a user", status, body, err)
		}
		if len(page.Users) == 0 {
			return ""
		}
		return page.Users[0].Name
	}
	for _, users := range []string{following, alone} {
		testenv.Eventually(t, patience, "the sign-up is seen", func() bool { return name(users) == "Ann" })
	}
	for round := range 2 {
		want := []string{"Anna", "Ann"}[round]
		read := time.Now() // answers that are cached now are older
		name(alone)
		status, _, body := request(t, http.MethodPatch, one+"/users/"+id, `{"name":"`+want+`"}`, map[string]string{
			"Authorization": "Bearer " + admin, "Content-Type": "application/json",
		})
		if status != http.StatusOK {
			t.Fatalf("PATCH = %d %s", status, body)
		}
		renamed := time.Now()
		if got := name(one); got != want {
			t.Errorf("who renamed lists %s, want %s", got, want)
		}
		testenv.Eventually(t, patience, "the other sees the new name", func() bool { return name(following) == want })
		t.Logf("seen by the other after %s", time.Since(renamed).Round(time.Millisecond))
		testenv.Eventually(t, patience, "the one alone sees the new name", func() bool { return name(alone) == want })
		if took := time.Since(read); took > 2*ttl {
			t.Errorf("the one alone saw it after %s, want %s at most", took, ttl)
		}
	}
}

// serveUsers serves the users of db with answers cached for ttl. It follows the stream of js,
// unless js is nil.
func serveUsers(t *testing.T, db *pgxpool.Pool, issuer *auth.Issuer, js jetstream.JetStream, ttl time.Duration) string {
	t.Helper()
	api := producer.New(db, issuer, testenv.Logger(t))
	t.Cleanup(api.Close)
	tuning := producer.DefaultTuning()
	tuning.Cache.TTL = ttl
	api.Tune(tuning)
	if js != nil {
		s := &processSettings{settings: settings{stream: "EVENTS"}}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- s.invalidationPart(api, js, testenv.Logger(t)).Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
	srv := httptest.NewServer(api)
	t.Cleanup(srv.Close)
	return srv.URL
}
