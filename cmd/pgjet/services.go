package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/consumers/mailer"
	"github.com/pgjet/pgjet/outbox/hint"
	"github.com/pgjet/pgjet/producer"
)

func usersCommand() *cobra.Command {
	var s settings
	cmd := &cobra.Command{
		Use:   "users",
		Short: "Serve the user service's HTTP API",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, log := cmd.Context(), newLogger(cmd.ErrOrStderr(), s.logLevel)
			db, err := s.pool(ctx, "pgjet-users")
			if err != nil {
				return err
			}
			defer db.Close()
			l, err := listen("users", s.addr, "--addr")
			if err != nil {
				return err
			}
			api := producer.New(db, log)
			if s.natsURL != "" {
				nc, err := s.connectHints(log)
				if err != nil {
					return err
				}
				defer nc.Close()
				api.Committed = hint.New(nc, s.stream).Committed
			}
			log.InfoContext(ctx, "serving the API", "addr", "http://"+l.Addr().String())
			return s.serve(ctx, log, "pgjet-users", serveHTTP("users", l, api, log), watchDatabase(db, log))
		},
	}
	f := cmd.Flags()
	s.databaseFlag(f)
	f.StringVar(&s.addr, "addr", "127.0.0.1:7400", "where to serve the API")
	f.StringVar(&s.natsURL, "nats-url", "", "NATS servers on which to tell the relay at once; without, it finds events by polling")
	s.natsCredsFlag(f)
	s.streamFlag(f)
	s.processFlags(f)
	return cmd
}

func consumeCommand() *cobra.Command {
	var s settings
	cmd := &cobra.Command{
		Use:       "consume " + mailer.Name,
		Short:     "Handle events with one of the consumers",
		Long:      "Handle events with one of the consumers:\n\n  welcome-mailer   sends a mail to each new user",
		ValidArgs: []string{mailer.Name},
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 || !slices.Contains(cmd.ValidArgs, args[0]) {
				return fmt.Errorf("consume takes the name of one consumer (%s), not %q", strings.Join(cmd.ValidArgs, ", "), args)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, log := cmd.Context(), newLogger(cmd.ErrOrStderr(), s.logLevel)
			db, err := s.pool(ctx, "pgjet-"+mailer.Name)
			if err != nil {
				return err
			}
			defer db.Close()
			nc, js, err := s.connectNATS("pgjet-"+mailer.Name, log, nats.CustomInboxPrefix(inboxPrefix(mailer.Name)))
			if err != nil {
				return err
			}
			defer nc.Close()
			p, err := s.mailerPart(db, js, log)
			if err != nil {
				return err
			}
			return s.serve(ctx, log, "pgjet-"+mailer.Name, p)
		},
	}
	f := cmd.Flags()
	s.databaseFlag(f)
	s.natsFlags(f)
	s.mailFlags(f)
	s.processFlags(f)
	return cmd
}

func (s *settings) mailerPart(db *pgxpool.Pool, js jetstream.JetStream, log *slog.Logger) (part, error) {
	if s.smtpURL == "" {
		return part{}, usagef("no mail server: set --smtp-url or PGJET_SMTP_URL, such as smtp://host:587")
	}
	server, err := mailer.ParseServer(s.smtpURL)
	if err != nil {
		return part{}, usagef("--smtp-url: %w", err)
	}
	m, err := mailer.New(server, s.mailFrom)
	if err != nil {
		return part{}, usagef("--mail-from: %w", err)
	}
	if !mailer.ValidRate(s.mailRate) {
		return part{}, usagef("--mail-rate is %v, want 0 (no limit) or %v to %v mails per second", s.mailRate, mailer.MinRate, mailer.MaxRate)
	}
	m.Rate = s.mailRate
	r := &consumers.Runner{Consumer: m.Consumer(), DB: db, JS: js, Stream: s.stream, Log: log}
	ready := func(ctx context.Context) error { return cmp.Or(m.Ready(ctx), r.Ready(ctx)) }
	return part{mailer.Name, r.Run, ready}, nil
}
