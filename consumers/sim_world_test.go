package consumers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/internal/durable"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/postgres"
)

const simType = "a.b"

// A simWorld is one schedule: processes of a consumer, a database, a stream, operators, and faults,
// all drawn from one seed. It is in a bubble of package testing/synctest: time passes while all
// goroutines wait.
type simWorld struct {
	mu      sync.Mutex // protects everything here
	changed *sync.Cond
	r       *rand.Rand
	without string // the removed guard; "" if none
	faults  map[string]bool
	c       Consumer

	db        *simDatabase
	backup    *simTables
	stream    *simStream
	all       []*process
	running   []*process
	operator  *process
	operators sync.WaitGroup
	started   int
	keys      []string
	count     map[string]int // of events
	place     map[uuid.UUID]simPlace
	killer    map[uuid.UUID]bool // a process dies at it
	poison    map[uuid.UUID]bool // each attempt fails
	vanished  map[uuid.UUID]bool // they had an inbox row once
	restores  int                // of the database
	outside   bool               // effects happen outside the database: see [Effect]
	happened  map[uuid.UUID]int  // those effects
	instant   bool               // nothing takes time
	calm      bool               // no more faults, no more events
	fired     map[string]int
	broken    error // the first broken promise
	log       *slog.Logger
	tracing   sync.Mutex
	traces    *[]string // nil unless the schedule is traced
}

// A simPlace is the position of an event among those of its key.
type simPlace struct {
	key string
	n   int
}

// simFaults are the possible faults of a world. Each schedule has some of them.
var simFaults = []string{
	"process is killed", "process freezes", "process stops", "process starts", "answer is lost", "statement fails",
	"database restarts", "database is away", "database is restored", "transaction is cut",
	"ack is lost", "delivery is lost", "connection to NATS is lost", "NATS is away",
	"durable consumer is deleted", "durable consumer is set back", "stream is made again", "stream lost its tail",
	"handler fails", "handler fails for good", "handler hangs", "handler is slow", "handler panics", "handler gives back", "handler finds an outage", "handler kills",
	"pause", "redrive", "discard", "replay by hand-over", "replay by reset", "consumer is interrupted", "consumer is divided",
}

func newSimWorld(seed uint64, without string) *simWorld {
	w := &simWorld{
		r: rand.New(rand.NewPCG(seed, 1)), without: without, faults: make(map[string]bool), count: make(map[string]int),
		place: make(map[uuid.UUID]simPlace), killer: make(map[uuid.UUID]bool), poison: make(map[uuid.UUID]bool), vanished: make(map[uuid.UUID]bool),
		fired: make(map[string]int), happened: make(map[uuid.UUID]int), log: slog.New(slog.DiscardHandler),
	}
	if os.Getenv("PGJET_TRACE") != "" {
		w.traces = new([]string)
		w.log = slog.New(slog.NewTextHandler(&simLog{w}, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey || a.Key == slog.LevelKey {
				return slog.Attr{}
			}
			return a
		}}))
	}
	w.changed = sync.NewCond(&w.mu)
	if w.r.IntN(5) > 0 { // some schedules have no faults
		for _, f := range simFaults {
			w.faults[f] = w.r.IntN(3) == 0
		}
	}
	// If a session is set back meanwhile by others, and loses a delivery just then, it may get the
	// number that it expects: it cannot see that one is missing. pgjet only sets back paused
	// consumers.
	if w.faults["durable consumer is set back"] {
		w.faults["delivery is lost"] = false
	}
	for _, f := range simMutants[without].faults {
		w.faults[f] = true
	}
	w.outside = w.r.IntN(5) == 0
	w.c = Consumer{Name: "sim", Workers: 1 + w.r.IntN(3), Group: 1 + w.r.IntN(4), Slices: 1 << w.r.IntN(4), ParkKey: w.r.IntN(3) == 0,
		Timeout: time.Second, MinRetry: 20 * time.Millisecond, MaxRetry: 500 * time.Millisecond, MaxAttempts: 3,
		Handler: Handle(OnType(simType, func(ctx context.Context, tx pgx.Tx, e events.Event) error {
			own := tx.(*queueTx).Tx.Tx.(*simTx)
			return own.p.handle(ctx, own, e)
		}))}
	if w.r.IntN(6) == 0 {
		w.c.Unordered, w.c.Slices, w.c.ParkKey = true, 1, false
		w.faults["consumer is divided"] = false
	}
	for n := range 3 + w.r.IntN(6) {
		w.keys = append(w.keys, fmt.Sprint("k", n))
	}
	w.db, w.stream = newSimDatabase(w), newSimStream(w)
	w.operator = &process{w: w, name: "operator"}
	return w
}

