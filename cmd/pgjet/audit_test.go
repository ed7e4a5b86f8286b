package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/internal/natsconn"
	"github.com/pgjet/pgjet/internal/operate"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/relay"
)

// auditOf runs pgjet audit run as an operator, with any further flags, and returns what it prints as JSON.
func auditOf(t *testing.T, want int, database, nats string, flags ...string) (a operate.Audit) {
	t.Helper()
	out := must(t, want, append([]string{"audit", "run", "-o", "json", "--database-url", asOperator(database), "--nats-url", nats}, flags...)...)
	d := json.NewDecoder(strings.NewReader(out))
	d.DisallowUnknownFields()
	if err := d.Decode(&a); err != nil {
		t.Fatalf("audit run prints %v\n%s", err, out)
	}
	return a
}

// startAdministered starts a NATS server with two users: one may do anything, and one has the
// permissions of an operator without consumers.
func startAdministered(t *testing.T) *guarded {
	t.Helper()
	operator := must(t, exitOK, "nats", "permissions", "operator")
	return guard(t, fmt.Sprintf("authorization: { users: [ { user: admin, password: %s }\n { user: operator, password: %s\n%s} ] }\n", secret, secret, operator))
}

// copyStream replaces the stream by a copy. change returns the messages that take the place of each
// message. Messages of the copy can be deleted.
func copyStream(t *testing.T, js jetstream.JetStream, change func(seq uint64, m *nats.Msg) []*nats.Msg) jetstream.Stream {
	t.Helper()
	old, err := js.Stream(t.Context(), "EVENTS")
	if err != nil {
		t.Fatal(err)
	}
	var all []*nats.Msg
	last := old.CachedInfo().State.LastSeq
	for next := uint64(1); next <= last; {
		read, err := natsconn.Direct{Conn: js.Conn(), API: natsconn.API(js), Stream: "EVENTS"}.Batch(t.Context(), next, last, 1000, 1<<20, func(seq uint64, subject string, raw *nats.Msg) error {
			header := nats.Header{}
			for name, values := range raw.Header {
				if !strings.HasPrefix(name, "Nats-") {
					header[name] = values
				}
			}
			all = append(all, change(seq, &nats.Msg{Subject: subject, Header: header, Data: raw.Data})...)
			return nil
		})
		if err != nil || read == 0 {
			t.Fatalf("copy the stream from sequence %d: %d, %v", next, read, err)
		}
		next = read + 1
	}
	if err := js.DeleteStream(t.Context(), "EVENTS"); err != nil {
		t.Fatal(err)
	}
	config := relay.StreamConfig("EVENTS", 1)
	config.DenyDelete = false
	stream, err := js.CreateStream(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		if _, err := js.PublishMsgAsync(m, jetstream.WithStallWait(time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-js.PublishAsyncComplete():
	case <-time.After(time.Minute):
		t.Fatal("the copy takes too long")
	}
	return stream
}

// published waits until the newest checkpoint covers the whole outbox, at a stream whose last
// sequence is last.
func published(t *testing.T, database string, last int) {
	t.Helper()
	db := openDB(t, database)
	testenv.Eventually(t, 2*patience, fmt.Sprintf("a checkpoint at sequence %d", last), func() bool {
		return query[int](t, db, `select count(*) from pgjet.checkpoint where stream_seq = $1 and id = (select max(id) from pgjet.checkpoint)`, last) == 1
	})
}

// TestAuditFindsEachDifference: of 100 000 events one row is deleted, one message is changed, one
// is deleted, one is there twice, and two of one key are in the wrong order. The audit finds and
// names each, with the rights of an operator, and nothing else.
func TestAuditFindsEachDifference(t *testing.T) {
	t.Parallel()
	count := 30_000
	if raced {
		count = 10_000
	}
	g := startAdministered(t)
	database := testenv.DatabaseURL(t)
	db := openDB(t, database)
	js := ensureStream(t, g.url("admin"))
	r := startRelay(t, database, g.url("admin"))
	r.Ready(r.Admin)
	testenv.Exec(t, db, `insert into pgjet.outbox (id, type, key, header, traceparent, data)
		select gen_random_uuid(), 'note.made', 'k' || n % 1000, '{"Tenant": "a b"}', '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01', json_build_object('n', n)
		  from generate_series(1, $1::int) n`, count)
	published(t, database, count)
	begun := time.Now()
	if a := auditOf(t, exitOK, database, g.url("operator")); !a.Agrees || a.Compared != int64(count) || len(a.Differences) != 0 || a.Before+a.Pruned+a.Moved+a.Quarantined != 0 {
		t.Fatalf("of a whole stream the audit says %+v", a)
	}
	t.Logf("an audit of %d events took %s", count, time.Since(begun).Round(time.Millisecond))
	r.Stop()

	const changed, dropped, doubled, early, deleted = 1234, 2345, 3456, 4567, 5678
	var moved *nats.Msg
	stream := copyStream(t, js, func(seq uint64, m *nats.Msg) []*nats.Msg {
		switch seq {
		case changed:
			m.Data = []byte(strings.Replace(string(m.Data), "{", "{ ", 1))
		case doubled:
			return []*nats.Msg{m, m}
		case early:
			moved = m
			return nil
		case early + 1000: // of the same key
			return []*nats.Msg{m, moved}
		}
		return []*nats.Msg{m}
	})
	r = startRelay(t, database, g.url("admin"))
	r.Ready(r.Admin)
	published(t, database, count+1)
	if err := stream.DeleteMsg(t.Context(), dropped); err != nil {
		t.Fatal(err)
	}
	gone := query[string](t, db, `delete from pgjet.outbox where seq = $1 returning id::text`, deleted)

	a := auditOf(t, exitFindings, database, g.url("operator"))
	if a.Agrees || a.Missing != 1 || a.Extra != 1 || a.Twice != 1 || a.OutOfOrder != 1 || a.Changed != 1 || a.Compared != int64(count-1) || a.Listed != 5 {
		t.Errorf("the audit says %+v", a.Result)
	}
	id := func(seq int) string {
		return query[string](t, db, `select id::text from pgjet.outbox where seq = $1`, seq)
	}
	want := []string{
		"changed " + id(changed), "extra " + gone, "missing " + id(dropped), "out_of_order " + id(early), "twice " + id(doubled),
	}
	var got []string
	for _, d := range a.Differences {
		got = append(got, d.Kind+" "+d.ID.String())
	}
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("the differences are\n%q, want\n%q", got, want)
	}
	says(t, exitFindings, asked("audit run", g.url("operator")), asOperator(database), "missing        1        were published", "missing        "+id(dropped)+"   2345   -            it was published",
		"data of ")
	g.log.none(t)
}

// TestStatusOfAnAudit: pgjet status shows the differences of the background audit under their
// reason, and pgjet audit show lists them.
func TestStatusOfAnAudit(t *testing.T) {
	t.Parallel()
	database, nats := testenv.DatabaseURL(t), testenv.NATS(t).URL()
	ensureStream(t, nats)
	r := startService(t, "relay", "--database-url", database, "--nats-url", nats, "--audit-rate", "0")
	r.Ready(r.Admin)
	says(t, exitOK, "audit show", asOperator(database), "last pass   none\n", "under way   none\n")
	finds(t, exitOK, database, nats)
	pass := func(missing int, ended string) {
		testenv.Exec(t, openDB(t, database), `insert into pgjet.audit (stream, stream_created, system_identifier, stream_seq, snapshot, floor, events, compared, missing, extra, twice, out_of_order, changed, ended_at, differences)
			values ('EVENTS', now(), 0, 7, '1:1:', 0, 0, 100, $1, 0, 0, 0, 0, `+ended+`, '[{"kind": "missing", "seq": 5, "id": "0199b1c2-6f00-7000-8000-000000000002", "text": "it was published"}]')`, missing)
	}
	const differs = "outbox audit_differs -> pgjet audit show"
	pass(1, "now()")
	s := finds(t, exitFindings, database, nats, differs)
	if f := s.Findings[0]; f.Runbook != "audit.md" || f.Text != "with stream EVENTS: 1 missing, of 100 compared" {
		t.Errorf("the finding is %+v", f)
	}
	says(t, exitFindings, asked("status", nats), asOperator(database), "  EVENTS        last pass: 1 missing, of 100 compared, ended ")
	says(t, exitOK, "relay status", asOperator(database), "audit        last pass: 1 missing, of 100 compared", "next         pgjet audit show\n")
	says(t, exitFindings, "audit show", asOperator(database), "missing      0199b1c2-6f00-7000-8000-000000000002   5     -            it was published\n")
	pass(0, "now()") // it was repaired
	finds(t, exitOK, database, nats)
	pass(2, "null")
	finds(t, exitFindings, database, nats, differs)
	says(t, exitFindings, "audit show", asOperator(database), "no difference, of 100 compared, ended ", "under way   2 missing, of 100 compared, up to sequence 7, began ")
}
