package mailer_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/pgjet/pgjet/consumers/mailer"
	"github.com/pgjet/pgjet/events"
)

func rejection(t *testing.T, name, reason string) events.Event {
	t.Helper()
	e, err := events.New(events.UserRejected{UserID: uuid.NewString(), Email: secret, Name: name, Reason: reason})
	if err != nil {
		t.Fatal(err)
	}
	e.Time = time.Date(2026, 11, 21, 10, 41, 9, 0, time.UTC)
	return e
}

// TestRejectedMail: the mail gives the reason in words, and a second copy can be recognised.
func TestRejectedMail(t *testing.T) {
	b := newInbox(t)
	e := rejection(t, "Ada <b>", "billing_declined")
	for range 2 {
		if err := send(t, b.addr, e); err != nil {
			t.Fatal(err)
		}
	}
	all := b.mails()
	if len(all) != 2 {
		t.Fatalf("%d mails, want 2", len(all))
	}
	got := all[0]
	if !cmp.Equal(got.To, []string{secret}) || got.Subject != "We could not open your account" {
		t.Errorf("mail to %s: %s", got.To, got.Subject)
	}
	for part, text := range map[string]string{"text": got.Text, "html": got.HTML} {
		if words := strings.Join(strings.Fields(text), " "); !strings.Contains(words, "Our billing service declined") || strings.Contains(words, "billing_declined") {
			t.Errorf("the %s part does not say why in words: %s", part, text)
		}
	}
	if !strings.Contains(got.Text, "Hello,") || strings.Contains(got.Text+got.HTML, "Ada") {
		t.Errorf("text %q, html %q", got.Text, got.HTML)
	}
	for name, want := range map[string]string{
		"Message-Id":     "<" + e.ID.String() + ".rejected@pgjet.example>",
		"Date":           "Sat, 21 Nov 2026 10:41:09 +0000",
		"Auto-Submitted": "auto-generated",
	} {
		if !cmp.Equal(got.Headers[name], []string{want}) || !cmp.Equal(got.Headers[name], all[1].Headers[name]) {
			t.Errorf("%s: %q and %q, want %s", name, got.Headers[name], all[1].Headers[name], want)
		}
	}
}

// TestNewReasons: an unknown code does not fail, and is not shown to people.
func TestNewReasons(t *testing.T) {
	b := newInbox(t)
	if err := send(t, b.addr, rejection(t, "Ada", "moon_phase")); err != nil {
		t.Fatal(err)
	}
	got := b.mails()[0]
	if !strings.Contains(got.Text, "could not be set up") || strings.Contains(got.Text+got.HTML, "moon_phase") {
		t.Errorf("text %q, html %q", got.Text, got.HTML)
	}
}

// TestRejectionsAreMailsOfTheirOwn: each is sent once, besides the welcome mail of the same user;
// and no personal field of a schema is logged or kept in an error.
func TestRejectionsAreMailsOfTheirOwn(t *testing.T) {
	t.Parallel()
	in := newInbox(t)
	b := newFixture(t, in.addr)
	welcome := signup(t, "Ada Canary")
	no := rejection(t, "Ada Canary", "billing_declined")
	bad := rejection(t, "Ada Canary", "billing_declined")
	bad.Data = json.RawMessage(strings.Replace(string(bad.Data), secret, secret+",eve@example.com", 1))
	in.fault(451, 2)
	for _, e := range []events.Event{welcome, no, no, bad} {
		b.publish(e)
	}
	b.settled()
	if n := len(in.mails()); n != 2 {
		t.Errorf("%d mails, want one of each kind", n)
	}
	if state, _ := b.inbox(bad); state != "dead" {
		t.Errorf("a rejection without an address is %s, want dead", state)
	}
	var kept string
	err := b.db.QueryRow(t.Context(), `
		select coalesce((select string_agg(error, ' ') from pgjet.dead_letter), '') ||
		       coalesce((select string_agg(error, ' ') from pgjet.attempt), '')`).Scan(&kept)
	if err != nil || !strings.Contains(kept, "451") {
		t.Fatalf("the errors are %q, %v", kept, err)
	}
	b.stop()
	for _, e := range []events.Event{welcome, no} {
		for field, value := range personal(t, e) {
			if strings.Contains(kept+b.log.String(), value) {
				t.Errorf("the %s of a %s was logged or kept:\n%s\n%s", field, e.Type, kept, &b.log)
			}
		}
	}
}

// personal returns the values that the schema of e marks as personal.
func personal(t *testing.T, e events.Event) map[string]string {
	t.Helper()
	schema, err := events.Schemas.ReadFile("schema/" + e.Type + ".json")
	if err != nil {
		t.Fatal(err)
	}
	var s struct {
		Properties map[string]struct {
			Comment string `json:"$comment"`
		}
	}
	var fields map[string]any
	if err := json.Unmarshal(schema, &s); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(e.Data, &fields); err != nil {
		t.Fatal(err)
	}
	marked := make(map[string]string)
	for name, p := range s.Properties {
		if p.Comment == "pii" {
			marked[name] = fields[name].(string)
		}
	}
	if len(marked) < 2 {
		t.Fatalf("the schema of %s marks %d fields", e.Type, len(marked))
	}
	return marked
}

// TestReminder: a user who has waited for long gets a mail in our words alone.
func TestReminder(t *testing.T) {
	t.Parallel()
	in := newInbox(t)
	b := newFixture(t, in.addr)
	e, err := events.New(events.UserStillPending{UserID: uuid.NewString(), Email: secret, Name: "Ada Canary", CreatedAt: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	e.Seq, e.Time = 1, time.Now()
	b.publish(e)
	b.publish(e)
	b.settled()
	all := in.mails()
	if len(all) != 1 {
		t.Fatalf("%d mails, want 1", len(all))
	}
	got := all[0]
	if !cmp.Equal(got.To, []string{secret}) || got.Subject != "Your account is not ready yet" ||
		!cmp.Equal(got.Headers["Message-Id"], []string{"<" + e.ID.String() + ".reminder@pgjet.example>"}) {
		t.Errorf("mail to %s: %s, %q", got.To, got.Subject, got.Headers["Message-Id"])
	}
	for part, text := range map[string]string{"text": got.Text, "html": got.HTML} {
		if !strings.Contains(text, "still being set up") || strings.Contains(text, "Ada") {
			t.Errorf("the %s part is %s", part, text)
		}
	}
}

// TestConsumerAsksForAll: otherwise no rejection would be delivered.
func TestConsumerAsksForAll(t *testing.T) {
	config, err := new(mailer.Mailer).Consumer().Configs("")
	if err != nil {
		t.Fatal(err)
	}
	if got := config[0].FilterSubjects; !cmp.Equal(got, []string{events.Filter("user.created"), events.Filter("user.rejected"), events.Filter("user.still_pending")}) {
		t.Errorf("the mailer asks for %q", got)
	}
	if err := send(t, "127.0.0.1:1", events.Event{ID: uuid.New(), Type: "user.renamed", Data: []byte(`{}`)}); verdict(err) != "dead" {
		t.Errorf("%v, want a permanent error for what nobody asked for", err)
	}
}
