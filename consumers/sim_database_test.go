package consumers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/lead"
	"github.com/pgjet/pgjet/internal/rivals"
)

// errCut is the error of a process whose connection is gone.
var errCut = io.ErrUnexpectedEOF

// far is the due time of an intent that waits behind another one: infinity.
var far = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)

// simTables are the tables of a database: a backup is a copy of them.
type simTables struct {
	known      bool // the consumer is registered
	epoch      int64
	generation int32
	created    time.Time // of the stream
	paused     string    // the reason; "" if not paused
	rebuild    bool      // the effects of everything are to be undone first
	slices     []simSlice
	inbox      map[uuid.UUID]simRow
	intents    map[uuid.UUID]simIntent
	letters    map[uuid.UUID]simLetter

	effects map[uuid.UUID]int  // how often each was applied
	again   map[uuid.UUID]int  // how often an operator asked for it again
	handed  map[uuid.UUID]bool // an operator handed it over once, or it was a dead letter: it is handled late
}

type simSlice struct {
	epoch            int64
	floor, high      uint64
	stored           time.Time
	lost             uint64
	redeliver, owned bool
	process          string
}

type simRow struct {
	state      string
	attempts   int
	generation int32
	seq        uint64
}

type simIntent struct {
	inbox.Message
	attempts, deaths int
	taken            string
	due              time.Time
}

type simLetter struct {
	inbox.Message
	attempts int
	state    string
}

func (t *simTables) copy() *simTables {
	c := *t
	c.slices = slices.Clone(t.slices)
	c.inbox, c.intents, c.letters = maps.Clone(t.inbox), maps.Clone(t.intents), maps.Clone(t.letters)
	c.effects, c.again, c.handed = maps.Clone(t.effects), maps.Clone(t.again), maps.Clone(t.handed)
	return &c
}

// A simDatabase is a model of PostgreSQL with the inbox, as far as needed. Each statement happens
// at once; a transaction changes the tables when it commits, and locks its changes until then.
type simDatabase struct {
	w *simWorld
	*simTables
	version inbox.Version
	away    bool
	open    map[*simTx]bool
	rows    map[uuid.UUID]*simTx // the transactions that have the rows of an event locked
	loose   map[uuid.UUID]bool   // intents that wait for events that a replay made the inbox forget, until a session begins
	waiting map[int]int          // number of waits for the attempts of a slice to end; of all: -1
	conns   map[int64]*simConnection
	pids    int64
	leads   map[string]map[*simConnection]bool // their holders; true: exclusively
}

func newSimDatabase(w *simWorld) *simDatabase {
	return &simDatabase{w: w, version: inbox.Version{Started: time.Now(), File: 1}, open: make(map[*simTx]bool), rows: make(map[uuid.UUID]*simTx), loose: make(map[uuid.UUID]bool), waiting: make(map[int]int),
		conns: make(map[int64]*simConnection), leads: make(map[string]map[*simConnection]bool),
		simTables: &simTables{inbox: make(map[uuid.UUID]simRow), intents: make(map[uuid.UUID]simIntent), letters: make(map[uuid.UUID]simLetter),
			effects: make(map[uuid.UUID]int), again: make(map[uuid.UUID]int), handed: make(map[uuid.UUID]bool)}}
}

// crash ends all transactions and connections. With other tables, the database was restored,
// perhaps by a server that goes on.
func (d *simDatabase) crash(to *simTables) {
	for tx := range d.open {
		tx.end(false)
	}
	for _, c := range d.conns {
		d.close(c)
	}
	if to != nil {
		d.simTables = to
		d.version.File++
	}
	if to == nil || d.w.r.IntN(2) == 0 {
		d.version.Started = time.Now()
	}
}

func (d *simDatabase) close(c *simConnection) {
	c.closed = true
	delete(d.conns, c.pid)
	for _, holders := range d.leads {
		delete(holders, c)
	}
	d.w.changed.Broadcast()
}

// reap ends transactions and connections that are idle for too long.
func (d *simDatabase) reap() {
	for _, c := range d.conns {
		if c.busy == 0 && time.Since(c.used) > lead.Silence {
			d.w.fire("session of a silent process ends")
			d.close(c)
		}
	}
	for tx := range d.open {
		if !tx.busy && time.Since(tx.used) > tx.idle {
			d.w.fire("transaction idles for too long")
			tx.end(false)
		}
	}
}

// wait waits for a change.
func (d *simDatabase) wait(ctx context.Context, p *process) error {
	defer context.AfterFunc(ctx, func() {
		d.w.mu.Lock()
		defer d.w.mu.Unlock()
		d.w.changed.Broadcast()
	})()
	d.w.changed.Wait()
	return p.dead(ctx)
}

// alone waits until no attempt at a slice is open, or at any slice with -1.
func (d *simDatabase) alone(ctx context.Context, p *process, slice int) error {
	d.waiting[slice]++
	defer func() {
		d.waiting[slice]--
		d.w.changed.Broadcast()
	}()
	busy := func() bool {
		for tx := range d.open {
			if tx.attempt && (slice < 0 || tx.slice == slice) {
				return true
			}
		}
		return false
	}
	for v := d.version; busy() && !d.w.mutant("attempts are not awaited"); {
		d.w.fire("waits for attempts")
		if err := d.wait(ctx, p); err != nil {
			return err
		}
		if d.version != v { // a crash also disconnects waiting sessions
			return errCut
		}
	}
	return nil
}

func (d *simDatabase) current(t *inbox.Tenure) bool {
	return d.w.mutant("no fence") || d.paused == "" && d.of(t) != nil
}

// unrestored reports whether the inbox still has the session's version.
func (d *simDatabase) unrestored(v inbox.Version) bool {
	return v == d.version || d.w.mutant("a restored inbox has the epoch")
}

// of returns the row of the slice that a session has; nil if it does not have it any more.
func (d *simDatabase) of(t *inbox.Tenure) *simSlice {
	for n := range d.slices {
		if d.slices[n].epoch == t.Epoch && d.unrestored(t.Version) {
			return &d.slices[n]
		}
	}
	return nil
}

