package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/console"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/supervisor"
	"github.com/pgjet/pgjet/internal/web"
)

// consoleFlags holds the flags of pgjet console.
type consoleFlags struct {
	listen     string
	also       []string
	host       string
	readOnly   bool
	tokenFile  string
	userHeader string
	proxies    []string
}

func consoleCommand() *cobra.Command {
	var s settings
	var c consoleFlags
	cmd := &cobra.Command{
		Use:   "console",
		Short: "Serve the web page for operators: what is wrong, what happened to an event, and how to correct it",
		Long: `Serve the web page for operators: what is wrong, what happened to an event, and how to
correct it. The database decides what it may change: with the rights of pgjet_operator what
the other commands change, with read access only, nothing.

It listens on this machine only. A public address needs --token-file, or --user-header
behind a proxy that names the user. pgjet dev includes it.`,
		Example: `  pgjet console --database-url postgres://operator@host/shop --nats-url nats://host
  pgjet console --listen :7409 --token-file console.token
  pgjet console --database-url postgres://operator@host/shop --also billing=postgres://operator@host/billing`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.serveConsole(cmd.Context(), c, newLogger(cmd.ErrOrStderr(), slog.LevelInfo))
		},
	}
	f := cmd.Flags()
	s.databaseFlag(f)
	s.natsFlags(f)
	f.StringVar(&c.listen, "listen", "127.0.0.1:7409", "where to serve it")
	f.StringArrayVar(&c.also, "also", nil, "a further database to show, as NAME=URL, such as billing=postgres://operator@host/billing; may be given several times")
	f.StringVar(&c.host, "host", "", "a further Host that it accepts on a loopback address, such as one that a proxy passes on")
	f.BoolVar(&c.readOnly, "read-only", false, "change nothing, whatever the database allows")
	f.StringVar(&c.tokenFile, "token-file", "", "file with the token that every user needs, 16 characters or more")
	f.StringVar(&c.userHeader, "user-header", "", "header in which a proxy names the user, such as X-Forwarded-User; changes are recorded with it")
	f.StringSliceVar(&c.proxies, "user-proxies", []string{"127.0.0.0/8", "::1"}, "networks of the proxies that may set that header")
	return cmd
}

// serveConsole serves a console until ctx ends.
func (s *settings) serveConsole(ctx context.Context, f consoleFlags, log *slog.Logger) error {
	db, err := s.consolePool(ctx)
	if err != nil {
		return err
	}
	defer postgres.Close(db)
	nc, js, err := s.connectNATS("pgjet-console", log, nats.CustomInboxPrefix(inboxPrefix("operator")))
	if err != nil {
		return err
	}
	defer nc.Close()
	config := console.Config{DB: db, NATS: nc, JS: js, Stream: s.stream, ReadOnly: f.readOnly, Own: isOwnConsumer, Log: log}
	closeOthers, err := s.addDatabases(ctx, &config, f.also)
	defer closeOthers()
	if err != nil {
		return err
	}
	if f.host != "" {
		config.Hosts = []string{strings.ToLower(f.host)}
	}
	c := console.New(config)
	h, err := f.authenticate(c)
	if err != nil {
		return err
	}
	l, err := listen("the console", f.listen, "--listen")
	if err != nil {
		return err
	}
	if web.Public(l.Addr()) && f.tokenFile == "" && f.userHeader == "" {
		l.Close()
		return usagef("--listen is %s, which other machines can reach, and the console has no authentication: set --token-file or --user-header, or listen on 127.0.0.1", f.listen)
	}
	log.InfoContext(ctx, "serving the console", "addr", "http://"+l.Addr().String())
	p := consolePart(c, l, web.Connections(1), h, log)
	return p.Run(ctx)
}

// addDatabases adds further databases to a console. Their relays publish to the same NATS.
func (s *settings) addDatabases(ctx context.Context, config *console.Config, also []string) (closeAll func(), err error) {
	closeAll = func() {
		for _, d := range config.Also {
			postgres.Close(d.DB)
		}
	}
	for _, one := range also {
		name, address, found := strings.Cut(one, "=")
		if !found || name == "" || strings.ContainsAny(name, ":/") {
			return closeAll, usagef("--also is not of the form NAME=URL, such as billing=postgres://operator@host/billing")
		}
		other, err := s.parseDatabase("--also "+name, address)
		if err != nil {
			return closeAll, err
		}
		db, err := openConsolePool(ctx, other)
		if err != nil {
			return closeAll, fmt.Errorf("--also %s: %w", name, err)
		}
		config.Also = append(config.Also, console.Database{Name: name, DB: db, NATS: config.NATS, JS: config.JS, Stream: s.stream})
	}
	return closeAll, nil
}

// consolePart returns the part that serves a console, and ends its live pages.
func consolePart(c *console.Console, l net.Listener, connections int, h http.Handler, log *slog.Logger) part {
	p := supervisor.Serve("console", l, connections, h, log)
	serve := p.Run
	p.Run = func(ctx context.Context) error {
		defer c.Close()
		defer context.AfterFunc(ctx, c.Close)()
		return serve(ctx)
	}
	return p
}

// isOwnConsumer reports whether this program can run a consumer.
func isOwnConsumer(name string) bool { return ownConsumers[name] != nil }

// consolePool returns a pool of few connections with bounded statements, so that a console never
// slows services down.
func (s *settings) consolePool(ctx context.Context) (*pgxpool.Pool, error) {
	config, err := s.databaseConfig()
	if err != nil {
		return nil, err
	}
	return openConsolePool(ctx, config)
}

func openConsolePool(ctx context.Context, config *pgxpool.Config) (*pgxpool.Pool, error) {
	config.ConnConfig.RuntimeParams["application_name"] = "pgjet-console"
	config.MaxConns = 6
	return postgres.Open(ctx, config, lockTime, postgres.Setting{Name: "statement_timeout", Value: "10s"})
}

// authenticate returns c behind the authentication that the flags ask for, if any.
func (f consoleFlags) authenticate(c *console.Console) (http.Handler, error) {
	switch {
	case f.tokenFile != "" && f.userHeader != "":
		return nil, usagef("--token-file and --user-header are both given: want one of them")
	case f.tokenFile != "":
		token, err := os.ReadFile(f.tokenFile)
		if err != nil {
			return nil, usagef("--token-file: %w", err)
		}
		const least = 16
		text := strings.TrimSpace(string(token))
		if len(text) < least {
			return nil, usagef("--token-file: the token has %d characters, want %d or more", len(text), least)
		}
		return c.Token(text), nil
	case f.userHeader != "":
		networks, err := parseNetworks(f.proxies)
		if err != nil {
			return nil, usagef("--user-proxies: %w", err)
		}
		return c.Header(f.userHeader, networks), nil
	}
	return c, nil
}

func consoleURL(addr string) string { return fmt.Sprintf("http://%s/", addr) }
