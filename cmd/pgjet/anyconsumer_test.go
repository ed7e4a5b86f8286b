package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

// shipping is a consumer that this binary does not contain. It refuses every order until it is
// repaired.
func shipping(mended *bool, types ...string) consumers.Consumer {
	var all []consumers.Typed
	for _, kind := range types {
		all = append(all, consumers.OnType(kind, func(context.Context, pgx.Tx, events.Event) error {
			if !*mended {
				return errors.New("no parcels left")
			}
			return nil
		}))
	}
	return consumers.Consumer{Name: "shipping", Handler: consumers.Handle(all...), Slices: 2, MaxAttempts: 1}
}

// startRunner runs a consumer in the test's own process, until stop is called.
func startRunner(t *testing.T, database string, js jetstream.JetStream, c consumers.Consumer) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &consumers.Runner{Consumer: c, DB: openDB(t, database), JS: js, Stream: "ORDERS", Prefix: "orders"}
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	return func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run() = %v", err)
		}
	}
}

// storeOrders stores events of a type in the stream.
func storeOrders(t *testing.T, js jetstream.JetStream, kind string, first, last int) {
	t.Helper()
	for n := first; n <= last; n++ {
		e, err := events.New(events.Event{Type: kind, Key: fmt.Sprint("order-", n), Data: []byte(`{}`)})
		if err != nil {
			t.Fatal(err)
		}
		e.Source, e.Seq, e.Time = "/orders", int64(n), time.Now()
		_, header, data := e.Message()
		if _, err := js.PublishMsg(t.Context(), &nats.Msg{Subject: events.SubjectsOf("orders").Of(e.Type, e.Key), Header: header, Data: data}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestVerbsOfAnyConsumer: all verbs work for a consumer that this binary does not contain.
func TestVerbsOfAnyConsumer(t *testing.T) {
	t.Parallel()
	database, server := testenv.DatabaseURL(t), testenv.NATS(t).URL()
	must(t, exitOK, strings.Fields("stream ensure --stream ORDERS --prefix orders --nats-url "+server)...)
	js := testenv.Connect(t, server)
	db := openDB(t, database)
	ensure := func(more string) []string {
		return strings.Fields("consumer ensure shipping --nats-url " + server + " --database-url " + database + " " + more)
	}
	refused(t, exitNotFound, ensure(""), `no consumer "shipping"`, "no process of any consumer has run yet")
	refused(t, exitNotFound, strings.Fields("consumer ensure shipping --nats-url "+server), `no consumer "shipping" in this pgjet`, "--database-url")

	mended := false
	stop := startRunner(t, database, js, shipping(&mended, "order.paid"))
	storeOrders(t, js, "order.paid", 1, 3)
	ends(t, exitFindings, asked("consumer ls", server), database, "3 dead letters for shipping -> pgjet dead groups --consumer shipping\n")
	ends(t, exitOK, "dead ls --consumer shipping", database, "order.paid", "no parcels left")
	ends(t, exitOK, "dead groups", database, "shipping")
	mended = true
	must(t, exitOK, words("dead redrive --consumer shipping --yes --wait", database)...)
	must(t, exitOK, words("consumer pause shipping --reason why", database)...)
	ends(t, exitFindings, asked("consumer get shipping", server), database, "paused", "why")
	must(t, exitOK, words("consumer resume shipping", database)...)
	must(t, exitOK, words(asked("replay shipping --all --again --yes --reason why", server), database)...)
	if n := query[int](t, db, `select count(*) from pgjet.inbox where consumer = 'shipping' and state = 'done'`); n != 3 {
		t.Errorf("%d events are done, want 3", n)
	}
	if out := must(t, exitOK, ensure("")...); out != "the 2 durable consumers of stream ORDERS, shipping-0of2 to shipping-1of2, are as they should be\n" {
		t.Errorf("ensure says %q", out)
	}
	stop()

	// Without any process, the database still describes the durable consumers.
	var before []jetstream.ConsumerConfig
	for _, name := range inbox.Durables("shipping", 2) {
		c, err := js.Consumer(t.Context(), "ORDERS", name)
		if err != nil {
			t.Fatal(err)
		}
		before = append(before, c.CachedInfo().Config)
		if err := js.DeleteConsumer(t.Context(), "ORDERS", name); err != nil {
			t.Fatal(err)
		}
	}
	ends(t, exitFindings, asked("consumer get shipping", server), database, "consumer_missing", "-> pgjet consumer ensure shipping --stream ORDERS --prefix orders\n")
	refused(t, exitFindings, ensure("--dry-run"), "is missing, nothing was changed")
	if out := must(t, exitOK, ensure("")...); out != "created 2 of the 2 durable consumers of stream ORDERS, shipping-0of2 to shipping-1of2\n" {
		t.Errorf("ensure says %q", out)
	}
	for _, want := range before {
		c, err := js.Consumer(t.Context(), "ORDERS", want.Durable)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.CachedInfo().Config.FilterSubjects; !slices.Equal(got, want.FilterSubjects) {
			t.Errorf("%s brings %v, want %v", want.Durable, got, want.FilterSubjects)
		}
	}

	// A new version needs more types, and an operator adds them.
	storeOrders(t, js, "order.returned", 4, 5)
	stop = startRunner(t, database, js, shipping(&mended, "order.paid", "order.returned"))
	defer stop()
	ends(t, exitFindings, asked("consumer get shipping", server), database, "consumer_differs", "-> pgjet consumer ensure shipping --stream ORDERS --prefix orders\n")
	refused(t, exitFindings, ensure(""), "to add order.returned: pgjet consumer ensure shipping --apply")
	if out := must(t, exitOK, ensure("--apply")...); !strings.Contains(out, "added order.returned to durable consumer shipping of stream ORDERS\nthe stream held 2 events already") {
		t.Errorf("ensure --apply says %q", out)
	}
	testenv.Eventually(t, patience, "the new type is handled", func() bool {
		return query[int](t, db, `select count(*) from pgjet.inbox where consumer = 'shipping' and state = 'done'`) == 5
	})
}
