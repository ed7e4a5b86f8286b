package main

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/outbox"
)

// TestNothingIsLostByKills kills the relay and the mailer with SIGKILL at random moments while
// events flow. In the end each event is in the stream once, in order, and has its mail. There is a
// second mail only where the mailer was killed at work.
func TestNothingIsLostByKills(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	db, nats := testenv.Postgres(t), testenv.NATS(t)
	js := ensureStream(t, nats.URL())
	smtp, inbox := startMail(t, anyPort)
	database := db.Config().ConnString()
	relay, mailer := startRelay(t, database, nats.URL()), startMailer(t, database, nats.URL(), smtp)

	count, kills := 0, 0
	appendSome := func() {
		for range 1 + r.IntN(40) {
			count++
			err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
				return outbox.Append(t.Context(), tx, events.UserCreated{
					UserID: fmt.Sprint("user-", count%5), Email: fmt.Sprintf("user%d@example.com", count), Name: "Ann",
				})
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 12 {
		appendSome()
		time.Sleep(time.Duration(r.IntN(300)) * time.Millisecond)
		if r.IntN(2) == 0 {
			relay.Kill()
			relay = startRelay(t, database, nats.URL())
		} else {
			kills++
			mailer.Kill()
			mailer = startMailer(t, database, nats.URL(), smtp)
		}
	}
	relay.Eventually(patience, "the stream holds all", func() bool { return len(stored(t, js)) >= count })
	sameEvents(t, db, js)

	// A killed mailer's events come again after the wait for its acknowledgements.
	perMail := make(map[string]int)
	testenv.Eventually(t, time.Minute, "everybody has a mail", func() bool {
		clear(perMail)
		for _, m := range mails(t, inbox, "") {
			perMail[m.Headers["Message-Id"][0]]++
		}
		return len(perMail) >= count
	})
	if len(perMail) != count {
		t.Errorf("%d different mails, want %d", len(perMail), count)
	}
	total := 0
	for _, n := range slices.Collect(maps.Values(perMail)) {
		total += n
	}
	const workers = 8
	if total > count+workers*kills {
		t.Errorf("%d mails for %d events after %d kills", total, count, kills)
	}
	t.Logf("%d events, %d mails, the mailer was killed %d times", count, total, kills)
}
