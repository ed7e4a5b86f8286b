package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

func startDirectory(t testing.TB, database, nats string) *service {
	t.Helper()
	s := startService(t, "consume", "directory", "--database-url", database, "--nats-url", nats, "--addr", anyPort)
	s.Addr = s.Logged("serving the API", "addr")
	return s
}

// findsPeople waits until the directory finds exactly these names.
func findsPeople(t testing.TB, addr, q string, names ...string) {
	t.Helper()
	testenv.Eventually(t, patience, fmt.Sprintf("the directory finds %q by %q", names, q), func() bool {
		status, body := get(t, addr+"/directory?q="+url.QueryEscape(q))
		var page struct{ Users []struct{ Name string } }
		if err := json.Unmarshal([]byte(body), &page); err != nil || status != http.StatusOK {
			t.Fatalf("GET /directory = %d %s", status, body)
		}
		var got []string
		for _, u := range page.Users {
			got = append(got, u.Name)
		}
		return slices.Equal(got, names)
	})
}

// publishUsers stores the sign-ups first to last in the stream, some of them twice with two ids.
func publishUsers(t *testing.T, js jetstream.JetStream, first, last int) {
	t.Helper()
	for n := first; n <= last; n++ {
		publishPayload(t, js, int64(n), signedUp(n))
	}
}

func signedUp(n int) events.UserCreated {
	begin := time.Date(2026, 11, 19, 22, 0, 0, 0, time.UTC)
	return events.UserCreated{
		UserID: fmt.Sprintf("00000000-0000-4000-8000-%012d", n-n%10/9), Name: fmt.Sprint("User ", n), Email: fmt.Sprintf("u%d@example.com", n),
		CreatedAt: begin.Add(time.Duration(n) * 10 * time.Minute),
	}
}

// publishLives stores as many events. In each, a user signs up, is renamed or is deleted.
func publishLives(t *testing.T, js jetstream.JetStream, r *rand.Rand, first, last int) {
	t.Helper()
	for n := first; n <= last; n++ {
		someone := signedUp(1 + r.IntN(n)).UserID // who may not have signed up yet
		switch r.IntN(6) {
		case 0:
			publishPayload(t, js, int64(n), events.UserDeleted{UserID: someone, DeletedAt: time.Now()})
		case 1, 2:
			publishPayload(t, js, int64(n), events.UserRenamed{UserID: someone, Name: fmt.Sprint("New name ", n), RenamedAt: time.Now()})
		default:
			publishPayload(t, js, int64(n), signedUp(n))
		}
	}
}

// directoryTables waits until so many events are done, and returns the content of the directory.
func directoryTables(t *testing.T, db *pgxpool.Pool, done int) string {
	t.Helper()
	testenv.Eventually(t, patience, fmt.Sprint(done, " events are done"), func() bool {
		return query[int](t, db, `select count(*) from pgjet.inbox where consumer = 'directory' and state = 'done'`) == done
	})
	return query[string](t, db, `
		select (select string_agg(u::text, e'\n' order by id) from directory.users u) || e'\n' ||
		       (select string_agg(s::text, e'\n' order by day) from directory.signups s) || e'\n' ||
		       (select string_agg(d::text, e'\n' order by id) from directory.deleted d)`)
}

// TestDirectoryIsRebuilt: a replay repairs damaged tables while users sign up, change their names
// and leave. The result equals that of another database, in which every event was handled once.
func TestDirectoryIsRebuilt(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	server := testenv.NATS(t).URL()
	js := ensureStream(t, server)
	grown, rebuilt := testenv.DatabaseURL(t), testenv.DatabaseURL(t)
	grownDB, rebuiltDB := openDB(t, grown), openDB(t, rebuilt)

	live := startDirectory(t, rebuilt, server)
	live.Ready(live.Admin)
	publishLives(t, js, r, 1, 300)
	directoryTables(t, rebuiltDB, 300)
	for _, sql := range []string{
		`delete from directory.users where id::text like '%3'`, `update directory.users set name = 'wrong'`,
		`delete from directory.signups where day = '2026-11-20'`, `update directory.signups set users = users + 7`, `delete from directory.deleted where id::text like '%1'`,
	} {
		if _, err := rebuiltDB.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	replayRun := start(t, nil, "replay", "directory", "--all", "--again", "--yes", "--reason", "tables damaged",
		"--database-url", rebuilt, "--nats-url", server)
	publishLives(t, js, r, 301, 400)
	if code := replayRun.Wait(patience); code != exitOK {
		t.Fatalf("exit code %d, want 0, of %s", code, replayRun)
	}
	after := directoryTables(t, rebuiltDB, 400)
	live.Signal(syscall.SIGTERM)
	if code := live.Wait(patience); code != exitOK {
		t.Fatalf("exit code %d, want 0, of %s", code, live)
	}
	for _, durable := range durables("directory", 0) { // for the other database
		if err := js.DeleteConsumer(t.Context(), "EVENTS", durable); err != nil {
			t.Fatal(err)
		}
	}
	startDirectory(t, grown, server)
	if diff := cmp.Diff(directoryTables(t, grownDB, 400), after); diff != "" {
		t.Errorf("grown and rebuilt differ:\n%s", diff)
	}
	if n := query[int](t, rebuiltDB, `select count(*) from directory.users where name like 'New name %'`); n < 10 {
		t.Errorf("%d users have a new name", n)
	}
}