func (w *simWorld) ordered() bool           { return !w.c.Unordered }
func (w *simWorld) mutant(name string) bool { return w.without == name }

// blind reports whether the messages do not show that the stream has changed.
func (w *simWorld) blind() bool {
	return w.mutant("the last delivery is not checked") || w.mutant("a new stream counts as the old one")
}

func (w *simWorld) fire(what string) {
	w.fired[what]++
	w.trace("%s", what)
}

// trace records a step of the schedule.
func (w *simWorld) trace(format string, args ...any) {
	if w.traces != nil {
		w.tracing.Lock()
		defer w.tracing.Unlock()
		*w.traces = append(*w.traces, fmt.Sprintf("%s ", time.Now().Format("05.000000"))+fmt.Sprintf(format, args...))
	}
}

// at names the event of a step.
func (w *simWorld) at(id uuid.UUID) string {
	return fmt.Sprintf("%s/%d", w.place[id].key, w.place[id].n)
}

// breaks records that a promise is broken.
func (w *simWorld) breaks(format string, args ...any) {
	err := fmt.Errorf(format, args...)
	w.trace("broken: %v", err)
	w.broken = cmp.Or(w.broken, err)
}

// happens reports whether a fault of that kind happens now, once in n times on average.
func (w *simWorld) happens(kind string, in int) bool {
	return !w.calm && w.faults[kind] && w.r.IntN(in) == 0
}

// latency returns a random duration.
func (w *simWorld) latency() time.Duration {
	d := 50*time.Microsecond + time.Duration(w.r.IntN(int(2*time.Millisecond)))
	if w.r.IntN(60) == 0 {
		d += time.Duration(w.r.IntN(int(300 * time.Millisecond)))
	}
	return d
}

// publish stores a new event.
func (w *simWorld) publish() {
	key := w.keys[w.r.IntN(len(w.keys))]
	w.count[key]++
	var id uuid.UUID
	for n := range id {
		id[n] = byte(w.r.IntN(256))
	}
	id[6], id[8] = id[6]&0x0f|0x70, id[8]&0x3f|0x80
	e := events.Event{ID: id, Type: simType, Key: key, Source: "/sim", Seq: int64(len(w.place) + 1), Time: time.Now(), Data: []byte(`{}`)}
	subject, header, body := e.Message()
	w.place[id] = simPlace{key, w.count[key]}
	if w.happens("handler kills", 15) {
		w.killer[id] = true
	}
	if w.happens("handler fails for good", 10) {
		w.poison[id] = true
	}
	w.stream.store(&simMessage{event: e, subject: subject, header: nats.Header(header), data: body})
}

// apply records that an effect was committed.
func (w *simWorld) apply(e events.Event) {
	if w.db.effects[e.ID]++; w.db.effects[e.ID] > 1+w.db.again[e.ID] {
		w.breaks("event %s of key %s, number %d, is applied twice", e.ID, e.Key, w.place[e.ID].n)
	}
}

// happen records that an effect has happened outside the database. Without other faults it happens
// once.
func (w *simWorld) happen(p *process, e events.Event) {
	w.trace("effect %s, taken before restore %d of %d", w.at(e.ID), p.took[e.ID], w.restores)
	// An effect taken before the database was restored, or before a replay forgot it, still happens.
	if _, known := w.db.inbox[e.ID]; known && p.took[e.ID] == w.restores {
		w.inOrder(e)
	}
	if w.happened[e.ID]++; w.happened[e.ID] > 1 && !slices.Contains(slices.Collect(maps.Values(w.faults)), true) {
		w.breaks("effect of event %s of key %s, number %d, happens twice", e.ID, e.Key, w.place[e.ID].n)
	}
}

