package daemon_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/cmd/daemon"
	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/pgjettest"
)

// OrderPaid is an event of yours.
type OrderPaid struct {
	OrderID string `json:"order_id"`
}

func (OrderPaid) EventType() string  { return "order.paid" }
func (e OrderPaid) EventKey() string { return e.OrderID }

// A program runs a consumer as a process which pgjet services ls shows, and which ends when ctx does.
func Example() {
	shipping := consumers.Consumer{Name: "shipping", Handler: consumers.Handle(consumers.On(
		func(ctx context.Context, tx pgx.Tx, e events.Event, paid OrderPaid) error {
			_, err := tx.Exec(ctx, `insert into parcels (order_id) values ($1)`, paid.OrderID)
			return err
		}))}
	pgjettest.Example(func(t testing.TB) { // in a program: db and js are its own, and ctx is signal.NotifyContext's
		path := pgjettest.Start(t, `create table parcels (order_id text not null)`)
		ctx, stop := context.WithCancel(t.Context())
		runner := consumers.Runner{Consumer: shipping, DB: path.DB, JS: path.JS, Log: slog.Default()}
		p := daemon.Process{Name: "shipping", Addr: "127.0.0.1:0", NATS: path.JS.Conn()} // in a program: Addr: ":7404"
		ended := make(chan error)
		go func() { ended <- p.Run(ctx, daemon.Of("shipping", &runner)) }()

		path.Append(OrderPaid{OrderID: "o-17"})
		path.RequireDone("shipping", pgjettest.RequireAppended[OrderPaid](t, path.DB)[0].ID)
		stop()
		fmt.Println(<-ended)
	})
	// Output: <nil>
}

// The pages of a service are a part of its process, beside its consumers.
func ExamplePart() {
	listener, err := net.Listen("tcp", "127.0.0.1:0") // in a program: ":8080"
	if err != nil {
		fmt.Println(err)
		return
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "Welcome to the shop.") })}
	pages := daemon.Part{Name: "pages", Run: func(ctx context.Context) error {
		shut := make(chan error)
		context.AfterFunc(ctx, func() { shut <- server.Shutdown(context.WithoutCancel(ctx)) })
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return <-shut // requests that have begun are answered
	}}
	ctx, stop := context.WithCancel(context.Background()) // in a program: signal.NotifyContext
	defer stop()
	p := daemon.Process{Name: "shop", Addr: "127.0.0.1:0"}
	ended := make(chan error)
	go func() { ended <- p.Run(ctx, pages) }()

	resp, err := http.Get("http://" + listener.Addr().String())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	fmt.Println(string(page), err)
	stop()
	fmt.Println(<-ended)
	// Output:
	// Welcome to the shop. <nil>
	// <nil>
}
