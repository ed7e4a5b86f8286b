package relay_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/outbox"
	"github.com/pgjet/pgjet/relay"
)

// unaccounted returns the difference between the events in the outbox and those that relays
// counted.
func (b *bench) unaccounted() int64 {
	b.Helper()
	conn, err := b.db.Acquire(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Release()
	n, err := relay.CountUnaccounted(b.Context(), conn.Conn(), "EVENTS")
	if err != nil || n == nil {
		b.Fatalf("countUnaccounted() = %v, %v", n, err)
	}
	return *n
}

// TestNothingVanishes counts the outbox independently of the relay, which counts what it
// publishes or sets aside. There are late commits, rolled back ones, events in quarantine
// and pruned ones. An event that was missed or counted twice would show.
func TestNothingVanishes(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r, stop := b.start()
	b.append(20)
	late, err := b.db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer late.Rollback(t.Context())
	if err := outbox.Append(t.Context(), late, noted{"late", 0}); err != nil {
		t.Fatal(err)
	}
	_ = pgx.BeginFunc(t.Context(), b.db, func(tx pgx.Tx) error { // rolled back
		if err := outbox.Append(t.Context(), tx, noted{"k", 0}); err != nil {
			t.Error(err)
		}
		return pgx.ErrTxClosed
	})
	b.exec(`insert into pgjet.outbox (id, type, key, data) values (gen_random_uuid(), 'user.*', 'k', '{}')`)
	b.append(20)
	all := func(n uint64) {
		t.Helper()
		testenv.Eventually(t, patience, "all are accounted for", func() bool {
			s := b.status()
			return s.Checkpoint != nil && s.Checkpoint.Events == int64(n) && s.Pending.Events == 0
		})
		if got := b.unaccounted(); got != 0 {
			t.Errorf("%d events are unaccounted for", got)
		}
	}
	all(41)
	if err := late.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	all(42)
	b.ready(r)
	stop()
	_, _ = b.start()
	b.append(3)
	all(45)
	b.exec(`delete from pgjet.outbox where seq = 2`)
	if got := b.unaccounted(); got != -1 {
		t.Errorf("%d events are unaccounted for after one was deleted, want -1", got)
	}
}

// TestNoWallClock sets all stored times far into the past and the future, and lets relays
// take over from each other. No decision depends on the time.
func TestNoWallClock(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for i, shift := range []string{"400 days", "-400 days", "30 years", "-30 years"} {
		_, stop := b.start()
		err := pgx.BeginFunc(t.Context(), b.db, func(tx pgx.Tx) error {
			return outbox.Append(t.Context(), tx, events.Event{
				Type: "note.made", Key: "k", Data: []byte(`{}`), Time: time.Now().AddDate(1000*i-2000, 0, 0),
			})
		})
		if err != nil {
			t.Fatal(err)
		}
		b.append(30)
		b.settled()
		stop()
		b.exec(fmt.Sprintf(`update pgjet.checkpoint set at = at + interval '%s'`, shift))
		b.exec(fmt.Sprintf(`update pgjet.leader set since = since + interval '%[1]s', cause_at = cause_at + interval '%[1]s', placed_at = placed_at + interval '%[1]s', server_start = server_start + interval '%[1]s'`, shift))
		b.append(5)
	}
	b.start()
	b.settled()
	for _, dir := range []string{"protocol", "../outbox"} {
		files, err := filepath.Glob(dir + "/*.go")
		if err != nil || len(files) == 0 {
			t.Fatal(dir, err)
		}
		for _, file := range files {
			if text, err := os.ReadFile(file); err != nil || !strings.HasSuffix(file, "_test.go") && strings.Contains(string(text), "time.Now(") {
				t.Errorf("%s asks for the time, %v", file, err)
			}
		}
	}
}
