package main

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// consumeConns is how many connections to PostgreSQL each consumer has.
const consumeConns = 16

// externalWait is how long the handlers of some variants wait for an external service.
const externalWait = 5 * time.Millisecond

// consume measures how fast events are handled whose effect is a row.
func consume(o options) scenario {
	few, some, many := orQuick(o, 20_000, 8_000), orQuick(o, 60_000, 16_000), orQuick(o, 100_000, 40_000)
	bare := consumption{Form: "two-inserts", Events: few}
	ordered := consumption{Form: "ordered", Events: some}
	oneSlice := consumption{Form: "ordered", Events: some, Slices: 1}
	queued := consumption{Form: "queued", Events: some, Slices: 1}
	unordered := consumption{Form: "unordered", Events: some}
	alone := consumption{Form: "ordered", Events: few, Group: 1}
	failing := consumption{Form: "ordered", Events: some, Failing: 100}
	batches := consumption{Form: "batch", Events: many}
	oneKey := consumption{Form: "ordered", Events: few, OneKey: true, From: few/2 + 1}
	oneFails := oneKey
	oneFails.Failing = oneKey.From
	shares := consumption{Form: "ordered", Events: orQuick(o, 20_000, 3_000), Waiting: true, Slices: 8, Workers: 4}
	return scenario{
		name: "consume", title: "Handling events whose effect is a row",
		note: fmt.Sprintf("The stream, or River's table, is filled before. The time runs from the first event that a handler gets to the commit of the last."+
			" Each has %d connections. pgjet singly calls a handler for each event, which inserts a row, by %d workers; events that wait share transactions,"+
			" 64 at most, or none with Group: 1. Queued: it queues the insert (OnQueue), and those of a group are sent together. Where 1 %% fail, every hundredth event fails at its first attempt, and is tried again %s later on average."+
			" In batches, the handler inserts 500 rows by one statement, by 2 workers."+
			" Two inserts is the bare transaction without a queue: begin, insert, insert, commit."+
			" On the slow disk, each fsync and fdatasync of PostgreSQL takes %s or longer."+
			" With one key, the second half of the events counts; where one fails, it is the first of these, and the time runs from its second attempt."+
			" Handlers that wait do so for %s and write nothing, so that %d workers get through %.0f events/s at most; Effect is written down before and after."+
			" Processes that share slices have 4 workers each, and the time runs from the first event that is published."+
			" Raw consume acknowledges each message and has no database."+
			" River works jobs that do nothing, with its default settings, and tuned: 1000 workers, FetchCooldown 1 ms;"+
			" inserted and worked: its process inserts 5000 at a time meanwhile;"+
			" the last inserts a row and completes its job in one transaction, by 64 workers. Its batch completer is on in all of them.",
			consumeConns, consumeWorkers, failedRetry, slowSync, externalWait, consumeWorkers, consumeWorkers/externalWait.Seconds()),
		variants: []variant{
			bare.variant("limit: two inserts in a transaction", none),
			ordered.variant("pgjet singly, ordered", lazy),
			ordered.variant("pgjet singly, ordered", durable).once(),
			oneSlice.variant("pgjet singly, ordered, one slice", lazy),
			queued.variant("pgjet singly, queued, one slice", lazy),
			unordered.variant("pgjet singly, unordered", lazy),
			alone.variant("pgjet singly, ordered, Group: 1", lazy),
			failing.variant("pgjet singly, ordered, 1 % fail", lazy),
			batches.variant("pgjet batches", lazy),
			consumption{Form: "batch", Events: many / 4}.variant("pgjet batches", durable).once(),
			bare.onSlowDisk().variant("limit: two inserts, slow disk", none),
			oneSlice.onSlowDisk().variant("pgjet singly, ordered, one slice, slow disk", lazy),
			ordered.onSlowDisk().variant("pgjet singly, ordered, slow disk", lazy),
			queued.onSlowDisk().variant("pgjet singly, queued, one slice, slow disk", lazy),
			alone.onSlowDisk().variant("pgjet singly, ordered, Group: 1, slow disk", lazy).once(),
			oneKey.variant("pgjet singly, one key", lazy).among("one key"),
			oneFails.variant("pgjet singly, one key, one fails", lazy).among("one key"),
			consumption{Form: "ordered", Events: few / 2, Waiting: true}.variant("pgjet singly, waits, one process", lazy).among("waits"),
			consumption{Form: "effect", Events: few / 2, Waiting: true}.variant("pgjet Effect, waits, one process", lazy).among("waits"),
			shares.sharing(1).variant("pgjet, 8 slices, waits, one process", lazy).among("shared"),
			shares.sharing(2).variant("pgjet, 8 slices, waits, two processes", lazy).among("shared"),
			shares.sharing(4).variant("pgjet, 8 slices, waits, four processes", lazy).among("shared"),
			consumption{Form: "raw", Events: many}.variant("limit: raw consume", lazy),
			consumption{Form: "river", Events: orQuick(o, 5_000, 2_000)}.variant("River default, no-op", none).once(),
			consumption{Form: "river-tuned", Events: many / 2}.variant("River tuned, no-op", none),
			consumption{Form: "river-both", Events: many / 2}.variant("River tuned, no-op, inserted and worked", none).once(),
			consumption{Form: "river-row", Events: few}.variant("River tuned, a row", none).once(),
		},
	}
}

