package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/telemetry"
	"github.com/pgjet/pgjet/relay"
)

// A pgjetConfig is the configuration of the part "pgjet".
type pgjetConfig struct {
	DSN     string `json:"dsn"`
	NATSURL string `json:"nats_url"`
	Stream  string `json:"stream"`
}

// relayPgjet runs the same relay as `pgjet relay`, with the same telemetry, which is not
// collected.
func relayPgjet(ctx context.Context, config []byte) error {
	var c pgjetConfig
	if err := json.Unmarshal(config, &c); err != nil {
		return err
	}
	tel, err := telemetry.Start(ctx, "pgjet-relay", "bench")
	if err != nil {
		return err
	}
	defer func() { _ = tel.Stop(ctx) }()
	database, err := pgx.ParseConfig(c.DSN)
	if err != nil {
		return err
	}
	r := &relay.Relay{
		Database: database, NATSURL: c.NATSURL, Stream: c.Stream, Source: eventSource,
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	return r.Run(ctx)
}
