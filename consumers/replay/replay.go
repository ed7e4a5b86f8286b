// Package replay delivers events that the stream still holds to one consumer again.
//
// The inbox makes that harmless: events that are done there are skipped, so a replay restores what
// a consumer lost and repeats nothing. A replay that runs events again makes the consumer forget
// that they are done; that is how a read model is rebuilt.
//
// There are two ways, and the plan says which one is used. For everything from some sequence on
// ([ByReset]), the consumer is paused, its durable consumer is reset to that sequence, and it goes
// on from there. For some events, or at a limited rate ([ByIntent]), each becomes an intent, while
// live events go on. Either may be stopped at any moment, and repeated: no event gets two intents.
package replay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/internal/jserror"
	"github.com/pgjet/pgjet/internal/natsconn"
	"github.com/pgjet/pgjet/internal/operation"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

var (
	// ErrNoConsumer says that there is no such consumer, in the database or in JetStream.
	ErrNoConsumer = errors.New("no such consumer")
	// ErrBusy says that another replay of the consumer is running.
	ErrBusy = errors.New("another replay of this consumer is running")
	// ErrChanged says that the stream is not the one that was planned for.
	ErrChanged = errors.New("the stream has changed")
	// ErrSelection says that a selection makes no sense for the consumer or the stream.
	ErrSelection = errors.New("cannot select")
	// ErrRefused says that running events again needs [Selection.Force].
	ErrRefused = errors.New("refused without force")
)

// The ways in which a replay delivers events.
const (
	ByReset  = "reset"  // of the durable consumer
	ByIntent = "intent" // event by event
)

// A Selection says which events are replayed: those of a range of the stream that the
// consumer handles. Set one of All, FromSeq and From.
type Selection struct {
	All     bool      // everything that the stream holds
	FromSeq uint64    // from this sequence on
	From    time.Time // stored at this time or later
	Until   time.Time // stored before; zero: everything
	Type    string    // only events of this type
	Key     string    // only events of this key
	Rate    int       // the most events per second; 0 is no limit
	Again   bool      // run events again that are done
	Force   bool      // despite the consequences; see [Replay.Plan]
}

// whole reports whether s ends where the stream ends and leaves nothing out.
func (s Selection) whole() bool {
	return s.Until.IsZero() && s.Type == "" && s.Key == "" && s.Rate == 0
}

// A Replay delivers events to one consumer again. Open one, plan, and run the plan.
type Replay struct {
	db         *pgxpool.Pool
	js         jetstream.JetStream
	name       string
	stream     jetstream.Stream
	created    time.Time // of the stream
	generation int32
	ordered    bool
	effects    bool
	paused     bool // by an operator
	processes  int
	slices     int
	durables   []jetstream.Consumer // of each slice, as of Open
	lock       *pgx.Conn
	continues  int64 // the operation that the next run continues; 0: it begins one
	before     int64 // events that this operation had handed over before
}

// Open looks the consumer up, in its database and in JetStream. It returns [ErrNoConsumer] if one
// of them does not have it. It returns [ErrChanged] if the consumer has not seen the stream since
// it was created again, or lost its end. It returns an [*inbox.ForeignDurableError] if the durable
// consumers belong to another database.
func Open(ctx context.Context, db *pgxpool.Pool, js jetstream.JetStream, consumer string) (*Replay, error) {
	r := &Replay{db: db, js: js, name: consumer}
	var stream string
	err := db.QueryRow(ctx, `
		select stream, stream_created, generation, slices, ordered, effects, paused_at is not null and not starts_with(coalesce(pause_reason, ''), $2),
		       (select count(*) from pgjet.process p where p.consumer = c.name and seen_at between clock_timestamp() - interval '15 s' and clock_timestamp() + interval '15 s')
		  from pgjet.consumer c where name = $1`, consumer, inbox.ReplayPause).
		Scan(&stream, &r.created, &r.generation, &r.slices, &r.ordered, &r.effects, &r.paused, &r.processes)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, fmt.Errorf("%w: %s is not in pgjet.consumer of this database; start a process of it, which registers it", ErrNoConsumer, consumer)
	}
	if err != nil {
		return nil, sqlstate.Wrap("look up consumer "+consumer, err)
	}
	if err := r.bind(ctx, stream); err != nil {
		return nil, err
	}
	return r, nil
}

