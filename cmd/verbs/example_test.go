package verbs_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/cmd/verbs"
	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/pgjettest"
)

// The program of a service, shop, has the verb shop consumer ensure.
func Example() {
	shipping := consumers.Consumer{Name: "shipping", Slices: 2, Handler: consumers.Handle(consumers.OnType("order.paid",
		func(context.Context, pgx.Tx, events.Event) error { return nil }))}
	program := func(databaseURL, natsURL string) *cobra.Command {
		root := &cobra.Command{Use: "shop"}
		root.AddCommand(verbs.Consumer(verbs.Settings{
			Consumers: []consumers.Consumer{shipping},
			Connect: func(ctx context.Context) (*pgxpool.Pool, jetstream.JetStream, error) {
				nc, err := nats.Connect(natsURL)
				if err != nil {
					return nil, nil, err
				}
				js, err := jetstream.New(nc)
				if err != nil {
					return nil, nil, err
				}
				db, err := pgxpool.New(ctx, databaseURL)
				return db, js, err
			},
		}))
		return root
	}
	pgjettest.Example(func(t testing.TB) { // in main: the addresses are those of DATABASE_URL and NATS_URL
		path := pgjettest.Start(t)
		for range 2 {
			shop := program(path.DatabaseURL, path.NATSURL)
			shop.SetArgs([]string{"consumer", "ensure", "shipping"}) // in main: those of the command line
			shop.SetOut(os.Stdout)
			if err := shop.Execute(); err != nil {
				fmt.Println(err)
			}
		}
	})
	// Output:
	// created 2 of the 2 durable consumers of stream EVENTS, shipping-0of2 to shipping-1of2
	// the 2 durable consumers of stream EVENTS, shipping-0of2 to shipping-1of2, are as they should be
}
