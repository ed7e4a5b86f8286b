package verbs_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/cmd/verbs"
	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/relay"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// shipping is a consumer of another program.
func shipping(types ...string) consumers.Consumer {
	var all []consumers.Typed
	for _, kind := range types {
		all = append(all, consumers.OnType(kind, func(context.Context, pgx.Tx, events.Event) error { return nil }))
	}
	return consumers.Consumer{Name: "shipping", Slices: 2, Handler: consumers.Handle(all...)}
}

// TestEnsure: another program creates the durable consumers of its consumers, compares them, and
// adds types.
func TestEnsure(t *testing.T) {
	database := testenv.DatabaseURL(t)
	js, server := testenv.JetStream(t)
	connect := func(ctx context.Context) (*pgxpool.Pool, jetstream.JetStream, error) {
		db, err := pgxpool.New(ctx, database)
		return db, testenv.Connect(t, server), err
	}
	shop := func(c consumers.Consumer, words string) (out string, code int, err error) {
		t.Helper()
		root := &cobra.Command{Use: "shop", SilenceErrors: true, SilenceUsage: true}
		root.AddCommand(verbs.Consumer(verbs.Settings{Consumers: []consumers.Consumer{c}, Stream: "ORDERS", Prefix: "orders", Connect: connect}))
		var text bytes.Buffer
		root.SetOut(&text)
		root.SetArgs(strings.Fields(words))
		err = root.ExecuteContext(t.Context())
		if exit, ok := errors.AsType[interface {
			error
			ExitCode() int
		}](err); ok {
			code = exit.ExitCode()
		}
		return text.String(), code, err
	}
	says := func(c consumers.Consumer, words string, want int, says string) {
		t.Helper()
		out, code, err := shop(c, words)
		if err != nil {
			out += err.Error()
		}
		if code != want || !strings.Contains(out, says) {
			t.Errorf("shop %s ends with code %d and %q, want %d and %q", words, code, out, want, says)
		}
	}
	one, both := shipping("order.paid"), shipping("order.paid", "order.returned")
	says(one, "consumer", 0, "ensure")
	says(one, "consumer ensure", 4, "stream_missing: stream ORDERS does not exist; no stream exists; run: pgjet stream ensure --stream ORDERS --prefix orders")
	config := relay.StreamConfig("ORDERS", 1)
	config.Subjects = []string{"orders.>"}
	if _, err := js.CreateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	says(one, "consumer ensure billing", 4, `no consumer "billing" in this program`)
	says(one, "consumer ensure shipping --dry-run", 6, "shipping-0of2 of stream ORDERS is missing, nothing was changed")
	says(one, "consumer ensure", 0, "created 2 of the 2 durable consumers of stream ORDERS, shipping-0of2 to shipping-1of2\n")
	says(one, "consumer ensure shipping", 0, "the 2 durable consumers of stream ORDERS, shipping-0of2 to shipping-1of2, are as they should be\n")
	says(both, "consumer ensure", 6, "to add order.returned: shop consumer ensure shipping --apply")
	says(both, "consumer ensure --apply --dry-run", 0, "say one of them")
	says(both, "consumer ensure --apply", 0, "added order.returned to durable consumer shipping of stream ORDERS\nthe 2 durable consumers")

	consumer, err := js.Consumer(t.Context(), "ORDERS", "shipping-1of2")
	if err != nil {
		t.Fatal(err)
	}
	if c := consumer.CachedInfo().Config; len(c.FilterSubjects) != 64 || !strings.HasPrefix(c.FilterSubjects[0], "orders.") || len(c.Metadata) == 0 {
		t.Errorf("the durable consumer is %v, want it to bring two types of half the keys, and to name the database", c)
	}
}