func (d *simDatabase) interrupt() {
	d.epoch++
	for n := range d.slices {
		d.slices[n].epoch = d.epoch
	}
}

// gone reports whether the process of a session is dead.
func (d *simDatabase) gone(session string) bool {
	for _, c := range d.conns {
		if c.session == session {
			return false
		}
	}
	return true
}

func earlier(g int32, s uint64, than *inbox.Message) bool {
	return cmp.Or(cmp.Compare(g, than.Generation), cmp.Compare(s, than.Seq)) < 0
}

func (d *simDatabase) behindIntent(m *inbox.Message) bool {
	for _, e := range d.intents {
		if e.Key == m.Key && earlier(e.Generation, e.Seq, m) {
			return true
		}
	}
	return false
}

func (d *simDatabase) behindDead(m *inbox.Message) bool {
	for _, e := range d.letters {
		if e.state == inbox.Dead && e.Key == m.Key && earlier(e.Generation, e.Seq, m) {
			return true
		}
	}
	return false
}

func (d *simDatabase) waits(m *inbox.Message) bool {
	if d.w.mutant("intents do not wait") {
		return false
	}
	return d.w.ordered() && (d.behindIntent(m) || d.w.c.ParkKey && d.behindDead(m))
}

// sorted returns intents in the order of the stream.
func (d *simDatabase) sorted(which func(i *simIntent) bool) (all []simIntent) {
	for _, i := range d.intents {
		if which(&i) {
			all = append(all, i)
		}
	}
	slices.SortFunc(all, func(a, b simIntent) int {
		return cmp.Or(cmp.Compare(a.Generation, b.Generation), cmp.Compare(a.Seq, b.Seq))
	})
	return all
}

// A simTx is a transaction. Handlers get it as their pgx.Tx.
type simTx struct {
	pgx.Tx
	d       *simDatabase
	p       *process
	attempt bool
	slice   int
	idle    time.Duration
	used    time.Time
	busy    bool // in a statement
	over    bool
	does    []func() // at the commit
	claimed map[uuid.UUID]func()
	effects []events.Event
	what    string // for the trace
}

func (d *simDatabase) begin(p *process, idle time.Duration) *simTx {
	tx := &simTx{d: d, p: p, idle: idle, used: time.Now(), claimed: make(map[uuid.UUID]func())}
	d.open[tx] = true
	return tx
}

// end ends the transaction.
func (tx *simTx) end(commit bool) {
	if tx.over {
		return
	}
	tx.over = true
	if tx.d.w.traces != nil {
		var ids []string
		for id := range tx.claimed {
			ids = append(ids, tx.d.w.at(id))
		}
		ids = append(ids, "effects")
		for _, e := range tx.effects {
			ids = append(ids, tx.d.w.at(e.ID))
		}
		tx.d.w.trace("%s commit %t: claimed %v; %s", tx.p.name, commit, ids, tx.what)
	}
	if commit {
		for _, do := range tx.claimed {
			do()
		}
		for _, do := range tx.does {
			do()
		}
		for _, e := range tx.effects {
			tx.d.w.apply(e)
		}
		for _, e := range tx.effects {
			tx.d.w.inOrder(e)
		}
		tx.d.idle()
	}
	delete(tx.d.open, tx)
	for id, by := range tx.d.rows {
		if by == tx {
			delete(tx.d.rows, id)
		}
	}
	tx.d.w.changed.Broadcast()
}

// idle records that an intent waits for another one that does not exist.
func (d *simDatabase) idle() {
	for _, i := range d.intents {
		if i.taken == "" && i.due.Equal(far) && !d.loose[i.ID] && !d.waits(&i.Message) && !d.w.mutant("intents do not wait") {
			d.w.breaks("intent %s waits for nothing", d.w.at(i.ID))
		}
	}
}

// lock waits for the rows of an event.
func (tx *simTx) lock(ctx context.Context, id uuid.UUID) error {
	for tx.d.rows[id] != nil && tx.d.rows[id] != tx {
		tx.d.w.fire("waits for a row")
		if err := tx.d.wait(ctx, tx.p); err != nil {
			return err
		}
	}
	if tx.over {
		return errCut
	}
	tx.d.rows[id] = tx
	return nil
}

// statement runs fn as a statement of the transaction.
func (tx *simTx) statement(ctx context.Context, what string, fn func() error) error {
	return tx.p.call(ctx, what, func() error {
		if tx.over {
			return errCut
		}
		tx.busy = true
		defer func() { tx.busy, tx.used = false, time.Now() }()
		return fn()
	})
}

// A simConnection is the database connection of a session.
type simConnection struct {
	p       *process
	d       *simDatabase
	session string
	pid     int64
	used    time.Time
	busy    int
	closed  bool
	version inbox.Version
}

func failedSim(what string, err error) error {
	if err == nil || errors.Is(err, inbox.ErrSuperseded) || errors.Is(err, inbox.ErrTaken) {
		return err
	}
	return &inbox.Error{What: what, Err: err}
}

// ask runs fn by the connection of the session. The connection is closed if the statement, or its
// answer, gets lost.
func (c *simConnection) ask(ctx context.Context, what string, fn func() error) error {
	err := c.p.call(ctx, what, func() error {
		if c.closed {
			return errCut
		}
		c.busy++
		defer func() { c.busy--; c.used = time.Now() }()
		return fn()
	})
	if err != nil {
		c.Close()
	}
	return failedSim(what, err)
}

// pooled runs fn by another connection.
func (c *simConnection) pooled(ctx context.Context, what string, fn func() error) error {
	return failedSim(what, c.p.call(ctx, what, fn))
}

func (c *simConnection) Open(ctx context.Context) (inbox.Version, error) {
	err := failedSim("connect", c.p.call(ctx, "connect", func() error {
		c.d.pids++
		c.pid, c.used, c.closed, c.version = c.d.pids, time.Now(), false, c.d.version
		c.d.conns[c.pid] = c
		return nil
	}))
	return c.version, err
}

