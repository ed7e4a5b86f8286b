package consumers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/session"
)

// ackWait is how long JetStream at least waits for a sign of life before it
// delivers a message again. The runner gives one every third of it for each attempt
// that has begun. What it fetched waits behind those for a worker without a sign,
// so JetStream must wait for longer than an attempt may take.
var ackWait = 30 * time.Second

// A Runner delivers the events of one stream to one consumer. Any number of
// processes may run the same consumer: they share its events.
type Runner struct {
	Consumer Consumer
	DB       *pgxpool.Pool       // where the inbox is, and what the handler changes
	JS       jetstream.JetStream // its connection should reconnect for ever
	Stream   string              // "" is EVENTS
	Log      *slog.Logger        // nil discards

	metrics *metrics
	keeper  session.Keeper
}

// Run handles events until ctx ends. It then takes no more, lets the attempts that
// have begun finish, gives the rest back, and returns nil. It keeps trying
// whatever fails, and logs each new reason once. Run fails at once if the consumer
// is not complete.
func (r *Runner) Run(ctx context.Context) error {
	var err error
	if r.Consumer, err = r.Consumer.withDefaults(); err != nil {
		return err
	}
	r.Stream = cmp.Or(r.Stream, "EVENTS")
	r.Log = cmp.Or(r.Log, slog.New(slog.DiscardHandler)).With("consumer", r.Consumer.Name)
	if r.metrics, err = newMetrics(); err != nil {
		return fmt.Errorf("start consumer %s: %w", r.Consumer.Name, err)
	}
	r.keeper.Run(ctx, r.Log, r.session)
	_ = r.JS.Conn().FlushTimeout(2 * time.Second) // the last acks; a lost one costs a redelivery
	return nil
}

// Ready returns nil while events are being delivered, else why they are not.
func (r *Runner) Ready(ctx context.Context) error {
	if status := r.JS.Conn().Status(); status != nats.CONNECTED {
		return fmt.Errorf("nats_unreachable: connection is %s", status)
	}
	if err := r.DB.Ping(ctx); err != nil {
		return fmt.Errorf("database_unreachable: %w", err)
	}
	return r.keeper.Ready()
}

// session binds to the durable consumer and handles events until delivery fails
// or ctx ends.
func (r *Runner) session(ctx context.Context) error {
	consumer, err := r.bind(ctx)
	if err != nil {
		return err
	}
	messages, err := consumer.Messages(jetstream.PullMaxMessages(r.Consumer.Workers), jetstream.PullHeartbeat(5*time.Second))
	if err != nil {
		return fmt.Errorf("receive from %s: %w", r.Consumer.Name, err)
	}
	if r.keeper.Working() {
		r.Log.InfoContext(ctx, "consumer receives events", "stream", r.Stream,
			"types", r.Consumer.Types, "lag", consumer.CachedInfo().NumPending)
	}
	return r.receive(ctx, messages)
}

// receive hands each message to a free worker, and waits for all of them at the
// end.
func (r *Runner) receive(ctx context.Context, messages jetstream.MessagesContext) error {
	var workers sync.WaitGroup
	defer workers.Wait()
	free := make(chan struct{}, r.Consumer.Workers)
	for {
		select {
		case free <- struct{}{}:
		case <-ctx.Done():
			giveBack(messages)
			return nil
		}
		msg, err := messages.Next(jetstream.NextContext(ctx))
		if ctx.Err() != nil && err == nil {
			err = ctx.Err()
			_ = msg.Nak() // if that is lost it comes again after ackWait
		}
		if err != nil {
			giveBack(messages)
			return fmt.Errorf("receive from %s: %w", r.Consumer.Name, err)
		}
		workers.Go(func() {
			defer func() { <-free }()
			r.deliver(context.WithoutCancel(ctx), msg)
		})
	}
}

// giveBack returns what was fetched and not begun, so that it need not wait for
// ackWait to be delivered again.
func giveBack(messages jetstream.MessagesContext) {
	messages.Drain()
	for {
		msg, err := messages.Next(jetstream.NextMaxWait(time.Second)) // the server may be away
		if err != nil {
			return
		}
		_ = msg.Nak()
	}
}

// bind looks the durable consumer up, and creates it if there is none. One that
// wants other events than this one is left alone, and is an error.
func (r *Runner) bind(ctx context.Context) (jetstream.Consumer, error) {
	want := r.config()
	consumer, err := r.JS.Consumer(ctx, r.Stream, r.Consumer.Name)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		consumer, err = r.JS.CreateConsumer(ctx, r.Stream, want)
	}
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return nil, fmt.Errorf("stream_missing: stream %s does not exist; run: pgjet stream ensure", r.Stream)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrNoResponders):
		return nil, fmt.Errorf("nats_unreachable: bind consumer %s: %w", r.Consumer.Name, err)
	case err != nil:
		return nil, fmt.Errorf("bind consumer %s: %w", r.Consumer.Name, err)
	}
	have := consumer.CachedInfo().Config
	if got := filters(have); !slices.Equal(got, filters(want)) {
		return nil, fmt.Errorf("consumer %s on the server filters %v, this process wants %v; rename one or delete the other",
			r.Consumer.Name, got, filters(want))
	}
	return consumer, nil
}

func (r *Runner) config() jetstream.ConsumerConfig {
	var subjects []string
	for _, t := range r.Consumer.Types {
		subjects = append(subjects, events.Filter(t))
	}
	return jetstream.ConsumerConfig{
		Durable:        r.Consumer.Name,
		DeliverPolicy:  jetstream.DeliverAllPolicy, // the only one that can be replayed
		AckPolicy:      jetstream.AckExplicitPolicy,
		AckWait:        max(ackWait, r.Consumer.Timeout*3/2),
		MaxDeliver:     -1, // beyond a limit JetStream would drop the event in silence
		FilterSubjects: subjects,
	}
}

func filters(c jetstream.ConsumerConfig) []string {
	all := slices.Clone(c.FilterSubjects)
	if c.FilterSubject != "" {
		all = append(all, c.FilterSubject)
	}
	slices.Sort(all)
	return all
}
