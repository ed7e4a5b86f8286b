package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	naiveBatch = 100
	naivePoll  = 100 * time.Millisecond
)

// naiveTable is the outbox of blog posts, with the index that the better ones have.
const naiveTable = `
	create table naive_outbox (
		id           bigint generated always as identity primary key,
		event_id     uuid not null,
		subject      text not null,
		headers      json not null,
		payload      json not null,
		published_at timestamptz
	);
	create index on naive_outbox (id) where published_at is null`

// A naiveRow is an unpublished event.
type naiveRow struct {
	ID      int64
	EventID string
	Subject string
	Headers []byte
	Payload []byte
}

// runNaive is the child "naive": the relay of blog posts. It locks a hundred rows with
// SKIP LOCKED, publishes each and waits for its ack, marks each, and commits.
func runNaive(ctx context.Context, config []byte) error {
	var c pgjetConfig
	if err := json.Unmarshal(config, &c); err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	db, err := pgx.Connect(ctx, c.DSN)
	if err != nil {
		return err
	}
	defer db.Close(context.WithoutCancel(ctx))
	js, err := dialJetStream(c.NATSURL)
	if err != nil {
		return err
	}
	defer js.Conn().Close()
	for ctx.Err() == nil {
		n := 0
		err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) (err error) {
			n, err = naiveStep(ctx, tx, js)
			return err
		})
		if err != nil && ctx.Err() == nil {
			return err
		}
		if n < naiveBatch {
			select {
			case <-time.After(naivePoll):
			case <-ctx.Done():
			}
		}
	}
	return nil
}

// naiveStep publishes up to a hundred events, and returns how many.
func naiveStep(ctx context.Context, tx pgx.Tx, js jetstream.JetStream) (int, error) {
	rows, err := tx.Query(ctx, `
		select id, event_id, subject, headers, payload from naive_outbox
		 where published_at is null order by id limit $1 for update skip locked`, naiveBatch)
	if err != nil {
		return 0, err
	}
	batch, err := pgx.CollectRows(rows, pgx.RowToStructByPos[naiveRow])
	if err != nil {
		return 0, err
	}
	for _, r := range batch {
		msg := nats.NewMsg(r.Subject)
		msg.Data = r.Payload
		var headers map[string]string
		if err := json.Unmarshal(r.Headers, &headers); err != nil {
			return 0, err
		}
		for name, value := range headers {
			msg.Header[name] = []string{value}
		}
		if _, err := js.PublishMsg(ctx, msg, jetstream.WithMsgID(r.EventID)); err != nil {
			return 0, err
		}
		if _, err := tx.Exec(ctx, `update naive_outbox set published_at = now() where id = $1`, r.ID); err != nil {
			return 0, err
		}
	}
	return len(batch), nil
}
