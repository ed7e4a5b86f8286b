package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/internal/upkeep"
)

// scheduledID is the id of the n-th event that scheduledNotes schedules.
func scheduledID(n int) string { return fmt.Sprintf("0199b1c2-6f00-7000-8000-%012d", n) }

// scheduledNotes returns the address of a database in which three notes are scheduled, for the next hours.
func scheduledNotes(t *testing.T) (string, *pgxpool.Pool) {
	t.Helper()
	url := testenv.DatabaseURL(t)
	db, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	for n := 1; n <= 3; n++ {
		testenv.Exec(t, db, `insert into pgjet.scheduled (id, due, type, key, header, data)
			values ($1, clock_timestamp() + $2 * interval '1 hour', 'note.made', $3, '{"ce-tenant": "acme"}', '{"email": "ann@example.com"}')`,
			scheduledID(n), 4-n, fmt.Sprint("k", n))
	}
	return url, db
}

// TestScheduledCommands lists, shows, cancels and brings forward.
func TestScheduledCommands(t *testing.T) {
	t.Parallel()
	url, db := scheduledNotes(t)
	scheduled := func(want int, args ...string) string {
		t.Helper()
		return must(t, want, append(append([]string{"outbox", "scheduled"}, args...), "--database-url", url)...)
	}
	list := func(args ...string) (ids []string) {
		t.Helper()
		var all []upkeep.Scheduled
		if err := json.Unmarshal([]byte(scheduled(exitOK, append([]string{"ls", "-o", "json"}, args...)...)), &all); err != nil {
			t.Fatal(err)
		}
		for _, e := range all {
			if e.Data != nil {
				t.Errorf("the list shows the payload of %s", e.ID)
			}
			ids = append(ids, e.ID.String())
		}
		return ids
	}
	wantIDs := func(got []string, numbers ...int) {
		t.Helper()
		want := []string{}
		for _, n := range numbers {
			want = append(want, scheduledID(n))
		}
		if strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("listed are %v, want %v", got, want)
		}
	}
	wantIDs(list(), 3, 2, 1)
	wantIDs(list("--key", "k2"), 2)
	wantIDs(list("--type", "note.burnt"))
	wantIDs(list("--after", scheduledID(2)), 1)
	wantIDs(list("--due"))
	if out := scheduled(exitOK, "ls"); !strings.Contains(out, "in 59m") || !strings.Contains(out, scheduledID(1)) || strings.Contains(out, "@") {
		t.Errorf("ls says\n%s", out)
	}

	out := scheduled(exitOK, "get", scheduledID(1))
	if !strings.Contains(out, "in 2h") || !strings.Contains(out, "ce-tenant: (masked)") || strings.Contains(out, "@") {
		t.Errorf("get says\n%s", out)
	}
	if out := scheduled(exitOK, "get", scheduledID(1), "-o", "json"); strings.Contains(out, "@") || strings.Contains(out, "acme") {
		t.Errorf("get -o json says\n%s", out)
	}
	for _, output := range []string{"table", "json"} {
		if out := scheduled(exitOK, "get", scheduledID(1), "--reveal", "-o", output); !strings.Contains(out, "ann@example.com") || !strings.Contains(out, "acme") {
			t.Errorf("get --reveal -o %s says\n%s", output, out)
		}
	}

	testenv.Exec(t, db, `insert into pgjet.scheduled (id, due, type, key, content_type, body)
		values ($1, clock_timestamp() + interval '9 hours', 'note.made', 'k', 'application/x-note', '\x00ff')`, scheduledID(9))
	if out := scheduled(exitOK, "get", scheduledID(9)); !strings.Contains(out, "2 bytes, which --reveal shows") || !strings.Contains(out, "application/x-note") {
		t.Errorf("get of bytes says\n%s", out)
	}
	for _, output := range []string{"table", "json"} {
		if out := scheduled(exitOK, "get", scheduledID(9), "--reveal", "-o", output); !strings.Contains(out, `"AP8="`) {
			t.Errorf("get --reveal -o %s of bytes says\n%s", output, out)
		}
	}
	scheduled(exitOK, "cancel", scheduledID(9), "--reason", "bytes")

	// All of them, or none.
	scheduled(exitNotFound, "cancel", scheduledID(1), scheduledID(4), "--reason", "test")
	scheduled(exitNotFound, "bring-forward", scheduledID(1), "--to", time.Now().Add(5*time.Hour).Format(time.RFC3339))
	wantIDs(list(), 3, 2, 1)
	scheduled(exitOK, "cancel", scheduledID(3), "--reason", "nobody wants it")
	scheduled(exitNotFound, "get", scheduledID(3))
	scheduled(exitOK, "bring-forward", scheduledID(1), "--reason", "they wait for it")
	wantIDs(list(), 1, 2)
	wantIDs(list("--due"), 1)
	scheduled(exitOK, "bring-forward", scheduledID(2), "--to", time.Now().Add(-time.Hour).Format(time.RFC3339))
	wantIDs(list(), 2, 1)

	var noted string
	err := db.QueryRow(t.Context(), `select string_agg(format('%s %s %s', kind, reason, detail -> 'events' -> 0 ->> 'id'), '; ' order by id) from pgjet.operation where by like '%@%'`).Scan(&noted)
	if want := fmt.Sprintf("outbox.cancel bytes "+scheduledID(9)+"; outbox.cancel nobody wants it %s; outbox.bring_forward they wait for it %s; outbox.bring_forward  %s", scheduledID(3), scheduledID(1), scheduledID(2)); err != nil || noted != want {
		t.Errorf("noted is %q, %v; want %q", noted, err, want)
	}
}
