package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/telemetry"
)

const (
	consumeWorkers = consumeConns - 2 // of a consumer that handles events singly
	// failedRetry is the average wait of an event that fails, short so that the last one
	// does not prolong the run.
	failedRetry = 50 * time.Millisecond
)

// A counter reports on standard output when the first event and when the last is handled.
type counter struct {
	of   int64
	from int64 // the number of the first event that counts
	done atomic.Int64
	seen []atomic.Bool // by number
}

func newCounter(c consumption) *counter {
	return &counter{of: int64(c.counting()), from: int64(c.From), seen: make([]atomic.Bool, c.Events+1)}
}

func (c *counter) add(n int) {
	after := c.done.Add(int64(n))
	if after == int64(n) {
		fmt.Println("first")
	}
	if after >= c.of && after-int64(n) < c.of {
		fmt.Println("last")
	}
}

// handled counts an event. It may be handled more than once, in a transaction that is rolled back.
func (c *counter) handled(number int64) {
	if number >= c.from && c.seen[number].CompareAndSwap(false, true) {
		c.add(1)
	}
}

// consumePart handles events until ctx ends.
func consumePart(ctx context.Context, text []byte) error {
	var c consumeConfig
	if err := json.Unmarshal(text, &c); err != nil {
		return err
	}
	config, err := pgxpool.ParseConfig(c.DSN)
	if err != nil {
		return err
	}
	config.MaxConns = consumeConns
	db, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return err
	}
	defer db.Close()
	count := newCounter(c.consumption)
	if form, ok := rivers[c.Form]; ok {
		return form.work(ctx, db, count)
	}
	if c.Form == "two-inserts" {
		return twoInserts(ctx, db, count)
	}
	js, err := dialJetStream(c.NATSURL)
	if err != nil {
		return err
	}
	defer js.Conn().Close()
	if c.Form == "raw" {
		return consumeRaw(ctx, js, count)
	}
	return consumePgjet(ctx, db, js, c.consumption, count)
}

const (
	insertEffect  = `insert into effect (id, n, name) values ($1, $2, $3)`
	insertEffects = `insert into effect (id, n, name) select id, n, $3 from unnest($1::uuid[], $2::bigint[]) as u (id, n)`
)

// consumePgjet runs a consumer as a service does, with its telemetry, which is not
// collected.
func consumePgjet(ctx context.Context, db *pgxpool.Pool, js jetstream.JetStream, c consumption, count *counter) error {
	tel, err := telemetry.Start(ctx, "bench", "bench")
	if err != nil {
		return err
	}
	defer func() { _ = tel.Stop(context.WithoutCancel(ctx)) }()
	r := consumers.Runner{Consumer: c.consumer(count), DB: db, JS: js, Stream: stream,
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))}
	return r.Run(ctx)
}

// consumer returns the consumer, whose handlers count.
func (c consumption) consumer(count *counter) consumers.Consumer {
	consumer := consumers.Consumer{
		Name: "bench", Unordered: c.Form == "unordered", Workers: cmp.Or(c.Workers, consumeWorkers), Group: c.Group, Slices: c.Slices,
	}
	if c.Failing > 0 {
		consumer.MinRetry = failedRetry
	}
	switch c.Form {
	case "batch":
		consumer.Workers, consumer.Handler = 2, consumers.HandleBatch(500, insertBatch(count), consumed)
	case "effect":
		consumer.Handler = consumers.Effect(func(_ context.Context, e events.Event) error {
			count.handled(e.Seq)
			time.Sleep(externalWait)
			return nil
		}, consumed)
	case "queued":
		consumer.Handler = consumers.Handle(consumers.OnQueue(func(_ context.Context, b *pgx.Batch, e events.Event, _ unread) error {
			count.handled(e.Seq)
			b.Queue(insertEffect, e.ID, e.Seq, "User")
			return nil
		}))
	default:
		consumer.Handler = consumers.Handle(consumers.OnType(consumed, c.handler(count)))
	}
	return consumer
}

// consumed is the type of the events.
const consumed = "user.created"

// An unread is a payload that is not read.
type unread struct{}

func (unread) EventType() string               { return consumed }
func (unread) EventKey() string                { return "" }
func (*unread) UnmarshalBinary(_ []byte) error { return nil }

// handler returns a handler that inserts a row, or waits.
func (c consumption) handler(count *counter) func(ctx context.Context, tx pgx.Tx, e events.Event) error {
	return func(ctx context.Context, tx pgx.Tx, e events.Event) error {
		if c.Failing > 0 && e.Seq%int64(c.Failing) == 0 {
			if err := failOnce(ctx, tx, e); err != nil {
				return err
			}
		}
		count.handled(e.Seq)
		if c.Waiting {
			time.Sleep(externalWait)
			return nil
		}
		_, err := tx.Exec(ctx, insertEffect, e.ID, e.Seq, "User")
		return err
	}
}

// insertBatch returns a handler that inserts a row for each event of a batch.
func insertBatch(count *counter) func(ctx context.Context, tx pgx.Tx, all []events.Event) error {
	return func(ctx context.Context, tx pgx.Tx, all []events.Event) error {
		count.add(len(all))
		ids, ns := make(pgtype.FlatArray[pgtype.UUID], len(all)), make([]int64, len(all))
		for i, e := range all {
			ids[i], ns[i] = pgtype.UUID{Bytes: e.ID, Valid: true}, e.Seq
		}
		_, err := tx.Exec(ctx, insertEffects, ids, ns, "User")
		return err
	}
}

// failOnce fails unless an attempt at the event has failed before. The rollback of a group is no attempt.
func failOnce(ctx context.Context, tx pgx.Tx, e events.Event) error {
	var failed bool
	err := tx.QueryRow(ctx, `select exists (select from pgjet.attempt where consumer = 'bench' and event_id = $1)`, e.ID).Scan(&failed)
	if err == nil && !failed {
		err = errors.New("the first attempt fails")
	}
	return err
}

// consumeRaw receives and acknowledges messages without reading them.
func consumeRaw(ctx context.Context, js jetstream.JetStream, count *counter) error {
	c, err := js.CreateConsumer(ctx, stream, jetstream.ConsumerConfig{
		Durable: "bench", AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: 20_000, AckWait: time.Minute,
	})
	if err != nil {
		return err
	}
	consuming, err := c.Consume(func(msg jetstream.Msg) {
		if err := msg.Ack(); err == nil {
			count.add(1)
		}
	}, jetstream.PullMaxMessages(5000))
	if err != nil {
		return err
	}
	defer consuming.Stop()
	<-ctx.Done()
	return nil
}

// twoInserts makes as many transactions as there are events, in four round trips each.
func twoInserts(ctx context.Context, db *pgxpool.Pool, count *counter) error {
	g, working := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range consumeConns {
		g.Go(func() error {
			for {
				n := next.Add(1)
				if n > count.of {
					return nil
				}
				id, err := uuid.NewV7()
				if err != nil {
					return err
				}
				count.add(1)
				err = pgx.BeginFunc(working, db, func(tx pgx.Tx) error {
					if _, err := tx.Exec(working, `insert into inserted (consumer, id, n) values ($1, $2, $3)`, "bench", id, n); err != nil {
						return err
					}
					_, err := tx.Exec(working, insertEffect, id, n, "User")
					return err
				})
				if err != nil {
					return err
				}
			}
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}
