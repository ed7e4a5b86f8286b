package main

import (
	"fmt"
	"regexp"
	"testing"

	"github.com/pgjet/pgjet/internal/testenv"
)

// TestConsumersSkipWhatIsHealed deletes the stream under a running pipeline and creates it again.
// The relay publishes and counts the same events. No user gets a second mail, and the next user
// gets the first one.
func TestConsumersSkipWhatIsHealed(t *testing.T) {
	t.Parallel()
	database, nats := testenv.DatabaseURL(t), testenv.NATS(t).URL()
	js := ensureStream(t, nats)
	smtp, inbox := startMail(t, anyPort)
	users, relay, mailer := startUsers(t, database), startRelay(t, database, nats), startMailer(t, database, nats, smtp)
	for n := range 5 {
		signUp(t, users.Addr, fmt.Sprintf("user%d@example.com", n))
	}
	for n := range 5 {
		oneMail(t, inbox, fmt.Sprintf("user%d@example.com", n))
	}
	if err := js.DeleteStream(t.Context(), "EVENTS"); err != nil {
		t.Fatal(err)
	}
	signUp(t, users.Addr, "between@example.com")
	relay.NotReady(relay.Admin, "stream_missing")
	must(t, exitOK, "stream", "ensure", "--nats-url", nats)
	signUp(t, users.Addr, "after@example.com")
	oneMail(t, inbox, "between@example.com")
	oneMail(t, inbox, "after@example.com")
	for n := range 5 {
		oneMail(t, inbox, fmt.Sprintf("user%d@example.com", n))
	}
	sameEvents(t, openDB(t, database), js)
	relay.Eventually(patience, "it counts what it healed", func() bool {
		_, body := get(t, relay.Admin+"/metrics")
		return regexp.MustCompile(`(?m)^pgjet_stream_healed_events_total\S* [1-9]`).MatchString(body)
	})
	stopAll(users, relay, mailer)
}