// A consumption describes which events are handled, and how.
type consumption struct {
	Form    string // "two-inserts", "ordered", "unordered", "batch", "effect", "raw", or one of rivers
	Events  int    // their numbers begin with 1
	Group   int    // of the consumer; 0 is the default
	OneKey  bool   // all events have the same key
	From    int    // the number of the first event that counts; 0: all do
	Failing int    // each event whose number is a multiple fails at its first attempt; 0: none
	Waiting bool   // handlers wait for externalWait, and write nothing
	Slices  int    // of the consumer; 0 is the default
	Workers int    // of one process; 0 is consumeWorkers

	processes int // which share the slices before the first event comes; 0 is one, which starts with all events in the stream

	slowDisk bool
}

// onSlowDisk returns c on the disk whose syncs are slow.
func (c consumption) onSlowDisk() consumption {
	c.slowDisk = true
	return c
}

// counting returns how many events count.
func (c consumption) counting() int { return c.Events - max(c.From, 1) + 1 }

// A consumeConfig is the configuration of the part "consume".
type consumeConfig struct {
	DSN     string `json:"dsn"`
	NATSURL string `json:"nats_url"`
	consumption
}

// variant returns the variant in which the part "consume" handles the events. Variants on
// the slow disk are compared with each other.
func (c consumption) variant(name string, on server) variant {
	v := variant{name: name, server: on, base: c.Form == "two-inserts"}
	if c.slowDisk {
		v.group = "slow disk"
	}
	v.run = func(ctx context.Context, l *lab) (result, error) {
		postgres := l.postgres
		if c.slowDisk {
			var err error
			if postgres, err = l.onSlowDisk(ctx); err != nil {
				return result{}, err
			}
		}
		s, err := l.siteIn(ctx, postgres, on)
		if err != nil {
			return result{}, err
		}
		defer s.close()
		if c.processes > 0 {
			return s.shared(ctx, c)
		}
		if err := s.fillConsume(ctx, c); err != nil {
			return result{}, err
		}
		return s.consumed(ctx, c)
	}
	return v
}

// sharing returns c with that many processes.
func (c consumption) sharing(processes int) consumption {
	c.processes = processes
	return c
}