func (c *simConnection) Close() {
	c.d.w.mu.Lock()
	defer c.d.w.mu.Unlock()
	if !c.closed {
		c.d.close(c)
	}
}

func (c *simConnection) Closed() bool {
	c.d.w.mu.Lock()
	defer c.d.w.mu.Unlock()
	return c.closed
}

func (c *simConnection) PID() int64 { return c.pid }

// take takes a lead, exclusively or shared, if it is free.
func (c *simConnection) take(name string, alone bool) (in *simConnection) {
	holders := c.d.leads[name]
	if holders == nil {
		holders = make(map[*simConnection]bool)
		c.d.leads[name] = holders
	}
	for h, theirs := range holders {
		if h != c && (alone || theirs) {
			return h
		}
	}
	holders[c] = alone
	return nil
}

func (c *simConnection) lead(ctx context.Context, name string, alone bool, standby func(lead.Holder)) error {
	for {
		var in *simConnection
		err := c.ask(ctx, "take a lead", func() error {
			in = c.take(name, alone)
			return nil
		})
		if err != nil || in == nil {
			return err
		}
		standby(lead.Holder{PID: &in.pid})
		if !sleep(ctx, 50*time.Millisecond) {
			return ctx.Err()
		}
	}
}

func (c *simConnection) Join(ctx context.Context, name string, standby func(lead.Holder)) error {
	return c.lead(ctx, name, false, standby)
}

func (c *simConnection) Try(ctx context.Context, name string) (taken bool, err error) {
	err = c.ask(ctx, "take a lead", func() error {
		taken = c.take(name, true) == nil
		return nil
	})
	return taken, err
}

func (c *simConnection) Leave(ctx context.Context, name string) error { return c.Release(ctx, name) }

func (c *simConnection) Release(ctx context.Context, name string) error {
	return c.ask(ctx, "give a lead up", func() error {
		delete(c.d.leads[name], c)
		c.d.w.changed.Broadcast()
		return nil
	})
}

func (c *simConnection) Holders(ctx context.Context, names []string) (all map[string][]lead.Holder, err error) {
	all = make(map[string][]lead.Holder)
	return all, c.ask(ctx, "look at leads", func() error {
		for _, name := range names {
			for h := range c.d.leads[name] {
				all[name] = append(all[name], lead.Holder{PID: new(h.pid)})
			}
			slices.SortFunc(all[name], func(a, b lead.Holder) int { return cmp.Compare(*a.PID, *b.PID) })
		}
		return nil
	})
}

func (c *simConnection) Abandon(ctx context.Context, sessions []string) error {
	return c.ask(ctx, "abandon", func() error {
		for id, i := range c.d.intents {
			if slices.Contains(sessions, i.taken) {
				i.attempts, i.taken, i.due = i.attempts-1, "", time.Now()
				c.d.intents[id] = i
			}
		}
		return nil
	})
}

func (c *simConnection) ReadMark(ctx context.Context) (m inbox.Mark, err error) {
	return m, c.ask(ctx, "look at the consumer", func() error {
		if c.d.known {
			m.Generation = c.d.generation
		}
		for _, s := range c.d.slices {
			if !s.stored.IsZero() && s.high > m.Seq && !c.d.w.blind() {
				m.Seq, m.Stored = s.high, s.stored
			}
		}
		return nil
	})
}

// Locate does not ask the database: the simulation has no copies.
func (c *simConnection) Locate(context.Context) (here rivals.Presence, elsewhere bool, err error) {
	return here, false, nil
}

func (c *simConnection) ForgetPlace(context.Context) error { return nil }

func (c *simConnection) Identity(ctx context.Context) (is inbox.Identity, err error) {
	err = c.ask(ctx, "identity", func() error {
		is = inbox.Identity{ID: simIdentity, Database: "sim"}
		return nil
	})
	return is, err
}

var simIdentity = uuid.New()

func (c *simConnection) Register(ctx context.Context, r inbox.Registration) (is inbox.Registered, err error) {
	err = c.ask(ctx, "register", func() error {
		d := c.d
		switch {
		case !d.known:
			d.known, d.created, d.generation, d.epoch, d.slices = true, r.Created, 1, 1, slices.Repeat([]simSlice{{epoch: 1}}, max(1, r.Slices))
		case !d.created.Equal(r.Created), d.generation == r.Past:
			d.w.fire("stream of another generation")
			if d.created.Equal(r.Created) {
				d.w.fire("end of the stream was lost")
			}
			d.created = r.Created
			d.generation++
			d.epoch++
			for n := range d.slices {
				s := &d.slices[n]
				*s = simSlice{epoch: d.epoch, owned: s.owned, process: s.process, redeliver: true}
			}
		}
		is = inbox.Registered{Generation: d.generation, Slices: len(d.slices), Rebuild: d.rebuild}
		return nil
	})
	if err == nil && c.d.pausedNow() {
		err = &inbox.PausedError{Paused: inbox.Paused{Reason: "test"}}
	}
	return is, err
}

func (d *simDatabase) pausedNow() bool {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	return d.paused != ""
}

func (c *simConnection) ReadPause(ctx context.Context) (p *inbox.Paused, err error) {
	err = c.ask(ctx, "look at the pause", func() error {
		if c.d.paused != "" {
			p = &inbox.Paused{Reason: c.d.paused}
		}
		return nil
	})
	return p, err
}

func (c *simConnection) Heartbeat(ctx context.Context, _ inbox.Beat) error {
	return c.ask(ctx, "heartbeat", func() error { return nil })
}

func (c *simConnection) RemoveProcess(ctx context.Context, _ string) error {
	return c.ask(ctx, "remove the process", func() error { return nil })
}

