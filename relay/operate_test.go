package relay_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/outbox"
	"github.com/pgjet/pgjet/relay"
)

const (
	by     = "ann@host"
	reason = "the test says so"
)

// operations returns the recorded operations, a line each.
func (b *bench) operations() []string {
	b.Helper()
	rows, err := b.db.Query(b.Context(), `select concat_ws(' ', kind, target, by, reason) from pgjet.operation order by id`)
	if err != nil {
		b.Fatal(err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		b.Fatal(err)
	}
	return all
}

func (b *bench) noted(want ...string) {
	b.Helper()
	for i := range want {
		want[i] += " " + by + " " + reason
	}
	if got := b.operations(); !slices.Equal(got, want) {
		b.Errorf("noted %q, want %q", got, want)
	}
}

// cause waits until the leader reports why it does not publish.
func (b *bench) cause(want string) {
	b.Helper()
	testenv.Eventually(b, patience, "the leader's cause is "+want, func() bool {
		l := b.status().Leader
		return l != nil && strings.HasPrefix(l.Cause, want)
	})
}

func TestPauseAndResume(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var log bytes.Buffer
	r, stop := b.startLogged(slog.New(slog.NewTextHandler(&log, nil)))
	b.append(5)
	b.settled()
	first, news, err := relay.Pause(t.Context(), b.db, "EVENTS", by, reason)
	if err != nil || !news || first.By != by || first.Reason != reason {
		t.Fatalf("Pause() = %+v, %t, %v, want news", first, news, err)
	}
	if quiet, err := relay.Quiet(t.Context(), b.db, "EVENTS", first, patience); err != nil || !quiet {
		t.Errorf("Quiet() = %t, %v", quiet, err)
	}
	later := relay.Paused{At: first.At.Add(time.Hour)}
	if quiet, err := relay.Quiet(t.Context(), b.db, "EVENTS", later, 0); err != nil || quiet {
		t.Errorf("the report of an earlier pause counts for a later one: %t, %v", quiet, err)
	}
	b.append(5)
	b.blocked(r, by+": "+reason)
	again, news, err := relay.Pause(t.Context(), b.db, "EVENTS", "bob@host", "other")
	if err != nil || news || again != first {
		t.Errorf("a second Pause() = %+v, %t, %v, want %+v and no news", again, news, err, first)
	}
	if s := b.status(); s.Paused == nil || s.Paused.By != by || s.Paused.Reason != reason || s.Pending.Events != 5 {
		t.Errorf("status is %+v, want paused, and 5 pending", s)
	}
	if got := len(b.stored()); got != 5 {
		t.Errorf("the stream holds %d events, want 5 while paused", got)
	}
	was, err := relay.Resume(t.Context(), b.db, "EVENTS", by, reason)
	if err != nil || was == nil || !was.At.Equal(first.At) || was.By != by {
		t.Errorf("Resume() = %+v, %v, want what was paused", was, err)
	}
	b.settled()
	b.ready(r)
	if quiet, err := relay.Quiet(t.Context(), b.db, "EVENTS", first, 0); err != nil || quiet {
		t.Errorf("after the pause Quiet() = %t, %v", quiet, err)
	}
	if was, err = relay.Resume(t.Context(), b.db, "EVENTS", by, reason); err != nil || was != nil {
		t.Errorf("a second Resume() = %+v, %v, want nothing", was, err)
	}
	if s := b.status(); s.Paused != nil {
		t.Errorf("status is %+v, want no pause", s)
	}
	b.noted("relay.pause EVENTS", "relay.resume EVENTS")
	stop()
	if text := log.String(); !regexp.MustCompile(`level=INFO msg="not publishing" .*err="paused: by ann@host`).MatchString(text) || strings.Contains(text, `level=WARN msg="not publishing"`) {
		t.Errorf("the log is\n%s, want a pause that is no warning", text)
	}
}

// TestPauseBeforeAnyRelay: the first relay is paused.
func TestPauseBeforeAnyRelay(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	if _, _, err := relay.Pause(t.Context(), b.db, "EVENTS", by, reason); err != nil {
		t.Fatal(err)
	}
	if s := b.status(); s.Leader != nil || s.Paused == nil {
		t.Errorf("status is %+v, want paused, and no leader", s)
	}
	r, _ := b.start()
	b.blocked(r, "paused")
	if s := b.status(); s.Leader == nil || s.Leader.Epoch != 1 {
		t.Errorf("leader is %+v, want the first", s.Leader)
	}
}

func TestAdopt(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	if _, err := relay.Adopt(t.Context(), b.db, "EVENTS", by, reason); !errors.Is(err, relay.ErrNothingToAdopt) {
		t.Errorf("Adopt() = %v, want ErrNothingToAdopt", err)
	}
	b.noted()
	r, _ := b.start()
	b.append(3)
	b.settled()
	for range 2 {
		if _, err := b.js.Publish(t.Context(), "events.00.alien", []byte("{}")); err != nil {
			t.Fatal(err)
		}
	}
	b.append(4)
	b.cause("halted: foreign_writer")
	if s := b.status(); s.Unknown != 2 {
		t.Errorf("status is %+v, want 2 unknown messages", s)
	}
	listed, err := relay.UnknownMessages(t.Context(), b.db, "EVENTS")
	if err != nil || len(listed) != 2 || listed[1].StreamSeq != 5 || listed[1].EventID != nil || listed[1].Subject != "events.00.alien" {
		t.Errorf("UnknownMessages() = %+v, %v, want the foreign ones, at 4 and 5", listed, err)
	}
	adopted, err := relay.Adopt(t.Context(), b.db, "EVENTS", by, reason)
	if err != nil || !slices.EqualFunc(adopted, listed, func(x, y relay.UnknownMessage) bool { return x.StreamSeq == y.StreamSeq && x.At.Equal(y.At) }) {
		t.Errorf("Adopt() = %+v, %v, want what was listed", adopted, err)
	}
	testenv.Eventually(t, patience, "the relay goes on", func() bool { return len(b.stored()) == 9 })
	b.ready(r)
	if s := b.status(); s.Unknown != 0 {
		t.Errorf("status is %+v, want no unknown message", s)
	}
	b.noted("relay.adopt EVENTS")
}

// hold sets count events aside.
func (b *bench) hold(count int) {
	b.Helper()
	b.append(count)
	b.exec(`insert into pgjet.quarantine (seq, event_id, reason) select seq, id, 'too large' from pgjet.outbox on conflict do nothing`)
}

// states returns the state of each event in quarantine.
func (b *bench) states() string {
	b.Helper()
	all, err := relay.Quarantine(b.Context(), b.db, "", 0)
	if err != nil {
		b.Fatal(err)
	}
	var states []string
	for _, q := range all {
		states = append(states, fmt.Sprint(q.Seq, " ", q.State))
	}
	return strings.Join(states, ", ")
}

func TestQuarantineDecisions(t *testing.T) {
	t.Parallel()
	b := newOutbox(t)
	b.hold(5)
	for _, step := range []struct {
		do     func(seqs []int64) ([]int64, error)
		seqs   []int64
		want   []int64
		refuse string
		states string
	}{
		{b.drop, []int64{2, 3}, []int64{2, 3}, "", "1 held, 2 dropped, 3 dropped, 4 held, 5 held"},
		{b.retry, []int64{4}, []int64{4}, "", "1 held, 2 dropped, 3 dropped, 4 retry, 5 held"},
		{b.retry, []int64{1, 77, 78}, nil, "77, 78", "1 held, 2 dropped, 3 dropped, 4 retry, 5 held"},
		{b.retry, []int64{3, 3}, []int64{3}, "", "1 held, 2 dropped, 3 retry, 4 retry, 5 held"},
		{b.retry, nil, []int64{1, 5}, "", "1 retry, 2 dropped, 3 retry, 4 retry, 5 retry"}, // 2 was not named
		{b.retry, nil, nil, "", "1 retry, 2 dropped, 3 retry, 4 retry, 5 retry"},
		{b.drop, nil, nil, "", "1 retry, 2 dropped, 3 retry, 4 retry, 5 retry"},
	} {
		got, err := step.do(step.seqs)
		if !slices.Equal(got, step.want) || (err != nil) != (step.refuse != "") || err != nil && !strings.Contains(err.Error(), step.refuse) {
			t.Errorf("%v: %v, %v, want %v, %q", step.seqs, got, err, step.want, step.refuse)
		}
		if states := b.states(); states != step.states {
			t.Errorf("%v: states are %s, want %s", step.seqs, states, step.states)
		}
	}
	b.exec(`delete from pgjet.outbox where seq = 2`)
	if got, err := b.retry([]int64{2}); err == nil || !strings.Contains(err.Error(), "seq 2 is not in quarantine, or was pruned") {
		t.Errorf("retry of a pruned event: %v, %v, want an error", got, err)
	}
	b.noted("quarantine.drop outbox", "quarantine.retry outbox", "quarantine.retry outbox", "quarantine.retry outbox")
}

func (b *bench) retry(seqs []int64) ([]int64, error) {
	return relay.RetryQuarantined(b.Context(), b.db, seqs, by, reason)
}

func (b *bench) drop(seqs []int64) ([]int64, error) {
	return relay.DropQuarantined(b.Context(), b.db, seqs, by, reason)
}

func TestQuarantineList(t *testing.T) {
	t.Parallel()
	b := newOutbox(t)
	b.hold(4)
	if _, err := b.drop([]int64{3}); err != nil {
		t.Fatal(err)
	}
	b.exec(`delete from pgjet.outbox where seq = 4`)
	all, err := relay.Quarantine(t.Context(), b.db, "held", 1)
	if err != nil || len(all) != 2 || all[0].Seq != 2 || all[1].Seq != 4 {
		t.Fatalf("Quarantine(held, 1) = %+v, %v, want 2 and 4", all, err)
	}
	q := all[0]
	if q.Type != "note.made" || q.Key != "k2" || q.Reason != "too large" || q.State != "held" || q.ChangedAt != nil || time.Since(q.At) > time.Hour {
		t.Errorf("the first is %+v", q)
	}
	if all[1].Type != "" {
		t.Errorf("the last is %+v, want no type: its event is gone", all[1])
	}
	all, err = relay.Quarantine(t.Context(), b.db, "dropped", 0)
	if err != nil || len(all) != 1 || all[0].ChangedBy != by || all[0].ChangeReason != reason || all[0].ChangedAt == nil {
		t.Errorf("Quarantine(dropped) = %+v, %v, want who dropped it", all, err)
	}
}

// TestQuarantineRetryPublishes: an event that was too large for the stream is published
// once the stream stores larger ones and an operator retries it. A dropped event is not.
func TestQuarantineRetryPublishes(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	config := relay.StreamConfig("EVENTS", 1)
	config.MaxMsgSize = 2000
	if _, err := b.js.UpdateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	big := events.Event{Type: "note.made", Key: "k", Data: []byte(`"` + strings.Repeat("x", 3000) + `"`)}
	for range 2 {
		err := pgx.BeginFunc(t.Context(), b.db, func(tx pgx.Tx) error { return outbox.Append(t.Context(), tx, big) })
		if err != nil {
			t.Fatal(err)
		}
	}
	b.append(3)
	r, _ := b.start()
	testenv.Eventually(t, patience, "the small ones are published", func() bool { return len(b.stored()) == 3 })
	b.ready(r)
	testenv.Eventually(t, patience, "two are held, none is pending", func() bool {
		s := b.status()
		return s.Quarantined.Held == 2 && s.Pending.Events == 0
	})
	if _, err := b.drop([]int64{2}); err != nil {
		t.Fatal(err)
	}
	config.MaxMsgSize = -1
	if _, err := b.js.UpdateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	if _, err := b.retry(nil); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, patience, "the held one is published", func() bool { return len(b.stored()) == 4 })
	testenv.Eventually(t, patience, "it is in quarantine no more", func() bool { return b.states() == "2 dropped" })
}