// shared has the processes share the slices, then publishes the events, and measures until
// all are handled.
func (s *site) shared(ctx context.Context, c consumption) (result, error) {
	if err := s.makeEffects(ctx); err != nil {
		return result{}, err
	}
	for range c.processes {
		if _, err := s.start(ctx, "consume", consumeConfig{s.dsn, s.natsURL, c}); err != nil {
			return result{}, err
		}
	}
	for even := false; !even; {
		if err := pause(ctx, lookEvery); err != nil {
			return result{}, err
		}
		err := s.db.QueryRow(ctx, `
			select count(*) = $1 and min(slices) = max(slices) and sum(slices) = $2 from (
				select count(*) as slices from pgjet.slice where process is not null group by process) p`, c.processes, c.Slices).Scan(&even)
		if err == nil {
			err = s.failed()
		}
		if err != nil {
			return result{}, err
		}
	}
	began := time.Now()
	if err := s.publishEvents(ctx, c); err != nil {
		return result{}, err
	}
	if err := s.committed(ctx, c); err != nil {
		return result{}, err
	}
	return result{values: []value{{"events", "/s", float64(c.Events) / time.Since(began).Seconds()}}}, nil
}

// fillConsume makes the tables of the handlers, and the events.
func (s *site) fillConsume(ctx context.Context, c consumption) error {
	if err := s.makeEffects(ctx); err != nil {
		return err
	}
	if s.js != nil {
		if err := s.publishEvents(ctx, c); err != nil {
			return err
		}
	} else if f, river := rivers[c.Form]; river {
		if err := s.fillRiver(ctx, f, c.Events); err != nil {
			return err
		}
	}
	_, err := s.db.Exec(ctx, `checkpoint`)
	return err
}

// makeEffects makes the tables that handlers write.
func (s *site) makeEffects(ctx context.Context) error {
	_, err := s.db.Exec(ctx, `
		create table effect (id uuid not null, n bigint not null, name text not null);
		create table inserted (consumer text, id uuid, n bigint not null, at timestamptz not null default clock_timestamp(), primary key (consumer, id))`)
	return err
}

// publishEvents stores the events in the stream.
func (s *site) publishEvents(ctx context.Context, c consumption) error {
	messages := make([]*nats.Msg, c.Events)
	for i := range messages {
		e := newEvent(i+1, time.Now())
		if c.OneKey {
			e.Key = "one"
		}
		e.Seq = int64(i + 1)
		subject, header, body := e.Message()
		messages[i] = &nats.Msg{Subject: subject, Header: header, Data: body}
	}
	js, err := jetstream.New(s.js.Conn(), jetstream.WithPublishAsyncMaxPending(4096))
	if err != nil {
		return err
	}
	return publishAll(ctx, js, messages)
}

// consumed starts the part, and measures until all events are handled.
func (s *site) consumed(ctx context.Context, c consumption) (result, error) {
	part, err := s.start(ctx, "consume", consumeConfig{s.dsn, s.natsURL, c})
	if err != nil {
		return result{}, err
	}
	if _, err := part.line(ctx); err != nil { // the first
		return result{}, err
	}
	m, began := s.meter(part), time.Now()
	if _, err := part.line(ctx); err != nil { // the last
		return result{}, err
	}
	if err := s.committed(ctx, c); err != nil {
		return result{}, err
	}
	took := time.Since(began)
	values := m.values(c.counting())
	values[0].name = "handler CPU"
	return result{values: append([]value{{"events", "/s", float64(c.counting()) / took.Seconds()}}, values...)}, nil
}

// committed waits until all events are done in the database, and checks that each had
// one effect.
func (s *site) committed(ctx context.Context, c consumption) error {
	count, n := `select count(*), count(distinct id) from effect`, c.Events
	if c.Waiting {
		count = `select count(*), count(*) from pgjet.inbox where state = 'done'`
	}
	if c.Form == "raw" {
		return nil
	}
	if f, river := rivers[c.Form]; river && !f.row {
		count = `select count(*), count(*) from river_job where state = 'completed'`
	}
	for {
		var rows, distinct int
		if err := s.db.QueryRow(ctx, count).Scan(&rows, &distinct); err != nil {
			return err
		}
		if rows > distinct || rows > n {
			return fmt.Errorf("%d events had %d effects, %d of them once", n, rows, distinct)
		}
		if rows == n {
			return nil
		}
		if err := s.failed(); err != nil {
			return err
		}
		if err := pause(ctx, 2*lookEvery); err != nil {
			return err
		}
	}
}
