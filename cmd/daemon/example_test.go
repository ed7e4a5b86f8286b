package daemon_test

import (
	"context"
	"log"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/cmd/daemon"
	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
)

// A program that runs a consumer as a process which pgjet services ls shows.
func Example() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	db, err := pgxpool.New(ctx, "postgres://shipping@db.example/app?pool_max_conns=12")
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	nc, err := nats.Connect("nats://nats.example", nats.MaxReconnects(-1))
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		log.Fatal(err)
	}
	shipping := consumers.Consumer{Name: "shipping", Handler: consumers.Handle(consumers.OnType("order.paid",
		func(context.Context, pgx.Tx, events.Event) error { return nil }))}
	runner := consumers.Runner{Consumer: shipping, DB: db, JS: js, Log: slog.Default()}

	p := daemon.Process{Name: "shipping", Addr: ":7404", NATS: nc, Log: slog.Default()}
	if err := p.Run(ctx, daemon.Of("shipping", &runner)); err != nil {
		log.Fatal(err)
	}
}
