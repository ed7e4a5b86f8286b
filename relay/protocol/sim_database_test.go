package protocol_test

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/relay/backlog"
	"github.com/pgjet/pgjet/relay/protocol"
)

var errLost = errors.New("connection lost")

// A row is an event in the model of the outbox. Its transaction is xid in the
// cluster where it was written and xmin in this one.
type row struct {
	xid, xmin uint64
	seq       int64
	id        uuid.UUID
	key       string
	n         int // counts the events of the key, in the order of their commits
	kind      string
}

// Kinds of events that need special treatment.
const (
	unfit  = "unfit"  // the relay sees that the stream cannot take it
	poison = "poison" // the stream refuses it
)

// A database is a model of PostgreSQL, as far as it matters here.
type database struct {
	w       *world
	system  int
	nextXID uint64
	highest uint64 // the highest transaction that has ended
	nextSeq int64
	running map[uint64]bool
	rows    []row            // committed or running, by seq
	pruned  []row            // the first ones, which are gone
	order   map[string][]int // of each key: the numbers, in the order of their commits
	holder  map[string]uint64
	leads   int // the session that holds the lock; 0: none
	durable
	unsynced int // how many of the newest checkpoints a crash may lose
}

// A durable holds what a relay writes.
type durable struct {
	epoch       int
	checkpoints []savedCheckpoint
	heal        *backlog.Position
	quarantine  map[int64]string // held or retry
	adopted     map[time.Time]uint64
	unknown     []protocol.Message
	unknownOf   time.Time
}

type savedCheckpoint struct {
	protocol.Checkpoint
	system int
}

func newDatabase(w *world) *database {
	return &database{
		w: w, system: 1, nextXID: 100, highest: 99, nextSeq: 1, running: map[uint64]bool{},
		order: map[string][]int{}, holder: map[string]uint64{},
		durable: durable{quarantine: map[int64]string{}, adopted: map[time.Time]uint64{}},
	}
}

// copy returns a backup of now: open transactions are not in it.
func (d *database) copy() *database {
	c := *d
	c.running, c.holder, c.leads = map[uint64]bool{}, map[string]uint64{}, 0
	c.rows = slices.DeleteFunc(slices.Clone(d.rows), func(r row) bool { return d.running[r.xmin] })
	c.order = map[string][]int{}
	for k, v := range d.order {
		c.order[k] = slices.Clone(v)
	}
	c.highest = d.nextXID - 1
	c.checkpoints = slices.Clone(d.checkpoints)
	c.quarantine, c.adopted = maps.Clone(d.quarantine), maps.Clone(d.adopted)
	c.unknown = slices.Clone(d.unknown)
	c.pruned = slices.Clone(d.pruned)
	return &c
}

// restored returns a dump of now in a new cluster, where transactions count from 10 again.
func (d *database) restored() *database {
	c := d.copy()
	c.system++
	for i := range c.rows {
		c.rows[i].xmin = 10
	}
	c.nextXID, c.highest = 11, 10
	return c
}

func (d *database) snapshot() backlog.Snapshot {
	s := backlog.Snapshot{Xmax: d.highest + 1, Xmin: d.highest + 1}
	for _, xid := range slices.Sorted(maps.Keys(d.running)) {
		if xid < s.Xmax {
			s.Running = append(s.Running, xid)
			s.Xmin = min(s.Xmin, xid)
		}
	}
	return s
}

func (d *database) begin() uint64 {
	xid := d.nextXID
	d.nextXID++
	d.running[xid] = true
	return xid
}

func (d *database) end(xid uint64, commit bool) {
	delete(d.running, xid)
	d.highest = max(d.highest, xid)
	d.unsynced = 0 // a commit of a service waits for the log
	for key, holder := range d.holder {
		if holder == xid {
			delete(d.holder, key)
		}
	}
	for _, r := range d.rows {
		if commit && r.xmin == xid {
			d.order[r.key] = append(d.order[r.key], r.n)
		}
	}
	if !commit {
		d.rows = slices.DeleteFunc(d.rows, func(r row) bool { return r.xmin == xid })
	}
}

func (d *database) insert(xid uint64, key string, n int, kind string) {
	d.rows = append(d.rows, row{xid, xid, d.nextSeq, d.w.newID(), key, n, kind})
	d.nextSeq++
}

// prune drops the first rows that are old: each checkpoint covers them.
func (d *database) prune() {
	of := func(s savedCheckpoint) bool { return s.system == d.system }
	if !slices.ContainsFunc(d.checkpoints, of) {
		return
	}
	n := slices.IndexFunc(d.rows, func(r row) bool {
		_, quarantined := d.quarantine[r.seq]
		return quarantined || d.running[r.xmin] || slices.ContainsFunc(d.checkpoints, func(s savedCheckpoint) bool {
			return of(s) && !s.Position.Covers(r.record(d.w.mutant))
		})
	})
	if n < 0 {
		n = len(d.rows)
	}
	if n > 0 {
		d.w.fire("outbox is pruned")
		d.pruned, d.rows = append(d.pruned, d.rows[:n]...), slices.Clone(d.rows[n:])
	}
}

func (r row) record(mutant string) backlog.Record {
	xid := min(r.xid, r.xmin)
	if mutant == "restored rows count as they say" {
		xid = r.xid
	}
	return backlog.Record{XID: xid, Event: events.Event{
		ID: r.id, Type: "t." + cmp.Or(r.kind, "good"), Key: r.key, Seq: r.seq, Time: time.Unix(1, 0), Data: []byte("{}"),
	}}
}

// A dbConn is a relay's connection to the database. Each call may be the relay's
// last, before or after its effect.
type dbConn struct {
	p       *process
	session int
	epoch   int
}

