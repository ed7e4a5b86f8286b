package protocol_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pgjet/pgjet/relay/backlog"
	"github.com/pgjet/pgjet/relay/protocol"
)

// A script runs one session after the other on the models of a database and a stream.
// Nothing happens to them except what a test does. It records their calls.
type script struct {
	*protocol.Session
	t     *testing.T
	w     *world
	conn  *conn
	took  time.Duration // the time of every answer
	bytes []int         // of the payloads, by seq; none: as they are

	sizes    []int    // of the appends of this session
	again    int      // how many of them say that the stream lost some of their events
	careless bool     // a batch was sent while it had to be careful
	unowned  bool     // the stream names no outbox
	asked    []string // the calls of the database and of the stream

	calls, failAt int // the call with this number fails
	failed        error
}

func newScript(t *testing.T) *script {
	protocol.SmallAppends(3)
	w := &world{r: newWorld(1, "").r, faults: map[string]bool{}, poisonous: true, page: 100, chains: true, purged: map[uuid.UUID]bool{}, fired: map[string]int{}}
	w.db, w.stream = newDatabase(w), &stream{w: w}
	w.stream.recreate()
	return &script{t: t, w: w, took: 10 * time.Microsecond}
}

// begin begins another session, with the Careful of the one before.
func (s *script) begin() error {
	p := &process{w: s.w}
	p.yield = func(struct{}) bool { s.w.network(); return true }
	s.w.db.leads = 0 // the session before is over
	p.lead()
	s.conn = &conn{p: p, s: s.w.stream}
	p.conn = s.conn
	s.w.stream.conns = []*conn{s.conn}
	careful := 0
	if s.Session != nil {
		careful = s.Careful
	}
	s.Session = &protocol.Session{
		DB: scriptDatabase{p.db, s}, Stream: scriptStream{s.conn, s}, Chains: s.w.chains, Batches: s.w.batches, Owned: !s.unowned, Careful: careful,
	}
	s.sizes, s.again, s.careless = nil, 0, false
	if s.failAt == 0 {
		s.asked = nil
	}
	return s.Resync(context.Background())
}

// call notes a call, and returns an error if it is the one that fails.
func (s *script) call(what string) error {
	s.asked = append(s.asked, what)
	if s.calls++; s.calls == s.failAt {
		return s.failed
	}
	return nil
}

type scriptDatabase struct {
	*dbConn
	s *script
}

func (d scriptDatabase) Next(ctx context.Context, from backlog.Position) (backlog.Window, error) {
	if err := d.s.call("next"); err != nil {
		return backlog.Window{}, err
	}
	w, err := d.dbConn.Next(ctx, from)
	for i, r := range w.Page {
		if n := int(r.Event.Seq); n <= len(d.s.bytes) {
			w.Page[i].Event.Data = bytes.Repeat([]byte("1"), d.s.bytes[n-1])
		}
	}
	return w, err
}

func (d scriptDatabase) Find(ctx context.Context, seqs []int64, fn func(backlog.Record)) error {
	if err := d.s.call("find"); err != nil {
		return err
	}
	return d.dbConn.Find(ctx, seqs, fn)
}

func (d scriptDatabase) Forget(ctx context.Context, number int64, heal *backlog.Position) error {
	if err := d.s.call("forget"); err != nil {
		return err
	}
	return d.dbConn.Forget(ctx, number, heal)
}

func (d scriptDatabase) Save(ctx context.Context, c protocol.Checkpoint, healed bool) error {
	if err := d.s.call("save"); err != nil {
		return err
	}
	return d.dbConn.Save(ctx, c, healed)
}

func (d scriptDatabase) Quarantine(ctx context.Context, r backlog.Record, reason error) error {
	if err := d.s.call("quarantine"); err != nil {
		return err
	}
	return d.dbConn.Quarantine(ctx, r, reason)
}

func (d scriptDatabase) Release(ctx context.Context, seqs []int64) error {
	if err := d.s.call("release"); err != nil {
		return err
	}
	return d.dbConn.Release(ctx, seqs)
}

