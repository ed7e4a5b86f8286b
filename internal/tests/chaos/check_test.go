package chaos

import (
	"encoding/json"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/internal/tests/program"
)

// check stops the writer and checks that all is well. The stream holds what was committed, once, in
// order and unchanged, and nothing else. The relay is ready, and uses no more memory and goroutines
// than before. What a relay leaves behind when it stops adds nothing.
func (g *rig) check() {
	g.Helper()
	begun := time.Now()
	g.writer.stop()
	a := newAccount(g)
	within := program.Healing + time.Duration(len(a.want))*time.Millisecond/2
	want := uint64(len(a.want))
	for range testenv.Tries(within) {
		if g.messages() >= want {
			break
		}
	}
	drained := time.Since(begun)
	last := a.readStream()
	a.report()
	if g.relay != nil {
		g.relay.Ready(g.relay.Admin)
		g.settles()
		g.relay.Stop()
	}
	if now := g.lastSeq(); now != last {
		g.Errorf("the stream ends with %d, and with %d after the relay stopped", last, now)
	}
	g.Logf("%d events, %d rolled back, %d transactions failed; all stored after %s",
		a.seen, len(g.writer.undone), g.writer.failed, drained.Round(time.Millisecond))
}

// messages returns how many messages the stream holds.
func (g *rig) messages() uint64 {
	stream, err := g.js.Stream(g.Context(), "EVENTS")
	if err != nil {
		return 0
	}
	return stream.CachedInfo().State.Msgs
}

// An account compares outbox and stream. It needs a few bytes for each event.
type account struct {
	g    *rig
	seed maphash.Seed
	want map[uuid.UUID]uint64 // hashes of the messages that are not in the stream yet
	last map[string]int64     // the last number of each key in the stream

	seen                                    int
	lost, ghost, twice, disorder, different []string
}

// newAccount reads the outbox.
func newAccount(g *rig) *account {
	a := &account{g: g, seed: maphash.MakeSeed(), last: make(map[string]int64)}
	a.readOutbox()
	return a
}

// readOutbox records what was committed, except what is in quarantine. It has to agree with what
// the writer knows.
func (a *account) readOutbox() {
	a.g.Helper()
	a.want = make(map[uuid.UUID]uint64)
	rows, err := a.g.db.Query(a.g.Context(), `
		select id, seq, type, key, coalesce(traceparent, ''), header, data::text, time
		  from pgjet.outbox o where not exists (select from pgjet.quarantine q where q.seq = o.seq)`)
	if err != nil {
		a.g.Fatal(err)
	}
	e := events.Event{Source: "/users"}
	var data []byte
	_, err = pgx.ForEachRow(rows, []any{&e.ID, &e.Seq, &e.Type, &e.Key, &e.Traceparent, &e.Header, &data, &e.Time}, func() error {
		e.Data = data
		subject, header, body := e.Message()
		a.want[e.ID] = a.sum(subject, header, body)
		e.Header, data = nil, nil
		return nil
	})
	if err != nil {
		a.g.Fatal(err)
	}
	for _, id := range a.g.writer.committed {
		if _, ok := a.want[id]; !ok {
			a.g.Errorf("the outbox lacks event %s, whose transaction has committed", id)
		}
	}
	for _, id := range a.g.writer.undone {
		if _, ok := a.want[id]; ok {
			a.g.Errorf("the outbox holds event %s, which was rolled back", id)
		}
	}
	if held := program.Query[int](a.g, a.g.db, `select count(*) from pgjet.quarantine`); held != a.g.held {
		a.g.Errorf("%d events are in quarantine, want %d", held, a.g.held)
	}
}