// inOrder checks that earlier events of the key are settled when an effect has committed.
func (w *simWorld) inOrder(e events.Event) {
	if !w.ordered() || w.db.handed[e.ID] {
		return
	}
	at := w.place[e.ID]
	for id, before := range w.place {
		if before.key != at.key || before.n >= at.n || w.db.handed[id] && !w.c.ParkKey {
			continue
		}
		switch state := w.db.inbox[id].state; {
		case state == "":
			w.breaks("order: event %d of key %s is applied before %d, of which the inbox knows nothing", at.n, at.key, before.n)
		case state == "intent" && !w.db.handed[id]:
			w.breaks("order: event %d of key %s is applied before %d, which waits for an attempt", at.n, at.key, before.n)
		case state == inbox.Dead && w.c.ParkKey:
			w.breaks("order: event %d of key %s is applied before %d, a dead letter of a parked key", at.n, at.key, before.n)
		}
	}
}

// A simLog adds the log to the trace.
type simLog struct{ w *simWorld }

func (l *simLog) Write(line []byte) (int, error) {
	l.w.trace("%s", line[:len(line)-1])
	return len(line), nil
}

// A process is a process of the consumer.
type process struct {
	w      *simWorld
	name   string
	run    *run
	stop   context.CancelFunc
	ended  chan struct{}
	killed bool
	frozen bool
	lost   map[chan nats.Status]bool
	took   map[uuid.UUID]int // number of restores of the database when the process took an intent
}

var simMetrics = sync.OnceValue(func() *metrics {
	m, err := newMetrics(&run{Consumer: Consumer{Name: "sim"}})
	if err != nil {
		panic(err)
	}
	return m
})

// start starts a process.
func (w *simWorld) start() {
	w.started++
	p := &process{w: w, name: fmt.Sprint("p", w.started), lost: make(map[chan nats.Status]bool), took: make(map[uuid.UUID]int), ended: make(chan struct{})}
	c := w.c
	if w.outside {
		c.Group, c.Handler = 0, Effect(func(ctx context.Context, e events.Event) error { return p.handle(ctx, nil, e) }, simType)
	}
	c, err := c.withDefaults()
	if err != nil {
		panic(err)
	}
	p.run = &run{Runner: &Runner{Consumer: c}, Consumer: c, db: postgres.DB{}, js: &simJetStream{p: p}, source: simSource{p}, subjects: events.SubjectsOf(""), stream: "EVENTS",
		log: w.log.With("process", p.name), process: p.name, metrics: simMetrics(),
		newDatabase: func(session string) database {
			return &simConnection{p: p, d: w.db, session: session, closed: true}
		}}
	p.run.durables = &durable.Stream{JS: p.run.js, Name: p.run.stream, Consumer: c.Name, Types: c.Handler.types, Subjects: p.run.subjects, AckWait: ackWait, Log: p.run.log}
	var ctx context.Context
	ctx, p.stop = context.WithCancel(context.Background())
	w.all, w.running = append(w.all, p), append(w.running, p)
	go func() {
		defer close(p.ended)
		p.run.keeper.Run(ctx, p.run.log, p.run.runSession)
	}()
}

// kill ends a process at once: it changes nothing more.
func (p *process) kill() {
	w := p.w
	if p.killed {
		return
	}
	p.killed = true
	w.running = slices.DeleteFunc(w.running, func(o *process) bool { return o == p })
	for tx := range w.db.open {
		if tx.p == p {
			tx.end(false)
		}
	}
	for _, c := range w.db.conns {
		if c.p == p {
			w.db.close(c)
		}
	}
	w.changed.Broadcast()
	p.stop()
}

// dead returns why a call of the process cannot go on.
func (p *process) dead(ctx context.Context) error {
	if p.killed {
		return errCut
	}
	return ctx.Err()
}