func (d scriptDatabase) Report(ctx context.Context, created time.Time, unknown []protocol.Message) error {
	if err := d.s.call("report"); err != nil {
		return err
	}
	return d.dbConn.Report(ctx, created, unknown)
}

func (d scriptDatabase) Recall(ctx context.Context, created time.Time) (v protocol.Memory, err error) {
	if err := d.s.call("recall"); err != nil {
		return v, err
	}
	return d.dbConn.Recall(ctx, created)
}

func (d scriptDatabase) Retries(ctx context.Context) (v []backlog.Record, err error) {
	if err := d.s.call("retries"); err != nil {
		return v, err
	}
	return d.dbConn.Retries(ctx)
}

type scriptStream struct {
	*conn
	s *script
}

func (c scriptStream) State(ctx context.Context) (v protocol.State, err error) {
	if err := c.s.call("state"); err != nil {
		return v, err
	}
	return c.conn.State(ctx)
}

func (c scriptStream) Message(ctx context.Context, sequence uint64) (v protocol.Message, err error) {
	if err := c.s.call("message"); err != nil {
		return v, err
	}
	return c.conn.Message(ctx, sequence)
}

func (c scriptStream) Messages(ctx context.Context, first, last uint64, fn func(protocol.Message) error) error {
	if err := c.s.call("messages"); err != nil {
		return err
	}
	return c.conn.Messages(ctx, first, last, fn)
}

func (c scriptStream) Send(ctx context.Context, a protocol.Append) error {
	if err := c.s.call("send"); err != nil {
		return err
	}
	c.s.sizes = append(c.s.sizes, len(a.Events))
	if a.Again {
		c.s.again++
	}
	c.s.careless = c.s.careless || c.s.Careful > 0 && a.Form == protocol.Batch
	return c.conn.Send(ctx, a)
}

func (c scriptStream) Await(ctx context.Context) (answer protocol.Answer, err error) {
	if err := c.s.call("await"); err != nil {
		return answer, err
	}
	answer, err = c.conn.Await(ctx)
	answer.Took = c.s.took
	return answer, err
}

