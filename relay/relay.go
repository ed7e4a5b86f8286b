// Package relay publishes the events of an outbox to a NATS JetStream stream.
//
// Whatever is killed, cut off or full: every committed event reaches the stream, stored
// once, those of one key in commit order. The stream is treated as a log with one legal
// writer. Every message says "append me if the last sequence is still L", so the server
// itself refuses a relay that has lost its place. Nothing depends on a de-duplication
// window or a clock.
//
// A relay works in sessions. In each it
//
//  1. takes the lead: a session advisory lock on the connection that it reads by,
//     then the next epoch, which guards all its writes;
//  2. resyncs: finds the newest checkpoint that the stream confirms, and which
//     events are stored behind it. It assumes nothing from earlier
//     acknowledgements, so a crash anywhere costs a re-read and no more;
//  3. reads, appends, and now and then writes a checkpoint, until anything is
//     refused, unanswered or lost. That ends the session, and the next one begins.
//
// A session is one database connection and one NATS connection. Neither reconnects, so
// nothing that an old session sent can arrive in a new one.
//
// While it publishes, the leader also moves scheduled events that are due into the outbox.
//
// Several relays may run: one leads, the others wait for its lock.
//
// A stream has one outbox, and names it. A relay stops, and changes nothing, if another
// outbox is published there, or another copy of its own database: no lock reaches from one
// database to another. See [ForeignOutbox] and [OutboxCopied]. Relays of several outboxes
// may share a process and a NATS account: each has a stream and a prefix of its own.
//
// The decisions are in package protocol, without any connection. Package relay owns the
// tables pgjet.leader, pgjet.checkpoint, pgjet.quarantine, pgjet.unknown_message,
// pgjet.adoption and pgjet.audit. Package audit compares outbox and stream: while it
// publishes, the leader does so in the background, a little at a time.
//
// # Files
//
// DESIGN.md says why it is built this way. The package is large because all of it belongs to
// one session: to what may be written while its epoch and its connections last.
//
//   - relay.go runs sessions, lead.go takes the lead, tenure.go is one session, and control.go
//     obeys operators in it.
//   - database.go is the session's side of PostgreSQL; link.go, read.go, send.go, outgoing.go
//     and pulse.go are its side of NATS; cause.go names what went wrong there.
//   - owner.go, copies.go, settings.go and stream.go are about whose stream it is, and whether it
//     keeps the promises.
//   - due.go moves scheduled events, quarantine.go has events set aside, auditor.go audits.
//   - status.go and operate.go are for operators; ready.go, watch.go and telemetry.go are for
//     monitoring.
package relay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/session"
	"github.com/pgjet/pgjet/relay/protocol"
)

// DefaultRetention is how long events stay in the outbox after they were published. For
// that long the relay can publish again what a stream loses.
const DefaultRetention = 72 * time.Hour

// A Relay moves events from one outbox to one stream. Set its fields, then call
// [Relay.Run].
type Relay struct {
	Database *pgx.ConnConfig // where the outbox is
	NATSURL  string          // where the stream is; commas separate several servers
	NATS     []nats.Option   // credentials and TLS, if any
	Domain   string          // the JetStream domain where the stream is; "" is the servers' own
	Stream   string          // its name; "" is [events.DefaultStream]
	Prefix   string          // what the subjects of the events begin with; "" is [events.Prefix]
	Source   string          // the CloudEvents source of the events: the name of the service that appends them; "" is pgjet
	Log      *slog.Logger    // nil discards

	// Name distinguishes this relay from others of the process in the log and in the
	// metrics, as their label relay. "" if it is the only one.
	Name string

	// Retention is how long published events stay in the outbox, and so how far
	// back the stream can be healed; 0 is
	// [DefaultRetention]. Events go by whole partitions.
	Retention time.Duration

	// AuditRate is how many events a second the leader compares with the stream at most, in
	// the background; 0 is [DefaultAuditRate], and a negative rate turns the audit off.
	AuditRate int

	keeper   session.Keeper
	postgres pulse
	nats     pulse
	spare    spare
	epoch    atomic.Int64         // of this relay while it leads, else 0
	link     atomic.Pointer[link] // while it publishes, else nil
	metrics  *metrics
	careful  int      // see protocol.Session
	warned   []string // settings of the stream that were logged as warnings
}

// connectTimeout bounds the time to connect.
const connectTimeout = 5 * time.Second

// Run publishes until ctx ends, and returns nil then. It returns an error at once if Prefix
// or Source is invalid. It keeps trying whatever fails. It logs each cause when it begins
// and once a minute while it lasts, and "relay leads" when it is over. A page that is being
// published is finished or left to the next session; neither loses an event.
func (r *Relay) Run(ctx context.Context) error {
	if err := r.setDefaults(); err != nil {
		return fmt.Errorf("start relay: %w", err)
	}
	var err error
	if r.metrics, err = newMetrics(r); err != nil {
		return fmt.Errorf("start relay: %w", err)
	}
	w, err := newWatch(r, otel.Meter(scope))
	if err != nil {
		return fmt.Errorf("start relay: %w", err)
	}
	var beside sync.WaitGroup
	beside.Go(func() { w.run(ctx) })
	beside.Go(func() { r.postgres.probe(ctx) })
	r.keeper.Run(ctx, r.Log, func(ctx context.Context) error {
		err := r.session(ctx)
		for unclear(err) && ctx.Err() == nil { // the next session gets further, or gets a clear answer
			r.Log.DebugContext(ctx, "looking for the reason, one event at a time", "err", err)
			err = r.session(ctx)
		}
		return withCause(err)
	})
	r.spare.end()
	beside.Wait()
	return errors.Join(w.stop(), r.metrics.stop())
}

// unclear reports whether the next session will find out the cause.
func unclear(err error) bool {
	_, is := errors.AsType[*protocol.UnclearError](err)
	return is
}

func (r *Relay) session(ctx context.Context) error {
	r.metrics.sessions.Add(ctx, 1, r.metrics.own)
	t := tenure{Relay: r}
	return t.run(ctx)
}

func (r *Relay) setDefaults() error {
	r.Stream = cmp.Or(r.Stream, events.DefaultStream)
	r.Prefix = cmp.Or(r.Prefix, events.Prefix)
	r.Source = cmp.Or(r.Source, "pgjet")
	r.Retention = cmp.Or(r.Retention, DefaultRetention)
	r.AuditRate = cmp.Or(r.AuditRate, DefaultAuditRate)
	r.Log = cmp.Or(r.Log, slog.New(slog.DiscardHandler)).With("relay", cmp.Or(r.Name, r.Stream))
	r.Database = r.postgres.watch(r.Database)
	return errors.Join(events.CheckPrefix(r.Prefix), events.CheckSource(r.Source))
}