// step takes some time.
func (p *process) step(ctx context.Context) error {
	w := p.w
	w.mu.Lock()
	d := w.latency()
	w.mu.Unlock()
	if !w.instant {
		sleep(ctx, d)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for p.frozen && !p.killed {
		w.changed.Wait()
	}
	return p.dead(ctx)
}

// dawdle takes long, now and then.
func (p *process) dawdle() {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	if !p.w.calm && p.w.r.IntN(3) == 0 {
		p.w.pause(time.Duration(p.w.r.IntN(int(time.Second))))
	}
}

// call runs fn as a statement: the process may end before or after it, or lose the answer.
func (p *process) call(ctx context.Context, what string, fn func() error) error {
	if err := p.step(ctx); err != nil {
		return err
	}
	w := p.w
	err := func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if err := p.dead(ctx); err != nil {
			return err
		}
		if w.db.away {
			return errCut
		}
		if w.happens("statement fails", 200) {
			w.fire("statement fails")
			return errCut
		}
		if w.happens("process is killed", 1500) {
			w.fire("process is killed at a statement")
			p.kill()
			return errCut
		}
		err := fn()
		if err != nil {
			w.trace("%s %s: %v", p.name, what, err)
		}
		if err == nil && w.happens("answer is lost", 100) {
			w.fire("answer is lost")
			if what == "commit" {
				w.fire("answer to a commit is lost")
			}
			return errCut
		}
		if err == nil && w.happens("process is killed", 1500) {
			w.fire("process is killed after a statement")
			p.kill()
			return errCut
		}
		if w.happens("process freezes", 2000) {
			w.freeze(p, time.Duration(w.r.IntN(int(15*time.Second))))
		}
		return err
	}()
	if err != nil {
		return err
	}
	return p.step(context.WithoutCancel(ctx))
}

// request runs fn as a request to JetStream.
func (p *process) request(ctx context.Context, _ string, fn func() error) error {
	if err := p.step(ctx); err != nil {
		return err
	}
	w := p.w
	err := func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if err := p.dead(ctx); err != nil {
			return err
		}
		if w.stream.away {
			return errCut
		}
		return fn()
	}()
	if err != nil {
		return err
	}
	return p.step(context.WithoutCancel(ctx))
}

// freeze stops a process for a while.
func (w *simWorld) freeze(p *process, d time.Duration) {
	if p.frozen || p.killed {
		return
	}
	w.fire("process freezes")
	p.frozen = true
	time.AfterFunc(d, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		p.frozen = false
		w.changed.Broadcast()
	})
}

// pause lets others go on for a while.
func (w *simWorld) pause(d time.Duration) {
	w.mu.Unlock()
	time.Sleep(d)
	w.mu.Lock()
}

var errPoison = errors.New("poison")

// handle is the handler, with a transaction or without one.
func (p *process) handle(ctx context.Context, tx *simTx, e events.Event) error {
	if err := p.step(ctx); err != nil {
		return err
	}
	w := p.w
	w.mu.Lock()
	switch {
	case tx == nil:
		w.happen(p, e)
	case tx.over:
		w.mu.Unlock()
		return errCut
	case w.mutant("effects commit alone"):
		w.apply(e)
	default:
		tx.effects = append(tx.effects, e)
	}
	defer w.mu.Unlock()
	kind := func(name string, in int) bool {
		if w.happens(name, in) {
			w.fire(name)
			return true
		}
		return false
	}
	switch {
	case w.killer[e.ID]:
		w.fire("handler kills")
		p.kill()
		return errCut
	case w.poison[e.ID] && !w.calm:
		w.fire("handler fails for good")
		if w.r.IntN(2) == 0 {
			return backoff.Permanent(errPoison)
		}
		return errPoison
	case kind("handler fails", 8):
		return errors.New("failed")
	case kind("handler gives back", 20):
		return Later(time.Duration(w.r.IntN(int(time.Second))))
	case kind("handler finds an outage", 20):
		return Unavailable(errors.New("away"))
	case kind("handler panics", 20):
		panic("test")
	case kind("handler hangs", 30):
		w.pause(time.Duration(1+w.r.IntN(2)) * 1100 * time.Millisecond)
	case kind("handler is slow", 5):
		w.pause(time.Duration(w.r.IntN(int(150 * time.Millisecond))))
	}
	return nil
}

