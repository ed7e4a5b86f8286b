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
	many, few := orQuick(o, 100_000, 30_000), orQuick(o, 20_000, 10_000)
	some, more := orQuick(o, 30_000, 20_000), orQuick(o, 50_000, 20_000)
	return scenario{
		name: "drain", title: "Draining a backlog",
		note: "Events of " + fmt.Sprint(payloadBytes) + " bytes with eight headers wait in each relay's own outbox; the relay is started, and the time runs" +
			" from the first message stored to the last, or to the cap of " + drainCap.String() + " (column drained). Afterwards the stream is compared with the outbox." +
			" Lost are events that the stream lacks though it has a later one of their key. Slow relays get a smaller backlog, which spares time; growth has a million rows." +
			" Each event has a transaction id of its own. Watermill: default is the Forwarder as documented, tuned is one handler without envelope, batches of 1000, polling every 10 ms;" +
			" shards are topics by key with a forwarder each, batches of 2000. The queue schema deletes what is published. Naive is SKIP LOCKED, sync publish and an UPDATE each.",
		variants: []variant{
			pgjetDrainer().variant("pgjet", durable, many),
			pgjetDrainer().variant("pgjet", lazy, many),
			watermillDrainer(watermillSetting{Envelope: true}).variant("Watermill default", lazy, few),
			watermillDrainer(watermillSetting{Batch: 1000, Poll: drainPoll}).variant("Watermill tuned", lazy, some),
			watermillDrainer(watermillSetting{Batch: 1000, Poll: drainPoll, Queue: true}).variant("Watermill queue schema", lazy, some).once(),
			watermillDrainer(watermillSetting{Batch: 2000, Poll: drainPoll, Shards: 8}).variant("Watermill, 8 shards", lazy, more).once(),
			watermillDrainer(watermillSetting{Batch: 2000, Poll: drainPoll, Shards: 16, OneConn: true}).variant("Watermill, 16 shards", lazy, more),
			naiveDrainer().variant("naive relay", lazy, few),
		},
	}
}

// drainPoll is Watermill's PollInterval, which hardly matters while there is a backlog.
const drainPoll = 10 * time.Millisecond

// drainCap is the longest time of a relay.
const drainCap = 20 * time.Second

func rowsOf(name string, n int) string {
	if n < 1_000_000 {
		return fmt.Sprintf("%s, %d k rows", name, n/1000)
	}
	return fmt.Sprintf("%s, %d M rows", name, n/1_000_000)
}

// A drainer is a relay with an outbox of its own.
type drainer struct {
	kind   string // of the part that relays
	fill   func(ctx context.Context, s *site, n int) error
	outbox func(ctx context.Context, s *site) ([]entry, error) // the events that fill put there
	config func(s *site) any
}

func pgjetDrainer() drainer {
	return drainer{
		kind:   "pgjet",
		fill:   func(ctx context.Context, s *site, n int) error { return s.fill(ctx, n) },
		outbox: pgjetOutbox, config: func(s *site) any { return s.relay() },
	}
}

func watermillDrainer(w watermillSetting) drainer {
	return drainer{
		kind: "watermill", fill: w.fill, outbox: w.outbox,
		config: func(s *site) any { return watermillConfig{s.relay(), w} },
	}
}

func naiveDrainer() drainer {
	return drainer{
		kind: "naive", fill: fillNaive, outbox: naiveOutbox,
		config: func(s *site) any { return s.relay() },
	}
}

// variant returns how d drains n events.
func (d drainer) variant(name string, on server, n int) variant {
	return variant{name: rowsOf(name, n), server: on, run: func(ctx context.Context, l *lab) (result, error) {
		s, err := l.site(ctx, on)
		if err != nil {
			return result{}, err
		}
		defer s.close()
		if err := d.fill(ctx, s, n); err != nil {
			return result{}, fmt.Errorf("fill the outbox of %s: %w", d.kind, err)
		}
		all, err := d.outbox(ctx, s) // before the drain: a queue is empty afterwards
		if err != nil {
			return result{}, err
		}
		return d.drain(ctx, s, all)
	}}
}

// drain starts the relay, measures until it is done or capped, stops it, and compares.
func (d drainer) drain(ctx context.Context, s *site, all []entry) (result, error) {
	c, err := s.start(ctx, d.kind, d.config(s))
	if err != nil {
		return result{}, err
	}
	n := len(all)
	var m *meter
	var began time.Time
	capped, cancel := context.WithTimeoutCause(ctx, drainCap, errCapped)
	defer cancel()
	took, err := s.drained(capped, n, func() { m, began = s.meter(c), time.Now() })
	if err != nil && errors.Is(context.Cause(capped), errCapped) && m != nil {
		took = time.Since(began)
		n, err = s.stored(ctx)
	}
	if err != nil {
		return result{}, err
	}
	values := append([]value{{"events", "/s", float64(n) / took.Seconds()}}, m.values(n)...)
	c.stop()
	found, err := s.compare(ctx, all)
	// A relay that was capped has published some more before it stopped.
	if err == nil && d.kind == "pgjet" && (found.unreached > len(all)-n || found.lost+found.twice+found.disordered > 0) {
		err = fmt.Errorf("the stream is not what the outbox is: %+v", found)
	}
	return result{values: append(values, value{"drained", "", float64(n)}, value{"lost", "", float64(found.lost)},
		value{"twice", "", float64(found.twice)}, value{"out of order", "", float64(found.disordered)})}, err
}

// relay returns the configuration of relays of this site.
func (s *site) relay() pgjetConfig { return pgjetConfig{s.dsn, s.natsURL, stream} }

// An entry is an event that a relay has to publish, in the order of its outbox.
type entry struct {
	ID  uuid.UUID
	Key string
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

// A comparison counts the faults of a stream.
type comparison struct {
	lost       int // events that it lacks, though it has a later one of the same key
	unreached  int // other events of the outbox that it lacks
	twice      int // messages that repeat another, or belong to no event
	disordered int // messages behind a later one of the same key
}

// compare reads the stream and compares it with all events that had to be published.
func (s *site) compare(ctx context.Context, all []entry) (comparison, error) {
	place := make(map[uuid.UUID]int, len(all))
	for i, e := range all {
		place[e.ID] = i + 1
	}
	last := make(map[string]int, keys) // place of the last event of each key
	var c comparison
	err := s.read(ctx, func(msg jetstream.Msg) {
		id, _ := uuid.Parse(msg.Headers().Get("ce-id"))
		i := place[id]
		if i <= 0 {
			c.twice++
			return
		}
		place[id] = -i
		key := all[i-1].Key
		if i < last[key] {
			c.disordered++
		}
		last[key] = max(last[key], i)
	})
	for i, e := range all {
		switch {
		case place[e.ID] < 0: // stored
		case i+1 < last[e.Key]:
			c.lost++
		default:
			c.unreached++
		}
	}
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

// outbox returns the events that Watermill has to publish, in the order of the keys'
// topics.
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
