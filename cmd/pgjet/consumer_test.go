package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers/mailer"
	"github.com/pgjet/pgjet/consumers/status"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

// startHandling starts a mailer, and returns its servers.
func startHandling(t *testing.T) (s *service, database, nats string, js jetstream.JetStream) {
	t.Helper()
	database, nats = testenv.DatabaseURL(t), testenv.NATS(t).URL()
	js = ensureStream(t, nats)
	smtp, _ := startMail(t, anyPort)
	s = startMailer(t, database, nats, smtp)
	s.Ready(s.Admin)
	return s, database, nats, js
}

// asked are the flags of a command that uses the database and NATS.
func asked(command, nats string) string { return command + " --nats-url " + nats }

func TestConsumerStatus(t *testing.T) {
	t.Parallel()
	s, database, nats, _ := startHandling(t)
	ends(t, exitOK, asked("consumer ls", nats), database, "NAME", "WHY\n", "welcome-mailer   idle ", "nothing to do\n")
	out := ends(t, exitOK, asked("consumer get welcome-mailer -o json", nats), database, `"code":"idle"`, `"workers":`)
	var one status.Status
	if err := json.Unmarshal([]byte(out), &one); err != nil || one.Name != mailer.Name || one.Unaccounted != 0 || len(one.Processes) != 1 {
		t.Errorf("get says %s (%v)", out, err)
	}
	ends(t, exitOK, asked("consumer get welcome-mailer", nats), database, "process       "+one.Processes[0].Process+" since ", "why           nothing to do\n")

	db := openDB(t, database)
	if _, err := db.Exec(t.Context(), `
		insert into pgjet.dead_letter (consumer, event_id, stream, stream_seq, subject, header, data, error, attempts)
		values ('welcome-mailer', gen_random_uuid(), 'EVENTS', 1, 's', '{}', '', 'no', 1)`); err != nil {
		t.Fatal(err)
	}
	trouble := "1 dead letter for welcome-mailer -> pgjet dead groups --consumer welcome-mailer\n"
	if out := says(t, exitFindings, asked("consumer ls", nats), database, "dead_letters"); !strings.HasSuffix(out, "\n\n"+trouble) {
		t.Errorf("ls ends with\n%s\nwant %s", out, trouble)
	}
	says(t, exitFindings, asked("consumer get welcome-mailer", nats), database, "next          "+trouble)
	says(t, exitFindings, asked("consumer ls -o json", nats), database, `[{"name":"welcome-mailer"`)
	refused(t, exitFindings, words(asked("consumer get welcome-mailer", nats), database), "welcome-mailer (dead_letters)")
	refused(t, exitNotFound, words(asked("consumer get billing", nats), database), `"billing"`, "welcome-mailer")
	s.Stop()
}

// TestMailServerRefusesAll: a server that defers every mail is reported as an outage everywhere.
func TestMailServerRefusesAll(t *testing.T) {
	t.Parallel()
	database, nats := testenv.DatabaseURL(t), testenv.NATS(t).URL()
	js := ensureStream(t, nats)
	smtp, inbox := startMail(t, anyPort)
	s := startMailer(t, database, nats, smtp)
	s.Ready(s.Admin)
	refuseMails(t, inbox, 451, 1000)
	for i := range 12 {
		e, err := events.New(events.UserCreated{UserID: fmt.Sprint("u", i), Email: "ann@example.com", Name: "Ann"})
		if err != nil {
			t.Fatal(err)
		}
		e.Source, e.Seq = "/test", int64(i+1)
		subject, header, body := e.Message()
		if _, err := js.PublishMsg(t.Context(), &natsgo.Msg{Subject: subject, Header: header, Data: body}); err != nil {
			t.Fatal(err)
		}
	}
	const share = "attempts failed: mail server answered to the whole mail: 451 4.0.0 devmail: fault injected"
	s.Eventually(patience, "the process says that it is degraded", func() bool {
		status, page := get(t, s.Admin+"/readyz")
		return status == http.StatusOK && strings.Contains(page, `"status":"degraded"`) && strings.Contains(page, `"degraded":"failing: all of the last `) && strings.Contains(page, share)
	})
	if _, page := get(t, s.Admin+"/metrics"); !strings.Contains(page, `pgjet_consumer_failing_share{consumer="welcome-mailer"} 1`) {
		t.Error("the metrics have no failing share of 1")
	}
	db := openDB(t, database)
	if _, err := db.Exec(t.Context(), `
		insert into pgjet.dead_letter (consumer, event_id, stream, stream_seq, subject, header, data, error, attempts)
		values ('welcome-mailer', gen_random_uuid(), 'EVENTS', 1, 's', '{}', '', 'no', 1)`); err != nil {
		t.Fatal(err)
	}
	s.Eventually(patience, "the status is failing", func() bool {
		code, p := runProcess(t, nil, words(asked("consumer ls", nats), database)...)
		out := p.Stdout.String()
		return code == exitFindings && strings.Contains(out, "failing") && strings.Contains(out, share+" (and 1 more: dead_letters)\n")
	})
	s.Stop()
}

