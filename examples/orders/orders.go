// Package orders is shared by the services of the examples: the event, and a server that
// pays orders. The services differ in how they pay an order.
package orders

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// Table creates the table of orders.
const Table = `create table if not exists orders (id text primary key, paid boolean not null default false)`

// Paid announces that an order was paid.
type Paid struct {
	OrderID string `json:"order_id"`
}

// EventType names the fact.
func (Paid) EventType() string { return "order.paid" }

// EventKey is the order: its events stay in order.
func (p Paid) EventKey() string { return p.OrderID }

// ErrNone is what a pay function returns for an order that does not exist.
var ErrNone = errors.New("no such order")

// DatabaseURL returns the URL of PostgreSQL, or ends the program.
func DatabaseURL() string {
	url := os.Getenv("DATABASE_URL")
	if url == "" {
		log.Fatal("DATABASE_URL is not set")
	}
	return url
}

// Serve answers POST /orders/{id}/pay on the address $ADDR until the process is stopped.
func Serve(pay func(ctx context.Context, id string) error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	mux := http.NewServeMux()
	mux.HandleFunc("POST /orders/{id}/pay", func(w http.ResponseWriter, r *http.Request) {
		switch err := pay(r.Context(), r.PathValue("id")); {
		case err == nil:
			w.WriteHeader(http.StatusNoContent)
		case errors.Is(err, ErrNone):
			http.Error(w, err.Error(), http.StatusNotFound)
		default:
			log.Print(err)
			http.Error(w, "not paid", http.StatusInternalServerError)
		}
	})
	listener, err := net.Listen("tcp", os.Getenv("ADDR"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("http://%s\n", listener.Addr())
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() {
		within, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if err := server.Shutdown(within); err != nil {
			log.Print(err)
		}
	})
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
}
