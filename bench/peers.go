package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"strings"
	"time"

	wmsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/events"
)

// eventSource is the CloudEvents source of all events.
const eventSource = "/users"

// newEvent returns event number n as a service would append it, of the same size as those
// of [site.fill]. Its id contains n.
func newEvent(n int, at time.Time) events.Event {
	id, err := uuid.NewV7()
	if err != nil {
		panic(err) // no entropy
	}
	binary.BigEndian.PutUint64(id[8:], uint64(n)|1<<63) // the variant, as UUIDs have it
	k := uint64(n % keys)                               // multiplied, since the same digits twice would have a few hashes only
	key := fmt.Sprintf("%08x-0000-4000-8000-%012x", k, k*0x9e3779b97f4a7c15>>16)
	data := fmt.Sprintf(`{"user_id":"%s","email":"user-%d@example.com","name":"User %d","note":"`, key, n, n)
	data += strings.Repeat("x", payloadBytes-len(data)-2) + `"}`
	return events.Event{
		ID: id, Type: "user.created", Key: key, Source: eventSource, Time: at, Data: json.RawMessage(data),
		Traceparent: fmt.Sprintf("00-%032x-%016x-01", n+1, n+1),
	}
}

// eventNumber returns n of the event to which [newEvent] gave this id.
func eventNumber(id uuid.UUID) int { return int(binary.BigEndian.Uint64(id[8:]) &^ (1 << 63)) }

// peerHeaders returns the headers of e as a peer sends them: all those of pgjet except the
// one for a place in its outbox.
func peerHeaders(e events.Event) map[string]string {
	_, header, _ := e.Message()
	delete(header, "Pgjet-Seq")
	flat := make(map[string]string, len(header))
	for name, values := range header {
		flat[name] = values[0]
	}
	return flat
}

// fillNaive makes the outbox of the naive relay, and puts n events into it.
func fillNaive(ctx context.Context, s *site, n int) error {
	if _, err := s.db.Exec(ctx, naiveTable); err != nil {
		return err
	}
	at, i := time.Now(), 0
	_, err := s.db.CopyFrom(ctx, pgx.Identifier{"naive_outbox"}, []string{"event_id", "subject", "headers", "payload"},
		pgx.CopyFromFunc(func() ([]any, error) {
			if i == n {
				return nil, nil
			}
			e := newEvent(i, at)
			i++
			return []any{e.ID, events.Subject(e.Type, e.Key), peerHeaders(e), e.Data}, nil
		}))
	if err != nil {
		return err
	}
	return s.cleanUp(ctx, "naive_outbox")
}

// create makes Watermill's tables.
func (w watermillSetting) create(db *pgxpool.Pool) error {
	subscriber, err := w.subscriber(db)
	if err != nil {
		return err
	}
	defer subscriber.Close()
	for _, topic := range w.topics() {
		if err := subscriber.SubscribeInitialize(topic); err != nil {
			return err
		}
	}
	return nil
}

// insert returns the statement by which Watermill's publisher writes e.
func (w watermillSetting) insert(e events.Event) (topic string, q wmsql.Query, err error) {
	h := fnv.New32a()
	h.Write([]byte(e.Key))
	topics := w.topics()
	topic = topics[int(h.Sum32())%len(topics)]
	msg := message.NewMessage(e.ID.String(), message.Payload(e.Data))
	msg.Metadata = peerHeaders(e)
	if w.Envelope {
		var into caught
		p := forwarder.NewPublisher(&into, forwarder.PublisherConfig{ForwarderTopic: topic})
		if err := p.Publish(events.Subject(e.Type, e.Key), msg); err != nil {
			return "", wmsql.Query{}, err
		}
		msg = into.msg
	}
	q, err = w.schema().InsertQuery(wmsql.InsertQueryParams{Topic: topic, Msgs: message.Messages{msg}})
	return topic, q, err
}

// A caught is a publisher that keeps the last message.
type caught struct{ msg *message.Message }

func (c *caught) Publish(_ string, messages ...*message.Message) error {
	c.msg = messages[len(messages)-1]
	return nil
}
func (c *caught) Close() error { return nil }

// fill makes Watermill's tables, and puts n events into them, each in the form of its
// publisher and as if each had come in a transaction of its own.
func (w watermillSetting) fill(ctx context.Context, s *site, n int) error {
	if err := w.create(s.db); err != nil {
		return err
	}
	xid, err := burn(ctx, s.db, n)
	if err != nil {
		return err
	}
	rows := make(map[string][][]any) // by topic
	for i, at := 0, time.Now(); i < n; i++ {
		topic, q, err := w.insert(newEvent(i, at))
		if err != nil {
			return err
		}
		rows[topic] = append(rows[topic], append(q.Args, xid+uint64(i)))
	}
	columns := []string{"uuid", "payload", "metadata", "transaction_id"}
	if w.Queue {
		columns = columns[:3]
	}
	for topic, rows := range rows {
		table := "watermill_" + topic
		_, err := s.db.CopyFrom(ctx, pgx.Identifier{table}, columns,
			pgx.CopyFromSlice(len(rows), func(i int) ([]any, error) { return rows[i][:len(columns)], nil }))
		if err != nil {
			return err
		}
		if err := s.cleanUp(ctx, table); err != nil {
			return err
		}
	}
	return nil
}

// burn uses up n transaction ids, and returns the first.
func burn(ctx context.Context, db *pgxpool.Pool, n int) (first uint64, err error) {
	if err := db.QueryRow(ctx, `select pg_current_xact_id()`).Scan(&first); err != nil {
		return 0, err
	}
	_, err = db.Exec(ctx, fmt.Sprintf(`do $$ begin
		set synchronous_commit = off;
		for i in 1..%d loop perform pg_current_xact_id(); commit; end loop;
		reset synchronous_commit;
	end $$`, n))
	return first, err
}