// must fails the test if err is not nil.
func (s *script) must(err error) {
	s.t.Helper()
	if err == nil {
		err = s.w.broken
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// commit appends events of these kinds to the outbox.
func (s *script) commit(kinds ...string) {
	xid := s.w.db.begin()
	for i, kind := range kinds {
		s.w.db.insert(xid, "k", i, kind)
	}
	s.w.db.end(xid, true)
}

// step is a Step that must succeed. It returns how many records it looked at.
func (s *script) step() int {
	s.t.Helper()
	n, err := s.Step(context.Background())
	s.must(err)
	return n
}

// drain publishes all.
func (s *script) drain() error {
	for range 100 {
		if n, err := s.Step(context.Background()); err != nil || n == 0 {
			return err
		}
	}
	return errors.New("after 100 steps there is still something to publish")
}

// all publishes all and saves a checkpoint.
func (s *script) all() {
	s.t.Helper()
	s.must(s.drain())
	s.must(s.Save(context.Background()))
}

func good(n int) []string { return make([]string, n) }

// TestHealed: events that a stream lost are published again and counted. The loss stays
// recorded until all of them are back.
func TestHealed(t *testing.T) {
	s := newScript(t)
	s.must(s.begin())
	s.commit(good(4)...)
	s.all()
	s.commit(good(5)...)
	s.all()
	if s.Stats != (protocol.Stats{Published: 9, Chains: 4}) {
		t.Errorf("before any loss: %+v", s.Stats)
	}

	s.w.stream.synced = 4
	s.w.stream.lose()
	s.w.page = 2
	s.must(s.begin())
	if position, _ := s.Position(); position.Floor != 4 || s.Last() != 4 {
		t.Errorf("goes on behind seq %d and sequence %d, want 4 and 4", position.Floor, s.Last())
	}
	s.commit(good(2)...) // which the stream never had
	for range 2 {
		s.step()
		s.must(s.Confirm(context.Background()))
		s.must(s.Save(context.Background()))
		if s.w.db.heal == nil {
			t.Fatal("the loss is forgotten before all is back")
		}
	}
	s.w.page = 1
	s.step()
	s.must(s.Confirm(context.Background()))
	s.must(s.Save(context.Background()))
	if s.w.db.heal != nil {
		t.Error("all is back, and the loss is still noted")
	}
	s.all()
	if s.Stats.Published != 7 || s.Stats.Healed != 5 {
		t.Errorf("5 of 7 events had been lost: %+v", s.Stats)
	}
	if len(s.sizes) != 5 || s.again != 3 {
		t.Errorf("%d of %d appends count as repeated, want 3 of 5", s.again, len(s.sizes))
	}
	s.commit(good(2)...)
	if s.all(); s.Stats.Healed != 5 {
		t.Errorf("what came later counts as healed: %+v", s.Stats)
	}
}

// TestTheFarthestLossIsNoted: of several checkpoints that a stream does not confirm, the
// farthest one is recorded as the loss.
func TestTheFarthestLossIsNoted(t *testing.T) {
	s := newScript(t)
	s.must(s.begin())
	early := s.w.db.begin()
	s.w.db.insert(early, "early", 1, "")
	for range 2 {
		s.commit(good(2)...)
		s.all()
	}
	s.commit(good(1)...)
	s.all()
	s.w.db.end(early, true) // the next checkpoint goes as far, and covers one more
	s.all()
	s.w.stream.recreate()
	s.w.stream.disconnect()
	s.must(s.begin())
	if s.w.db.heal == nil || s.w.db.heal.Floor != 6 || len(s.w.db.checkpoints) != 0 {
		t.Errorf("noted %+v and %d checkpoints, want floor 6 and none", s.w.db.heal, len(s.w.db.checkpoints))
	}
	s.step()
	s.must(s.Confirm(context.Background()))
	if s.Stats.Healed != 6 {
		t.Errorf("6 events had been lost: %+v", s.Stats)
	}
}

// TestResumesAtTheNewest: a session resumes at the newest checkpoint that the stream
// confirms, and reads nothing before it.
func TestResumesAtTheNewest(t *testing.T) {
	s := newScript(t)
	s.must(s.begin())
	for range 3 {
		s.commit(good(2)...)
		s.all()
	}
	s.must(s.begin())
	if position, _ := s.Position(); position.Floor != 6 || slices.Contains(s.asked, "messages") {
		t.Errorf("goes on behind seq %d, after %v; want 6", position.Floor, s.asked)
	}
}

// TestConfirmedByTheMessage: a checkpoint is confirmed if the stream holds the message that
// it names, or if that has aged out. It is not if another message stands in its place, or
// none.
func TestConfirmedByTheMessage(t *testing.T) {
	for _, test := range []struct {
		name      string
		stream    func(*stream)
		confirmed bool
	}{
		{"all there", func(*stream) {}, true},
		{"the first that is left", func(s *stream) { s.purge(3) }, true},
		{"aged out", func(s *stream) { s.purge(4) }, true},
		{"another instead", func(s *stream) { s.log[3] = s.log[2] }, false},
		{"another instead, the first that is left", func(s *stream) { s.log[3] = s.log[2]; s.purge(3) }, false},
		{"beyond the end", func(s *stream) { s.log = s.log[:3] }, false},
		{"another incarnation", func(s *stream) { s.created = s.created.Add(1) }, false},
	} {
		s := newScript(t)
		s.must(s.begin())
		s.commit(good(4)...)
		s.all()
		test.stream(s.w.stream)
		s.must(s.begin())
		if position, _ := s.Position(); (position.Floor == 4) != test.confirmed {
			t.Errorf("%s: goes on behind seq %d; confirmed must be %v", test.name, position.Floor, test.confirmed)
		}
	}
}

// TestPrunedIsKnown: a message whose event was pruned does not halt a session.
func TestPrunedIsKnown(t *testing.T) {
	s := newScript(t)
	s.must(s.begin())
	s.commit(good(4)...)
	s.all()
	s.w.db.prune()
	s.w.db.checkpoints = nil
	s.must(s.begin())
	if s.all(); s.w.db.checkpoints[0].Events != 4 || s.Stats.Published != 0 {
		t.Errorf("the checkpoint is %+v, after %+v; want 4 events and none published", s.w.db.checkpoints[0], s.Stats)
	}
}

// TestWhatCameThroughIsReleased: an event that the stream holds leaves the quarantine.
func TestWhatCameThroughIsReleased(t *testing.T) {
	s := newScript(t)
	s.must(s.begin())
	s.commit(good(2)...)
	s.must(s.drain())
	s.w.db.quarantine[2] = "retry" // the relay died before it recorded that
	if s.must(s.begin()); len(s.w.db.quarantine) != 0 {
		t.Errorf("in quarantine: %v", s.w.db.quarantine)
	}
}

// TestRetryGoesThroughAll: an event that cannot be published yet, or ever, does not keep
// back those after it.
func TestRetryGoesThroughAll(t *testing.T) {
	s := newScript(t)
	s.must(s.begin())
	early := s.w.db.begin()
	s.w.db.insert(early, "early", 1, poison)
	s.commit(unfit, poison)
	if err := s.drain(); err == nil {
		t.Fatal("poison is taken")
	}
	s.must(s.begin())
	s.all()
	s.w.db.end(early, true)
	if err := s.drain(); err == nil {
		t.Fatal("poison is taken")
	}
	s.must(s.begin())
	for seq := range int64(3) {
		s.w.db.quarantine[seq+1] = "retry"
	}
	s.w.db.rows[2].kind = "" // the stream would store the last one now
	n, err := s.Retry(context.Background())
	if s.must(err); n != 3 || len(s.w.stream.log) != 1 || s.w.stream.log[0].seq != 3 {
		t.Errorf("%d were tried again; the stream holds %v, want the last one", n, s.w.stream.log)
	}
	if _, ok := s.w.db.quarantine[3]; ok || s.Stats.Quarantined != 1 {
		t.Errorf("in quarantine: %v, after %+v", s.w.db.quarantine, s.Stats)
	}
}

// TestNothingIsSavedTwice: a checkpoint is written if there is progress.
func TestNothingIsSavedTwice(t *testing.T) {
	s := newScript(t)
	s.must(s.begin())
	s.commit(good(2)...)
	s.all()
	number := s.w.numbers
	for range 3 {
		s.all()
		_, err := s.Retry(context.Background()) // there is nothing to retry
		s.must(err)
	}
	if s.w.numbers != number {
		t.Error("a checkpoint was written again, without progress")
	}
	s.commit(good(1)...)
	s.step()
	s.must(s.Save(context.Background())) // of the events that were there before
	s.must(s.Confirm(context.Background()))
	s.must(s.Save(context.Background()))
	if c := s.w.db.checkpoints[len(s.w.db.checkpoints)-1]; c.Seq != 3 || c.Events != 3 {
		t.Errorf("the newest checkpoint is %+v, want sequence 3", c)
	}
}

// TestOneIsSentAlone: a refused append of several events shows nothing about each of them.
// The next ones are sent alone, so that each answer is about one event, but no more than
// necessary.
func TestOneIsSentAlone(t *testing.T) {
	for _, test := range []struct {
		name            string
		chains, batches bool
		least, most     int // appends of one event after the refusal
	}{
		{"chains", true, false, 2, 3},
		{"chains and batches", true, true, 2, 3},
		{"batches", false, true, 4, 5}, // all events of the refused append
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newScript(t)
			s.w.chains, s.w.batches = test.chains, test.batches
			s.must(s.begin())
			s.commit(append([]string{poison}, good(10)...)...)
			err := s.drain()
			if _, unclear := errors.AsType[*protocol.UnclearError](err); !unclear || s.Careful != 3 {
				t.Fatalf("careful with %d events, after %v", s.Careful, err)
			}
			var alone, together int
			for sessions := 0; err != nil && sessions < 10; sessions++ {
				s.must(s.begin())
				err = s.drain()
				for _, n := range s.sizes {
					if n == 1 {
						alone++
					} else {
						together++
					}
				}
				if test.chains && s.careless {
					t.Error("a batch was sent, whose answer is about none of its events")
				}
			}
			if alone < test.least || alone > test.most || together == 0 || s.Careful != 0 || len(s.w.stream.log) != 10 {
				t.Errorf("%d appends of one event and %d of more, want %d to %d and some; the stream holds %d events; careful with %d more",
					alone, together, test.least, test.most, len(s.w.stream.log), s.Careful)
			}
		})
	}
}

