package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/operate"
	"github.com/pgjet/pgjet/internal/testenv"
)

// asOperator returns the address of a database with the rights of an operator.
func asOperator(database string) string {
	return strings.Replace(database, "?", "?role=pgjet_operator&", 1)
}

// timelineOf runs pgjet event timeline as an operator, and returns what it prints as JSON.
func timelineOf(t *testing.T, what, database, nats string) eventTimeline {
	t.Helper()
	out := must(t, exitOK, "event", "timeline", what, "-o", "json", "--database-url", asOperator(database), "--nats-url", nats)
	var s eventTimeline
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		t.Fatalf("the timeline is no JSON: %v\n%s", err, out)
	}
	return s
}

// inOrder reports whether the timeline has such entries in this order. Each is "place: text", with
// a part of the text.
func (s eventTimeline) inOrder(want ...string) bool {
	for _, e := range s.Timeline {
		if len(want) == 0 {
			break
		}
		place, text, _ := strings.Cut(want[0], ": ")
		if e.Place == place && strings.Contains(e.Text, text) {
			want = want[1:]
		}
	}
	return len(want) == 0
}

// names reports whether the timeline has an entry of a place.
func (s eventTimeline) names(place string) bool {
	return slices.ContainsFunc(s.Timeline, func(e operate.Entry) bool { return e.Place == place })
}

// TestEventTimeline: the mail of a sign-up is refused for a while, given up, and redriven. The
// timeline shows it from the append to the mail. It is found by id, key, trace id and traceparent.
func TestEventTimeline(t *testing.T) {
	t.Parallel()
	_, database, nats := startPublishing(t)
	smtp, inbox := startMail(t, anyPort)
	m := startMailer(t, database, nats, smtp)
	m.Ready(m.Admin)
	d := startDirectory(t, database, nats)
	d.Ready(d.Admin)
	users := startUsers(t, database)
	refuseMails(t, inbox, 550, 1)
	const trace = "4bf92f3577b34da6a3ce929d0e0e4736"
	const traceparent = "00-" + trace + "-00f067aa0ba902b7-01"
	status, _, body := request(t, http.MethodPost, users.Addr+"/users", signUpBody("ada@example.com"), map[string]string{
		"Content-Type": "application/json", "traceparent": traceparent,
	})
	if status != http.StatusCreated {
		t.Fatalf("POST /users = %d %s", status, body)
	}
	db := openDB(t, database)
	testenv.Eventually(t, patience, "the mail is a dead letter", func() bool {
		return query[int](t, db, `select count(*) from pgjet.dead_letter where state = 'dead'`) == 1
	})
	id, key := query[string](t, db, `select id::text from pgjet.outbox`), query[string](t, db, `select key from pgjet.outbox`)
	s := timelineOf(t, id, database, nats)
	if !s.inOrder("outbox: appended user.created, seq 1", "stream: stored as EVENTS, sequence 1", "welcome-mailer: attempt 1 of ",
		"welcome-mailer: dead letter 1 after 1 attempts: mail server answered", "welcome-mailer: waits for a decision -> pgjet dead get 1") {
		t.Errorf("the timeline is %+v", s.Timeline)
	}

	refuseMails(t, inbox, 451, 1)
	must(t, exitOK, words("dead redrive 1 --reason mended", database)...)
	testenv.Eventually(t, patience, "the mail was sent", func() bool {
		return query[int](t, db, `select count(*) from pgjet.dead_letter where state = 'done'`) == 1
	})
	for _, what := range []string{id, key, trace, strings.ToUpper(trace), traceparent} {
		s = timelineOf(t, what, database, nats)
		if len(s.Events) != 1 || s.More || !s.inOrder("outbox: appended user.created", "stream: stored as EVENTS", "welcome-mailer: attempt 1 of ",
			"operator: dead.redrive of welcome-mailer by "+actor()+": mended", "welcome-mailer: : retried", "welcome-mailer: : done") || !s.inOrder("stream: stored", "directory: done") {
			t.Errorf("the timeline of %s is %+v", what, s.Timeline)
		}
	}
	if e := s.Events[0]; e.TraceID != trace || e.Key != key || !e.Outbox.Published || len(e.Unknown) == 0 {
		t.Errorf("the event is %+v", e)
	}
	out := says(t, exitOK, asked("event timeline "+id, nats), asOperator(database), id+"  user.created  key "+key+"  directory done, welcome-mailer done\n", "not known: ", "451 4.0.0 devmail")
	if strings.Contains(out, "ada@") || strings.Count(out, "\n") > 24 {
		t.Errorf("the timeline shows an address, or does not fit on a screen:\n%s", out)
	}
	says(t, exitOK, asked("event get "+id, nats), asOperator(database), "outbox      published; seq 1, ", "stream      EVENTS, sequence 1", "consumer    directory: done")

	out = says(t, exitOK, asked("event timeline "+id, "nats://"+nowhere), database, "welcome-mailer done", "not known: NATS does not answer")
	if strings.Contains(out, "stored as") || strings.Contains(out, "not found in the stream") {
		t.Errorf("without NATS it says\n%s", out)
	}
	for _, what := range []string{uuid.NewString(), "nobody", strings.Repeat("0", 32)} {
		refused(t, exitNotFound, words(asked("event timeline "+what, nats), database), what, "newest 200000 rows")
		refused(t, exitNotFound, words(asked("event get "+what, nats), database), what, "newest 200000 rows")
	}
	for _, what := range []string{id, key, trace, "ada@example.com"} {
		says(t, exitOK, asked("event get "+what, nats), asOperator(database), "id          "+id)
	}
	refused(t, exitUnreachable, []string{"event", "get", id, "--nats-url", nats, "--database-url", "postgres://ann@" + nowhere + "/x"}, "PostgreSQL")
}

