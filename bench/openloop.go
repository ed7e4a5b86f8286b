package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/outbox"
	"github.com/pgjet/pgjet/outbox/hint"
)

const (
	writers = 32 // connections of the service
	// lateBy is the delay from which a transaction counts as late: no connection was free.
	lateBy = 10 * time.Millisecond
	// patience is how long events may take to arrive after the last was written.
	patience = 10 * time.Second
	warmUp   = 300 // events that are not counted
)

// A pipeline is a system that moves events from a service to a handler: how the service
// writes them, what relays them, and what delivers them.
type pipeline struct {
	create func(db *pgxpool.Pool) error                                  // its tables, if not pgjet's
	queue  func(ctx context.Context, b *pgx.Batch, e events.Event) error // inserts its row, beside the user's
	relay  func(s *site) (kind string, config any)
	hints  bool // pgjet: the service sends hints to the relay
	inbox  bool // the handler is that of a pgjet consumer, not a bare JetStream consumer
	group  int  // of that consumer; 0 is the default
}

func pgjetPipeline(hints, inbox bool) pipeline {
	return pipeline{hints: hints, inbox: inbox,
		queue: func(ctx context.Context, b *pgx.Batch, e events.Event) error { return outbox.Queue(ctx, b, e) },
		relay: func(s *site) (string, any) { return "pgjet", s.relay() },
	}
}

func watermillPipeline(w watermillSetting) pipeline {
	return pipeline{
		create: w.create,
		queue: func(_ context.Context, b *pgx.Batch, e events.Event) error {
			_, q, err := w.insert(e)
			b.Queue(q.Query, q.Args...)
			return err
		},
		relay: func(s *site) (string, any) { return "watermill", watermillConfig{s.relay(), w} },
	}
}

// A flow is a pipeline at work on a site.
type flow struct {
	pipeline
	site   *site
	child  *child
	sender *hint.Sender

	begun    time.Time
	wrote    []int64        // when the commit of each event returned, in ns since begun
	received []atomic.Int64 // when its handler was called first; 0: not yet
	twice    atomic.Int64   // further calls
	arrived  atomic.Int64   // events received
	late     atomic.Int64   // transactions that began late
	next     int            // the first event that is not written yet
	closers  []func()
}

// startFlow starts p on s, for at most n events, and waits until it is warm.
func startFlow(ctx context.Context, s *site, p pipeline, n int) (f *flow, err error) {
	n += warmUp
	f = &flow{pipeline: p, site: s, begun: time.Now(), wrote: make([]int64, n), received: make([]atomic.Int64, n)}
	defer func() {
		if err != nil {
			f.stop()
		}
	}()
	if _, err := s.db.Exec(ctx, `create table bench_user (
		id uuid primary key, email text not null unique, name text not null, at timestamptz not null default now())`); err != nil {
		return f, err
	}
	if p.create != nil {
		if err := p.create(s.db); err != nil {
			return f, err
		}
	}
	if err := f.connect(ctx); err != nil {
		return f, err
	}
	kind, config := p.relay(s)
	if f.child, err = s.start(ctx, kind, config); err != nil {
		return f, err
	}
	if err := f.load(ctx, warmUp, 600); err != nil {
		return f, err
	}
	return f, f.await(ctx, 2*patience)
}

// connect starts the handler, and the hints if there are any.
func (f *flow) connect(ctx context.Context) error {
	if f.hints {
		nc, err := nats.Connect(f.site.natsURL, nats.ReconnectBufSize(-1))
		if err != nil {
			return err
		}
		f.closers = append(f.closers, nc.Close)
		f.sender = hint.New(nc, stream)
	}
	if f.inbox {
		return f.consume(ctx)
	}
	c, err := f.site.js.OrderedConsumer(ctx, stream, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return err
	}
	handling, err := c.Consume(func(msg jetstream.Msg) {
		if id, err := uuid.Parse(msg.Headers().Get("ce-id")); err == nil {
			f.handle(id)
		}
	})
	if err != nil {
		return err
	}
	f.closers = append(f.closers, func() { handling.Stop(); <-handling.Closed() })
	return nil
}

