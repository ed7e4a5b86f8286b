package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

func startDirectory(t testing.TB, database, nats string) *service {
	t.Helper()
	s := startService(t, "consume", "directory", "--database-url", database, "--nats-url", nats, "--addr", anyPort)
	s.addr = s.logged("serving the API", "addr")
	return s
}

// findsPeople waits until the directory finds people with these names, and no others.
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

// publishUsers stores sign-ups from first to last in the stream, some of them twice
// under two ids.
func publishUsers(t *testing.T, js jetstream.JetStream, first, last int) {
	t.Helper()
	begin := time.Date(2026, 11, 19, 22, 0, 0, 0, time.UTC)
	for n := first; n <= last; n++ {
		u := events.UserCreated{
			UserID: fmt.Sprintf("00000000-0000-4000-8000-%012d", n-n%10/9), Name: fmt.Sprint("User ", n), Email: fmt.Sprintf("u%d@example.com", n),
			CreatedAt: begin.Add(time.Duration(n) * 10 * time.Minute),
		}
		e, err := events.New(u)
		if err != nil {
			t.Fatal(err)
		}
		e.Source, e.Seq, e.Time = "/users", int64(n), u.CreatedAt
		subject, header, data := e.Message()
		if _, err := js.PublishMsg(t.Context(), &nats.Msg{Subject: subject, Header: header, Data: data}); err != nil {
			t.Fatal(err)
		}
	}
}

// directoryTables waits until so many events are done, and returns what the directory holds.
func directoryTables(t *testing.T, db *pgxpool.Pool, done int) string {
	t.Helper()
	testenv.Eventually(t, patience, fmt.Sprint(done, " events are done"), func() bool {
		return query[int](t, db, `select count(*) from pgjet.inbox where consumer = 'directory' and state = 'done'`) == done
	})
	return query[string](t, db, `
		select (select string_agg(u::text, e'\n' order by id) from directory.users u) || e'\n' ||
		       (select string_agg(s::text, e'\n' order by day) from directory.signups s)`)
}

// TestDirectoryIsRebuilt: what a replay makes of damaged tables while people go on signing
// up is the same as what grew event by event in another database.
func TestDirectoryIsRebuilt(t *testing.T) {
	t.Parallel()
	server := testenv.NATS(t).URL()
	js := ensureStream(t, server)
	grown, rebuilt := testenv.DatabaseURL(t), testenv.DatabaseURL(t)
	grownDB, rebuiltDB := openDB(t, grown), openDB(t, rebuilt)

	live := startDirectory(t, rebuilt, server)
	live.ready(live.admin)
	publishUsers(t, js, 1, 300)
	before := directoryTables(t, rebuiltDB, 300)
	for _, sql := range []string{
		`delete from directory.users where id::text like '%3'`, `update directory.users set name = 'wrong'`,
		`delete from directory.signups where day = '2026-11-20'`, `update directory.signups set users = users + 7`,
	} {
		if _, err := rebuiltDB.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	replaying := start(t, nil, "replay", "directory", "--all", "--again", "--yes", "--reason", "tables damaged",
		"--database-url", rebuilt, "--nats-url", server)
	publishUsers(t, js, 301, 400)
	if code := replaying.wait(patience); code != exitOK {
		t.Fatalf("exit code %d, want 0, of %s", code, replaying)
	}
	after := directoryTables(t, rebuiltDB, 400)
	live.signal(syscall.SIGTERM)
	if code := live.wait(patience); code != exitOK {
		t.Fatalf("exit code %d, want 0, of %s", code, live)
	}
	if err := js.DeleteConsumer(t.Context(), "EVENTS", "directory"); err != nil { // it is the other database's turn
		t.Fatal(err)
	}
	startDirectory(t, grown, server)
	if diff := cmp.Diff(directoryTables(t, grownDB, 400), after); diff != "" {
		t.Errorf("grown and rebuilt differ:\n%s", diff)
	}
	for line := range strings.Lines(before) {
		if strings.Contains(line, "User ") && !strings.Contains(after, line) {
			t.Errorf("the replay did not bring back %s", line)
		}
	}
}