// TestEventOfAnotherPrefix: the event is found in a stream with another prefix.
func TestEventOfAnotherPrefix(t *testing.T) {
	t.Parallel()
	database, nats := testenv.DatabaseURL(t), testenv.NATS(t).URL()
	db, js := openDB(t, database), testenv.Connect(t, nats)
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"acme.orders.>"}, AllowDirect: true}); err != nil {
		t.Fatal(err)
	}
	id := query[string](t, db, `insert into pgjet.outbox (id, type, key, data) values (gen_random_uuid(), 'order.paid', '7', '{}') returning id::text`)
	if _, err := db.Exec(t.Context(), `insert into pgjet.leader (stream, epoch) values ('ORDERS', 1)`); err != nil {
		t.Fatal(err)
	}
	e := events.Event{ID: uuid.MustParse(id), Type: "order.paid", Key: "7", Source: "orders", Time: time.Now(), Seq: 1, Data: []byte("{}")}
	_, header, body := e.Message()
	if _, err := js.PublishMsg(t.Context(), &natsgo.Msg{Subject: events.SubjectsOf("acme.orders").Of(e.Type, e.Key), Header: header, Data: body}); err != nil {
		t.Fatal(err)
	}
	if s := timelineOf(t, id, database, nats); s.Events[0].Stored == nil || s.Events[0].Stored.Stream != "ORDERS" {
		t.Errorf("the event is %+v, want its place in the stream", s.Events[0])
	}
}