// simulate runs the world for a while, then ends all faults and waits until nothing is left to do.
func (w *simWorld) simulate() error {
	w.mu.Lock()
	for range 2 + w.r.IntN(2) {
		w.start()
	}
	reaper := time.NewTicker(250 * time.Millisecond)
	over := make(chan struct{})
	go func() {
		for {
			select {
			case <-reaper.C:
				w.mu.Lock()
				w.db.reap()
				w.mu.Unlock()
			case <-over:
				return
			}
		}
	}()
	defer func() {
		w.mu.Lock()
		for _, p := range w.all {
			p.kill()
		}
		w.mu.Unlock()
		for _, p := range w.all {
			<-p.ended
		}
		w.operators.Wait()
		time.Sleep(10 * time.Second) // handlers that were abandoned
		reaper.Stop()
		close(over)
	}()
	most := 20 + w.r.IntN(40)
	for n := 0; n < 60 && w.broken == nil; n++ {
		for range w.r.IntN(4) {
			if len(w.place) < most {
				w.publish()
			}
		}
		w.strike()
		d := time.Duration(w.r.IntN(int(400 * time.Millisecond)))
		w.pause(d)
	}
	w.mend()
	for n := 0; n < 600 && w.broken == nil && !w.settled(); n++ {
		w.recover()
		w.pause(500 * time.Millisecond)
	}
	defer w.mu.Unlock()
	switch {
	case w.broken != nil:
		return w.broken
	case !w.settled():
		if w.traces != nil {
			stacks := make([]byte, 1<<20)
			w.trace("%s", stacks[:runtime.Stack(stacks, true)])
		}
		return fmt.Errorf("it never settles: of %d events %s%d intents, unhandled %v; waits %v", w.stream.end(), w.db.describe(), len(w.db.intents), w.missing(), w.waiting())
	}
	return nil
}

// operate runs an operator's command.
func (w *simWorld) operate(fn func(ctx context.Context) error) {
	w.operators.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		w.mu.Lock()
		defer w.mu.Unlock()
		_ = fn(ctx) // its failures are ignored
	})
}

// strike causes faults.
func (w *simWorld) strike() {
	for len(w.running) == 0 || len(w.running) < 2 && w.r.IntN(4) == 0 {
		w.start()
	}
	p := w.running[w.r.IntN(len(w.running))]
	switch {
	case w.happens("process is killed", 15):
		w.fire("process is killed")
		p.kill()
	case w.happens("process freezes", 15):
		w.freeze(p, time.Duration(w.r.IntN(int(15*time.Second))))
	case w.happens("process stops", 15) && len(w.running) > 1:
		w.fire("process stops")
		w.running = slices.DeleteFunc(w.running, func(o *process) bool { return o == p })
		p.stop()
	case w.happens("process starts", 15) && len(w.running) < 4:
		w.fire("process starts")
		w.start()
	case w.happens("transaction is cut", 10):
		for tx := range w.db.open {
			if tx.attempt {
				w.fire("transaction is cut")
				tx.end(false)
				break
			}
		}
	case w.happens("connection to NATS is lost", 15):
		w.fire("connection to NATS is lost")
		p.disconnect()
	default:
		w.strikeHard(p)
	}
	w.command()
}

func (p *process) disconnect() {
	for lost := range p.lost {
		select {
		case lost <- nats.RECONNECTING:
		default:
		}
	}
}

