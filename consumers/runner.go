package consumers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/time/rate"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/internal/delivery"
	"github.com/pgjet/pgjet/consumers/internal/durable"
	"github.com/pgjet/pgjet/consumers/internal/gate"
	"github.com/pgjet/pgjet/consumers/internal/recent"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/jserror"
	"github.com/pgjet/pgjet/internal/lead"
	"github.com/pgjet/pgjet/internal/natsconn"
	"github.com/pgjet/pgjet/internal/postgres"
	sessions "github.com/pgjet/pgjet/internal/session"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

// ackWait is how long JetStream waits for a sign of life before it delivers a message again. A
// session sends one every third of that time for each message that it holds.
var ackWait = 30 * time.Second

// moreConns is how many connections of the pool a runner needs besides one for each worker.
const moreConns = 2

// A Runner delivers the events of one stream to one consumer. Any number of processes may run the
// same consumer. They share its events or, if it is ordered, its slices, so that one process at a
// time has each key; a process without a slice stands by.
type Runner struct {
	Consumer Consumer
	DB       *pgxpool.Pool       // has the inbox and the tables that the handler changes; Workers + 2 connections serve well, fewer an [Effect]
	JS       jetstream.JetStream // its connection should reconnect for ever
	Stream   string              // "" is [events.DefaultStream]; it may belong to another service
	Prefix   string              // the beginning of the subjects of its events; "" is [events.Prefix]
	Log      *slog.Logger        // nil discards the log
	// Direct is where each session has one connection of its own, for its locks: PostgreSQL itself,
	// not a connection pooler. nil is where DB's connections go.
	Direct *pgx.ConnConfig
	// Retention is how long the inbox remembers events that the stream no longer holds. 0 is for
	// ever. It is refused if an event could be delivered again later than that.
	Retention time.Duration
	// MoveFrom is the stream from which the consumer may move to Stream. It begins there at the
	// start, and skips only events whose ids its inbox has. Without MoveFrom, a consumer that has
	// handled events of another stream is refused. After the move, MoveFrom has no effect.
	MoveFrom string

	now atomic.Pointer[run] // the last call of Run
}

// A run is one call of [Runner.Run].
type run struct {
	Runner   *Runner
	Consumer Consumer // complete
	db       postgres.DB
	js       jetstream.JetStream
	source   delivery.Source
	durables *durable.Stream
	stream   string
	subjects *events.Subjects // of the events
	log      *slog.Logger
	process  string        // host:pid
	nc       *nats.Conn    // for noticing copies of the database; nil if there is none
	limiter  *rate.Limiter // of attempts; nil is no limit
	metrics  *metrics
	// newDatabase returns the database of a session with this name.
	newDatabase func(session string) database

	// Shared by all goroutines.
	keeper   sessions.Keeper
	recent   recent.Attempts
	group    groupSize
	lastGate atomic.Pointer[gate.Gate] // of the last session
	owned    atomic.Int64              // slices
	moved    atomic.Int32              // a generation in which an event was seen with another sequence than before

	// Used by the sessions' goroutines, one after the other.
	announceDenied bool     // NATS does not let the process announce itself, or receive such announcements
	pastSessions   []string // names of sessions that may have left intents taken
	interrupted    bool     // a session failed, and its deliveries may be lost; the tenure of an unordered consumer resets it

	// Used by the tenures' goroutines, one after the other.
	inboxes   [inbox.Tokens]inbox.Version // by slice: as its last tenure found it
	recovered recovered                   // for the tenure that counts
}

// Run handles events until ctx ends. Then it takes no more events, lets running attempts finish,
// gives the rest back, and returns nil. It keeps trying whatever fails, and logs each new reason
// once. That includes reasons that an operator has to fix, such as consumer_differs: once it is
// fixed, the events go on. [Runner.Ready] returns the reason, for programs that want to end. Run
// fails at once if the consumer is not complete. It changes none of the exported fields, and may be
// called again when it has returned.
func (r *Runner) Run(ctx context.Context) error {
	n, err := r.complete()
	if err != nil {
		return err
	}
	if n.metrics, err = newMetrics(n); err != nil {
		return fmt.Errorf("start consumer %s: %w", n.Consumer.Name, err)
	}
	r.now.Store(n)
	// An effect holds no connection while it runs.
	if has, needs := int(r.DB.Config().MaxConns), n.Consumer.Workers+moreConns; has < needs && n.Consumer.Handler.effect == nil {
		n.log.WarnContext(ctx, "the pool has too few connections, attempts will wait for one; set pool_max_conns in the URL, or MaxConns", "has", has, "needs", needs)
	}
	n.keeper.Run(ctx, n.log, n.runSession)
	_ = r.JS.Conn().FlushTimeout(time.Second) // the last acks; a lost one costs a redelivery
	return n.metrics.stop()
}