// bind looks up the stream and the durable consumers.
func (r *Replay) bind(ctx context.Context, stream string) (err error) {
	if err := natsconn.CheckVersion(r.js.Conn()); err != nil {
		return r.explain(err)
	}
	r.stream, err = r.js.Stream(ctx, stream)
	if natsconn.Of(err) == jserror.StreamMissing {
		return fmt.Errorf("%s: %w: there is no stream %s, which %s reads", jserror.StreamMissing, ErrNoConsumer, stream, r.name)
	}
	if err != nil {
		return fmt.Errorf("look up stream %s: %w", stream, r.explain(err))
	}
	if !sameTime(r.stream.CachedInfo().Created, r.created) {
		return fmt.Errorf("%w: no process of %s has run since stream %s was created on %s; start one, then replay",
			ErrChanged, r.name, stream, r.stream.CachedInfo().Created.UTC().Format(time.RFC3339))
	}
	if err := r.checkEnd(ctx); err != nil {
		return err
	}
	identity, err := inbox.ReadIdentity(ctx, r.db)
	if err != nil {
		return sqlstate.Wrap("look up consumer "+r.name, err)
	}
	for _, name := range inbox.Durables(r.name, r.slices) {
		durable, err := r.stream.Consumer(ctx, name)
		if natsconn.Of(err) == jserror.ConsumerMissing {
			return fmt.Errorf("%s: %w: JetStream has no durable consumer %s on stream %s; start a process of it, which creates it", jserror.ConsumerMissing, ErrNoConsumer, name, stream)
		}
		if err != nil {
			return fmt.Errorf("look up durable consumer %s: %w", name, r.explain(err))
		}
		if err := identity.Check(stream, name, durable.CachedInfo().Config.Metadata); err != nil {
			return err
		}
		r.durables = append(r.durables, durable)
	}
	return nil
}

// checkEnd returns [ErrChanged] if the stream lost its end since a process of the consumer looked:
// the sequences in the inbox may be those of other events now.
func (r *Replay) checkEnd(ctx context.Context) error {
	mark, err := inbox.ReadMark(ctx, r.db, r.name)
	name := r.stream.CachedInfo().Config.Name
	last, stored := uint64(0), time.Time{}
	if err == nil {
		last, err = r.end(ctx) // after the mark: it may have moved since the stream was looked up
	}
	if err == nil && mark.Seq > 0 && mark.Seq <= last {
		if stored, err = natsconn.StoredAt(ctx, r.stream, mark.Seq); err != nil {
			err = r.explain(err)
		}
	}
	if err != nil {
		return fmt.Errorf("check whether stream %s lost its end: %w", name, err)
	}
	if mark.Lost(last, stored) {
		return fmt.Errorf("%w: stream %s lost its end since a process of %s ran; start one, then replay", ErrChanged, name, r.name)
	}
	return nil
}

// end returns the last sequence of the stream.
func (r *Replay) end(ctx context.Context) (uint64, error) {
	info, err := r.stream.Info(ctx)
	if err != nil {
		return 0, r.explain(err)
	}
	return info.State.LastSeq, nil
}

// look returns the state of all durable consumers.
func (r *Replay) look(ctx context.Context) (all []*jetstream.ConsumerInfo, err error) {
	for _, name := range inbox.Durables(r.name, r.slices) {
		durable, err := r.stream.Consumer(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("look up durable consumer %s: %w", name, r.explain(err))
		}
		all = append(all, durable.CachedInfo())
	}
	return all, nil
}

// explain prefixes an error of JetStream with the reason.
func (r *Replay) explain(err error) error {
	return natsconn.Explain(r.js.Conn(), err, "operator --consumer "+r.name)
}

// sameTime compares a creation time of a stream with the one that PostgreSQL has stored.
func sameTime(a, b time.Time) bool { return a.Sub(b).Abs() < time.Millisecond }

// Lock excludes other replays of the consumer until [Replay.Close], and ends the pause of an
// interrupted one. It returns [ErrBusy] if another replay is running, and an error if the pool
// leads to a connection pooler.
func (r *Replay) Lock(ctx context.Context) (err error) {
	// Not from the pool, which may have no second connection, or lead to a pooler.
	config, err := postgres.ConnConfig(ctx, r.db)
	if err == nil {
		r.lock, err = postgres.Connect(ctx, config, postgres.Session{What: "a replay", Application: "pgjet-replay"})
	}
	if err != nil {
		return fmt.Errorf("connect to hold the lock of the replay: %w", err)
	}
	free := false
	err = r.lock.QueryRow(ctx, `select pg_try_advisory_lock(hashtextextended('pgjet.replay.' || $1, 0))`, r.name).Scan(&free)
	if err == nil && !free {
		err = fmt.Errorf("%w: %s; pgjet.operation names its operator; see: pgjet op ls", ErrBusy, r.name)
	}
	if err == nil {
		err = r.endPause(ctx)
	}
	return err
}

// endPause ends the pause of a replay that died before it could. Only one replay runs at a time;
// the dead one has changed nothing.
func (r *Replay) endPause(ctx context.Context) error {
	err := pgx.BeginFunc(ctx, r.db, func(tx pgx.Tx) error {
		id, err := inbox.EndReplayPause(ctx, tx, r.name)
		if err == nil && id != 0 {
			err = operation.Set(ctx, tx, id, "undone", "done", "step")
		}
		return err
	})
	if err != nil {
		return sqlstate.Wrap("end the pause of an interrupted replay of "+r.name, err)
	}
	return nil
}

// Close allows other replays.
func (r *Replay) Close() {
	if r.lock != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		// The end of the connection frees the lock too, but the server may notice that late.
		_, _ = r.lock.Exec(ctx, `select pg_advisory_unlock_all()`)
		_ = r.lock.Close(ctx)
	}
}