// strikeHard causes disasters, a few times in a schedule.
func (w *simWorld) strikeHard(p *process) {
	switch {
	case w.happens("database restarts", 30):
		w.fire("database restarts")
		w.db.crash(nil)
	case w.happens("database is away", 40) && !w.db.away:
		w.fire("database is away")
		w.db.crash(nil)
		w.db.away = true
		w.after(5*time.Second, func() { w.db.away = false })
	case w.happens("database is restored", 20) && !w.db.away:
		if w.backup == nil {
			w.backup = w.db.copy()
			return
		}
		w.fire("database is restored")
		w.restores++
		for id := range w.db.inbox {
			if _, kept := w.backup.inbox[id]; !kept {
				w.vanished[id] = true
			}
		}
		w.db.crash(w.backup)
		w.backup = nil
		w.db.away = true
		d := time.Duration(w.r.IntN(int(2 * time.Second)))
		time.AfterFunc(d, func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.db.away = false
		})
		if w.r.IntN(2) == 0 { // the process does not notice before it is back
			w.freeze(p, d)
		}
	case w.happens("NATS is away", 40) && !w.stream.away:
		w.fire("NATS is away")
		w.stream.away = true
		w.after(5*time.Second, func() { w.stream.away = false })
		for _, p := range w.all {
			p.disconnect()
		}
	case w.happens("durable consumer is deleted", 25) && len(w.stream.durables) > 0:
		w.fire("durable consumer is deleted")
		delete(w.stream.durables, w.durable())
	// Setting it forward, past messages in transit, would go unnoticed.
	case w.happens("durable consumer is set back", 25) && len(w.stream.durables) > 0:
		w.fire("durable consumer is set back")
		d := w.stream.durables[w.durable()]
		d.reset(1 + uint64(w.r.IntN(int(d.floor())+1)))
	case w.happens("stream is made again", 40):
		w.fire("stream is made again")
		w.stream.recreate()
	case w.happens("stream lost its tail", 40) && w.stream.end() > 0:
		w.fire("stream lost its tail")
		w.stream.lose(w.stream.end() - uint64(w.r.IntN(min(10, int(w.stream.end())))))
		for _, p := range w.all {
			p.disconnect()
		}
	}
}

func (w *simWorld) durable() string {
	names := slices.Sorted(maps.Keys(w.stream.durables))
	return names[w.r.IntN(len(names))]
}

func (w *simWorld) after(most time.Duration, do func()) {
	time.AfterFunc(time.Duration(w.r.IntN(int(most))), func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		do()
	})
}

// command runs an operator's commands.
func (w *simWorld) command() {
	if w.db.away || !w.db.known {
		return
	}
	switch {
	case w.happens("pause", 20) && w.db.paused == "":
		w.fire("pause")
		w.db.paused = "test"
		w.after(3*time.Second, func() { w.db.paused = "" })
	case w.happens("redrive", 5):
		w.fire("redrive")
		w.operate(func(ctx context.Context) error { return w.db.redrive(ctx, w.operator, w.dead(), "intent") })
	case w.happens("discard", 15):
		if dead := w.dead(); len(dead) > 0 {
			w.fire("discard")
			w.operate(func(ctx context.Context) error {
				return w.db.redrive(ctx, w.operator, dead[:1], inbox.Discarded)
			})
		}
	case w.happens("consumer is interrupted", 20), w.outside && w.happens("consumer is interrupted", 5):
		w.operate(func(ctx context.Context) error {
			return w.db.supersede(ctx, w.operator, func() { w.fire("consumer is interrupted") })
		})
	case w.happens("replay by hand-over", 15):
		w.fire("replay by hand-over")
		if all := w.some(); w.db.created.Equal(w.stream.created) {
			w.operate(func(ctx context.Context) error { return w.db.handOver(ctx, w.operator, all) })
		}
	case w.happens("replay by reset", 20):
		w.fire("replay by reset")
		w.replay()
	case w.happens("consumer is divided", 30):
		w.fire("consumer is divided")
		// All processes get another configuration, one after the other.
		w.c.Slices = 1 << w.r.IntN(4)
		for _, p := range slices.Clone(w.running) {
			w.running = slices.DeleteFunc(w.running, func(o *process) bool { return o == p })
			p.stop()
			w.start()
		}
	}
}

// dead returns the dead letters.
func (w *simWorld) dead() (ids []uuid.UUID) {
	for id, l := range w.db.letters {
		if l.state == inbox.Dead {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) })
	return ids
}