func (c *simConnection) Current(ctx context.Context, v inbox.Version, epochs []int64) (current, due bool, err error) {
	err = c.ask(ctx, "look whether the session is current", func() error {
		current = c.d.paused == ""
		for _, e := range epochs {
			current = current && c.d.of(&inbox.Tenure{Epoch: e, Version: v}) != nil
		}
		for _, i := range c.d.intents {
			due = due || !i.due.After(time.Now()) && i.taken != c.session
		}
		return nil
	})
	return current, due, err
}

func (c *simConnection) Depose(ctx context.Context, s inbox.Slice) error {
	return c.ask(ctx, "depose", func() error {
		for tx := range c.d.open {
			if tx.attempt && tx.slice == s.Number && !tx.busy && time.Since(tx.used) > lead.Silence/2 {
				c.d.w.fire("frozen attempt is ended")
				tx.end(false)
			}
		}
		return nil
	})
}

func (d *simDatabase) save(t *inbox.Tenure, floor, high uint64, stored time.Time) {
	if s := d.of(t); s != nil {
		if floor > 0 {
			s.floor = floor
		}
		if s.high < high {
			s.high, s.stored = high, stored.Truncate(time.Microsecond)
		}
	}
}

func (c *simConnection) Save(ctx context.Context, t *inbox.Tenure, floor, high uint64, stored time.Time) error {
	return c.ask(ctx, "save", func() error {
		c.d.save(t, floor, high, stored)
		return nil
	})
}

func (c *simConnection) TableLock(context.Context) (*lead.TableLock, error) { return nil, nil }
func (c *simConnection) Holder(context.Context) (*lead.Holder, error)       { return nil, nil }
func (c *simConnection) NameLock(_ context.Context, err error) error        { return err }
func (c *simConnection) Renew(error)                                        {}

func (c *simConnection) Inbox(t *inbox.Tenure) sliceInbox {
	return &simInbox{c, t}
}

// supersede ends all sessions, and makes a change.
func (d *simDatabase) supersede(ctx context.Context, p *process, change func()) error {
	if err := d.alone(ctx, p, -1); err != nil {
		return err
	}
	d.interrupt()
	change()
	return nil
}

func (c *simConnection) Divide(ctx context.Context, n int) error {
	return c.pooled(ctx, "divide", func() error {
		return c.d.supersede(ctx, c.p, func() {
			if !c.d.known { // it was restored to before the registration
				return
			}
			c.d.w.fire("divided")
			all := simSlice{epoch: c.d.epoch, floor: c.d.slices[0].floor}
			for _, s := range c.d.slices {
				if s.high > all.high {
					all.high, all.stored = s.high, s.stored
				}
				all.floor, all.lost = min(all.floor, s.floor), max(all.lost, s.lost)
				all.redeliver = all.redeliver || s.redeliver
			}
			c.d.slices = slices.Repeat([]simSlice{all}, n)
		})
	})
}

// Rebuild undoes all effects, as Clear does.
func (c *simConnection) Rebuild(ctx context.Context, _ func(context.Context, pgx.Tx) error) error {
	return c.pooled(ctx, "rebuild", func() error {
		return c.d.supersede(ctx, c.p, func() {
			if !c.d.rebuild { // another process did it
				return
			}
			c.d.w.fire("rebuilt")
			c.d.rebuild = false
			clear(c.d.effects)
			clear(c.d.again)
		})
	})
}

func (c *simConnection) Redeliver(ctx context.Context) error {
	return c.pooled(ctx, "redeliver", func() error {
		return c.d.supersede(ctx, c.p, func() {
			c.d.w.fire("everything is delivered once more")
			for n := range c.d.slices {
				c.d.slices[n].redeliver = true
			}
		})
	})
}

func (c *simConnection) Writable(ctx context.Context) bool {
	return c.pooled(ctx, "look at the database", func() error {
		if c.d.version != c.version {
			return errCut
		}
		return nil
	}) == nil
}

// A simInbox is the inbox of the model, for one tenure.
type simInbox struct {
	*simConnection
	t *inbox.Tenure
}

func (r *simInbox) mine(m *inbox.Message) bool {
	from, to := r.t.Slice.Tokens()
	token := events.Partition(m.Subject)
	return token >= from && token < to
}

func (r *simInbox) Own(ctx context.Context) (at inbox.SliceState, err error) {
	err = r.pooled(ctx, "take the slice", func() error {
		d := r.d
		if !d.known { // it was restored to before the registration
			return inbox.ErrSuperseded
		}
		if r.t.Ordered {
			if err := d.alone(ctx, r.p, r.t.Slice.Number); err != nil {
				return err
			}
		}
		if d.paused != "" || !d.unrestored(r.t.Version) || len(d.slices) != r.t.Slice.Of || d.generation != r.t.Generation ||
			d.rebuild && !d.w.mutant("a rebuild is not awaited") {
			return inbox.ErrSuperseded
		}
		if r.t.Slice.Number >= len(d.slices) { // with a guard removed
			return inbox.ErrSuperseded
		}
		s := &d.slices[r.t.Slice.Number]
		if at.Orphaned = s.owned && r.t.Ordered; r.t.Ordered {
			if s.process != "" && s.process != r.p.name {
				d.w.fire("slice moves")
			}
			if !d.w.mutant("no new epoch") {
				d.epoch++
				s.epoch = d.epoch
			}
			s.owned, s.process = true, r.p.name
		}
		defer func() { d.w.trace("%s owns %d: %+v", r.p.name, r.t.Slice.Number, at) }()
		at.Epoch, at.Floor, at.High, at.LostUntil, at.Redeliver = s.epoch, s.floor, s.high, s.lost, s.redeliver
		if !d.w.blind() {
			at.Stored = s.stored
		}
		if d.w.mutant("suspects are handled") {
			at.Orphaned = false
		}
		return nil
	})
	return at, err
}

func (r *simInbox) Lost(ctx context.Context, until uint64) error {
	return r.pooled(ctx, "note what is lost", func() error {
		if s := r.d.of(r.t); s != nil {
			s.lost = max(s.lost, until)
		}
		return nil
	})
}

