package verbs_test

import (
	"context"
	"os"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/cmd/verbs"
	"github.com/pgjet/pgjet/consumers"
)

// A service's program with the command shop consumer ensure.
func Example() {
	root := &cobra.Command{Use: "shop"}
	root.AddCommand(verbs.Consumer(verbs.Settings{
		Consumers: []consumers.Consumer{shipping("order.paid")},
		Connect: func(ctx context.Context) (*pgxpool.Pool, jetstream.JetStream, error) {
			nc, err := nats.Connect(os.Getenv("NATS_URL"))
			if err != nil {
				return nil, nil, err
			}
			js, err := jetstream.New(nc)
			if err != nil {
				return nil, nil, err
			}
			db, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
			return db, js, err
		},
	}))
	if root.Execute() != nil {
		os.Exit(1)
	}
}