func (c *dbConn) call(fn func(*database) error) error {
	c.p.step()
	d := c.p.w.db
	if d.leads != c.session {
		return errLost
	}
	err := fn(d)
	c.p.step()
	return err
}

// guarded is call for writes that the epoch guards.
func (c *dbConn) guarded(fn func(*database)) error {
	c.p.step()
	d := c.p.w.db
	switch {
	case c.p.w.mutant == "no epoch":
	case d.epoch != c.epoch:
		c.p.w.fire("write refused by epoch")
		return protocol.ErrFenced
	case d.leads != c.session:
		return errLost
	}
	fn(d)
	c.p.step()
	return nil
}

func (c *dbConn) Next(ctx context.Context, from backlog.Position) (w backlog.Window, err error) {
	err = c.call(func(d *database) error { w.Now = d.snapshot(); return nil })
	if err != nil {
		return w, err
	}
	// Late events are included, unless there may be too many.
	if few := uint64(c.p.w.r.IntN(8)); from.Floor > 0 && w.Now.Xmax-from.Snapshot.Xmax <= few {
		w.Late, err = c.late(from.Snapshot.Running, from.Snapshot.Xmax, from.Snapshot.Xmax+few, 0, from.Floor)
		w.AllLate = len(w.Late) < c.p.w.page || c.p.w.mutant == "late commits are few"
	}
	if err != nil {
		return w, err
	}
	return w, c.call(func(d *database) error {
		for _, r := range d.rows {
			if r.seq <= from.Floor || d.running[r.xmin] {
				continue
			}
			rec := r.record(c.p.w.mutant)
			if c.p.w.mutant == "a snapshot for each page" && !w.Now.Sees(rec.XID) {
				rec.XID = 1
			}
			if w.Page = append(w.Page, rec); len(w.Page) == c.p.w.page {
				break
			}
		}
		return nil
	})
}

func (c *dbConn) Late(_ context.Context, xids []uint64, low, high uint64, after, floor int64) (page []backlog.Record, err error) {
	return c.late(xids, low, high, after, floor)
}

func (c *dbConn) late(xids []uint64, low, high uint64, after, floor int64) (page []backlog.Record, err error) {
	if c.p.w.mutant == "late commits are those that ran" {
		high = low
	}
	return page, c.call(func(d *database) error {
		for _, r := range d.rows {
			asked := slices.Contains(xids, r.xid) || r.xid >= low && r.xid < high
			if r.seq <= after || r.seq > floor || d.running[r.xmin] || !asked {
				continue
			}
			if page = append(page, r.record(c.p.w.mutant)); len(page) == c.p.w.page {
				break
			}
		}
		return nil
	})
}

func (c *dbConn) Find(_ context.Context, seqs []int64, fn func(backlog.Record)) error {
	return c.call(func(d *database) error {
		for _, r := range d.rows {
			if !d.running[r.xmin] && slices.Contains(seqs, r.seq) {
				fn(r.record(c.p.w.mutant))
			}
		}
		return nil
	})
}

func (c *dbConn) Recall(_ context.Context, created time.Time) (m protocol.Memory, err error) {
	return m, c.call(func(d *database) error {
		for _, saved := range slices.Backward(d.checkpoints) {
			if saved.system == d.system || c.p.w.mutant == "any cluster's checkpoints" {
				m.Checkpoints = append(m.Checkpoints, saved.Checkpoint)
			}
		}
		m.Heal, m.Adopted = d.heal, d.adopted[created]
		if n := len(d.pruned); n > 0 {
			m.Pruned, m.PrunedCount = d.pruned[n-1].seq, int64(n)
		}
		m.Quarantined = slices.Sorted(maps.Keys(d.quarantine))
		return nil
	})
}

func (c *dbConn) Forget(_ context.Context, number int64, heal *backlog.Position) error {
	return c.guarded(func(d *database) {
		if d.heal = heal; c.p.w.mutant == "unconfirmed checkpoints stay" {
			return
		}
		d.checkpoints = slices.DeleteFunc(d.checkpoints, func(s savedCheckpoint) bool {
			return s.Number > number && s.system == d.system
		})
		d.unsynced = 0
	})
}

func (c *dbConn) Save(_ context.Context, ck protocol.Checkpoint, healed bool) error {
	return c.guarded(func(d *database) {
		c.p.w.audit(c.p, ck)
		if healed {
			d.heal = nil
		}
		c.p.w.numbers++
		ck.Number = c.p.w.numbers
		d.checkpoints = append(d.checkpoints, savedCheckpoint{ck, d.system})
		d.unsynced++
		if n := len(d.checkpoints); n > 5 {
			d.checkpoints = slices.Clone(d.checkpoints[n-5:])
			d.unsynced = min(d.unsynced, 5)
		}
	})
}

func (c *dbConn) Quarantine(_ context.Context, r backlog.Record, _ error) error {
	return c.guarded(func(d *database) {
		if _, ok := d.quarantine[r.Event.Seq]; !ok {
			d.quarantine[r.Event.Seq] = "held"
		}
	})
}

func (c *dbConn) Retries(context.Context) (all []backlog.Record, err error) {
	return all, c.call(func(d *database) error {
		for _, r := range d.rows {
			if d.quarantine[r.seq] == "retry" {
				all = append(all, r.record(c.p.w.mutant))
			}
		}
		return nil
	})
}

func (c *dbConn) Release(_ context.Context, seqs []int64) error {
	return c.guarded(func(d *database) {
		for _, seq := range seqs {
			delete(d.quarantine, seq)
		}
	})
}

func (c *dbConn) Report(_ context.Context, created time.Time, unknown []protocol.Message) error {
	return c.guarded(func(d *database) { d.unknown, d.unknownOf = unknown, created })
}