func (r *simInbox) Redelivered(ctx context.Context) error {
	return r.pooled(ctx, "redelivered", func() error {
		if s := r.d.of(r.t); s != nil {
			s.redeliver = false
		}
		return nil
	})
}

func (r *simInbox) LastKnown(ctx context.Context, floor uint64) (id uuid.UUID, seq uint64, err error) {
	err = r.pooled(ctx, "last known", func() error {
		for key, row := range r.d.inbox {
			if row.generation == r.t.Generation && row.seq <= floor && row.seq > seq {
				id, seq = key, row.seq
			}
		}
		return nil
	})
	return id, seq, err
}

func (r *simInbox) Wake(ctx context.Context) error {
	return r.pooled(ctx, "wake", func() error {
		for id, i := range r.d.intents {
			if r.mine(&i.Message) && i.due.Equal(far) && !r.d.waits(&i.Message) {
				i.due = time.Now()
				r.d.intents[id] = i
				delete(r.d.loose, id)
			}
		}
		return nil
	})
}

func (r *simInbox) Held(ctx context.Context) (keys []string, err error) {
	err = r.pooled(ctx, "held", func() error {
		if r.d.w.mutant("a new owner holds no keys") {
			return nil
		}
		for _, i := range r.d.intents {
			if r.mine(&i.Message) {
				keys = append(keys, i.Key)
			}
		}
		for _, l := range r.d.letters {
			if r.t.ParkKey && l.state == inbox.Dead && r.mine(&l.Message) {
				keys = append(keys, l.Key)
			}
		}
		slices.Sort(keys)
		keys = slices.Compact(keys)
		return nil
	})
	return keys, err
}

func (r *simInbox) Holds(ctx context.Context, key string) (held bool, err error) {
	err = r.pooled(ctx, "holds", func() error {
		for _, i := range r.d.intents {
			held = held || i.Key == key
		}
		for _, l := range r.d.letters {
			held = held || r.t.ParkKey && l.state == inbox.Dead && l.Key == key
		}
		r.d.w.trace("%s: key %s holds: %t", r.p.name, key, held)
		held = held && !r.d.w.mutant("keys are not held")
		return nil
	})
	return held, err
}

func (r *simInbox) Save(ctx context.Context, floor, high uint64, stored time.Time) error {
	return r.pooled(ctx, "save", func() error {
		r.d.save(r.t, floor, high, stored)
		return nil
	})
}

func (r *simInbox) Leave(ctx context.Context) error {
	return r.pooled(ctx, "leave", func() error {
		for id, i := range r.d.intents {
			if i.taken == r.t.Session && r.mine(&i.Message) {
				i.attempts, i.taken, i.due = i.attempts-1, "", time.Now()
				r.d.intents[id] = i
			}
		}
		if s := r.d.of(r.t); s != nil {
			s.owned = false
		}
		return nil
	})
}

func (r *simInbox) Known(ctx context.Context, all []*inbox.Message) (known map[uuid.UUID]uint64, err error) {
	known = make(map[uuid.UUID]uint64)
	return known, r.pooled(ctx, "known", func() error {
		for _, m := range all {
			row, found := r.d.inbox[m.ID]
			if found && row.generation < r.t.Generation {
				row.generation, row.seq = r.t.Generation, m.Seq
				r.d.inbox[m.ID] = row
			}
			if found {
				known[m.ID] = row.seq
			}
			if s := r.d.of(r.t); !found && s != nil && m.Seq <= s.high && r.d.w.mutant("sequences are the record") {
				known[m.ID] = m.Seq
			}
		}
		return nil
	})
}

func (r *simInbox) Copies(ctx context.Context, places []uuid.UUID, seqs []int64) error {
	return r.pooled(ctx, "copies", func() error {
		for n, id := range places {
			if _, found := r.d.inbox[id]; !found {
				r.d.inbox[id] = simRow{inbox.Done, 0, r.t.Generation, uint64(seqs[n])}
			}
		}
		return nil
	})
}

func (i *simIntent) out() *inbox.Intent {
	return &inbox.Intent{Message: i.Message, Attempts: i.attempts, Deaths: i.deaths}
}

func (r *simInbox) Take(ctx context.Context, want inbox.TakeFilter) (all []*inbox.Intent, err error) {
	return all, r.pooled(ctx, "take", func() error {
		d := r.d
		if !d.current(r.t) {
			return nil
		}
		due := d.sorted(func(i *simIntent) bool {
			return !i.due.After(time.Now()) && r.mine(&i.Message) && d.rows[i.ID] == nil && !d.waits(&i.Message)
		})
		slices.SortStableFunc(due, func(a, b simIntent) int { return a.due.Compare(b.due) })
		calm, suspects := 0, 0
		for _, i := range due {
			died := want.Dead && i.taken != "" && i.taken != r.t.Session && (d.gone(i.taken) || d.w.mutant("intents are taken from living sessions"))
			switch {
			case want.Suspect && suspects == 0 && (i.taken == "" && i.deaths > 0 || died):
				suspects++
			case i.taken == "" && i.deaths == 0 && calm < want.Most:
				calm++
			default:
				continue
			}
			if i.attempts++; died {
				d.w.fire("death noted")
				i.deaths++
			}
			i.taken = r.t.Session
			d.intents[i.ID] = i
			r.p.took[i.ID] = d.w.restores
			d.w.trace("%s takes %s", r.p.name, d.w.at(i.ID))
			all = append(all, i.out())
		}
		r.shuffle(all)
		return nil
	})
}

// shuffle puts intents in any order, as PostgreSQL may return them.
func (r *simInbox) shuffle(all []*inbox.Intent) {
	r.d.w.r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
}

