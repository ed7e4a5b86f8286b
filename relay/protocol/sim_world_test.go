package protocol_test

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/pgjet/pgjet/relay/protocol"
)

// A world is one schedule: services that write, relays, a database, a stream, and their
// faults, all drawn from one seed. One thing happens at a time.
type world struct {
	r      *rand.Rand
	mutant string // which guard is missing; "" none
	page   int    // how many records a page has
	faults map[string]bool

	chains, batches bool          // the forms that the server supports
	least           time.Duration // that an append takes

	db        *database
	backup    *database
	stream    *stream
	relays    []*process
	writers   []*writer
	calm      bool // no more faults, no more events
	poisonous bool // the stream refuses events that are unfit or poison
	clock     int64
	ids       uint64
	numbers   int64
	sessions  int
	purged    map[uuid.UUID]bool
	ghosts    map[uuid.UUID]bool // committed once, and then lost by the database
	fired     map[string]int
	broken    error // the first promise that was seen broken
}

// faultKinds are the kinds of faults. Each schedule has some of them.
var faultKinds = []string{
	"relay crashes", "relay pauses", "connection to NATS is cut", "connection to PostgreSQL is cut", "answer is lost",
	"PostgreSQL crashes", "stream lost its tail", "stream is made again", "stream is purged", "database is restored",
	"database moves to a new cluster", "foreign message", "full stream", "poison", "replica lags",
	"outbox is pruned",
}

func newWorld(seed uint64, mutant string) *world {
	w := &world{
		r: rand.New(rand.NewPCG(seed, 1)), mutant: mutant, faults: map[string]bool{}, poisonous: true,
		purged: map[uuid.UUID]bool{}, ghosts: map[uuid.UUID]bool{}, fired: map[string]int{},
	}
	w.page = 2 + w.r.IntN(6)
	w.chains, w.batches = w.r.IntN(2) == 0, w.r.IntN(3) > 0
	w.least = time.Duration(w.r.IntN(2)) * time.Millisecond
	if w.r.IntN(4) > 0 { // a quarter of the schedules is calm
		for _, f := range faultKinds {
			w.faults[f] = w.r.IntN(3) == 0
		}
	}
	// Messages that aged out cannot be compared. Suppose the stream lost its tail, and a
	// foreign message took its place and aged out before a relay looked: no one can know.
	// The same holds if the database is restored to a state before the loss was noticed,
	// with its checkpoints.
	if w.faults["stream lost its tail"] {
		w.faults["database is restored"] = false
		if w.faults["foreign message"] {
			w.faults["stream is purged"] = false
		}
	}
	// Pruned events are not published again. If a restored database has one back, it comes
	// behind the events that filled the stream meanwhile.
	if w.faults["outbox is pruned"] && w.faults["database is restored"] {
		w.faults["stream is made again"] = false
	}
	w.db, w.stream = newDatabase(w), &stream{w: w}
	w.stream.recreate()
	for range 2 {
		w.relays = append(w.relays, w.newProcess())
	}
	for range 4 {
		w.writers = append(w.writers, &writer{w: w})
	}
	return w
}

func (w *world) fire(what string) { w.fired[what]++ }

// breaks records that a promise is broken.
func (w *world) breaks(format string, args ...any) {
	w.broken = cmp.Or(w.broken, fmt.Errorf(format, args...))
}

func (w *world) newID() (id uuid.UUID) {
	w.ids++
	binary.BigEndian.PutUint64(id[8:], w.ids)
	return id
}

// happens reports whether a fault of that kind strikes now, once in so many times.
func (w *world) happens(kind string, in int) bool {
	return !w.calm && w.faults[kind] && w.r.IntN(in) == 0
}

// run lets things happen for a while, then mends everything and waits until
// nothing is left to do.
func (w *world) run(steps int) error {
	defer func() {
		for _, p := range w.relays {
			p.stop()
		}
	}()
	for range steps {
		if w.turn(); w.broken != nil {
			return w.broken
		}
	}
	w.mend()
	for range 400 {
		for range 100 {
			w.turn()
		}
		if w.settled() || w.broken != nil {
			return cmp.Or(w.broken, w.verdict())
		}
	}
	return fmt.Errorf("it never settles: the stream holds %d messages, the outbox %d events, halted for %d, quarantine %v, missing %v, noted %v",
		len(w.stream.log), len(w.db.rows), len(w.db.unknown), w.db.quarantine, w.missing(), w.noted())
}

// turn lets one thing happen.
func (w *world) turn() {
	w.strike()
	w.operate()
	switch w.r.IntN(4) {
	case 0:
		w.writers[w.r.IntN(len(w.writers))].turn()
	case 1:
		w.network()
	default:
		w.relays[w.r.IntN(len(w.relays))].turn()
	}
}

