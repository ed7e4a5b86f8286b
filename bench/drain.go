package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go/jetstream"
)

// drain measures how fast each relay moves a backlog into the stream.
func drain(o options) scenario {
	many, some, few := orQuick(o, 100_000, 30_000), orQuick(o, 100_000, 20_000), orQuick(o, 30_000, 10_000)
	s := scenario{
		name: "drain", title: "Draining a backlog",
		note: "Events of " + fmt.Sprint(payloadBytes) + " bytes with eight headers wait in each relay's own outbox; the relay is started, and the time runs" +
			" from the first message stored to the last, or to the cap of " + drainCap.String() + " (column drained). Afterwards the stream is compared with the outbox." +
			" Watermill: rows of a transaction each; default is the Forwarder as documented, tuned is one handler without envelope, batches of 1000, polling every 10 ms;" +
			" shards are topics by key with a forwarder each, batches of 2000. The queue schema deletes what is published. Naive is SKIP LOCKED, sync publish and an UPDATE each.",
		variants: []variant{
			drainPgjet("pgjet", durable, many),
			drainPgjet("pgjet", lazy, many),
			drainWatermill("Watermill default", few, watermillSetting{Envelope: true}),
			drainWatermill("Watermill tuned", some, watermillTuned),
			drainWatermill("Watermill queue schema", some, watermillSetting{Batch: 1000, Poll: 10 * time.Millisecond, Queue: true}),
			drainWatermill("Watermill, 8 shards", some, watermillSetting{Batch: 2000, Poll: 10 * time.Millisecond, Shards: 8}),
			drainWatermill("Watermill, 16 shards", some, watermillSetting{Batch: 2000, Poll: 10 * time.Millisecond, Shards: 16, OneConn: true}),
			{name: rowsOf("naive relay", few), server: lazy, run: func(ctx context.Context, l *lab) (result, error) {
				return drainOnce(ctx, l, lazy, few, "naive", fillNaive, func(s *site) any { return s.relay() }, naiveOutbox)
			}},
		},
	}
	if !o.quick {
		for _, on := range []server{durable, lazy} {
			v := drainPgjet("pgjet", on, 1_000_000)
			v.rounds = 1
			s.variants = append(s.variants, v)
		}
	}
	return s
}

// watermillTuned is what drains fastest in one process without shards.
var watermillTuned = watermillSetting{Batch: 1000, Poll: 10 * time.Millisecond}

// drainCap is how long a relay may take.
const drainCap = 20 * time.Second

func rowsOf(name string, n int) string {
	if n < 1_000_000 {
		return fmt.Sprintf("%s, %d k rows", name, n/1000)
	}
	return fmt.Sprintf("%s, %d M rows", name, n/1_000_000)
}

func drainPgjet(name string, on server, n int) variant {
	return variant{name: rowsOf(name, n), server: on, run: func(ctx context.Context, l *lab) (result, error) {
		fill := func(ctx context.Context, s *site, n int) error { return s.fill(ctx, n) }
		return drainOnce(ctx, l, on, n, "pgjet", fill, func(s *site) any { return s.relay() }, pgjetOutbox)
	}}
}

func drainWatermill(name string, n int, w watermillSetting) variant {
	return variant{name: rowsOf(name, n), server: lazy, run: func(ctx context.Context, l *lab) (result, error) {
		config := func(s *site) any { return watermillConfig{s.relay(), w} }
		return drainOnce(ctx, l, lazy, n, "watermill", w.fill, config, w.outbox)
	}}
}

// relay returns what relays of this site are told.
func (s *site) relay() pgjetConfig { return pgjetConfig{s.dsn, s.natsURL, stream} }

// An entry is what a relay has to publish, in the order of its outbox.
type entry struct {
	ID  uuid.UUID
	Key string
}

