package main

import (
	"cmp"
	"context"
	"log/slog"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/consumers/directory"
	"github.com/pgjet/pgjet/consumers/mailer"
	"github.com/pgjet/pgjet/consumers/onboarding"
	"github.com/pgjet/pgjet/consumers/saga"
	"github.com/pgjet/pgjet/internal/devservices"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/supervisor"
	"github.com/pgjet/pgjet/internal/web"
)

func consumeCommand() *cobra.Command {
	return group(&cobra.Command{Use: "consume", Short: "Handle events with one of the consumers"},
		consumeMailerCommand(), consumeDirectoryCommand(), consumeOnboardingCommand())
}

func consumeMailerCommand() *cobra.Command {
	var s processSettings
	cmd := &cobra.Command{
		Use:   mailer.Name,
		Short: "Send a mail to each new user, and to each user who was rejected",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.consume(cmd, mailer.Name, func(db *pgxpool.Pool, js jetstream.JetStream, log *slog.Logger) ([]part, error) {
				p, err := s.mailerPart(db, js, log)
				return []part{p}, err
			})
		},
	}
	s.consumeFlags(cmd.Flags())
	s.mailFlags(cmd.Flags())
	return cmd
}

func consumeDirectoryCommand() *cobra.Command {
	var s processSettings
	cmd := &cobra.Command{
		Use:   directory.Name,
		Short: "Keep the directory of users, and serve it over HTTP",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.consume(cmd, directory.Name, func(db *pgxpool.Pool, js jetstream.JetStream, log *slog.Logger) ([]part, error) {
				l, err := listen(directory.Name, s.addr, "--addr")
				if err != nil {
					return nil, err
				}
				s.served = l.Addr()
				log.InfoContext(cmd.Context(), "serving the API", "addr", "http://"+l.Addr().String())
				warnPublic(cmd.Context(), log, directory.Name, "--addr", l.Addr())
				api := web.Guard(directory.New(db, log), s.hosts()...)
				return []part{serveHTTP("directory-api", l, api, log), s.directoryPart(db, js, log)}, nil
			})
		},
	}
	s.consumeFlags(cmd.Flags())
	cmd.Flags().StringVar(&s.addr, "addr", "127.0.0.1:7406", "where to serve the directory")
	return cmd
}

func (s *processSettings) consumeFlags(f *pflag.FlagSet) {
	s.databaseFlag(f)
	s.directFlag(f)
	s.natsFlags(f)
	s.prefixFlag(f)
	s.processFlags(f)
	f.Var(&checkedText{&s.moveFrom, checkStream, "a name that NATS takes for a stream"}, "move-from", "stream that the consumer leaves for --stream, which it then reads from the start; without it a consumer that has handled events of another stream is refused")
	f.DurationVar(&s.inboxRetention, "inbox-retention", 0, "how long the inbox remembers events that the stream no longer holds; 0 is for ever")
}

// consume runs a consumer and its other parts until cmd's context ends.
func (s *processSettings) consume(cmd *cobra.Command, name string, parts func(*pgxpool.Pool, jetstream.JetStream, *slog.Logger) ([]part, error)) error {
	ctx, log := cmd.Context(), s.logger(cmd)
	db, err := s.pool(ctx, "pgjet-"+name)
	if err != nil {
		return err
	}
	defer postgres.Close(db)
	nc, js, err := s.connectNATS("pgjet-"+name, log, nats.CustomInboxPrefix(inboxPrefix(name)))
	if err != nil {
		return err
	}
	defer nc.Close()
	s.registryConn = nc
	all, err := parts(db, js, log)
	if err != nil {
		return err
	}
	return s.serve(ctx, log, "pgjet-"+name, all...)
}

func (s *processSettings) directoryPart(db *pgxpool.Pool, js jetstream.JetStream, log *slog.Logger) part {
	return s.consumerPart(directory.Consumer(), db, js, log)
}

func (s *processSettings) consumerPart(c consumers.Consumer, db *pgxpool.Pool, js jetstream.JetStream, log *slog.Logger) part {
	r := &consumers.Runner{Consumer: c, DB: db, Direct: s.direct, JS: js, Stream: s.stream, Prefix: s.prefix, Log: log, Retention: s.inboxRetention, MoveFrom: s.moveFrom}
	return supervisor.Of(c.Name, r)
}

func (s *processSettings) mailerPart(db *pgxpool.Pool, js jetstream.JetStream, log *slog.Logger) (part, error) {
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
	p := s.consumerPart(m.Consumer(), db, js, log)
	handles := p.Ready
	p.Ready = func(ctx context.Context) error { return cmp.Or(m.Ready(ctx), handles(ctx)) }
	return p, nil
}

func consumeOnboardingCommand() *cobra.Command {
	var s processSettings
	cmd := &cobra.Command{
		Use:   onboarding.Name,
		Short: "Give each new user a profile and a billing account, and activate the user",
		Long: `Give each new user a profile and a billing account, and activate the user; or undo what was
done, and reject the user. It is a saga: see pgjet saga.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.consume(cmd, onboarding.Name, s.onboardingParts)
		},
	}
	s.consumeFlags(cmd.Flags())
	s.serviceFlags(cmd.Flags(), devservices.Profiles, devservices.Billing)
	return cmd
}

// onboardingParts returns the consumer that starts the sagas, and the runner of the sagas.
func (s *processSettings) onboardingParts(db *pgxpool.Pool, js jetstream.JetStream, log *slog.Logger) ([]part, error) {
	profiles, err := s.otherService(devservices.Profiles, log)
	if err != nil {
		return nil, err
	}
	billing, err := s.otherService(devservices.Billing, log)
	if err != nil {
		return nil, err
	}
	o := onboarding.New(db, profiles, billing)
	r := &saga.Runner{Saga: o.Saga(), DB: db, Log: log}
	return []part{
		s.consumerPart(o.Consumer(), db, js, log),
		supervisor.Of("onboarding-saga", r),
	}, nil
}

// otherService returns the client of another service.
func (s *processSettings) otherService(name string, log *slog.Logger) (onboarding.Service, error) {
	client, err := s.serviceClient(name, log)
	if err != nil {
		return onboarding.Service{}, err
	}
	return onboarding.Service{Name: name, HTTP: client.HTTP(), URL: "http://" + name}, nil
}