// TestEventStates: an event is shown as pending, in quarantine, behind another one, ignored, or
// pruned.
func TestEventStates(t *testing.T) {
	t.Parallel()
	b := newReplayRig(t, 2, false)
	database, nats := b.where[1], b.where[3]
	appended := func(eventType, key string) string {
		return query[string](t, b.db, fmt.Sprintf(`insert into pgjet.outbox (id, type, key, data) values (gen_random_uuid(), '%s', '%s', '{}') returning id::text`, eventType, key))
	}
	state := func(id string) (e operate.Event, s eventTimeline, at string) {
		s = timelineOf(t, id, database, nats)
		e = s.Events[0]
		if i := slices.IndexFunc(e.Consumers, func(h operate.Handling) bool { return h.Consumer == "notes" }); i >= 0 {
			at = e.Consumers[i].State
		}
		return e, s, at
	}
	pending := appended("note.made", "a")
	if e, s, at := state(pending); e.Stored != nil || e.Outbox.Published || at != operate.Waiting || !s.inOrder("outbox: pending -> pgjet relay status") || s.names("notes") {
		t.Errorf("a pending event is %s, %+v", at, s)
	}
	if _, _, at := state(appended("other.made", "a")); at != operate.Ignored {
		t.Errorf("an event of another type is %s, want %s", at, operate.Ignored)
	}
	held := appended("note.made", "h")
	b.exec(`insert into pgjet.quarantine (seq, event_id, reason) select seq, id, 'too large' from pgjet.outbox where id = $1::text::uuid`, held)
	if e, s, at := state(held); e.Quarantine == nil || at != operate.Waiting ||
		!s.inOrder("quarantine: set aside, held now: too large", "quarantine: held until somebody decides -> pgjet relay quarantine ls") || s.names("notes") {
		t.Errorf("a held event is %+v, want the quarantine to be what it waits for, not the consumer", s)
	}
	if out := must(t, exitOK, "key", "h", "--database-url", database); !strings.Contains(out, "is in quarantine -> pgjet relay quarantine ls") {
		t.Errorf("the key of a held event:\n%s", out)
	}
	b.exec(`update pgjet.quarantine set state = 'dropped'`)
	if _, s, at := state(held); at != operate.Dropped || !s.inOrder("quarantine: dropped: no consumer gets it") || s.names("notes") {
		t.Errorf("a dropped event is %s, %+v", at, s)
	}
	if out := must(t, exitOK, "key", "h", "--database-url", database); !strings.Contains(out, "nothing holds it back") {
		t.Errorf("the key of a dropped event:\n%s", out)
	}

	// It was published, and the stream has it no more.
	b.exec(`insert into pgjet.leader (stream, epoch) values ('EVENTS', 1) on conflict (stream) do update set epoch = 1`)
	b.exec(`insert into pgjet.checkpoint (stream, epoch, stream_seq, stream_created, system_identifier, floor, snapshot)
		select 'EVENTS', 1, 2, now(), (select system_identifier from pg_control_system()), (select max(seq) from pgjet.outbox), pg_current_snapshot()`)
	if e, s, at := state(pending); !e.Outbox.Published || at != operate.Unknown || !s.inOrder("stream: published, and not found in the stream") ||
		!slices.ContainsFunc(e.Unknown, func(s string) bool {
			return strings.HasPrefix(s, "notes: its inbox has no row of the event, and the stream has it no more")
		}) {
		t.Errorf("an event that the stream has lost is %s, %+v", at, s)
	}

	// Its outbox row is gone, the stream has it, the inbox knows it.
	done := query[string](t, b.db, `select event_id::text from pgjet.inbox where stream_seq = 2`)
	b.exec(`update pgjet.pruned set seq = 100`)
	if e, _, at := state(done); e.Outbox != nil || e.Stored == nil || e.Stored.Seq != 2 || e.Type != "note.made" || at != "done" ||
		!slices.ContainsFunc(e.Unknown, func(s string) bool { return strings.Contains(s, "seq 2: it was pruned") }) {
		t.Errorf("a pruned event is %s, %+v", at, e)
	}

	// It waits for another attempt; one of its key waits behind it.
	b.exec(`update pgjet.inbox set state = 'intent'`)
	b.exec(`insert into pgjet.intent (consumer, event_id, type, key, stream, generation, stream_seq, subject, header, data, attempts, due_at, error)
		select 'notes', event_id, 'note.made', 'k', 'EVENTS', 1, stream_seq, 's', '{}', '', 3 - stream_seq,
		       case stream_seq when 1 then now() + interval '1 hour' else 'infinity' end, case stream_seq when 1 then 'no such ann@example.com' end from pgjet.inbox`)
	first := query[string](t, b.db, `select event_id::text from pgjet.inbox where stream_seq = 1`)
	if _, s, at := state(first); at != operate.Retrying || !s.inOrder("notes: waits for attempt 3, due at ") || !s.inOrder("notes: the last error: no such …@… -> pgjet consumer get notes") {
		t.Errorf("a retried event is %s, %+v", at, s)
	}
	if _, s, _ := state(done); !s.inOrder("notes: waits behind an earlier event of its key") {
		t.Errorf("a parked event is %+v", s)
	}
	if s := timelineOf(t, "k", database, nats); len(s.Events) != 2 || s.Events[0].ID.String() != first {
		t.Errorf("of the key that waits the events are %+v", s.Events)
	}
}