// TestBothFormsAreUsed: if the server supports both, each is tried, unless chains are fast.
func TestBothFormsAreUsed(t *testing.T) {
	s := newScript(t)
	s.took = time.Millisecond // else no batch is tried
	s.w.batches = true
	s.must(s.begin())
	s.commit(good(30)...)
	if s.all(); s.Stats.Chains == 0 || s.Stats.Batches == 0 {
		t.Errorf("used: %+v", s.Stats)
	}
}

// TestNothingToTellBy: without ids and without batches each event is sent alone.
func TestNothingToTellBy(t *testing.T) {
	s := newScript(t)
	s.w.chains = false
	s.must(s.begin())
	s.commit(good(4)...)
	if s.all(); !slices.Equal(s.sizes, []int{1, 1, 1, 1}) {
		t.Errorf("appends of %v events", s.sizes)
	}
}

// TestAppendsAreBounded: an append has up to 4 MiB of payload, and no more events than the
// server takes.
func TestAppendsAreBounded(t *testing.T) {
	const half = 512 << 10
	for _, test := range []struct{ bytes, sizes []int }{
		{[]int{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, []int{9, 2}},
		{[]int{half, half, half, half, half, half, half, half, 1}, []int{8, 1}},
		{[]int{half + 1, half, half, half, half, half, half, half, 1}, []int{7, 2}},
		{[]int{half, half, half, half, half, half, half, half, half, half, half, half, half, half, half, half}, []int{8, 8}},
	} {
		s := newScript(t)
		protocol.SmallAppends(9)
		s.must(s.begin())
		s.commit(good(len(test.bytes))...)
		s.bytes = test.bytes
		if s.all(); !slices.Equal(s.sizes, test.sizes) {
			t.Errorf("events of %v bytes went in appends of %v, want %v", test.bytes, s.sizes, test.sizes)
		}
	}
}

// TestAnErrorEndsTheSession: whichever call to the database or the stream fails, the
// session returns its error and makes no further call.
func TestAnErrorEndsTheSession(t *testing.T) {
	failed := errors.New("failed")
	for at := 1; ; at++ {
		s := newScript(t)
		err := s.everyCall(at, failed)
		if _, halted := errors.AsType[*protocol.HaltError](err); halted && s.calls < at {
			t.Logf("calls: %v", s.asked)
			return // the end if nothing fails
		}
		if !errors.Is(err, failed) || s.calls != at {
			t.Fatalf("call %d of %v failed; the session ended with %v", at, s.asked, err)
		}
	}
}

// everyCall makes sessions use every call of a database and a stream, and ends with a halt.
// The call with number failAt fails.
func (s *script) everyCall(failAt int, failed error) error {
	ctx := context.Background()
	s.must(s.begin())
	s.commit(append(good(4), unfit)...)
	s.all()
	s.w.db.quarantine[1] = "held" // it was published, whatever is recorded
	s.w.stream.synced = 3
	s.w.stream.lose()
	s.w.page, s.took, s.calls, s.asked, s.failAt, s.failed = 4, 2*time.Millisecond, 0, nil, failAt, failed
	if err := s.begin(); err != nil {
		return err
	}
	s.commit(good(4)...)
	for range 4 {
		if _, err := s.Step(ctx); err != nil {
			return err
		}
	}
	if err := s.Save(ctx); err != nil {
		return err
	}
	s.commit(poison)
	if err := s.drain(); errors.Is(err, failed) {
		return err
	}
	if err := s.begin(); err != nil {
		return err
	}
	s.w.poisonous = false
	if err := s.retry(5); err != nil {
		return err
	}
	s.w.poisonous = true
	s.commit(unfit)
	if _, err := s.Step(ctx); err != nil {
		return err
	}
	if err := s.retry(11); err != nil {
		return err
	}
	s.w.stream.log = append(s.w.stream.log, stored{foreign: true}, stored{id: s.w.newID(), seq: 77})
	return s.begin()
}

// retry publishes the event with seq, whose quarantine has ended.
func (s *script) retry(seq int64) error {
	s.w.db.quarantine[seq] = "retry"
	_, err := s.Retry(context.Background())
	return err
}

// TestASlowStreamIsAwaited: if answers take long, events committed meanwhile join the next
// append, unless there is a backlog.
func TestASlowStreamIsAwaited(t *testing.T) {
	for _, test := range []struct {
		took   time.Duration
		events int
		asked  []string
	}{
		{10 * time.Microsecond, 2, []string{"next", "await", "send"}},
		{time.Millisecond, 2, []string{"next", "await", "send"}},
		{2 * time.Millisecond, 2, []string{"await", "next", "send"}},
		{2 * time.Millisecond, protocol.Backlog - 1, []string{"await", "next", "send"}},
		{2 * time.Millisecond, protocol.Backlog, []string{"next", "await", "send"}},
	} {
		s := newScript(t)
		protocol.SmallAppends(1000)
		s.w.page, s.took = 2*protocol.Backlog, test.took
		s.must(s.begin())
		s.commit(good(1)...)
		s.all() // measures how slow the stream is
		s.commit(good(test.events)...)
		s.step()
		s.asked = nil
		s.commit(good(1)...)
		if s.step(); !slices.Equal(s.asked, test.asked) {
			t.Errorf("with %d events on the way and answers after %v: %v, want %v", test.events, test.took, s.asked, test.asked)
		}
	}
}

// TestHaltLists: all unknown messages are counted, and the first ones and the last are
// listed, of whatever kind.
func TestHaltLists(t *testing.T) {
	s := newScript(t)
	s.must(s.begin())
	s.commit(good(2)...)
	s.all()
	for range 2500 {
		s.w.stream.log = append(s.w.stream.log, stored{foreign: true})
	}
	err := s.begin()
	halt, ok := errors.AsType[*protocol.HaltError](err)
	if !ok {
		t.Fatalf("no halt, but %v", err)
	}
	finds := len(slices.DeleteFunc(s.asked, func(call string) bool { return call != "find" }))
	if finds != 2 {
		t.Errorf("2500 messages were looked up by %d questions", finds)
	}
	if halt.Count != 2500 || halt.First.Sequence != 3 || !halt.Foreign || halt.Ours {
		t.Errorf("halted by %d, the first at %d, foreign %v, ours %v", halt.Count, halt.First.Sequence, halt.Foreign, halt.Ours)
	}
	if n := len(s.w.db.unknown); n != 1000 || s.w.db.unknown[0].Sequence != 3 || s.w.db.unknown[998].Sequence != 1001 || s.w.db.unknown[999].Sequence != 2502 {
		t.Errorf("%d are listed, not the first ones and the last of 1000", n)
	}
	if len(s.w.db.checkpoints) == 0 {
		t.Error("a foreign message takes the checkpoints")
	}

	// An event that the database has lost is one of ours.
	s.w.stream.log = append(s.w.stream.log[:2], stored{id: s.w.newID(), seq: 77})
	halt, ok = errors.AsType[*protocol.HaltError](s.begin())
	if !ok || halt.Count != 1 || halt.Foreign || !halt.Ours || halt.First.Seq != 77 {
		t.Errorf("halted: %+v", halt)
	}
	if len(s.w.db.checkpoints) != 0 {
		t.Error("checkpoints of a restored database are believed")
	}
}