// consume runs a pgjet consumer that only records events in its inbox. An event is received
// when that has committed.
func (f *flow) consume(ctx context.Context) error {
	commits := &commits{done: f.handle, open: make(map[*pgx.Conn][]uuid.UUID)}
	config := f.site.db.Config().Copy()
	config.MaxConns = 12
	config.ConnConfig.Tracer = commits
	db, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return err
	}
	runner := consumers.Runner{DB: db, JS: f.site.js, Consumer: consumers.Consumer{
		Name: "bench", Group: f.group,
		Handler: consumers.Handle(consumers.OnType("user.>", func(_ context.Context, tx pgx.Tx, e events.Event) error {
			commits.handled(tx.Conn(), e.ID)
			return nil
		})),
	}}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); _ = runner.Run(ctx) }() // a failure shows as lost events
	f.closers = append(f.closers, func() { cancel(); <-done; db.Close() })
	return nil
}

// A commits is a tracer that reports the commits of transactions in which events were
// handled.
type commits struct {
	done func(id uuid.UUID) // is called then for each event

	mu   sync.Mutex
	open map[*pgx.Conn][]uuid.UUID // handled in the transaction of each connection
}

func (c *commits) handled(conn *pgx.Conn, id uuid.UUID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open[conn] = append(c.open[conn], id)
}

// TraceQueryStart does nothing.
func (c *commits) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}

// TraceQueryEnd is called when a statement has ended.
func (c *commits) TraceQueryEnd(_ context.Context, conn *pgx.Conn, data pgx.TraceQueryEndData) {
	tag := data.CommandTag.String()
	if tag != "COMMIT" && tag != "ROLLBACK" {
		return
	}
	c.mu.Lock()
	ids := c.open[conn]
	delete(c.open, conn)
	c.mu.Unlock()
	for _, id := range ids {
		if tag == "COMMIT" {
			c.done(id)
		}
	}
}

func (f *flow) handle(id uuid.UUID) {
	n := eventNumber(id)
	if n >= len(f.received) || !f.received[n].CompareAndSwap(0, int64(time.Since(f.begun))) {
		f.twice.Add(1)
		return
	}
	f.arrived.Add(1)
}

// stop ends everything that startFlow has started.
func (f *flow) stop() {
	if f.child != nil {
		f.child.stop()
	}
	for _, c := range slices.Backward(f.closers) {
		c()
	}
}

// load writes n events at an even rate: each transaction has its time, independent of those
// before it, as long as a connection is free.
func (f *flow) load(ctx context.Context, n int, rate float64) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	first, begun := f.next, time.Now()
	f.next += n
	var taken atomic.Int64
	var all sync.WaitGroup
	for range writers {
		all.Go(func() {
			for i := int(taken.Add(1)) - 1; i < n && ctx.Err() == nil; i = int(taken.Add(1)) - 1 {
				due := begun.Add(time.Duration(float64(i) / rate * float64(time.Second)))
				time.Sleep(time.Until(due))
				if time.Since(due) > lateBy {
					f.late.Add(1)
				}
				if err := f.write(ctx, first+i); err != nil {
					cancel(fmt.Errorf("write event: %w", err))
				}
			}
		})
	}
	all.Wait()
	return context.Cause(ctx)
}

// write commits a user and the event about them, in one round trip.
func (f *flow) write(ctx context.Context, n int) error {
	e := newEvent(n, time.Now())
	var b pgx.Batch
	b.Queue(`insert into bench_user (id, email, name) values ($1, $2, $3)`, e.ID, e.ID.String(), e.Key)
	if err := f.queue(ctx, &b, e); err != nil {
		return err
	}
	if err := f.site.db.SendBatch(ctx, &b).Close(); err != nil {
		return err
	}
	f.wrote[n] = int64(time.Since(f.begun))
	if f.sender != nil {
		f.sender.Committed()
	}
	return nil
}

// await waits until everything that was written has arrived, at most within. It fails only
// if nothing arrives at all.
func (f *flow) await(ctx context.Context, within time.Duration) error {
	end := time.Now().Add(within)
	for int(f.arrived.Load()) < f.next {
		if time.Now().After(end) {
			if f.arrived.Load() == 0 {
				return fmt.Errorf("no event arrives: %w", errors.Join(f.child.err(), errors.New(f.child.said())))
			}
			return nil
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