func (r *simInbox) TakeNext(ctx context.Context, keys []string, most int) (all []*inbox.Intent, err error) {
	return all, r.pooled(ctx, "take next", func() error {
		if !r.d.current(r.t) {
			return nil
		}
		for _, key := range keys {
			for n, i := range r.d.sorted(func(i *simIntent) bool { return i.Key == key }) {
				free := i.taken == "" && i.attempts == 0 && i.deaths == 0 && (i.due.Equal(far) || !i.due.After(time.Now())) && r.d.rows[i.ID] == nil
				if n >= most || !free || r.t.ParkKey && r.d.behindDead(&i.Message) {
					break
				}
				i.attempts, i.taken = i.attempts+1, r.t.Session
				r.p.took[i.ID] = r.d.w.restores
				r.d.w.trace("%s takes next %s", r.p.name, r.d.w.at(i.ID))
				r.d.intents[i.ID] = i
				all = append(all, i.out())
			}
		}
		r.shuffle(all)
		return nil
	})
}

func (r *simInbox) GiveBack(ctx context.Context, i *inbox.Intent, wait time.Duration, counts bool) error {
	return r.pooled(ctx, "give back", func() error {
		now, found := r.d.intents[i.ID]
		if !found || now.taken != r.t.Session {
			return nil
		}
		if now.taken = ""; !counts {
			now.attempts--
		}
		if now.due = time.Now().Add(wait); wait == 0 && r.t.Ordered && (r.d.parks(nil, &now.Message) || r.t.ParkKey && r.d.behindDead(&now.Message)) {
			now.due = far
		}
		r.d.intents[i.ID] = now
		return nil
	})
}

func (r *simInbox) Remember(ctx context.Context, i *inbox.Intent, began time.Time, took time.Duration) error {
	var tx *simTx
	err := r.pooled(ctx, "begin to remember", func() error {
		for r.d.waiting[-1] > 0 {
			if err := r.d.wait(ctx, r.p); err != nil {
				return err
			}
		}
		tx = r.d.begin(r.p, lead.Silence)
		tx.attempt, tx.slice = true, -1
		return nil
	})
	if err == nil {
		err = r.Finish(ctx, tx, []*inbox.Intent{i}, began, took)
	}
	if err == nil {
		r.p.dawdle()
	}
	return r.finish(ctx, tx, err)
}

// transact runs fn in the transaction of an attempt, after first.
func (r *simInbox) transact(ctx context.Context, first func(tx *simTx) error, fn func(tx *simTx) error) error {
	var tx *simTx
	err := failedSim("begin an attempt", r.p.call(ctx, "begin an attempt", func() error {
		for r.d.waiting[-1]+r.d.waiting[r.t.Slice.Number] > 0 {
			if err := r.d.wait(ctx, r.p); err != nil {
				return err
			}
		}
		tx = r.d.begin(r.p, 2*r.p.run.Consumer.Timeout+pingTime)
		tx.attempt, tx.slice = true, r.t.Slice.Number
		tx.busy = true
		defer func() { tx.busy, tx.used = false, time.Now() }()
		return first(tx)
	}))
	if err == nil {
		err = fn(tx)
	}
	return r.finish(ctx, tx, err)
}

// finish commits tx, or rolls it back if there was an error.
func (r *simInbox) finish(ctx context.Context, tx *simTx, err error) error {
	if tx == nil {
		return err
	}
	if err == nil {
		return tx.statement(ctx, "commit", func() error {
			tx.end(true)
			return nil
		})
	}
	r.d.w.mu.Lock()
	defer r.d.w.mu.Unlock()
	tx.end(false)
	return err
}

func (r *simInbox) check() error {
	if !r.d.current(r.t) {
		r.d.w.fire("refused by the fence")
		return inbox.ErrSuperseded
	}
	return nil
}

func (r *simInbox) Check(ctx context.Context, fn func(tx pgx.Tx) error) error {
	return r.transact(ctx, func(*simTx) error { return r.check() }, func(tx *simTx) error { return fn(tx) })
}

func (r *simInbox) Claim(ctx context.Context, all []*inbox.Message, fn func(tx pgx.Tx, fresh []bool) error) error {
	fresh := make([]bool, len(all))
	return r.transact(ctx, func(tx *simTx) error {
		if err := r.check(); err != nil {
			return err
		}
		order := make([]int, len(all))
		for n := range all {
			order[n] = n
		}
		slices.SortFunc(order, func(a, b int) int {
			return cmp.Or(slices.Compare(all[a].ID[:], all[b].ID[:]), cmp.Compare(all[a].Seq, all[b].Seq))
		})
		for _, n := range order {
			if _, twice := tx.claimed[all[n].ID]; twice {
				continue
			}
			var err error
			if fresh[n], err = r.claim(ctx, tx, all[n], simRow{inbox.Done, 1, r.t.Generation, all[n].Seq}); err != nil {
				return err
			}
		}
		return nil
	}, func(tx *simTx) error { return fn(tx, fresh) })
}

// claim inserts an inbox row, unless there is one, which may get another sequence.
func (r *simInbox) claim(ctx context.Context, tx *simTx, m *inbox.Message, row simRow) (fresh bool, err error) {
	if !r.d.w.mutant("no unique claim") {
		if _, mine := tx.claimed[m.ID]; mine {
			return false, nil
		}
		if err := tx.lock(ctx, m.ID); err != nil {
			return false, err
		}
		if was, found := r.d.inbox[m.ID]; found {
			if was.generation != row.generation {
				was.generation, was.seq = row.generation, row.seq
				tx.does = append(tx.does, func() { r.d.inbox[m.ID] = was })
			}
			return false, nil
		}
	}
	tx.claimed[m.ID] = func() { r.d.inbox[m.ID] = row }
	return true, nil
}

func (r *simInbox) CheckTx(context.Context, pgx.Tx) error { return nil }

func (r *simInbox) Ended(pgx.Tx) bool { return false }

func (r *simInbox) Unclaim(ctx context.Context, t pgx.Tx, all []*inbox.Message) error {
	if len(all) == 0 {
		return nil
	}
	tx := t.(*simTx)
	return failedSim("unclaim", tx.statement(ctx, "unclaim", func() error {
		for _, m := range all {
			delete(tx.claimed, m.ID)
		}
		return nil
	}))
}

