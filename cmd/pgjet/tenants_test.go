package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/consumers/directory"
	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/status"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

// twoServices are the services orders, with a stream and a prefix of its own, and billing, each with its own database, in one account.
type twoServices struct {
	orders, billing string // databases
	nats            string
	js              jetstream.JetStream
}

func newTwoServices(t *testing.T) twoServices {
	t.Helper()
	p := twoServices{orders: testenv.DatabaseURL(t), billing: testenv.DatabaseURL(t), nats: testenv.NATS(t).URL()}
	p.js = testenv.Connect(t, p.nats)
	must(t, exitOK, p.args("stream ensure --source orders", p.orders)...)
	must(t, exitOK, "stream", "ensure", "--source", "billing", "--database-url", p.billing, "--nats-url", p.nats)
	return p
}

// args are the words of a command about the stream of orders, run on a database.
func (p twoServices) args(command, database string) []string {
	return append(words(command, database), "--nats-url", p.nats, "--stream", "ORDERS", "--prefix", "acme.orders")
}

// appended commits payloads in the database of orders, and returns the ids of the events.
func (p twoServices) appended(t *testing.T, all ...events.Payload) (ids []string) {
	t.Helper()
	for _, payload := range all {
		e, err := events.New(payload)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, query[string](t, openDB(t, p.orders), `insert into pgjet.outbox (id, type, key, data) values ($1, $2, $3, $4) returning id::text`, e.ID, e.Type, e.Key, string(e.Data)))
	}
	return ids
}