func TestConsumerPause(t *testing.T) {
	t.Parallel()
	s, database, nats, _ := startHandling(t)
	refused(t, exitUsage, words("consumer pause welcome-mailer", database), "--reason")
	refused(t, exitNotFound, words("consumer pause billing --reason upgrade", database), `"billing"`, "welcome-mailer")
	refused(t, exitNotFound, words("consumer resume billing", database), `"billing"`, "welcome-mailer")
	says(t, exitOK, "consumer pause welcome-mailer --reason upgrade", database,
		"paused consumer welcome-mailer", "no attempt is in flight", "pgjet consumer resume welcome-mailer")
	s.NotReady(s.Admin, "paused")
	says(t, exitFindings, asked("consumer ls", nats), database, "paused by "+actor(), "welcome-mailer is paused -> pgjet consumer resume welcome-mailer\n")
	says(t, exitOK, "consumer pause welcome-mailer --reason again", database, "was paused already, by "+actor(), "upgrade")
	says(t, exitOK, "consumer resume welcome-mailer", database, "resumed consumer welcome-mailer, paused by "+actor())
	says(t, exitOK, "consumer resume welcome-mailer", database, "was not paused")
	s.Ready(s.Admin)
	ends(t, exitOK, asked("consumer ls", nats), database, "idle")
	if by := query[string](t, openDB(t, database), `select by from pgjet.operation where kind = 'consumer.pause'`); by != actor() {
		t.Errorf("paused by %s, want %s", by, actor())
	}
}

func TestConsumerEnsure(t *testing.T) {
	t.Parallel()
	nats := testenv.NATS(t).URL()
	ensure := func(more string) []string { return strings.Fields("consumer ensure " + more + " --nats-url " + nats) }
	refused(t, exitNotFound, ensure("welcome-mailer"), "stream EVENTS does not exist", "pgjet stream ensure")
	js := ensureStream(t, nats)
	refused(t, exitNotFound, ensure("billing"), `"billing"`, "welcome-mailer")
	refused(t, exitFindings, ensure("welcome-mailer --dry-run"), "missing, nothing was changed")
	refused(t, exitFindings, ensure("pgjet-users --dry-run"), "missing, nothing was changed")
	for _, row := range [][2]string{
		{"welcome-mailer", "created durable consumer welcome-mailer of stream EVENTS\n"},
		{"welcome-mailer", "durable consumer welcome-mailer of stream EVENTS is as it should be\n"},
		{"directory", "created 8 of the 8 durable consumers of stream EVENTS, directory-0of8 to directory-7of8\n"},
		{"welcome-mailer --dry-run", "durable consumer welcome-mailer of stream EVENTS is as it should be\n"},
		{"directory onboarding pgjet-users", "the 8 durable consumers of stream EVENTS, directory-0of8 to directory-7of8, are as they should be\n" +
			"created durable consumer onboarding of stream EVENTS\ncreated durable consumer pgjet-users of stream EVENTS\n"},
		{"pgjet-users", "durable consumer pgjet-users of stream EVENTS is as it should be\n"},
	} {
		if out := must(t, exitOK, ensure(row[0])...); out != row[1] {
			t.Errorf("pgjet consumer ensure %s says %q, want %q", row[0], out, row[1])
		}
	}
	if err := js.DeleteConsumer(t.Context(), "EVENTS", mailer.Name); err != nil {
		t.Fatal(err)
	}
	config := jetstream.ConsumerConfig{Durable: mailer.Name, AckPolicy: jetstream.AckExplicitPolicy, MaxDeliver: 3, FilterSubject: "events.*.order.paid"}
	if _, err := js.CreateConsumer(t.Context(), "EVENTS", config); err != nil {
		t.Fatal(err)
	}
	refused(t, exitFindings, ensure("welcome-mailer"), "differs, nothing was changed", "max deliver: is 3, should be -1", "order.paid")
	refused(t, exitFindings, ensure("welcome-mailer --dry-run"), "differs, nothing was changed")
}