// some returns some messages of the stream that the inbox has. The others will be delivered anyway.
func (w *simWorld) some() (all []*inbox.Message) {
	for n, m := range w.stream.log {
		if _, known := w.db.inbox[m.event.ID]; known && w.r.IntN(6) == 0 {
			all = append(all, &inbox.Message{ID: m.event.ID, Generation: w.db.generation, Seq: uint64(n + 1), Stream: "EVENTS", Subject: m.subject,
				Type: m.event.Type, Key: m.event.Key, Header: m.header, Data: m.data})
		}
	}
	return all
}

// replay has everything from a sequence on handled again, as pgjet replay does.
func (w *simWorld) replay() {
	if w.db.paused != "" || w.stream.end() == 0 || w.stream.away || !w.db.created.Equal(w.stream.created) {
		return
	}
	from := 1 + uint64(w.r.IntN(int(w.stream.end())))
	all := w.r.IntN(3) == 0
	if all {
		from = 1
	}
	w.operate(func(ctx context.Context) error {
		generation := w.db.generation
		if err := w.db.supersede(ctx, w.operator, func() { w.db.paused = "replay" }); err != nil {
			return err
		}
		defer func() { w.db.paused = "" }()
		w.pause(200 * time.Millisecond)
		for _, d := range w.stream.durables {
			d.reset(min(from, d.floor()+1))
		}
		if err := w.db.alone(ctx, w.operator, -1); err != nil {
			return err
		}
		if w.db.generation != generation || !w.db.created.Equal(w.stream.created) {
			return errors.New("the stream was made again meanwhile")
		}
		if w.db.unplaced() {
			w.fire("replay is refused")
			return errors.New("events wait that have no place")
		}
		w.fire("replayed by reset")
		if w.db.paused == "" { // it was resumed meanwhile
			w.fire("resumed while replayed")
			w.db.interrupt()
		}
		before := maps.Clone(w.db.inbox)
		w.db.forget(from, all)
		for id := range before {
			if _, kept := w.db.inbox[id]; !kept {
				w.vanished[id] = true
			}
		}
		return nil
	})
}

// mend ends all faults.
func (w *simWorld) mend() {
	w.calm = true
	w.db.away, w.stream.away, w.db.paused = false, false, ""
	for _, p := range w.all {
		p.frozen = false
	}
	for len(w.running) < 2 {
		w.start()
	}
	w.changed.Broadcast()
}

// recover acts as operators do in the end: they start dead processes, and redrive dead letters once
// their cause is gone.
func (w *simWorld) recover() {
	for len(w.running) < 2 {
		w.start()
	}
	for id := range w.db.letters {
		delete(w.killer, id)
	}
	if dead := w.dead(); len(dead) > 0 {
		w.operate(func(ctx context.Context) error { return w.db.redrive(ctx, w.operator, dead, "intent") })
	}
}

// missing returns the events that are not handled.
func (w *simWorld) missing() (all []string) {
	for seq, m := range w.stream.log {
		if state := w.db.inbox[m.event.ID].state; state != inbox.Discarded && (state != inbox.Done || w.db.effects[m.event.ID]+w.happened[m.event.ID] == 0) {
			all = append(all, fmt.Sprintf("%d:%s/%d %s %d", seq+1, m.event.Key, w.place[m.event.ID].n, cmp.Or(state, "unknown"), w.db.effects[m.event.ID]))
		}
	}
	return all
}

// waiting returns the waiting intents.
func (w *simWorld) waiting() (all []string) {
	for _, i := range w.db.sorted(func(*simIntent) bool { return true }) {
		all = append(all, fmt.Sprintf("%s attempts %d deaths %d taken by %q due in %s", w.at(i.ID), i.attempts, i.deaths, i.taken, time.Until(i.due).Round(time.Second)))
	}
	for _, id := range w.dead() {
		l := w.db.letters[id]
		all = append(all, fmt.Sprintf("%s dead at %d/%d, inbox %+v", w.at(id), l.Generation, l.Seq, w.db.inbox[id]))
	}
	return all
}

// settled reports whether nothing is left to do.
func (w *simWorld) settled() bool {
	return len(w.missing())+len(w.db.intents)+len(w.dead()) == 0
}
