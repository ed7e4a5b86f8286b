// Package relay publishes the events of an outbox to a NATS JetStream stream.
//
// Whatever is killed, cut off or full: every committed event reaches the stream,
// stored once, those of one key in commit order. The stream is treated as a log
// with one legal writer. Every message says "append me if the last sequence is
// still L", so that the server itself refuses a relay that lost its place; no
// de-duplication window and no clock is relied on.
//
// A relay works in sessions. In each it
//
//  1. takes the lead: a session advisory lock on the connection that it reads by,
//     then the next epoch, which guards everything that it writes;
//  2. resyncs: finds the newest checkpoint that the stream confirms, and which
//     events are stored behind it. It assumes nothing from earlier
//     acknowledgements, so a crash anywhere costs a re-read and no more;
//  3. reads, appends, and now and then writes a checkpoint, until anything is
//     refused, unanswered or lost. That ends the session, and the next one begins.
//
// A session is one database connection and one NATS connection. Neither
// reconnects: nothing that an old session sent can arrive in a new one.
//
// Several relays may run: one leads, the others wait for its lock.
//
// The package owns the tables pgjet.leader, pgjet.checkpoint and pgjet.quarantine.
package relay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A Relay moves events from one outbox to one stream. Set its fields, then call
// [Relay.Run].
type Relay struct {
	Database *pgx.ConnConfig // where the outbox is
	NATSURL  string          // where the stream is; commas separate several servers
	NATS     []nats.Option   // credentials and TLS, if any
	Stream   string          // its name; "" is EVENTS
	Source   string          // the CloudEvents source of the events; "" is pgjet
	Log      *slog.Logger    // nil discards

	mu     sync.Mutex
	moving bool  // it leads and publishes
	reason error // why not
}

// Limits on how long one step may take before the session counts as lost.
const (
	connectTimeout = 5 * time.Second
	ackTimeout     = 10 * time.Second
)

var (
	errStarting = errors.New("starting")
	errStandby  = errors.New("standby: another relay leads")
)

// Run publishes until ctx ends, and returns nil then. It keeps trying whatever
// fails, and logs each new reason once. An event in hand is finished or left to
// the next session; neither loses it.
func (r *Relay) Run(ctx context.Context) error {
	r.setDefaults()
	metrics, err := newMetrics(r)
	if err != nil {
		return fmt.Errorf("start relay: %w", err)
	}
	defer metrics.stop()

	wait := backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(100*time.Millisecond),
		backoff.WithMaxInterval(5*time.Second),
		backoff.WithMaxElapsedTime(0))
	for ctx.Err() == nil {
		metrics.sessions.Add(ctx, 1)
		s := session{Relay: r, metrics: metrics}
		err := s.run(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if s.led {
			wait.Reset()
		}
		if r.setReason(err) {
			r.Log.WarnContext(ctx, "relay is not publishing, will keep trying", "err", err)
		}
		select {
		case <-time.After(wait.NextBackOff()):
		case <-ctx.Done():
		}
	}
	return nil
}

// Ready returns nil while the relay leads and publishes, else why it does not.
func (r *Relay) Ready(context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.moving {
		return nil
	}
	return cmp.Or(r.reason, errStarting)
}

func (r *Relay) setDefaults() {
	r.Stream = cmp.Or(r.Stream, "EVENTS")
	r.Source = cmp.Or(r.Source, "pgjet")
	r.Log = cmp.Or(r.Log, slog.New(slog.DiscardHandler))
}

// setReason records why nothing moves and reports whether that is news.
func (r *Relay) setReason(err error) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	news := r.moving != (err == nil) || fmt.Sprint(r.reason) != fmt.Sprint(err)
	r.moving, r.reason = err == nil, err
	return news
}

// cause puts a stable word before an error of the stream: what stands in the way.
func cause(err error) error {
	word := ""
	apiErr, _ := errors.AsType[*jetstream.APIError](err)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return fmt.Errorf("stream_missing: %w; run: pgjet stream ensure", err)
	case errors.Is(err, jetstream.ErrNoStreamResponse), errors.Is(err, nats.ErrNoResponders):
		word = "stream_missing"
	case errors.Is(err, nats.ErrDisconnected), errors.Is(err, nats.ErrConnectionClosed), errors.Is(err, nats.ErrReconnectBufExceeded):
		word = "nats_unreachable"
	case errors.Is(err, jetstream.ErrAsyncPublishTimeout), errors.Is(err, nats.ErrTimeout), errors.Is(err, context.DeadlineExceeded):
		word = "stream_unresponsive"
	case apiErr == nil:
		return err
	case apiErr.ErrorCode == 10070 || apiErr.ErrorCode == 10071 || apiErr.ErrorCode == 10164: // wrong last id or sequence
		word = "fenced"
	case apiErr.ErrorCode == 10077 || apiErr.ErrorCode == 10023 || apiErr.ErrorCode == 10047 || apiErr.ErrorCode == 10122:
		word = "stream_full"
	default:
		return err
	}
	return fmt.Errorf("%s: %w", word, err)
}
