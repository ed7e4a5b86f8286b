package relay

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/events"
)

// A copy of a database is the same outbox. No lock of PostgreSQL reaches from one database
// to the other, so a relay could lead in each. They meet in NATS: the leader announces
// itself there, and hears the others.
const (
	// announceEvery is how often a leader announces itself.
	announceEvery = 500 * time.Millisecond
	// listenFor is how long a relay listens before it publishes, if a relay led last on
	// another server.
	listenFor = 3 * announceEvery
	// heardFor is how long an announcement counts.
	heardFor = 4 * announceEvery
	// maxPresence is the size limit of an announcement, which is shown to operators.
	maxPresence = 4 << 10
)

// A presence is what a leading relay announces about itself.
type presence struct {
	Outbox      uuid.UUID `json:"outbox"`
	Source      string    `json:"source"`
	Place       string    `json:"place"`        // which database of which cluster; a copy made with files has the same
	Since       time.Time `json:"since"`        // when a relay led there first
	ServerStart time.Time `json:"server_start"` // distinguishes servers that run at the same time
	Database    string    `json:"database"`     // for people
	Process     string    `json:"process"`      // for people
}

func (p presence) outbox() Outbox { return Outbox{p.Outbox, p.Source} }

// same reports whether q leads in the same database of the same server. PostgreSQL lets
// only one of the two lead; the other is about to stop.
func (p presence) same(q presence) bool {
	return p.Outbox == q.Outbox && p.Place == q.Place && p.ServerStart.Equal(q.ServerStart)
}

// precedes reports which of two that are not the same goes on: the one that was there
// first.
func (p presence) precedes(q presence) bool {
	return cmp.Or(p.Since.Compare(q.Since), p.ServerStart.Compare(q.ServerStart),
		cmp.Compare(p.Place, q.Place), cmp.Compare(p.Outbox.String(), q.Outbox.String())) < 0
}

// locate finds out where this relay leads. If the last leader was elsewhere, this relay has
// to listen before it publishes: the database may be a copy, beside which the original goes
// on.
func (d *database) locate(ctx context.Context, source string) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	p := presence{Source: source, Process: process()}
	config := d.conn.Config()
	p.Database = fmt.Sprintf("%s at %s:%d", config.Database, config.Host, config.Port)
	err := d.conn.QueryRow(ctx, `
		with here as (
			select c.system_identifier || '/' || d.oid as place, pg_postmaster_start_time() as server_start
			  from pg_control_system() c, pg_database d where d.datname = current_database()
		), was as (
			select i.id, coalesce(l.place, i.system_identifier || '/' || i.database) as place, coalesce(l.placed_at, i.created_at) as placed_at, l.server_start
			  from pgjet.identity i, pgjet.leader l where l.stream = $1
		)
		select was.id, here.place, here.server_start, case when was.place = here.place then was.placed_at else clock_timestamp() end,
		       was.place <> here.place or coalesce(was.server_start <> here.server_start, false)
		  from here, was`, d.stream).Scan(&p.Outbox, &p.Place, &p.ServerStart, &p.Since, &d.listen)
	d.here = p
	return err
}

// notePlace records that a relay leads here.
func (d *database) notePlace(ctx context.Context) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	_, err := d.conn.Exec(ctx, `
		update pgjet.leader set place = $3, placed_at = $4, server_start = $5
		 where stream = $1 and epoch = $2 and (place, placed_at, server_start) is distinct from ($3, $4, $5)`,
		d.stream, d.epoch, d.here.Place, d.here.Since, d.here.ServerStart)
	return blockedByDatabase(err)
}

// forgetPlace makes the next session listen before it publishes, whatever led here last: this
// database is a copy beside its original.
func (d *database) forgetPlace(ctx context.Context) error {
	_, err := d.conn.Exec(ctx, `update pgjet.leader set server_start = 'epoch' where stream = $1 and epoch = $2`, d.stream, d.epoch)
	return blockedByDatabase(err)
}

// listen returns an error if another relay publishes this outbox elsewhere, or publishes to
// this stream.
func (t *tenure) listen(ctx context.Context) error {
	for until := time.Now().Add(listenFor); t.db.listen && time.Now().Before(until); {
		if err := t.link.rivalry(); err != nil {
			return err
		}
		select {
		case <-time.After(time.Until(until)):
		case <-t.link.others.conflict:
		case <-t.link.closed:
			return t.link.lost()
		case <-ctx.Done():
			return nil
		}
	}
	return t.db.notePlace(context.WithoutCancel(ctx)) // cancelling the query would close the connection
}