// wake makes the next intent of a key due, at the commit of the end of the one before.
func (r *simInbox) wake(ctx context.Context, tx *simTx, m *inbox.Message, ended ...uuid.UUID) error {
	if !r.t.Ordered {
		return nil
	}
	next := r.d.sorted(func(i *simIntent) bool {
		return i.Key == m.Key && earlier(m.Generation, m.Seq, &i.Message) && !slices.Contains(ended, i.ID)
	})
	if len(next) == 0 || !next[0].due.Equal(far) {
		return nil
	}
	id := next[0].ID
	if err := tx.lock(ctx, id); err != nil {
		return err
	}
	tx.does = append(tx.does, func() {
		if i, found := r.d.intents[id]; found && i.due.Equal(far) && !r.d.w.mutant("the next event is not woken") {
			i.due = time.Now()
			r.d.intents[id] = i
		}
	})
	return nil
}

func (r *simInbox) Finish(ctx context.Context, t pgx.Tx, all []*inbox.Intent, _ time.Time, _ time.Duration) error {
	tx := t.(*simTx)
	return failedSim("make events done", tx.statement(ctx, "finish", func() error {
		var ended []uuid.UUID
		for _, i := range all {
			if err := tx.lock(ctx, i.ID); err != nil {
				return err
			}
			now, found := r.d.intents[i.ID]
			if !r.d.w.mutant("intents have no owner") && (!found || now.taken != r.t.Session || now.attempts != i.Attempts) {
				r.d.w.fire("taken by another")
				return inbox.ErrTaken
			}
			ended = append(ended, i.ID)
			tx.what += " finish " + r.d.w.at(i.ID)
			tx.does = append(tx.does, func() {
				delete(r.d.intents, i.ID)
				row := r.d.inbox[i.ID]
				row.state, row.attempts = inbox.Done, now.attempts
				r.d.inbox[i.ID] = row
				if l, found := r.d.letters[i.ID]; found && l.state == inbox.Redriven {
					l.state = inbox.Done
					r.d.letters[i.ID] = l
				}
			})
		}
		for _, i := range all {
			if err := r.wake(ctx, tx, &i.Message, ended...); err != nil {
				return err
			}
		}
		return nil
	}))
}

func (r *simInbox) Again(ctx context.Context, t pgx.Tx, i *inbox.Intent, wait time.Duration, _ inbox.Ending) error {
	tx := t.(*simTx)
	return failedSim("again", tx.statement(ctx, "again", func() error {
		if err := tx.lock(ctx, i.ID); err != nil {
			return err
		}
		now, found := r.d.intents[i.ID]
		if !found || now.taken != r.t.Session || now.attempts != i.Attempts {
			return inbox.ErrTaken
		}
		now.taken, now.due = "", time.Now().Add(wait)
		tx.does = append(tx.does, func() { r.d.intents[i.ID] = now })
		return nil
	}))
}

func (r *simInbox) Log(ctx context.Context, t pgx.Tx, _ *inbox.Message, _ inbox.Ending) error {
	return failedSim("log", t.(*simTx).statement(ctx, "log", func() error { return nil }))
}

func (r *simInbox) Intend(ctx context.Context, t pgx.Tx, all []*inbox.Message, f inbox.NewIntent) (fresh []bool, err error) {
	tx := t.(*simTx)
	fresh = make([]bool, len(all))
	err = tx.statement(ctx, "intend", func() error {
		var before []*inbox.Message // in this statement
		for n, m := range all {
			var err error
			if fresh[n], err = r.claim(ctx, tx, m, simRow{"intent", f.Attempts, m.Generation, m.Seq}); err != nil {
				return err
			}
			if !fresh[n] {
				continue
			}
			i := simIntent{Message: *m, attempts: f.Attempts, due: time.Now().Add(f.Wait)}
			if f.Taken {
				r.p.took[m.ID] = r.d.w.restores
				i.taken = r.t.Session
			}
			mine := slices.ContainsFunc(before, func(e *inbox.Message) bool { return e.Key == m.Key })
			if f.Wait == 0 && r.t.Ordered && (mine || r.d.parks(tx, m) || r.t.ParkKey && r.d.behindDead(m)) {
				i.due = far
			}
			before = append(before, m)
			tx.what += fmt.Sprintf(" intend %s after %s", r.d.w.at(m.ID), time.Until(i.due))
			tx.does = append(tx.does, func() { r.d.intents[m.ID] = i })
		}
		return nil
	})
	return fresh, failedSim("write an intent", err)
}

// parks reports whether an event waits behind an intent of its key: the last one that is not just
// ending, which it locks until tx ends.
func (d *simDatabase) parks(tx *simTx, m *inbox.Message) bool {
	if d.w.mutant("a parked event does not lock what it waits for") {
		return d.behindIntent(m)
	}
	before := d.sorted(func(e *simIntent) bool { return e.Key == m.Key && earlier(e.Generation, e.Seq, m) })
	if len(before) == 0 {
		return false
	}
	last := before[len(before)-1].ID
	if by := d.rows[last]; by != nil && by != tx {
		return false
	}
	if tx != nil { // otherwise it ends at once
		d.rows[last] = tx
	}
	return true
}

func (r *simInbox) Bury(ctx context.Context, t pgx.Tx, dead inbox.Burial) (fresh bool, err error) {
	tx := t.(*simTx)
	err = tx.statement(ctx, "bury", func() (err error) {
		m := dead.Message
		row := simRow{inbox.Dead, dead.Ending.Attempt, m.Generation, m.Seq}
		if dead.Taken {
			if err := tx.lock(ctx, m.ID); err != nil {
				return err
			}
			now, found := r.d.intents[m.ID]
			if !found || now.taken != r.t.Session || now.attempts != dead.Ending.Attempt {
				return inbox.ErrTaken
			}
			was := r.d.inbox[m.ID]
			if was.generation > m.Generation {
				row.seq = was.seq
			}
			row.generation = max(was.generation, m.Generation)
			fresh = true
			tx.what += " bury taken " + r.d.w.at(m.ID)
			tx.does = append(tx.does, func() {
				delete(r.d.intents, m.ID)
				r.d.inbox[m.ID] = row
			})
		} else if fresh, err = r.claim(ctx, tx, m, row); err != nil || !fresh {
			return err
		}
		tx.does = append(tx.does, func() {
			r.d.w.fire("dead letter")
			l := r.d.letters[m.ID]
			r.d.letters[m.ID] = simLetter{*m, l.attempts + dead.Ending.Attempt, inbox.Dead}
			r.d.handed[m.ID] = true
		})
		if !r.t.ParkKey {
			return r.wake(ctx, tx, m, m.ID)
		}
		return nil
	})
	return fresh, failedSim("write a dead letter", err)
}