// TestConsumerOfAnotherService: a consumer of one service reads another service's stream into its own inbox, and all commands about it work
// without giving the prefix again.
func TestConsumerOfAnotherService(t *testing.T) {
	t.Parallel()
	p := newTwoServices(t)
	relay := startService(t, p.args("relay --source orders", p.orders)...)
	relay.Ready(relay.Admin)
	refused(t, exitFailed, words("consumer ensure directory --stream ORDERS --nats-url "+p.nats, p.billing), "stream_differs", "acme.orders.>", "--prefix")
	if out := must(t, exitOK, p.args("consumer ensure directory pgjet-users", p.billing)...); !strings.Contains(out, "created 8 of the 8 durable consumers of stream ORDERS") {
		t.Errorf("consumer ensure says %q", out)
	}
	followed, err := p.js.PushConsumer(t.Context(), "ORDERS", followName)
	if err != nil || followed.CachedInfo().Config.FilterSubject+strings.Join(followed.CachedInfo().Config.FilterSubjects, " ") != "acme.orders.*.user.*" {
		t.Errorf("what the user service follows is %v, %v", followed, err)
	}
	d := startService(t, append(p.args("consume directory", p.billing), "--addr", anyPort)...)
	d.Addr = d.Logged("serving the API", "addr")
	ids := p.appended(t, signedUp(1), signedUp(2), signedUp(3))
	findsPeople(t, d.Addr, "", "User 1", "User 2", "User 3")

	// The consumer does not handle an event of the same type in this service's own stream.
	own := query[string](t, openDB(t, p.billing), `insert into pgjet.outbox (id, type, key, data) values (gen_random_uuid(), 'user.created', 'x', '{}') returning id::text`)
	billing := startRelay(t, p.billing, p.nats)
	billing.Ready(billing.Admin)
	testenv.Eventually(t, patience, "the event is published, and nobody handles it", func() bool {
		s := timelineOf(t, own, p.billing, p.nats)
		return s.Events[0].Stored != nil && s.Events[0].Stored.Stream == "EVENTS" && s.Events[0].Consumers[0].State == "ignored"
	})
	if _, err := openDB(t, p.billing).Exec(t.Context(), `update pgjet.pruned set seq = 100`); err != nil {
		t.Fatal(err)
	}
	s := timelineOf(t, ids[0], p.billing, p.nats)
	if e := s.Events[0]; e.Stored == nil || e.Stored.Stream != "ORDERS" || e.Consumers[0].State != "done" {
		t.Errorf("of an event of the other service is known %+v", e)
	}
	if text := fmt.Sprint(s.Events[0].Unknown); !strings.Contains(text, "or this database did not write it") {
		t.Errorf("its row is missed as of an own one: %s", text)
	}

	var one status.Status
	out := ends(t, exitOK, asked("consumer get directory -o json", p.nats), p.billing, `"code":"idle"`)
	if err := json.Unmarshal([]byte(out), &one); err != nil || one.Stream != "ORDERS" || one.Prefix != "acme.orders" || one.Done != 3 || one.Events != 3 || one.Unaccounted != 0 {
		t.Errorf("get says %s (%v)", out, err)
	}
	ends(t, exitOK, asked("consumer ls", p.nats), p.billing, "directory", "idle")

	for _, selection := range []string{"--all", "--from-stream-seq 2", "--all --type user.created", "--all --type user.created --key " + signedUp(2).UserID, "--all --key " + signedUp(2).UserID} {
		want := map[string]int{"--all": 3, "--from-stream-seq 2": 2, "--all --type user.created": 3}[selection]
		if strings.Contains(selection, "--key") {
			want = 1
		}
		var plan struct{ Selected, Skipped int }
		out := must(t, exitOK, words("replay directory --dry-run -o json "+selection+" --nats-url "+p.nats, p.billing)...)
		if err := json.Unmarshal([]byte(out), &plan); err != nil || plan.Selected != want || plan.Skipped != want {
			t.Errorf("replay %s selects %s (%v), want %d", selection, out, err, want)
		}
	}
	must(t, exitOK, words("replay directory --all --again --reason test --yes --nats-url "+p.nats, p.billing)...)
	findsPeople(t, d.Addr, "", "User 1", "User 2", "User 3")
	must(t, exitOK, words("replay directory --all --type user.created --again --reason test --yes --nats-url "+p.nats, p.billing)...)

	// What cannot be handled is a dead letter, and can be redriven.
	e, err := events.New(signedUp(4))
	if err != nil {
		t.Fatal(err)
	}
	e.Data, e.Source, e.Seq = []byte(`{"name":7}`), "orders", 9
	_, header, body := e.Message()
	relay.Stop()
	if _, err := p.js.PublishMsg(t.Context(), &natsgo.Msg{Subject: events.SubjectsOf("acme.orders").Of(e.Type, e.Key), Header: header, Data: body}); err != nil {
		t.Fatal(err)
	}
	ends(t, exitOK, "dead ls", p.billing, "user.created")
	says(t, exitFindings, "status --nats-url "+p.nats, p.billing, "dead_letters")
	must(t, exitOK, words("dead redrive --consumer directory --yes", p.billing)...)
	ends(t, exitOK, "dead ls", p.billing, "user.created")

	d.Stop()
	for _, name := range inbox.Durables(directory.Name, consumers.DefaultSlices) {
		if err := p.js.DeleteConsumer(t.Context(), "ORDERS", name); err != nil {
			t.Fatal(err)
		}
	}
	says(t, exitFindings, asked("consumer ls", p.nats), p.billing, "consumer_missing -> pgjet consumer ensure directory --stream ORDERS --prefix acme.orders\n")
}

// TestForeignDurable: no command uses or changes a durable consumer of another database, and each
// reports why.
func TestForeignDurable(t *testing.T) {
	t.Parallel()
	p := newTwoServices(t)
	must(t, exitOK, p.args("consumer ensure directory", p.orders)...)
	d := startService(t, append(p.args("consume directory", p.orders), "--addr", anyPort)...)
	d.Ready(d.Admin)
	before := p.durables(t)
	owner := query[string](t, openDB(t, p.orders), `select id::text from pgjet.identity`)
	reason := []string{"foreign_durable: durable consumer directory-0of8 of stream ORDERS belongs to database", owner, query[string](t, openDB(t, p.billing), `select id::text from pgjet.identity`)}

	other := startService(t, append(p.args("consume directory", p.billing), "--addr", anyPort)...)
	other.NotReady(other.Admin, reason[0])
	for _, more := range []string{"", " --dry-run", " --apply"} {
		refused(t, exitRefused, p.args("consumer ensure directory"+more, p.billing), reason...)
	}
	other.Stop()

	// The durable consumers belonged to this database, and now belong to another one.
	if _, err := openDB(t, p.billing).Exec(t.Context(), `
		with c as (insert into pgjet.consumer (name, stream, stream_created, ordered, effects, slices) select 'directory', 'ORDERS', $1, true, false, 8 returning name, epoch)
		insert into pgjet.slice (consumer, slice, epoch) select name, n, epoch from c, generate_series(0, 7) n`, streamCreated(t, p.js, "ORDERS")); err != nil {
		t.Fatal(err)
	}
	if _, err := openDB(t, p.billing).Exec(t.Context(), `delete from pgjet.process`); err != nil { // which would report why, too
		t.Fatal(err)
	}
	for _, command := range []string{"replay directory --all --dry-run", "replay directory --all --again --reason test --yes"} {
		refused(t, exitRefused, words(command+" --nats-url "+p.nats, p.billing), reason...)
	}
	says(t, exitFindings, "consumer ls --nats-url "+p.nats, p.billing, "foreign_durable", "directory is foreign_durable -> pgjet consumer get directory\n")
	says(t, exitFindings, "consumer get directory --nats-url "+p.nats, p.billing, reason[0][len("foreign_durable: "):], owner)
	says(t, exitFindings, "status --nats-url "+p.nats, p.billing, "foreign_durable")
	if after := p.durables(t); after != before {
		t.Errorf("the durable consumers were changed from\n%s to\n%s", before, after)
	}
	d.Ready(d.Admin)
	d.Stop()
}

