package relay

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/outbox"
)

// Polling: how long to wait before looking again. It doubles while the outbox is
// quiet.
const (
	pollBusy = time.Millisecond
	pollIdle = 50 * time.Millisecond
)

// pingInterval is how often a silent NATS server is asked whether it lives.
const pingInterval = 5 * time.Second

// checkpointEvery is the least time between two checkpoints.
const checkpointEvery = 100 * time.Millisecond

// A term is one session of a relay: one pair of connections, and leadership while
// it lasts.
type term struct {
	*Relay
	metrics *metrics

	db     *pgx.Conn
	nc     *nats.Conn
	js     jetstream.JetStream
	stream jetstream.Stream
	closed chan nats.Status // the connection is lost
	epoch  int64

	batches bool // the stream takes atomic batches, and is the better for them

	position outbox.Position        // all events up to here are in the stream
	created  time.Time              // the stream's incarnation
	last     uint64                 // its last sequence
	lastID   uuid.UUID              // the event stored there
	appended uuid.UUID              // the same, if this session appended it
	stored   map[uuid.UUID]struct{} // events in the stream that position does not cover
	saved    time.Time              // when the last checkpoint was written
	dirty    bool                   // position has moved since
}

// run takes the lead, resyncs, and publishes until something fails or ctx ends.
func (s *term) run(ctx context.Context) error {
	defer s.close()
	if err := s.lead(ctx); err != nil {
		return err
	}
	if err := s.connect(ctx); err != nil {
		return err
	}
	if err := s.resync(ctx); err != nil {
		return err
	}
	s.keeper.Working()
	s.Log.InfoContext(ctx, "relay leads", "epoch", s.epoch,
		"outbox_seq", s.position.Floor, "stream_seq", s.last, "stored_since_checkpoint", len(s.stored))
	return s.publish(ctx)
}

// connect opens the publishing connection. It must not outlive its session: a
// publish that a reconnect flushes late could match a sequence that a server,
// having lost its tail, gives out again.
func (s *term) connect(ctx context.Context) error {
	options := append([]nats.Option{
		nats.Name("pgjet-relay"), nats.NoReconnect(), nats.ReconnectBufSize(-1),
		nats.Timeout(connectTimeout),
		nats.PingInterval(pingInterval), nats.MaxPingsOutstanding(2), nats.CustomInboxPrefix("_INBOX_relay"),
	}, s.NATS...)
	var err error
	if s.nc, err = nats.Connect(s.NATSURL, options...); err != nil {
		return fmt.Errorf("nats_unreachable: %w", err)
	}
	s.closed = s.nc.StatusChanged(nats.CLOSED)
	if s.js, err = jetstream.New(s.nc, jetstream.WithPublishAsyncTimeout(ackTimeout)); err != nil {
		return err
	}
	if s.stream, err = s.js.Stream(ctx, s.Stream); err != nil {
		return fmt.Errorf("look up stream %s: %w", s.Stream, cause(err))
	}
	// With replicas the servers agree on many messages of a chain at once.
	config := s.stream.CachedInfo().Config
	s.batches = config.AllowAtomicPublish && config.Replicas <= 1
	return nil
}

func (s *term) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if s.nc != nil {
		s.nc.Close()
	}
	if s.db != nil {
		s.db.Close(ctx)
	}
}

// publish moves events until something fails. When ctx ends it finishes the page
// in hand, saves its place, and returns nil.
func (s *term) publish(ctx context.Context) error {
	wait := pollBusy
	for {
		work, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*ackTimeout)
		n, err := s.step(work)
		if err == nil && (ctx.Err() != nil || time.Since(s.saved) >= checkpointEvery) {
			err = s.save(work)
		}
		cancel()
		if err != nil || ctx.Err() != nil {
			return err
		}
		if n > 0 {
			wait = pollBusy
			continue
		}
		select {
		case <-time.After(wait):
			wait = min(2*wait, pollIdle)
		case <-s.closed:
			return fmt.Errorf("nats_unreachable: connection lost: %w", cmp.Or(s.nc.LastError(), nats.ErrConnectionClosed))
		case <-ctx.Done():
		}
	}
}

// step publishes what has become visible, up to a page or so, waits until the
// stream has confirmed it, and returns how many events it looked at.
func (s *term) step(ctx context.Context) (int, error) {
	w := writer{term: s}
	n := 0
	to, err := outbox.Read(ctx, s.db, s.position, func(e events.Event) error {
		n++
		if _, ok := s.stored[e.ID]; ok {
			delete(s.stored, e.ID)
			return nil
		}
		return w.add(ctx, e)
	})
	if err != nil {
		return n, err
	}
	if err := w.flush(ctx); err != nil {
		return n, err
	}
	s.position, s.dirty = to, s.dirty || n > 0
	return n, nil
}