func (r *simInbox) Prune(context.Context, inbox.Retention) (bool, error) { return false, nil }

func (r *simInbox) Slices(ctx context.Context) (n int, err error) {
	return n, r.pooled(ctx, "slices", func() error {
		n = len(r.d.slices)
		return nil
	})
}

func (r *simInbox) Count(ctx context.Context, from, to uint64) (c inbox.Count, err error) {
	return c, r.pooled(ctx, "count", func() error {
		for _, row := range r.d.inbox {
			switch {
			case row.generation != r.d.generation || row.seq < from || row.seq > to:
			case row.state == inbox.Done:
				c.Done++
			case row.state == "intent":
				c.Waiting++
			default:
				c.Dead++
			}
		}
		return nil
	})
}

// Operators' commands. Each is one transaction.

// redrive gives dead letters back, or discards them.
func (d *simDatabase) redrive(ctx context.Context, p *process, ids []uuid.UUID, to string) error {
	tx := d.begin(p, time.Hour)
	defer tx.end(false)
	if slices.ContainsFunc(ids, func(id uuid.UUID) bool { return to == inbox.Discarded || d.inbox[id].state == inbox.Done }) {
		if err := d.alone(ctx, p, -1); err != nil {
			return err
		}
	}
	slices.SortFunc(ids, func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) })
	for _, id := range ids {
		if err := tx.lock(ctx, id); err != nil {
			return err
		}
	}
	for _, id := range ids {
		l := d.letters[id]
		if l.state != inbox.Dead {
			continue
		}
		d.w.fire(to)
		row, found := d.inbox[id]
		if !found {
			row = simRow{to, l.attempts, l.Generation, l.Seq}
		} else if row.state == inbox.Dead || row.state == inbox.Discarded {
			row.state = to
		}
		d.inbox[id] = row
		if l.state = row.state; row.state == "intent" {
			l.state = inbox.Redriven
		}
		d.letters[id] = l
		if _, waits := d.intents[id]; !waits && to == "intent" && row.state == "intent" {
			d.intents[id] = simIntent{Message: l.Message, due: time.Now()}
		}
	}
	for _, id := range ids { // now that those before them are intents, whatever the order of their ids
		i, found := d.intents[id]
		if found && d.letters[id].state == inbox.Redriven && i.taken == "" && !i.due.Equal(far) && d.w.ordered() && d.parks(tx, &i.Message) {
			i.due = far
			d.intents[id] = i
		}
	}
	for _, id := range ids {
		next := d.sorted(func(i *simIntent) bool { return i.Key == d.letters[id].Key })
		if len(next) > 0 && next[0].due.Equal(far) && !d.behindDead(&next[0].Message) {
			next[0].due = time.Now()
			d.intents[next[0].ID] = next[0]
		}
	}
	return nil
}

// handOver has events handled again.
func (d *simDatabase) handOver(ctx context.Context, p *process, all []*inbox.Message) error {
	if err := d.alone(ctx, p, -1); err != nil {
		return err
	}
	keys := make(map[string]bool)
	for _, m := range all {
		if m.Generation != d.generation { // the stream was created again meanwhile
			return errors.New("plan again")
		}
		if row, found := d.inbox[m.ID]; found && row.state != inbox.Done {
			continue
		}
		keys[m.Key] = true
		d.w.fire("handed over")
		d.again[m.ID]++
		d.handed[m.ID] = true
		d.inbox[m.ID] = simRow{"intent", 0, m.Generation, m.Seq}
		d.intents[m.ID] = simIntent{Message: *m, due: time.Now()}
	}
	for id, i := range d.intents {
		if d.w.ordered() && i.taken == "" && d.behindIntent(&i.Message) && keys[i.Key] {
			i.due = far
			d.intents[id] = i
		}
	}
	return nil
}

// unplaced reports whether events wait whose sequence in this stream is unknown.
func (d *simDatabase) unplaced() bool {
	for id := range d.intents {
		if _, dead := d.letters[id]; !dead && d.inbox[id].generation < d.generation && !d.w.mutant("a replay overtakes events without a sequence") {
			return true
		}
	}
	return false
}

// forget has everything from a sequence on handled again. With all, the effects of everything that
// is done will be undone first.
func (d *simDatabase) forget(from uint64, all bool) {
	d.rebuild = d.rebuild || all
	for id, row := range d.inbox {
		if row.state == inbox.Done && (all || row.generation == d.generation && row.seq >= from) {
			delete(d.inbox, id)
			if !all {
				d.again[id]++
			}
		}
	}
	for id, i := range d.intents {
		if _, dead := d.letters[i.ID]; !dead && d.inbox[id].generation == d.generation && d.inbox[id].seq >= from {
			delete(d.intents, id)
			delete(d.inbox, id)
		}
	}
	for id, i := range d.intents {
		d.loose[id] = i.due.Equal(far) && !d.waits(&i.Message)
	}
	for n := range d.slices {
		d.slices[n].floor = min(d.slices[n].floor, from-1)
	}
}

func (d *simDatabase) describe() string {
	states := make(map[string]int)
	for _, row := range d.inbox {
		states[row.state]++
	}
	text := ""
	for _, state := range slices.Sorted(maps.Keys(states)) {
		text += state + " " + strconv.Itoa(states[state]) + ", "
	}
	return text
}
