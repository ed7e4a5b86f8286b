package main

import (
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers/directory"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/outbox"
)

// makeOlder creates a durable consumer like an older version that knew only sign-ups.
func makeOlder(t *testing.T, js jetstream.JetStream, name string) {
	t.Helper()
	own := ownConsumers[name]()
	configs, err := own.Configs("")
	if err != nil {
		t.Fatal(err)
	}
	for _, config := range configs {
		config.FilterSubjects = slices.DeleteFunc(config.FilterSubjects, func(s string) bool { return events.FilteredType(s) != "user.created" })
		if _, err := js.CreateOrUpdateConsumer(t.Context(), "EVENTS", config); err != nil {
			t.Fatal(err)
		}
	}
}

// publishPayload stores an event in the stream.
func publishPayload(t *testing.T, js jetstream.JetStream, seq int64, p events.Payload) {
	t.Helper()
	e, err := events.New(p)
	if err != nil {
		t.Fatal(err)
	}
	e.Source, e.Seq, e.Time = "/users", seq, time.Now()
	subject, header, data := e.Message()
	if _, err := js.PublishMsg(t.Context(), &nats.Msg{Subject: subject, Header: header, Data: data}); err != nil {
		t.Fatal(err)
	}
}

// TestConsumerEnsureApply: a version with more types reports what is wrong with the durable
// consumer of an older version. It handles nothing until an operator adds the types, and loses
// nothing.
func TestConsumerEnsureApply(t *testing.T) {
	t.Parallel()
	database, server := testenv.DatabaseURL(t), testenv.NATS(t).URL()
	js := ensureStream(t, server)
	publishUsers(t, js, 1, 2)
	s := startDirectory(t, database, server)
	findsPeople(t, s.Addr, "", "User 1", "User 2")
	s.Stop()
	makeOlder(t, js, directory.Name)
	const first = "00000000-0000-4000-8000-000000000001"
	publishPayload(t, js, 3, events.UserRenamed{UserID: first, Name: "Grace"})
	publishUsers(t, js, 4, 4)
	publishPayload(t, js, 5, events.UserRenamed{UserID: first, Name: "Grace Hopper"})

	s = startDirectory(t, database, server)
	command := "pgjet consumer ensure directory"
	ends(t, exitFindings, asked("consumer get directory", server), database, "consumer_differs", "-> "+command+"\n")
	ensure := func(more string) []string {
		return strings.Fields("consumer ensure directory --nats-url " + server + " " + more)
	}
	refused(t, exitFindings, ensure(""), "differs, nothing was changed", "to add user.deleted, user.renamed: "+command+" --apply\n")
	refused(t, exitUsage, ensure("--dry-run --apply"), "dry-run")
	refused(t, exitUsage, ensure("--apply"), "--database-url")
	findsPeople(t, s.Addr, "", "User 1", "User 2")
	out := must(t, exitOK, ensure("--apply --database-url "+database)...)
	for _, text := range []string{
		"added user.deleted, user.renamed to durable consumer directory of stream EVENTS\n",
		"the stream held 3 events already, which come as well; to see them go: pgjet consumer get directory\n",
		"the 8 durable consumers of stream EVENTS, directory-0of8 to directory-7of8, are as they should be\n",
	} {
		if !strings.Contains(out, text) {
			t.Errorf("--apply does not say %q but\n%s", text, out)
		}
	}
	s.Ready(s.Admin)
	findsPeople(t, s.Addr, "", "Grace Hopper", "User 2", "User 4")
	publishPayload(t, js, 6, events.UserDeleted{UserID: first})
	findsPeople(t, s.Addr, "", "User 2", "User 4")
	if out := must(t, exitOK, ensure("--apply --database-url "+database)...); out != "the 8 durable consumers of stream EVENTS, directory-0of8 to directory-7of8, are as they should be\n" {
		t.Errorf("the second time --apply says %q", out)
	}
	refused(t, exitNotFound, ensure("--apply --stream OTHERS --database-url "+database), "stream OTHERS does not exist")
	s.Stop()
}

// TestDevAddsTypes: pgjet dev continues with the durable consumers of an older version, and
// receives the types that the older version did not know.
func TestDevAddsTypes(t *testing.T) {
	t.Parallel()
	dir, port := stateDir(t), freePorts(t)
	r := startDev(t, dir, port)
	signUp(t, r.Users, "ann@example.com")
	findsPeople(t, r.Directory, "", "Ann")
	oneMail(t, r.Inbox, "ann@example.com")
	js := testenv.Connect(t, r.NATS)
	for name := range ownConsumers {
		makeOlder(t, js, name)
	}
	db := openDB(t, r.Database)
	id := query[string](t, db, `select id::text from users.users`)
	change := func(all ...events.Payload) {
		t.Helper()
		err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error { return outbox.Append(t.Context(), tx, all...) })
		if err != nil {
			t.Fatal(err)
		}
	}
	change(events.UserRenamed{UserID: id, Name: "Anna"}, events.UserRejected{UserID: id, Email: "zoe@example.com", Name: "Zoe", Reason: "billing_declined"})
	signUp(t, r.Users, "bob@example.com")
	findsPeople(t, r.Directory, "", "Ann", "Ann") // an older version does not handle the rest
	oneMail(t, r.Inbox, "bob@example.com")
	r.Signal(os.Interrupt)
	if code := r.Wait(patience); code != exitOK {
		t.Fatalf("exit code %d after an interrupt, want 0, of %s", code, r)
	}

	r = startDev(t, dir, port)
	findsPeople(t, r.Directory, "", "Ann", "Anna")
	if mail := oneMail(t, r.Inbox, "zoe@example.com"); mail.Subject != "We could not open your account" {
		t.Errorf("Zoe is sent %q", mail.Subject)
	}
	db = openDB(t, r.Database)
	change(events.UserDeleted{UserID: id})
	findsPeople(t, r.Directory, "", "Ann")
	if n := query[int](t, db, `select count(*) from pgjet.dead_letter`); n != 0 {
		t.Errorf("%d dead letters, want none", n)
	}
	if status, _ := get(t, r.Admin+"/readyz"); status != http.StatusOK {
		t.Errorf("GET /readyz = %d", status)
	}
}
