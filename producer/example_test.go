package producer_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/auth"
	"github.com/pgjet/pgjet/producer"
)

// A program that is the user service, and needs no NATS.
func ExampleNew() {
	db, err := pgxpool.New(context.Background(), os.Getenv("DATABASE_URL"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	defer db.Close()
	issuer, err := auth.Generate() // its tokens end with the program
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	srv := &http.Server{
		Addr:              "127.0.0.1:8080",
		Handler:           producer.New(db, issuer, slog.Default()),
		ReadHeaderTimeout: 5 * time.Second,
	}
	fmt.Fprintln(os.Stderr, srv.ListenAndServe())
}