// network delivers a message that was sent.
func (w *world) network() {
	waiting := slices.DeleteFunc(slices.Clone(w.stream.conns), func(c *conn) bool { return len(c.frames) == 0 })
	w.stream.conns = slices.DeleteFunc(w.stream.conns, func(c *conn) bool { return len(c.frames) == 0 && c.p.conn != c })
	if len(waiting) == 0 {
		return
	}
	c := waiting[w.r.IntN(len(waiting))]
	for range 1 + w.r.IntN(6) {
		if len(c.frames) > 0 {
			w.stream.deliver(c)
		}
	}
	if w.r.IntN(3) == 0 {
		w.stream.synced = w.stream.last()
	}
	if len(c.answers) > 0 && w.happens("answer is lost", 5) {
		w.fire("answer is lost")
		c.answers = nil
	}
}

// strike makes a fault happen.
func (w *world) strike() {
	p := w.relays[w.r.IntN(len(w.relays))]
	switch {
	case w.happens("relay crashes", 60):
		w.fire("relay crashes")
		p.crash()
	case w.happens("relay pauses", 80):
		p.sleeps = 20 + w.r.IntN(200)
		if w.db.leads == p.db.session { // PostgreSQL ends a session that is silent for long
			w.fire("leader pauses")
			w.db.leads = 0
		}
	case w.happens("connection to NATS is cut", 60) && p.conn != nil:
		w.fire("connection to NATS is cut")
		p.conn.dead = true
		p.conn.frames = p.conn.frames[:w.r.IntN(len(p.conn.frames)+1)]
	case w.happens("connection to PostgreSQL is cut", 60):
		w.fire("connection to PostgreSQL is cut")
		w.db.leads = 0
	case w.happens("PostgreSQL crashes", 200):
		w.crashDatabase()
	case w.happens("stream lost its tail", 150):
		w.stream.lose()
	case w.happens("full stream", 100):
		w.stream.full = !w.stream.full
	default:
		w.strikeHard()
	}
}

// strikeHard makes a fault that is an operator's or a disaster's, a few times in a
// schedule.
func (w *world) strikeHard() {
	switch {
	case w.happens("stream is made again", 600):
		w.fire("stream is made again")
		w.stream.recreate()
		w.stream.disconnect()
	case w.happens("stream is purged", 300) && len(w.stream.log) > 0:
		w.fire("stream is purged")
		w.stream.purge(1 + w.r.IntN(len(w.stream.log)))
	case w.happens("database is restored", 300):
		if w.backup == nil {
			w.backup = w.db.copy()
		} else {
			w.fire("database is restored")
			w.replaceDatabase(w.backup)
			w.backup = nil
		}
	case w.happens("database moves to a new cluster", 800):
		w.fire("database moves to a new cluster")
		w.replaceDatabase(w.db.restored())
		w.backup = nil
	case w.happens("outbox is pruned", 100):
		w.db.prune()
	case w.happens("foreign message", 400):
		w.fire("foreign message")
		w.stream.log = append(w.stream.log, stored{foreign: true})
	}
}

// crashDatabase ends all transactions, and drops checkpoints that nothing has forced to
// disk.
func (w *world) crashDatabase() {
	w.fire("PostgreSQL crashes")
	for xid := range w.db.running {
		delete(w.db.running, xid)
		w.db.rows = slices.DeleteFunc(w.db.rows, func(r row) bool { return r.xmin == xid })
	}
	clear(w.db.holder)
	w.db.highest, w.db.leads = w.db.nextXID-1, 0
	if n := min(w.db.unsynced, len(w.db.checkpoints)); n > 0 {
		w.fire("checkpoint is lost")
		w.db.checkpoints = w.db.checkpoints[:len(w.db.checkpoints)-1-w.r.IntN(n)]
	}
	w.db.unsynced = 0
	for _, wr := range w.writers {
		wr.xid = 0
	}
}

func (w *world) replaceDatabase(d *database) {
	w.crashDatabase()
	kept := make(map[uuid.UUID]bool)
	for _, r := range slices.Concat(d.pruned, d.rows) {
		kept[r.id] = true
	}
	for _, r := range slices.Concat(w.db.pruned, w.db.rows) {
		if !kept[r.id] {
			w.ghosts[r.id] = true
		}
	}
	w.db = d
}

