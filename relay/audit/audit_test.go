package audit_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/relay"
	"github.com/pgjet/pgjet/relay/audit"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const patience = 20 * time.Second

// A fixture is an outbox, its stream, from which messages can be deleted, and a relay that publishes.
type fixture struct {
	*testing.T
	db     *pgxpool.Pool
	js     jetstream.JetStream
	stream jetstream.Stream
}

func newFixture(t *testing.T, direct bool) *fixture {
	t.Helper()
	js, url := testenv.JetStream(t)
	b := &fixture{T: t, db: testenv.Postgres(t), js: js}
	config := relay.StreamConfig("EVENTS", 1)
	config.DenyDelete, config.DenyPurge, config.AllowDirect = false, false, direct
	var err error
	if b.stream, err = js.CreateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	r := &relay.Relay{Database: b.db.Config().ConnConfig, NATSURL: url, AuditRate: -1, Log: testenv.Logger(t)}
	testenv.Run(t, r.Run)
	return b
}

const appended = `insert into pgjet.outbox (id, type, key, data) select gen_random_uuid(), 'note.made', $2, '{}' from generate_series(1, $1::int)`

// append commits events of one key, and waits until a checkpoint covers total events.
func (b *fixture) append(count, total int) {
	b.Helper()
	testenv.Exec(b, b.db, appended, count, fmt.Sprint("k", total))
	b.covered(total)
}

func (b *fixture) covered(total int) {
	b.Helper()
	testenv.Eventually(b, patience, fmt.Sprintf("a checkpoint of %d events", total), func() bool {
		s, err := relay.ReadStatus(b.Context(), b.db, "EVENTS")
		return err == nil && s.Checkpoint != nil && s.Checkpoint.Events == int64(total) && s.Pending.Events == 0
	})
}

func (b *fixture) delete(seq uint64) {
	b.Helper()
	if err := b.stream.DeleteMsg(b.Context(), seq); err != nil {
		b.Fatal(err)
	}
}

// audit compares both sides since a time.
func (b *fixture) audit(since time.Time) *audit.Walk {
	b.Helper()
	conn, err := b.db.Acquire(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Release()
	w, err := audit.Sides{DB: conn.Conn(), JS: b.js, Stream: "EVENTS"}.Begin(b.Context(), since)
	if err == nil {
		err = w.Run(b.Context(), nil)
	}
	if err != nil {
		b.Fatal(err)
	}
	return w
}

// TestMissing: a deleted message is missing, whether the stream allows direct gets or not.
func TestMissing(t *testing.T) {
	t.Parallel()
	for _, direct := range []bool{true, false} {
		t.Run(fmt.Sprintf("allow_direct=%t", direct), func(t *testing.T) {
			t.Parallel()
			b := newFixture(t, direct)
			b.append(20, 20)
			b.delete(7)
			w := b.audit(time.Time{})
			if want := (audit.Result{Compared: 19, Missing: 1}); w.Result != want || len(w.Differences) != 1 || w.Differences[0].Seq != 7 {
				t.Errorf("the audit says %+v, %+v", w.Result, w.Differences)
			}
		})
	}
}

// TestAgedOut: messages that aged out of the stream, or were purged, are not missing; a message
// deleted after those is.
func TestAgedOut(t *testing.T) {
	t.Parallel()
	b := newFixture(t, true)
	for i := range 4 {
		b.append(5, 5*(i+1))
	}
	if err := b.stream.Purge(t.Context(), jetstream.WithPurgeSequence(8)); err != nil { // it begins with 8
		t.Fatal(err)
	}
	if w := b.audit(time.Time{}); w.Result != (audit.Result{Compared: 13, Before: 7}) {
		t.Errorf("the audit says %+v, %+v", w.Result, w.Differences)
	}
	b.delete(13)
	if w := b.audit(time.Time{}); w.Result != (audit.Result{Compared: 12, Missing: 1, Before: 7}) {
		t.Errorf("then the audit says %+v, %+v", w.Result, w.Differences)
	}
}

// TestSince: only events that were published since then are compared.
func TestSince(t *testing.T) {
	t.Parallel()
	b := newFixture(t, true)
	b.append(10, 10)
	var since time.Time
	if err := b.db.QueryRow(t.Context(), `select clock_timestamp()`).Scan(&since); err != nil {
		t.Fatal(err)
	}
	b.append(10, 20)
	b.delete(3)
	b.delete(15)
	if w := b.audit(since); w.Result != (audit.Result{Compared: 9, Missing: 1, Before: 10}) || w.Differences[0].Seq != 15 {
		t.Errorf("the audit says %+v, %+v", w.Result, w.Differences)
	}
	if w := b.audit(time.Time{}); w.Result != (audit.Result{Compared: 18, Missing: 2}) {
		t.Errorf("of all the audit says %+v, %+v", w.Result, w.Differences)
	}
}

// TestLateCommit: an event may follow a later one of its key if its transaction committed after
// that one's. An audit that begins between them does not report it as missing either.
func TestLateCommit(t *testing.T) {
	t.Parallel()
	b := newFixture(t, true)
	tx, err := b.db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(t.Context()) }()
	if _, err := tx.Exec(t.Context(), appended, 1, "k2"); err != nil {
		t.Fatal(err)
	}
	b.append(2, 2)
	var since time.Time
	if err := b.db.QueryRow(t.Context(), `select clock_timestamp()`).Scan(&since); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.covered(3)
	if w := b.audit(time.Time{}); w.Result != (audit.Result{Compared: 3, Overlapping: 1}) {
		t.Errorf("the audit says %+v, %+v", w.Result, w.Differences)
	}
	if w := b.audit(since); w.Result != (audit.Result{Compared: 1, Before: 2}) {
		t.Errorf("since then the audit says %+v, %+v", w.Result, w.Differences)
	}
	b.delete(3)
	if w := b.audit(since); w.Result != (audit.Result{Missing: 1, Before: 2}) {
		t.Errorf("then the audit says %+v, %+v", w.Result, w.Differences)
	}
}

