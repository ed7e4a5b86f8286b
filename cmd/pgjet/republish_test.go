package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/internal/operate"
	"github.com/pgjet/pgjet/internal/operation"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/relay"
)

// A gapRig is a stream of twenty events of five keys that lacks some, with its relay.
type gapRig struct {
	*testing.T
	db             *pgxpool.Pool
	stream         jetstream.Stream
	relay          *service
	database, nats string
}

func newGapRig(t *testing.T, holes ...uint64) *gapRig {
	t.Helper()
	h := &gapRig{T: t, database: testenv.DatabaseURL(t), nats: testenv.NATS(t).URL()}
	h.db = openDB(t, h.database)
	config := relay.StreamConfig("EVENTS", 1)
	config.DenyDelete = false
	var err error
	if h.stream, err = testenv.Connect(t, h.nats).CreateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	h.start()
	testenv.Exec(t, h.db, `insert into pgjet.outbox (id, type, key, data) select gen_random_uuid(), 'note.made', 'k' || n % 5, '{}' from generate_series(1, 20) n`)
	published(t, h.database, 20)
	for _, hole := range holes {
		if err := h.stream.DeleteMsg(t.Context(), hole); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

func (h *gapRig) start() {
	h.Helper()
	h.relay = startRelay(h.T, h.database, h.nats)
	h.relay.Ready(h.relay.Admin)
}

// plan runs pgjet republish plan.
func (h *gapRig) plan(flags string) operate.Republication {
	h.Helper()
	return printed[operate.Republication](h.T, asked("republish plan "+flags, h.nats), h.database)
}

func (h *gapRig) id(seq int) string {
	return query[string](h, h.db, `select id::text from pgjet.outbox where seq = $1`, seq)
}

// TestRepublish: the relay publishes again what the stream lacks, once, and nothing else. Then the
// audit finds no difference.
func TestRepublish(t *testing.T) {
	t.Parallel()
	h := newGapRig(t, 3, 7, 18)
	operator := asOperator(h.database)
	refused(t, exitUsage, words(asked("republish plan", h.nats), operator), "--all")
	refused(t, exitNotFound, words(asked("republish plan --from-seq 4 --to-seq 6", h.nats), operator), "lacks nothing of that")
	named := h.plan(h.id(3) + " " + h.id(4))
	if !slices.Equal(named.Seqs, []int64{3}) || named.Held != 1 {
		t.Errorf("the plan for two, of which the stream has one, is %+v", named)
	}
	must(t, exitOK, words(fmt.Sprint("op cancel --reason test ", named.Operation), operator)...)
	p := h.plan("--all")
	if !slices.Equal(p.Seqs, []int64{3, 7, 18}) || p.Behind != 2 || p.Keys != 2 {
		t.Fatalf("the plan is %+v, want three events, of which two have later ones of their keys", p)
	}
	run := fmt.Sprint("republish run ", p.Operation)
	refused(t, exitUsage, words(run+" --yes", operator), "--reason")
	refused(t, exitUsage, words(run+" --reason test", operator), "--yes")
	if a := auditOf(t, exitFindings, h.database, h.nats); a.Missing != 3 { // a plan changes nothing
		t.Errorf("before the run the audit says %+v", a.Result)
	}
	o := printed[operate.OperationState](t, run+" --yes --reason test", h.database)
	if o.State != operation.Done || *o.Done != 3 || *o.Total != 3 || o.Reason != "test" || o.Refused != 0 {
		t.Errorf("the operation is %+v", o)
	}
	for i, seq := range []int{3, 7, 18} {
		m, err := h.stream.GetMsg(t.Context(), uint64(21+i))
		if err != nil || m.Header.Get("ce-id") != h.id(seq) {
			t.Errorf("sequence %d is %v, %v; want the event with seq %d", 21+i, m, err, seq)
		}
	}
	if a := auditOf(t, exitOK, h.database, h.nats); a.Compared != 20 || a.Moved != 2 {
		t.Errorf("after the run the audit says %+v", a.Result)
	}
	refused(t, exitRefused, words(run+" --yes --reason test", operator), "once")
	refused(t, exitNotFound, words(asked("republish plan --all", h.nats), operator), "lacks nothing")
	says(t, exitOK, "op ls --kind republish", operator, "done        3/3", "cancelled   0/1")
	h.relay.Stop() // the next relay publishes nothing
	h.start()
	testenv.Exec(t, h.db, `insert into pgjet.outbox (id, type, key, data) values (gen_random_uuid(), 'note.made', 'k', '{}')`)
	published(t, h.database, 24)
}

// TestRepublishWithinATerm: a plan that another relay may have overtaken is refused, and changes nothing.
func TestRepublishWithinATerm(t *testing.T) {
	t.Parallel()
	h := newGapRig(t, 3)
	p := h.plan("--all")
	h.relay.Stop()
	h.start()
	refused(t, exitRefused, words(fmt.Sprintf("republish run %d --yes --reason test", p.Operation), asOperator(h.database)), "another relay took the lead")
	if n := query[int](t, h.db, `select count(*) from pgjet.quarantine`); n != 0 {
		t.Errorf("%d events are handed over", n)
	}
	says(t, exitOK, fmt.Sprint("op get ", p.Operation), asOperator(h.database), "planned", fmt.Sprint("pgjet republish run ", p.Operation))
}

// TestRepublishIsCancelled: the remaining events are not published, and are missing as before.
func TestRepublishIsCancelled(t *testing.T) {
	t.Parallel()
	h := newGapRig(t, 3, 7)
	operator := asOperator(h.database)
	p := h.plan("--all")
	must(t, exitOK, words("relay pause --reason test", operator)...)
	h.relay.NotReady(h.relay.Admin, "paused")
	says(t, exitOK, fmt.Sprintf("republish run %d --yes --reason test --detach", p.Operation), operator, "running", "0/2")
	says(t, exitOK, "op ls --state running", operator, "republish", "0/2")
	says(t, exitOK, fmt.Sprintf("op cancel %d --reason test", p.Operation), operator, "cancelled operation", "0/2")
	refused(t, exitRefused, words(fmt.Sprintf("op cancel %d --reason test", p.Operation), operator), "cancelled")
	if left := query[string](t, h.db, `select detail ->> 'seqs' from pgjet.operation where id = $1`, p.Operation); left != "[]" {
		t.Errorf("the operation says that %s were published again", left)
	}
	must(t, exitOK, words("relay resume", operator)...)
	h.relay.Ready(h.relay.Admin)
	if a := auditOf(t, exitFindings, h.database, h.nats); a.Missing != 2 || a.Quarantined != 0 || a.Moved != 0 {
		t.Errorf("the audit says %+v", a.Result)
	}
}

// TestOpCancelsARedrive: a running redrive ends when it is cancelled. After a kill it can be
// resumed, and handles the rest.
func TestOpCancelsARedrive(t *testing.T) {
	t.Parallel()
	db, address := deadDatabase(t, 30, "mailer")
	running := func(p *process) int64 {
		t.Helper()
		id := int64(0)
		p.Eventually(patience, "the redrive runs", func() bool {
			id = query[int64](t, db, `select coalesce(max(id), 0) from pgjet.operation where state = 'running'`)
			return id > 0
		})
		return id
	}
	p := command(t, nil, words("dead redrive --all --yes --rate 1", address)...)
	p.Killed = true // it does not end well
	p.Begin()
	first := running(p)
	says(t, exitOK, "op ls --kind dead --state running", address, "dead.redrive   mailer   running   ", "/30 ")
	says(t, exitOK, fmt.Sprintf("op cancel %d --reason enough", first), address, "cancelled operation ")
	if code := p.Wait(patience); code != exitPartly || !strings.Contains(p.Stderr.String(), "cancelled") {
		t.Errorf("the redrive ends with %d: %s", code, p)
	}
	refused(t, exitRefused, words(fmt.Sprint("op resume ", first), address), "cancelled")
	left := query[int64](t, db, `select count(*) from pgjet.dead_letter where state = 'dead'`)

	p = command(t, nil, words("dead redrive --all --yes --rate 2", address)...)
	p.Begin()
	second := running(p)
	p.Kill()
	testenv.Exec(t, db, `insert into pgjet.dead_letter (consumer, event_id, stream, generation, stream_seq, subject, type, key, header, data, error, attempts)
		values ('mailer', gen_random_uuid(), 'EVENTS', 1, 99, 's', 't', 'late', '{}', '', 'e', 1)`) // it is not part of it
	refused(t, exitRefused, words(fmt.Sprint("op resume ", second), address), "running")
	testenv.Exec(t, db, `update pgjet.operation set changed_at = now() - interval '1 minute' where id = $1`, second)
	says(t, exitOK, "op get "+fmt.Sprint(second), address, "stopped", fmt.Sprint("pgjet op resume ", second))
	slow := command(t, nil, words(fmt.Sprint("op resume ", second), address)...) // at its old rate
	slow.Begin()
	dead := func() int64 {
		t.Helper()
		return query[int64](t, db, `select count(*) from pgjet.dead_letter where state = 'dead'`)
	}
	before, n := dead(), int64(0)
	slow.Eventually(patience, "it goes on", func() bool { n = dead(); return n < before })
	if n < before/2 {
		t.Errorf("%d of %d are left at once, in spite of the rate", n, left)
	}
	slow.Kill()
	testenv.Exec(t, db, `update pgjet.operation set changed_at = now() - interval '1 minute' where id = $1`, second)
	refused(t, exitUsage, words(fmt.Sprintf("op resume %d --rate -1", second), address), "--rate")
	says(t, exitOK, fmt.Sprintf("op resume %d --rate 1000", second), address, "done", fmt.Sprintf("%d/%d", left, left))
	if n := query[int](t, db, `select count(*) from pgjet.dead_letter where state = 'dead'`); n != 1 {
		t.Errorf("%d dead letters are left, want the one that came later", n)
	}
}

// TestOpResumesAReplay: an interrupted replay resumes with the rest.
func TestOpResumesAReplay(t *testing.T) {
	t.Parallel()
	b := newReplayRig(t, 40, false)
	b.exec(`delete from pgjet.inbox`)
	p := command(t, nil, b.args("notes", "--all", "--rate", "8", "--yes", "--reason", "lost")...)
	p.Begin()
	p.Eventually(patience, "some are handed over", func() bool { return query[int](t, b.db, `select count(*) from pgjet.intent`) > 0 })
	id := query[int64](t, b.db, `select max(id) from pgjet.operation`)
	p.Kill()
	if n := query[int](t, b.db, `select count(*) from pgjet.intent`); n >= 40 {
		t.Fatalf("all %d were handed over before the kill", n)
	}
	b.exec(`update pgjet.operation set changed_at = now() - interval '1 minute' where id = $1`, id)
	testenv.Eventually(t, patience, "the lock of the killed one is free", func() bool {
		return query[int](t, b.db, `select count(*) from pg_stat_activity where application_name = 'pgjet-replay'`) == 0
	})
	must(t, exitOK, append([]string{"op", "resume", fmt.Sprint(id)}, b.where...)...)
	if n := query[int](t, b.db, `select count(*) from pgjet.intent`); n != 40 {
		t.Errorf("%d events are handed over, want 40", n)
	}

	list := printed[[]operation.Record](t, "op ls --kind replay", b.where[1])
	if len(list) != 1 || list[0].State != operation.Done || *list[0].Done != 40 || *list[0].Total != 40 || time.Since(list[0].At) > time.Hour {
		t.Errorf("the operations are %+v", list)
	}

	// Once everything is handed over, a replay needs no command: nothing is left to resume.
	handed := query[int64](t, b.db, `insert into pgjet.operation (kind, target, by, reason, state, detail)
		values ('replay', 'notes', 'ann', 'r', 'failed', '{"selection": {}, "done": {"step": "handed over"}}') returning id`)
	refused(t, exitRefused, append([]string{"op", "resume", fmt.Sprint(handed)}, b.where...), "handed over to notes, which goes on by itself")
}