// sum hashes a message without what the server and the relay's protocol add.
func (a *account) sum(subject string, header map[string][]string, body []byte) uint64 {
	var names []string
	for name := range header {
		if !strings.HasPrefix(name, "Nats-") && (name == "Pgjet-Seq" || !strings.HasPrefix(name, "Pgjet-")) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	var h maphash.Hash
	h.SetSeed(a.seed)
	h.WriteString(subject)
	for _, name := range names {
		fmt.Fprintf(&h, "\n%s %q", name, header[name])
	}
	h.WriteString("\n\n")
	h.Write(body)
	return h.Sum64()
}

// readStream removes what the stream holds, and returns its last sequence.
func (a *account) readStream() uint64 {
	a.g.Helper()
	stream, err := a.g.js.Stream(a.g.Context(), "EVENTS")
	if err != nil {
		a.g.Fatal(err)
	}
	state := stream.CachedInfo().State
	if state.Msgs == 0 {
		return state.LastSeq
	}
	consumer, err := stream.OrderedConsumer(a.g.Context(), jetstream.OrderedConsumerConfig{})
	if err != nil {
		a.g.Fatal(err)
	}
	messages, err := consumer.Messages()
	if err != nil {
		a.g.Fatal(err)
	}
	defer messages.Stop()
	known := make(map[uuid.UUID]bool, len(a.want))
	for {
		msg, err := messages.Next(jetstream.NextMaxWait(program.Healing))
		if err != nil {
			a.g.Fatalf("read the stream behind %d messages: %v", a.seen, err)
		}
		meta, err := msg.Metadata()
		if err != nil {
			a.g.Fatal(err)
		}
		a.strike(known, msg, meta.Sequence.Stream)
		if meta.Sequence.Stream >= state.LastSeq {
			return state.LastSeq
		}
	}
}

func (a *account) strike(known map[uuid.UUID]bool, msg jetstream.Msg, seq uint64) {
	a.seen++
	id, _ := uuid.Parse(msg.Headers().Get("ce-id"))
	where := fmt.Sprintf("%s at %d", id, seq)
	want, ok := a.want[id]
	switch {
	case known[id]:
		a.twice = append(a.twice, where)
		return
	case !ok:
		a.ghost = append(a.ghost, where)
		return
	case want != a.sum(msg.Subject(), msg.Headers(), msg.Data()):
		a.different = append(a.different, where)
	}
	delete(a.want, id)
	known[id] = true
	var data struct{ N int64 }
	key := msg.Headers().Get("ce-subject")
	if err := json.Unmarshal(msg.Data(), &data); err != nil || data.N == 0 {
		return // a foreign message, whose order is unknown
	}
	if data.N != a.last[key]+1 {
		a.disorder = append(a.disorder, fmt.Sprintf("%s: number %d of %s, behind %d", where, data.N, key, a.last[key]))
	}
	a.last[key] = data.N
}

// summarize records the rest as lost, and counts the wrong events by kind.
func (a *account) summarize() map[string][]string {
	for id := range a.want {
		a.lost = append(a.lost, id.String())
	}
	return map[string][]string{
		"lost": a.lost, "never committed": a.ghost, "stored twice": a.twice, "out of order": a.disorder, "changed": a.different,
	}
}

// report fails the test if anything is wrong.
func (a *account) report() {
	a.g.Helper()
	for what, all := range a.summarize() {
		if len(all) > 0 {
			a.g.Errorf("%d of %d events %s, such as %s", len(all), a.seen+len(a.lost), what, all[:min(3, len(all))])
		}
	}
	if a.g.Failed() && a.g.relay != nil {
		a.g.Logf("the relay: %s", a.g.relay)
	}
}

// TestChaosCheckerSees: the checker finds each kind of fault.
func TestChaosCheckerSees(t *testing.T) {
	t.Parallel()
	g := newRig(t, testenv.DatabaseURL(t), testenv.NATS(t).URL())
	rows, err := g.db.Query(t.Context(), `
		insert into pgjet.outbox (id, type, key, data)
		select gen_random_uuid(), 'note.made', 'k', json_build_object('n', n) from generate_series(1, 6) n
		returning id, seq, type, key, data::text, time`)
	if err != nil {
		t.Fatal(err)
	}
	all, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (e events.Event, err error) {
		e.Source = "/users"
		err = r.Scan(&e.ID, &e.Seq, &e.Type, &e.Key, (*[]byte)(&e.Data), &e.Time)
		return e, err
	})
	if err != nil {
		t.Fatal(err)
	}
	publish := func(e events.Event) {
		subject, header, body := e.Message()
		if _, err := g.js.PublishMsg(t.Context(), &nats.Msg{Subject: subject, Header: header, Data: body}); err != nil {
			t.Fatal(err)
		}
	}
	for _, i := range []int{0, 0, 2, 1, 3} { // one twice, two in the wrong order
		publish(all[i])
	}
	changed, ghost := all[4], all[5] // and the last is lost
	changed.Data = []byte(`{"n":  5}`)
	ghost.ID = uuid.New()
	publish(changed)
	publish(ghost)

	a := newAccount(g)
	if last := a.readStream(); last != 7 || a.seen != 7 {
		t.Errorf("read %d messages up to %d, want 7", a.seen, last)
	}
	for what, found := range a.summarize() {
		want := map[string]int{"lost": 1, "never committed": 1, "stored twice": 1, "out of order": 3, "changed": 1}[what]
		if len(found) != want {
			t.Errorf("%s: %q, want %d", what, found, want)
		}
	}
}