// TestOperatorRole: an operator's actions need only the role of operators.
func TestOperatorRole(t *testing.T) {
	t.Parallel()
	b := newOutbox(t)
	b.hold(2)
	b.exec(`insert into pgjet.unknown_message (stream, stream_created, stream_seq, subject) values ('EVENTS', now(), 1, 's')`)
	conn, err := b.db.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		conn.Exec(t.Context(), `reset role`)
		conn.Release()
	}()
	if _, err := conn.Exec(t.Context(), `set role pgjet_operator`); err != nil {
		t.Fatal(err)
	}
	db := conn.Conn()
	_, statusErr := relay.ReadStatus(t.Context(), db, "EVENTS")
	_, _, pauseErr := relay.Pause(t.Context(), db, "EVENTS", by, reason)
	_, resumeErr := relay.Resume(t.Context(), db, "EVENTS", by, reason)
	_, unknownErr := relay.UnknownMessages(t.Context(), db, "EVENTS")
	_, adoptErr := relay.Adopt(t.Context(), db, "EVENTS", by, reason)
	_, listErr := relay.Quarantine(t.Context(), db, "", 0)
	_, retryErr := relay.RetryQuarantined(t.Context(), db, nil, by, reason)
	_, dropErr := relay.DropQuarantined(t.Context(), db, []int64{1}, by, reason)
	if err := errors.Join(statusErr, pauseErr, resumeErr, unknownErr, adoptErr, listErr, retryErr, dropErr); err != nil {
		t.Error(err)
	}
}

// TestOldTables: the error says what to do.
func TestOldTables(t *testing.T) {
	t.Parallel()
	b := newOutbox(t)
	b.exec(`alter table pgjet.leader drop column paused_at`)
	if _, err := relay.ReadStatus(t.Context(), b.db, "EVENTS"); err == nil || !strings.Contains(err.Error(), "run: pgjet migrate up") {
		t.Errorf("ReadStatus() = %v, want one that names migrate up", err)
	}
}
