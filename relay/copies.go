package relay

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/rivals"
)

// A copy of a database is the same outbox, and a relay could lead in each. The leader
// announces itself in NATS, and hears the others.

// locate finds out where this relay leads. If the last leader was elsewhere, this relay has
// to listen before it publishes: the database may be a copy, beside which the original goes
// on.
func (d *database) locate(ctx context.Context, source string) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	var err error
	d.here, d.listen, err = rivals.Locate(ctx, d.conn, `select place, placed_at, server_start from pgjet.leader where stream = $1`, d.stream)
	d.here.Source, d.here.Process = source, process()
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
	for until := time.Now().Add(rivals.ListenFor); t.db.listen && time.Now().Before(until); {
		if err := t.link.rivalry(); err != nil {
			return err
		}
		select {
		case <-time.After(time.Until(until)):
		case <-t.link.others.Conflict():
		case <-t.link.closed:
			return t.link.lost()
		case <-ctx.Done():
			return nil
		}
	}
	return t.db.notePlace(context.WithoutCancel(ctx)) // cancelling the query would close the connection
}

// ownOutbox returns the outbox of this relay.
func (l *link) ownOutbox() Outbox { return outboxOf(l.others.Here()) }

func outboxOf(p rivals.Presence) Outbox { return Outbox{p.Outbox, p.Source} }

// rivalry returns why this relay may not publish to the stream: another one does, and goes
// first. A stream that names this outbox has no other, whatever is announced.
func (l *link) rivalry() error {
	p, is := l.others.First(func(p rivals.Presence) bool { return l.others.Copy(p) || !l.owned.Load() })
	switch {
	case !is:
		return nil
	case !l.others.Copy(p):
		return &ForeignOutboxError{Stream: l.name, Own: l.ownOutbox(), Why: fmt.Sprintf("%s is published there by relay %s", outboxOf(p), p.Process)}
	}
	return block(OutboxCopied, fmt.Errorf("a copy of this outbox is published to stream %s by relay %s, from database %s, and was there before this one, %s; "+
		"stop the relays of one of them for good; a copy that stays beside its original becomes an outbox of its own by: select pgjet.new_identity()",
		l.name, p.Process, p.Database, l.others.Here().Database))
}

// checkOwner returns an error if a stream with this configuration belongs to another
// outbox.
func (l *link) checkOwner(config jetstream.StreamConfig) error {
	owner, own := Owner(config), l.ownOutbox()
	l.owned.Store(owner.ID == own.ID)
	if owner.ID == uuid.Nil || owner.ID == own.ID {
		return nil
	}
	return &ForeignOutboxError{Stream: l.name, Owner: owner, Own: own}
}

// unsure returns what keeps the relay from noticing another outbox, or a copy of this one.
func (l *link) unsure() (weak []string) {
	if !l.owned.Load() {
		weak = append(weak, "the metadata names no outbox, so that another one may be published there unnoticed; run: pgjet stream ensure --database-url URL")
	}
	if l.deaf.Load() {
		weak = append(weak, "NATS lets the relay not use "+events.LeadSubject(l.name)+", so that a copy of the database may be published unnoticed; "+permissions)
	}
	return weak
}
