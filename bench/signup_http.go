package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
	_ "unsafe" // for linkname

	"github.com/alexedwards/argon2id"
	"github.com/exaring/otelpgx"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/auth"
	"github.com/pgjet/pgjet/internal/telemetry"
	"github.com/pgjet/pgjet/producer"
)

// A usersConfig is the configuration of the part "users".
type usersConfig struct {
	DSN      string `json:"dsn"`
	RealHash bool   `json:"real_hash"`
}

// hashParams are the parameters of the user service, which must not be configurable there.
//
//go:linkname hashParams github.com/pgjet/pgjet/producer.hashParams
var hashParams argon2id.Params

// serveUsers runs the user service, and prints its address.
func serveUsers(ctx context.Context, config []byte) error {
	var c usersConfig
	if err := json.Unmarshal(config, &c); err != nil {
		return err
	}
	tuning := producer.DefaultTuning()
	tuning.PerAddress, tuning.PerAccount, tuning.HashWait = 0, 0, 10*time.Second
	tuning.RemindAfter = 0 // this is the price of one event, not of two
	if !c.RealHash {
		hashParams.Memory, hashParams.Iterations = 8, 1
		tuning.Hashes = signUpClients
	}
	t, err := telemetry.Start(ctx, "pgjet-users", "bench")
	if err != nil {
		return err
	}
	defer func() { _ = t.Stop(ctx) }()
	database, err := pgxpool.ParseConfig(c.DSN)
	if err != nil {
		return err
	}
	database.MaxConns = connections
	database.ConnConfig.Tracer = otelpgx.NewTracer() // as pgjet users has it
	db, err := pgxpool.NewWithConfig(ctx, database)
	if err != nil {
		return err
	}
	defer db.Close()
	issuer, err := auth.Generate()
	if err != nil {
		return err
	}
	api := producer.New(db, issuer, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	defer api.Close()
	api.Tune(tuning)
	return serveOn(ctx, api)
}

// serveOn serves h at an address of its own, which it prints, until ctx ends.
func serveOn(ctx context.Context, h http.Handler) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: time.Second}
	defer context.AfterFunc(ctx, func() { _ = srv.Close() })()
	fmt.Println("http://" + l.Addr().String())
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// signUpRequests measures sign-ups at two user services: one whose database discards the
// events, and a normal one.
func signUpRequests(name string, d time.Duration, realHash bool) variant {
	n := signUpClients
	if realHash {
		n = realSignUpClients
	}
	return variant{name: name, group: "requests", run: func(ctx context.Context, l *lab) (result, error) {
		var sides [2]*side
		var sites [2]*site
		for i := range sides {
			s, err := signUpSite(ctx, l)
			if err != nil {
				return result{}, err
			}
			defer s.close()
			if i == 0 {
				if _, err := s.db.Exec(ctx, `create rule away as on insert to pgjet.outbox do instead nothing`); err != nil {
					return result{}, err
				}
			}
			c, err := s.start(ctx, "users", usersConfig{s.dsn, realHash})
			if err != nil {
				return result{}, err
			}
			url, err := c.line(ctx)
			if err != nil {
				return result{}, err
			}
			client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: n}}
			defer client.CloseIdleConnections()
			sites[i], sides[i] = s, &side{lab: l, clients: n, service: c.usage, do: func(ctx context.Context) error { return postUser(ctx, client, url) }}
		}
		if err := takeTurns(ctx, d, d/8, sides[0], sides[1]); err != nil {
			return result{}, err
		}
		err := errors.Join(sites[0].wantSignedUp(ctx, sides[0].all, 0), sites[1].wantSignedUp(ctx, sides[1].all, sides[1].all))
		return price(sides[0], sides[1]), err
	}}
}

// postUser sends a sign-up.
func postUser(ctx context.Context, client *http.Client, url string) error {
	body := fmt.Sprintf(`{"email":"%s@example.com","name":"Some Name","password":"correct horse battery staple"}`, uuid.New())
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/users", strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusCreated {
		err = fmt.Errorf("sign up: %s: %s", res.Status, answer)
	}
	return err
}