// complete returns a run of r with all defaults, or an error that says what to change.
func (r *Runner) complete() (*run, error) {
	c := r.Consumer
	if c.Workers == 0 && c.Handler.batch == nil && r.DB != nil {
		c.Workers = min(8, max(1, int(r.DB.Config().MaxConns)-moreConns))
	}
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	n := &run{Runner: r, Consumer: c, keeper: sessions.Keeper{Ordinary: inbox.ErrSuperseded}, db: postgres.DB{Pool: r.DB}, js: r.JS, stream: cmp.Or(r.Stream, events.DefaultStream), subjects: events.SubjectsOf(r.Prefix),
		log: cmp.Or(r.Log, slog.New(slog.DiscardHandler)).With("consumer", c.Name)}
	switch {
	case r.DB == nil:
		err = errors.New("its Runner has no DB")
	case r.JS == nil:
		err = errors.New("its Runner has no JS")
	case r.Retention < 0:
		err = errors.New("its Retention is negative; 0 is for ever")
	default:
		err = errors.Join(postgres.CheckMode(r.DB.Config().ConnConfig), validName("Stream", n.stream), events.CheckPrefix(n.subjects.Prefix()), validName("MoveFrom", cmp.Or(r.MoveFrom, n.stream)))
	}
	if err != nil {
		return nil, fmt.Errorf("consumer %s: %w", c.Name, err)
	}
	if c.Rate > 0 {
		n.limiter = rate.NewLimiter(rate.Limit(c.Rate), c.Burst)
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	n.nc = n.js.Conn()
	n.source, n.newDatabase = delivery.NATS{JS: n.js}, n.connect
	n.durables = &durable.Stream{JS: n.js, Name: n.stream, Consumer: c.Name, Types: c.Handler.types, Subjects: n.subjects, AckWait: ackWait, Log: n.log}
	n.process = fmt.Sprintf("%s:%d", host, os.Getpid())
	return n, nil
}

// ordered reports whether events of one key are handled one after the other.
func (r *run) ordered() bool { return !r.Consumer.Unordered }

// Ready returns nil while events are handled, or while the runner stands by and could take over;
// else it returns why not. Its errors begin with a word that docs/cli.md explains, such as
// database_unreachable or paused.
func (r *Runner) Ready(ctx context.Context) error {
	if status := r.JS.Conn().Status(); status != nats.CONNECTED {
		return fmt.Errorf("nats_unreachable: connection is %s", status)
	}
	if err := postgres.CheckWritable(ctx, r.DB); err != nil {
		return err
	}
	n := r.now.Load()
	if n == nil {
		return errors.New("starting")
	}
	if g := n.lastGate.Load(); g != nil && g.Closed() != nil {
		return g.Closed()
	}
	err := n.keeper.Ready()
	if !errors.Is(err, errStandby) {
		return err
	}
	if err = natsconn.CheckVersion(r.JS.Conn()); err == nil { // an active process would notice
		_, err = r.JS.Stream(ctx, n.stream)
	}
	return n.withReason(err)
}

// Role returns "leader" or "standby" with a detail, or "" while the runner is neither: processes of
// an unordered consumer are all alike.
func (r *Runner) Role() (role, detail string) {
	n := r.now.Load()
	if n == nil || !n.ordered() {
		return "", ""
	}
	err := n.keeper.Ready()
	switch {
	case err == nil && n.Consumer.Slices > 1:
		return "leader", fmt.Sprintf("of %d of %d slices", n.owned.Load(), n.Consumer.Slices)
	case err == nil:
		return "leader", ""
	case errors.Is(err, errStandby):
		return "standby", err.Error()
	}
	return "", ""
}

// withReason prefixes an error that ended a session with the word for its cause, as docs/cli.md
// explains it.
func (r *run) withReason(err error) error {
	_, refused := errors.AsType[*pgconn.PgError](err)
	_, ours := errors.AsType[*inbox.Error](err)
	_, locked := errors.AsType[*lead.TableLock](err)
	_, copied := errors.AsType[*copiedError](err)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, inbox.ErrSuperseded), errors.Is(err, errGap), copied:
		return err
	case ours, refused, locked:
		return sqlstate.Explain(err, "pgjet_consumer")
	case natsconn.Of(err) == jserror.StreamMissing:
		return fmt.Errorf("stream_missing: stream %s does not exist; run: pgjet stream ensure", r.stream)
	case errors.Is(err, errReconnected):
		return fmt.Errorf("nats_unreachable: %w", err)
	case strings.HasPrefix(err.Error(), string(jserror.ConsumerDiffers)+":"):
		return err
	}
	return natsconn.Explain(r.js.Conn(), err, "consumer --consumer "+r.Consumer.Name)
}

// Failing reports whether so many of a consumer's last attempts failed that an operator should
// look: half of ten or more, or all of three or more if that has lasted for some seconds. One
// failure followed by a success does not count.
func Failing(attempts, failed int, lasting time.Duration) bool {
	return recent.Failing(attempts, failed, lasting)
}

// Share returns in words how many of the last attempts failed.
func Share(attempts, failed int) string { return recent.Share(attempts, failed) }

// Degraded returns "" unless attempts of this process are [Failing]. Then it returns the word
// failing and the last error. A degraded runner is [Runner.Ready]: neither a restart nor another
// process would help.
func (r *Runner) Degraded() string {
	n := r.now.Load()
	if n == nil {
		return ""
	}
	attempts, failed, _, reason := n.recent.Summary()
	if !Failing(attempts, failed, n.recent.Lasting()) {
		return ""
	}
	return "failing: " + Share(attempts, failed) + ": " + inbox.Mask(inbox.Storable(reason))
}