// durables returns all durable consumers of the stream of orders as they are.
func (p twoServices) durables(t *testing.T) string {
	t.Helper()
	stream, err := p.js.Stream(t.Context(), "ORDERS")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, name := range inbox.Durables(directory.Name, consumers.DefaultSlices) {
		c, err := stream.Consumer(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, fmt.Sprintf("%s %s %v", name, c.CachedInfo().Created, c.CachedInfo().Config))
	}
	return strings.Join(all, "\n")
}

// TestEnsureNamesTheDatabase: pgjet consumer ensure --database-url gives existing durable consumers
// to that database.
func TestEnsureNamesTheDatabase(t *testing.T) {
	t.Parallel()
	p := newTwoServices(t)
	without := strings.Fields("consumer ensure onboarding directory --stream ORDERS --prefix acme.orders --nats-url " + p.nats)
	must(t, exitOK, without...)
	if out := must(t, exitOK, append(without, "--database-url", p.orders, "--dry-run")...); strings.Contains(out, "from now on") {
		t.Errorf("a dry run says %q", out)
	}
	out := must(t, exitOK, append(without, "--database-url", p.orders)...)
	want := "durable consumers that name this database from now on: 1\ndurable consumer onboarding of stream ORDERS is as it should be\n" +
		"durable consumers that name this database from now on: 8\nthe 8 durable consumers of stream ORDERS, directory-0of8 to directory-7of8, are as they should be\n"
	if out != want {
		t.Errorf("consumer ensure says %q, want %q", out, want)
	}
	if out := must(t, exitOK, append(without, "--database-url", p.orders)...); strings.Contains(out, "from now on") {
		t.Errorf("the second time it says %q", out)
	}
	must(t, exitOK, without...) // compares only, without a database
	refused(t, exitRefused, append(without, "--database-url", p.billing), "foreign_durable: durable consumer onboarding")

	// The database of orders is declared gone.
	orders, billing := query[string](t, openDB(t, p.orders), `select id::text from pgjet.identity`), query[string](t, openDB(t, p.billing), `select id::text from pgjet.identity`)
	refused(t, exitUsage, append(without, "--take-from", orders), "--database-url")
	refused(t, exitUsage, append(without, "--database-url", p.billing, "--take-from", "orders"), "want the identity of a database")
	refused(t, exitUsage, append(without, "--database-url", p.billing, "--take-from", orders, "--apply"), "--apply")
	refused(t, exitRefused, append(without, "--database-url", p.billing, "--take-from", billing), "foreign_durable: durable consumer onboarding")
	if out := must(t, exitOK, append(without, "--database-url", p.billing, "--take-from", orders)...); out != want {
		t.Errorf("with --take-from consumer ensure says %q, want %q", out, want)
	}
	if out := must(t, exitOK, append(without, "--database-url", p.billing, "--take-from", orders)...); strings.Contains(out, "from now on") {
		t.Errorf("the second time it says %q", out)
	}
	refused(t, exitRefused, append(without, "--database-url", p.orders), "foreign_durable: durable consumer onboarding", billing)
}

func streamCreated(t *testing.T, js jetstream.JetStream, name string) time.Time {
	t.Helper()
	stream, err := js.Stream(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return stream.CachedInfo().Created
}