// TestOutOfOrder: an event of another transaction that follows a later one of its key is out of
// order if a checkpoint shows which was committed first.
func TestOutOfOrder(t *testing.T) {
	t.Parallel()
	b := newFixture(t, true)
	b.append(1, 1) // otherwise the deleted message would count as aged out
	for total := 2; total <= 3; total++ {
		testenv.Exec(t, b.db, appended, 1, "k")
		b.covered(total)
	}
	first, err := b.stream.GetMsg(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	b.delete(2)
	for name := range first.Header {
		if strings.HasPrefix(name, "Nats-") {
			delete(first.Header, name)
		}
	}
	if _, err := b.js.PublishMsg(t.Context(), &nats.Msg{Subject: first.Subject, Header: first.Header, Data: first.Data}); err != nil {
		t.Fatal(err)
	}
	if w := b.audit(time.Time{}); w.Result != (audit.Result{Compared: 3, OutOfOrder: 1}) {
		t.Errorf("the audit says %+v, %+v", w.Result, w.Differences)
	}
}

// TestPruned: a message whose row was pruned is no difference; a message without a row otherwise
// is.
func TestPruned(t *testing.T) {
	t.Parallel()
	b := newFixture(t, true)
	b.append(10, 10)
	var name string
	testenv.Eventually(t, patience, "the events are in a partition", func() bool {
		err := b.db.QueryRow(t.Context(), `select p.tableoid::regclass::text from pgjet.outbox p where seq = 1`).Scan(&name)
		return err == nil && name != "pgjet.outbox_default"
	})
	testenv.Exec(t, b.db, `delete from pgjet.outbox where seq = 4`)
	if w := b.audit(time.Time{}); w.Result != (audit.Result{Compared: 9, Extra: 1}) {
		t.Errorf("the audit says %+v, %+v", w.Result, w.Differences)
	}
	testenv.Exec(t, b.db, `update pgjet.pruned set seq = 10, events = 10`)
	testenv.Exec(t, b.db, `drop table `+name)
	if w := b.audit(time.Time{}); w.Result != (audit.Result{Pruned: 10}) {
		t.Errorf("of what was pruned the audit says %+v, %+v", w.Result, w.Differences)
	}
}

// TestNext: a walk goes as far as allowed in one piece, and at least to the next checkpoint.
func TestNext(t *testing.T) {
	b := newFixture(t, true)
	for total := 10; total <= 40; total += 10 {
		b.append(10, total)
	}
	conn, err := b.db.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	sides := audit.Sides{DB: conn.Conn(), JS: b.js, Stream: "EVENTS"}
	made, err := sides.Created(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for messages, want := range map[int]uint64{1: 10, 19: 10, 20: 20, 35: 30, 1000: 40} {
		w, err := sides.Next(t.Context(), made, audit.Checkpoint{}, messages)
		if err != nil || w == nil || w.To().Seq != want {
			t.Errorf("a walk of %d messages: %+v, %v, want to %d", messages, w, err, want)
		}
	}
}
