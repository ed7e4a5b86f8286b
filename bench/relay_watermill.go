package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wmnats "github.com/ThreeDotsLabs/watermill-nats/v2/pkg/nats"
	wmsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/pgjet/pgjet/events"
)

// A watermillConfig configures Watermill. Except for the connections, its zero value is the
// setting of the documentation.
type watermillConfig struct {
	pgjetConfig
	watermillSetting
}

// A watermillSetting is one way to tune it.
type watermillSetting struct {
	Batch  int           `json:"batch"`  // SubscribeBatchSize; 0: its default, 100
	Poll   time.Duration `json:"poll"`   // PollInterval; 0: its default, 1 s
	Shards int           `json:"shards"` // topics with a forwarder each; 0 is 1
	// Envelope selects the Forwarder component, as the documentation shows it, which wraps
	// each message in JSON. Otherwise a handler publishes the message as it is. That is
	// faster, and possible wherever the subject follows from the message.
	Envelope bool `json:"envelope"`
	// Queue selects the queue schema, which deletes published rows. It has no consumer
	// groups.
	Queue bool `json:"queue"`
	// OneConn makes all shards publish on one connection.
	OneConn bool `json:"one_conn"`
}

func (w watermillSetting) topics() []string {
	topics := make([]string, max(w.Shards, 1))
	for i := range topics {
		topics[i] = fmt.Sprintf("events_%d", i)
	}
	return topics
}

func (w watermillSetting) schema() wmsql.SchemaAdapter {
	if w.Queue {
		return wmsql.PostgreSQLQueueSchema{SubscribeBatchSize: w.Batch}
	}
	return wmsql.DefaultPostgreSQLSchema{SubscribeBatchSize: w.Batch}
}

func (w watermillSetting) offsets() wmsql.OffsetsAdapter {
	if w.Queue {
		return wmsql.PostgreSQLQueueOffsetsAdapter{DeleteOnAck: true}
	}
	return wmsql.DefaultPostgreSQLOffsetsAdapter{}
}

func (w watermillSetting) subscriber(db *pgxpool.Pool) (*wmsql.Subscriber, error) {
	return wmsql.NewSubscriber(wmsql.BeginnerFromPgx(db), wmsql.SubscriberConfig{
		SchemaAdapter: w.schema(), OffsetsAdapter: w.offsets(),
		PollInterval: w.Poll, InitializeSchema: true,
	}, watermill.NopLogger{})
}

// runWatermill is the child "watermill": watermill-sql's subscriber on PostgreSQL and
// watermill-nats' publisher, with the settings that its documentation requires to store a
// message once.
func runWatermill(ctx context.Context, config []byte) error {
	var c watermillConfig
	if err := json.Unmarshal(config, &c); err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	pool, err := pgxpool.ParseConfig(c.DSN)
	if err != nil {
		return err
	}
	pool.MaxConns = int32(len(c.topics()) + 2)
	db, err := pgxpool.NewWithConfig(ctx, pool)
	if err != nil {
		return err
	}
	defer db.Close()
	var publisher *wmnats.Publisher
	g, ctx := errgroup.WithContext(ctx)
	for _, topic := range c.topics() {
		if publisher == nil || !c.OneConn {
			if publisher, err = watermillPublisher(c.NATSURL); err != nil {
				return err
			}
			defer publisher.Close()
		}
		router, err := c.router(db, topic, publisher)
		if err != nil {
			return err
		}
		g.Go(func() error { return router.Run(ctx) })
	}
	return g.Wait()
}

func watermillPublisher(url string) (*wmnats.Publisher, error) {
	return wmnats.NewPublisher(wmnats.PublisherConfig{
		URL:         url,
		NatsOptions: []nats.Option{nats.Name("watermill")},
		Marshaler:   &wmnats.NATSMarshaler{},
		JetStream:   wmnats.JetStreamConfig{TrackMsgId: true},
	}, watermill.NopLogger{})
}

// router returns a router that moves the messages of one topic.
func (w watermillSetting) router(db *pgxpool.Pool, topic string, publisher message.Publisher) (*message.Router, error) {
	subscriber, err := w.subscriber(db)
	if err != nil {
		return nil, err
	}
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	if err != nil {
		return nil, err
	}
	if w.Envelope {
		_, err := forwarder.NewForwarder(subscriber, publisher, watermill.NopLogger{},
			forwarder.Config{ForwarderTopic: topic, Router: router})
		return router, err
	}
	router.AddConsumerHandler("forward", topic, subscriber, func(msg *message.Message) error {
		return publisher.Publish(events.Subject(msg.Metadata["ce-type"], msg.Metadata["ce-subject"]), msg)
	})
	return router, nil
}
