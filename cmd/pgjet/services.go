package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/consumers/directory"
	"github.com/pgjet/pgjet/consumers/mailer"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/devservices"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/supervisor"
	"github.com/pgjet/pgjet/internal/web"
	"github.com/pgjet/pgjet/outbox/hint"
	"github.com/pgjet/pgjet/producer"
)

func usersCommand() *cobra.Command {
	var s processSettings
	cmd := &cobra.Command{
		Use:   "users",
		Short: "Serve the user service's HTTP API",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, log := cmd.Context(), s.logger(cmd)
			proxies, err := parseNetworks(s.trustedProxies)
			if err != nil {
				return usagef("--trusted-proxies: %w", err)
			}
			db, err := s.pool(ctx, "pgjet-users")
			if err != nil {
				return err
			}
			defer postgres.Close(db)
			issuer, err := s.tokenIssuer(log)
			if err != nil {
				return err
			}
			api := producer.New(db, issuer, log)
			defer api.Close()
			api.Proxies = proxies
			remoteKeys, err := s.remoteKeys(api, log)
			if err != nil {
				return err
			}
			l, err := listen("users", s.addr, "--addr")
			if err != nil {
				return err
			}
			parts := append([]part{serveHTTP("users", l, api, log), watchDatabase(db, log)}, remoteKeys...)
			if err := s.tune(api); err != nil {
				return err
			}
			if s.natsURL != "" {
				nc, js, err := s.connectWriter(log)
				if err != nil {
					return err
				}
				defer nc.Close()
				api.Committed = hint.New(nc, s.stream).Committed
				parts = append(parts, s.invalidationPart(api, js, log))
				s.registryConn = nc
			}
			profiles, err := s.serviceClient(devservices.Profiles, log)
			if err != nil {
				return err
			}
			api.Profiles, s.served = profiles.HTTP(), l.Addr()
			log.InfoContext(ctx, "serving the API", "addr", "http://"+l.Addr().String())
			return s.serve(ctx, log, "pgjet-users", parts...)
		},
	}
	cmd.AddCommand(usersKeyCommand(), s.usersGrantCommand(), s.usersRevokeCommand())
	f := cmd.Flags()
	s.databaseFlag(f)
	s.tokenFlags(f)
	f.StringVar(&s.addr, "addr", "127.0.0.1:7400", "where to serve the API")
	f.StringSliceVar(&s.trustedProxies, "trusted-proxies", nil, "networks of the proxies before the API, such as 10.0.0.0/8: their X-Forwarded-For counts")
	f.StringVar(&s.natsURL, "nats-url", "", "NATS servers, to notify the relay at once and to see what other processes change; without, the relay polls, and cached answers live for their whole time")
	s.access.flags(f)
	s.streamFlag(f)
	s.prefixFlag(f)
	s.serviceFlags(f, devservices.Profiles)
	s.processFlags(f)
	return cmd
}

// parseNetworks parses networks such as 10.0.0.0/8, and single addresses.
func parseNetworks(all []string) ([]netip.Prefix, error) {
	var networks []netip.Prefix
	for _, one := range all {
		network, err := netip.ParsePrefix(one)
		if err != nil {
			addr, err := netip.ParseAddr(one)
			if err != nil {
				return nil, fmt.Errorf("%q is neither a network such as 10.0.0.0/8 nor an address", one)
			}
			network = netip.PrefixFrom(addr, addr.BitLen())
		}
		networks = append(networks, network.Masked())
	}
	return networks, nil
}

// followName is the name of the consumer through which the user service follows the stream.
const followName = "pgjet-users"

// followed returns the feed by which the user service keeps its caches fresh.
func (s *settings) followed() consumers.Feed {
	return consumers.Feed{Stream: s.stream, Prefix: s.prefix, Name: followName, Types: []string{"user.*"}}
}

// invalidationPart returns the part that drops cached answers which other processes made stale.
func (s *settings) invalidationPart(api *producer.Server, js jetstream.JetStream, log *slog.Logger) part {
	return part{Name: "invalidation", Run: func(ctx context.Context) error {
		consumers.Follow(ctx, js, s.followed(), log, func(e events.Event) { api.Changed(e.Key) }, api.Forget)
		return nil
	}}
}

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