// announce announces that the relay leads, until stop is called.
func (t *tenure) announce(ctx context.Context) (stop func()) {
	said, err := json.Marshal(t.db.here)
	if err != nil {
		panic(err) // it holds texts and times
	}
	ctx, cancel := context.WithCancel(ctx)
	var beside sync.WaitGroup
	beside.Go(func() {
		for ; ctx.Err() == nil; sleep(ctx, announceEvery) {
			_ = t.link.nc.Publish(events.LeadSubject(t.Stream), said) // a lost connection ends the session
		}
	})
	return func() { cancel(); beside.Wait() }
}

// An others is what a relay has heard of the relays that lead for the same stream
// elsewhere.
type others struct {
	here     presence
	owned    atomic.Bool   // the stream names this outbox
	deaf     atomic.Bool   // NATS does not let the relay announce itself, or hear others
	conflict chan struct{} // one of the others goes first

	mu    sync.Mutex
	heard map[presence]sighting
}

// A sighting is when a relay announced itself, first and last.
type sighting struct{ first, last time.Time }

func newOthers(here presence) *others {
	return &others{here: here, conflict: make(chan struct{}, 1), heard: make(map[presence]sighting)}
}

// hear records an announcement, and signals a conflict if its relay goes first.
func (o *others) hear(msg *nats.Msg) {
	var p presence
	if len(msg.Data) > maxPresence || json.Unmarshal(msg.Data, &p) != nil || o.here.same(p) || !p.precedes(o.here) {
		return
	}
	p.Since, p.ServerStart = p.Since.UTC(), p.ServerStart.UTC()
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	for q, s := range o.heard {
		if now.Sub(s.last) > heardFor {
			delete(o.heard, q)
		}
	}
	s, again := o.heard[p]
	if !again {
		s.first = now
	}
	s.last = now
	o.heard[p] = s
	if again {
		select {
		case o.conflict <- struct{}{}:
		default:
		}
	}
}

// first returns the other leading relay, if it goes first and has announced itself more
// than once. A single announcement may be the last one of a relay that was frozen.
func (o *others) first() (p presence, is bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for q, s := range o.heard {
		if s.last.Sub(s.first) >= announceEvery/2 && time.Since(s.last) <= heardFor {
			return q, true
		}
	}
	return p, false
}

// rivalry returns why this relay may not publish to the stream: another one does, and goes
// first. A stream that names this outbox has no other, whatever is announced.
func (l *link) rivalry() error {
	p, is := l.others.first()
	switch {
	case !is, p.Outbox != l.others.here.Outbox && l.others.owned.Load():
		return nil
	case p.Outbox != l.others.here.Outbox:
		return &ForeignOutboxError{Stream: l.name, Own: l.others.here.outbox(), Why: fmt.Sprintf("%s is published there by relay %s", p.outbox(), p.Process)}
	}
	return block(OutboxCopied, fmt.Errorf("a copy of this outbox is published to stream %s by relay %s, from database %s, and was there before this one, %s; "+
		"stop the relays of one of them for good; a copy that stays beside its original becomes an outbox of its own by: select pgjet.new_identity()",
		l.name, p.Process, p.Database, l.others.here.Database))
}

// checkOwner returns an error if a stream with this configuration belongs to another
// outbox.
func (l *link) checkOwner(config jetstream.StreamConfig) error {
	owner, own := Owner(config), l.others.here.outbox()
	l.others.owned.Store(owner.ID == own.ID)
	if owner.ID == uuid.Nil || owner.ID == own.ID {
		return nil
	}
	return &ForeignOutboxError{Stream: l.name, Owner: owner, Own: own}
}

// unsure returns what keeps the relay from noticing another outbox, or a copy of this one.
func (l *link) unsure() (weak []string) {
	if !l.others.owned.Load() {
		weak = append(weak, "the metadata names no outbox, so that another one may be published there unnoticed; run: pgjet stream ensure --database-url URL")
	}
	if l.others.deaf.Load() {
		weak = append(weak, "NATS lets the relay not use "+events.LeadSubject(l.name)+", so that a copy of the database may be published unnoticed; "+permissions)
	}
	return weak
}