// operate does the work of operators: it accepts the messages of the stream, and retries
// refused events.
func (w *world) operate() {
	if len(w.db.unknown) > 0 && w.r.IntN(50) == 0 {
		w.fire("adopted")
		w.db.adopted[w.db.unknownOf] = w.db.unknown[len(w.db.unknown)-1].Sequence
		w.db.unknown = nil
	}
	if !w.poisonous && w.r.IntN(50) == 0 {
		for seq := range w.db.quarantine {
			w.fire("retried")
			w.db.quarantine[seq] = "retry"
		}
	}
}

// mend ends all faults and all transactions.
func (w *world) mend() {
	w.calm, w.stream.full, w.poisonous = true, false, false
	for _, wr := range w.writers {
		if wr.xid != 0 {
			w.db.end(wr.xid, w.r.IntN(2) == 0)
			wr.xid = 0
		}
	}
}

// settled reports whether nothing seems to be left to do.
func (w *world) settled() bool {
	return len(w.missing())+len(w.db.unknown)+len(w.db.quarantine) == 0 && w.noted()
}

// noted reports whether the newest checkpoint names the last message and covers all events,
// and no loss is recorded any more. There is no checkpoint at a message that is not one of
// ours, nor if the stream holds none of ours.
func (w *world) noted() bool {
	if n := len(w.stream.log); n == 0 || w.stream.log[n-1].foreign {
		return true
	}
	n := len(w.db.checkpoints)
	if n == 0 || w.db.heal != nil {
		return false
	}
	c := w.db.checkpoints[n-1]
	return c.system == w.db.system && c.Seq == w.stream.last() && !slices.ContainsFunc(w.db.rows, func(r row) bool {
		return !c.Position.Covers(r.record(w.mutant))
	})
}

// missing returns the events that the stream should hold and does not.
func (w *world) missing() (rows []row) {
	held := make(map[uuid.UUID]bool)
	for _, m := range w.stream.log {
		held[m.id] = true
	}
	for _, r := range w.db.rows {
		if !held[r.id] && !w.purged[r.id] {
			rows = append(rows, r)
		}
	}
	return rows
}

// verdict checks what the stream holds in the end.
func (w *world) verdict() error {
	rows := make(map[uuid.UUID]row)
	for _, r := range slices.Concat(w.db.pruned, w.db.rows) {
		rows[r.id] = r
	}
	count := make(map[uuid.UUID]int)
	next := make(map[string][]int)
	for _, m := range w.stream.log {
		r, ok := rows[m.id]
		if m.foreign || !ok && w.ghosts[m.id] {
			continue
		}
		if count[m.id]++; !ok {
			return fmt.Errorf("ghost: event %s was never committed", m.id)
		}
		if count[m.id] > 1 {
			return fmt.Errorf("event %s of key %s, number %d, is stored twice", m.id, r.key, r.n)
		}
		if r.kind == "" && !w.purged[m.id] {
			next[r.key] = append(next[r.key], r.n)
		}
	}
	for key, numbers := range next {
		if !slices.IsSorted(numbers) {
			return fmt.Errorf("key %s is out of order: %v", key, numbers)
		}
	}
	return nil
}

// audit checks the promise of [protocol.Checkpoint] for one that p saves. It can do so only
// while p's connection is to the current stream.
func (w *world) audit(p *process, c protocol.Checkpoint) {
	s := w.stream
	if p.conn.dead || w.mutant == "reconnect" {
		return
	}
	if !c.Created.Equal(s.created) || c.Seq > s.last() || c.Seq >= s.first && s.log[c.Seq-s.first].id != c.ID {
		w.breaks("checkpoint at %d %s: the stream ends at %d", c.Seq, c.ID, s.last())
		return
	}
	held := make(map[uuid.UUID]bool)
	for i, m := range s.log {
		held[m.id] = s.first+uint64(i) <= c.Seq
	}
	covered := int64(len(w.db.pruned))
	for _, r := range w.db.rows {
		if w.db.running[r.xmin] {
			continue
		}
		_, quarantined := w.db.quarantine[r.seq]
		if c.Position.Covers(r.record(w.mutant)) {
			if covered++; !held[r.id] && !quarantined && !w.purged[r.id] {
				w.breaks("checkpoint at %d covers event %s, which the stream does not hold there", c.Seq, r.id)
			}
		} else if held[r.id] {
			w.breaks("checkpoint at %d does not cover event %s, which the stream holds there", c.Seq, r.id)
		}
	}
	if c.Events != covered {
		w.breaks("checkpoint at %d counts %d events, and covers %d", c.Seq, c.Events, covered)
	}
}

// A writer is a service that changes aggregates and announces it.
type writer struct {
	w     *world
	xid   uint64
	key   string
	n     int
	waits int
	wrote bool
}

