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

// consume measures how fast events are handled whose effect is a row.
func consume(o options) scenario {
	few, many := orQuick(o, 20_000, 8_000), orQuick(o, 100_000, 40_000)
	return scenario{
		name: "consume", title: "Handling events whose effect is a row",
		note: fmt.Sprintf("The stream, or River's table, is filled before. The time runs from the first event that a handler gets to the commit of the last."+
			" Each has %d connections. pgjet single is a transaction for each event, with its inbox row and the handler's insert, by %d workers;"+
			" in batches, one for each 500, the handler inserts 500 rows by one statement, by 2 workers."+
			" Two inserts is the same transaction without a queue: begin, insert, insert, commit. Raw consume acknowledges each message and has no database."+
			" River works jobs that do nothing, with its default settings, and tuned: 1000 workers, FetchCooldown 1 ms;"+
			" inserted and worked: its process inserts 5000 at a time meanwhile;"+
			" the last inserts a row and completes its job in one transaction, by 64 workers. Its batch completer is on in all of them.", consumeConns, consumeConns-2),
		variants: []variant{
			consuming("limit: two inserts in a transaction", none, "two-inserts", few),
			consuming("pgjet single, ordered", lazy, "ordered", few),
			consuming("pgjet single, ordered", durable, "ordered", few).once(),
			consuming("pgjet single, unordered", lazy, "unordered", few),
			consuming("pgjet batches", lazy, "batch", many),
			consuming("pgjet batches", durable, "batch", many/4).once(),
			consuming("limit: raw consume", lazy, "raw", many),
			consuming("River default, no-op", none, "river", orQuick(o, 5_000, 2_000)).once(),
			consuming("River tuned, no-op", none, "river-tuned", many/2),
			consuming("River tuned, no-op, inserted and worked", none, "river-both", many/2).once(),
			consuming("River tuned, a row", none, "river-row", few).once(),
		},
	}
}

// A consuming part is told where the events are, and how to handle them.
type consumeConfig struct {
	DSN     string `json:"dsn"`
	NATSURL string `json:"nats_url"`
	Form    string `json:"form"`
	Events  int    `json:"events"`
}

// consuming returns the variant in which the part "consume" handles n events.
func consuming(name string, on server, form string, n int) variant {
	v := variant{name: name, server: on, base: form == "two-inserts"}
	v.run = func(ctx context.Context, l *lab) (result, error) {
		s, err := l.site(ctx, on)
		if err != nil {
			return result{}, err
		}
		defer s.close()
		if err := s.fillConsume(ctx, form, n); err != nil {
			return result{}, err
		}
		return s.consumed(ctx, form, n)
	}
	return v
}

// fillConsume makes what the handlers of a form need, and n events for them.
func (s *site) fillConsume(ctx context.Context, form string, n int) error {
	_, err := s.db.Exec(ctx, `
		create table effect (id uuid not null, n bigint not null, name text not null);
		create table inserted (consumer text, id uuid, n bigint not null, at timestamptz not null default clock_timestamp(), primary key (consumer, id))`)
	if err != nil {
		return err
	}
	if s.js != nil {
		messages := make([]*nats.Msg, n)
		for i := range messages {
			e := newEvent(i+1, time.Now())
			e.Seq = int64(i + 1)
			subject, header, body := e.Message()
			messages[i] = &nats.Msg{Subject: subject, Header: header, Data: body}
		}
		js, err := jetstream.New(s.js.Conn(), jetstream.WithPublishAsyncMaxPending(4096))
		if err != nil {
			return err
		}
		if err := publishAll(ctx, js, messages); err != nil {
			return err
		}
	} else if f, river := rivers[form]; river {
		if err := s.fillRiver(ctx, f, n); err != nil {
			return err
		}
	}
	_, err = s.db.Exec(ctx, `checkpoint`)
	return err
}

// consumed starts the part, and measures until n events are handled.
func (s *site) consumed(ctx context.Context, form string, n int) (result, error) {
	c, err := s.start(ctx, "consume", consumeConfig{s.dsn, s.natsURL, form, n})
	if err != nil {
		return result{}, err
	}
	if _, err := c.line(ctx); err != nil { // the first
		return result{}, err
	}
	m, began := s.meter(c), time.Now()
	if _, err := c.line(ctx); err != nil { // the last
		return result{}, err
	}
	if err := s.committed(ctx, form, n); err != nil {
		return result{}, err
	}
	took := time.Since(began)
	values := m.values(n)
	values[0].name = "handler CPU"
	return result{values: append([]value{{"events", "/s", float64(n) / took.Seconds()}}, values...)}, nil
}

// committed waits until all effects of a form are in the database, and checks that there
// is one for each event.
func (s *site) committed(ctx context.Context, form string, n int) error {
	count := `select count(*), count(distinct id) from effect`
	if form == "raw" {
		return nil
	}
	if f, river := rivers[form]; river && !f.row {
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
