package main

import (
	"context"
	"encoding/json"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/relay"
)

// pgjetConfig says what the part "pgjet" relays.
type pgjetConfig struct {
	DSN     string `json:"dsn"`
	NATSURL string `json:"nats_url"`
	Stream  string `json:"stream"`
}

func init() { registerChild("pgjet", relayPgjet) }

// relayPgjet is a relay of pgjet.
func relayPgjet(ctx context.Context, config []byte) error {
	var c pgjetConfig
	if err := json.Unmarshal(config, &c); err != nil {
		return err
	}
	database, err := pgx.ParseConfig(c.DSN)
	if err != nil {
		return err
	}
	r := &relay.Relay{Database: database, NATSURL: c.NATSURL, Stream: c.Stream, Source: "/users"}
	return r.Run(ctx)
}