func (wr *writer) turn() {
	w := wr.w
	switch {
	case wr.waits > 0:
		wr.waits--
	case wr.xid == 0:
		if w.calm || w.ids > 150 {
			return
		}
		wr.xid, wr.key, wr.n, wr.wrote = w.db.begin(), fmt.Sprint("k", w.r.IntN(4)), 0, false
		wr.waits = w.r.IntN(4)
	case wr.n == 0: // wait for the aggregate's row
		if _, held := w.db.holder[wr.key]; held {
			return
		}
		w.db.holder[wr.key] = wr.xid
		wr.n = len(w.db.order[wr.key]) + 1
	case w.r.IntN(3) > 0 && !wr.wrote || w.r.IntN(4) == 0:
		w.db.insert(wr.xid, wr.key, wr.n, wr.kind())
		wr.n++
		wr.wrote = true
		if w.r.IntN(10) == 0 {
			w.fire("transaction idles")
			wr.waits = 30
		}
	default:
		commit := w.r.IntN(4) > 0
		if !commit {
			w.fire("rolled back")
		}
		w.db.end(wr.xid, commit)
		wr.xid = 0
	}
}

func (wr *writer) kind() string {
	if wr.w.faults["poison"] && !wr.w.calm && wr.w.r.IntN(15) == 0 {
		return []string{unfit, poison}[wr.w.r.IntN(2)]
	}
	return ""
}

// A process is a relay. It runs until it calls something, and goes on when its turn
// comes, or never.
type process struct {
	w      *world
	next   func() (struct{}, bool)
	end    func()
	yield  func(struct{}) bool
	sleeps int

	db        *dbConn
	conn      *conn
	careful   int
	remembers bool
	seen      protocol.State
}

type killed struct{}

func (w *world) newProcess() *process {
	p := &process{w: w}
	p.start()
	return p
}

func (p *process) start() {
	p.db, p.conn, p.careful, p.remembers = &dbConn{p: p}, nil, 0, false
	p.next, p.end = iter.Pull(func(yield func(struct{}) bool) {
		defer func() {
			if r := recover(); r != nil && r != (killed{}) {
				panic(r)
			}
		}()
		p.yield = yield
		for {
			_ = p.session() // the next session begins, whatever the error was
			p.step()
		}
	})
}

func (p *process) turn() {
	if p.sleeps > 0 && !p.w.calm {
		p.sleeps--
		return
	}
	p.next()
}

// step lets others have their turn. It does not return if the process is killed.
func (p *process) step() {
	if !p.yield(struct{}{}) {
		panic(killed{})
	}
}

func (p *process) stop() { p.end() }

// crash kills the process and starts another. What it had sent is on its way.
func (p *process) crash() {
	p.stop()
	if p.w.db.leads == p.db.session {
		p.w.db.leads = 0
	}
	p.start()
}

// session runs a protocol.Session as package relay does.
func (p *process) session() error {
	p.lead()
	p.conn = &conn{p: p, s: p.w.stream}
	p.w.stream.conns = append(p.w.stream.conns, p.conn)
	s := &protocol.Session{DB: p.db, Stream: p.conn, Chains: p.w.chains, Batches: p.w.batches, Owned: true, Careful: p.careful}
	err := p.publish(s)
	if got, want := s.Stats, p.conn.acked; got.Published != want.Published || got.Chains != want.Chains || got.Batches != want.Batches {
		p.w.breaks("a session counts %+v, and had answers to %+v", got, want)
	}
	p.careful = s.Careful
	p.w.fired["healed"] += int(s.Stats.Healed)
	p.w.fired["quarantined"] += int(s.Stats.Quarantined)
	if _, halted := errors.AsType[*protocol.HaltError](err); halted {
		p.w.fire("halted")
	}
	if p.w.db.leads == p.db.session {
		p.w.db.leads = 0
	}
	p.conn.answers = nil
	return err
}

func (p *process) lead() {
	for p.w.db.leads != 0 {
		p.step()
	}
	p.w.sessions++
	p.w.db.leads = p.w.sessions
	p.w.db.epoch++
	p.w.db.unsynced = 0 // the epoch waits for the log
	p.db = &dbConn{p: p, session: p.w.sessions, epoch: p.w.db.epoch}
}

func (p *process) publish(s *protocol.Session) error {
	ctx := context.Background()
	if err := s.Resync(ctx); err != nil {
		return err
	}
	for {
		n, err := s.Step(ctx)
		if err == nil && p.w.r.IntN(3) == 0 {
			err = s.Save(ctx)
		}
		if err == nil && p.w.r.IntN(10) == 0 {
			_, err = s.Retry(ctx)
		}
		if err != nil {
			return err
		}
		if n > 0 {
			continue
		}
		if p.step(); p.conn.dead { // a waiting relay hears of it
			return errLost
		}
	}
}