// drainOnce fills the outbox of a relay, and measures how the relay drains it.
func drainOnce(ctx context.Context, l *lab, on server, n int, kind string, fill func(context.Context, *site, int) error,
	config func(*site) any, outbox func(context.Context, *site) ([]entry, error)) (result, error) {
	s, err := l.site(ctx, on)
	if err != nil {
		return result{}, err
	}
	defer s.close()
	if err := fill(ctx, s, n); err != nil {
		return result{}, fmt.Errorf("fill the outbox of %s: %w", kind, err)
	}
	all, err := outbox(ctx, s) // before: a queue is empty afterwards
	if err != nil {
		return result{}, err
	}
	c, err := s.start(ctx, kind, config(s))
	if err != nil {
		return result{}, err
	}
	var m *meter
	var began time.Time
	capped, cancel := context.WithTimeoutCause(ctx, drainCap, errCapped)
	defer cancel()
	took, err := s.drained(capped, n, func() { m, began = s.meter(c), time.Now() })
	if err != nil && context.Cause(capped) == errCapped && m != nil {
		took = time.Since(began)
		n, err = s.stored(ctx)
	}
	if err != nil {
		return result{}, err
	}
	used := m.values(n)
	c.stop()
	a, err := s.compare(ctx, all)
	if err == nil && kind == "pgjet" && a != (comparison{missing: len(all) - n}) {
		err = fmt.Errorf("the stream is not what the outbox is: %+v", a)
	}
	if err != nil {
		return result{}, err
	}
	values := append([]value{{"events", "/s", float64(n) / took.Seconds()}}, used...)
	return result{values: append(values, value{"drained", "", float64(n)}, value{"lost", "", float64(n - (len(all) - a.missing))},
		value{"twice", "", float64(a.twice)}, value{"out of order", "", float64(a.disordered)})}, nil
}

var errCapped = errors.New("it may take no longer")

func pgjetOutbox(ctx context.Context, s *site) ([]entry, error) {
	return s.entries(ctx, `select id, key from pgjet.outbox order by seq`)
}

func naiveOutbox(ctx context.Context, s *site) ([]entry, error) {
	return s.entries(ctx, `select event_id, headers->>'ce-subject' from naive_outbox order by id`)
}

func (s *site) entries(ctx context.Context, sql string) ([]entry, error) {
	rows, err := s.db.Query(ctx, sql)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[entry])
}

// A comparison is what is wrong with a stream.
type comparison struct {
	missing    int // events of the outbox that it lacks
	twice      int // messages that repeat another, or that nobody wrote
	disordered int // messages behind a later one of the same key
}

// compare reads the stream and compares it with all that there was to publish.
func (s *site) compare(ctx context.Context, all []entry) (comparison, error) {
	place := make(map[uuid.UUID]int, len(all))
	for i, e := range all {
		place[e.ID] = i + 1
	}
	last := make(map[string]int, keys) // place of the last event of each key
	c := comparison{missing: len(all)}
	err := s.read(ctx, func(msg jetstream.Msg) {
		id, _ := uuid.Parse(msg.Headers().Get("ce-id"))
		i := place[id]
		if i <= 0 {
			c.twice++
			return
		}
		place[id] = -i
		c.missing--
		key := all[i-1].Key
		if i < last[key] {
			c.disordered++
		}
		last[key] = max(last[key], i)
	})
	return c, err
}

// read calls fn with the header of every message of the stream.
func (s *site) read(ctx context.Context, fn func(jetstream.Msg)) error {
	n, err := s.stored(ctx)
	if err != nil || n == 0 {
		return err
	}
	consumer, err := s.js.OrderedConsumer(ctx, stream, jetstream.OrderedConsumerConfig{HeadersOnly: true})
	if err != nil {
		return err
	}
	all, err := consumer.Messages(jetstream.PullMaxMessages(5000))
	if err != nil {
		return err
	}
	defer all.Stop()
	for range n {
		msg, err := all.Next(jetstream.NextContext(ctx))
		if err != nil {
			return fmt.Errorf("read the stream: %w", err)
		}
		fn(msg)
	}
	return nil
}

// outbox returns what Watermill has to publish, in the order of the keys' topics.
func (w watermillSetting) outbox(ctx context.Context, s *site) ([]entry, error) {
	metadata := "metadata"
	id := "uuid"
	if w.Envelope {
		metadata, id = "payload->'metadata'", "payload->>'uuid'"
	}
	var all []entry
	for _, topic := range w.topics() {
		part, err := s.entries(ctx, fmt.Sprintf(`select (%s)::uuid, %s->>'ce-subject' from watermill_%s order by "offset"`,
			id, metadata, topic))
		if err != nil {
			return nil, err
		}
		all = append(all, part...)
	}
	return all, nil
}
