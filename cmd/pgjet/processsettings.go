package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/lmittmann/tint"
	"github.com/nats-io/nats.go"
	"github.com/spf13/pflag"

	"github.com/pgjet/pgjet/internal/config"
	"github.com/pgjet/pgjet/internal/postgres"
	remote "github.com/pgjet/pgjet/internal/service"
	"github.com/pgjet/pgjet/internal/supervisor"
	"github.com/pgjet/pgjet/internal/telemetry"
	"github.com/pgjet/pgjet/relay"
)

// processSettings are the settings and the state of a long-running process.
type processSettings struct {
	settings
	relaySettings
	consumerSettings
	mailSettings
	tokenSettings

	addr        string // of its API
	adminAddr   string
	stopDelay   time.Duration
	advertise   string
	logLevel    slog.Level
	serviceURLs map[string]*string // of other services, by name

	level        slog.LevelVar // logLevel, as long as the configuration does not change
	live         *config.Live
	direct       *pgx.ConnConfig // for database sessions of their own; nil: as the pool
	databases    []database      // of several relays
	registryConn *nats.Conn      // nil: the process neither registers nor finds others
	registrar    *supervisor.Registrar
	clients      map[string]*remote.Client // of other services, by name
	served       net.Addr                  // of its API, if it has one
}

// relaySettings are those of a process that runs a relay.
type relaySettings struct {
	retention time.Duration
	auditRate int
}

// consumerSettings are those of a process that runs a consumer.
type consumerSettings struct {
	moveFrom       string
	inboxRetention time.Duration
}

// mailSettings are those of a process that sends mails.
type mailSettings struct {
	smtpURL  string
	mailFrom string
	mailRate float64
}

// tokenSettings are those of the user service.
type tokenSettings struct {
	tokenKeyFile   string
	tokenJWKSURL   string
	trustedProxies []string
}

func (s *processSettings) outboxFlags(f *pflag.FlagSet) {
	f.DurationVar(&s.retention, "retention", relay.DefaultRetention, "how long published events stay in the outbox, which limits how far back a stream can be healed")
	f.IntVar(&s.auditRate, "audit-rate", relay.DefaultAuditRate, "the most events a second that the leading relay compares with the stream, in the background; 0 is none")
}

func (s *processSettings) mailFlags(f *pflag.FlagSet) {
	f.StringVar(&s.smtpURL, "smtp-url", "", "mail server, such as smtp://user:password@host:587?tls=required")
	f.Float64Var(&s.mailRate, "mail-rate", 0, "the most mails per second of this process; 0 is no limit")
	s.fromFlag(f)
}

func (s *processSettings) fromFlag(f *pflag.FlagSet) {
	f.StringVar(&s.mailFrom, "mail-from", "pgjet <welcome@pgjet.example>", "sender of mails")
}

func (s *processSettings) processFlags(f *pflag.FlagSet) {
	f.StringVar(&s.adminAddr, "admin-addr", "127.0.0.1:7404", "where to serve /livez, /readyz and /metrics")
	f.DurationVar(&s.stopDelay, "stop-delay", 0, "how long to keep working after SIGTERM, while /readyz reports that it stops")
	f.StringVar(&s.advertise, "advertise", "", "host under which others reach this process; the default is the one it listens on, or the machine's name if it listens everywhere")
	s.logFlag(f, slog.LevelInfo)
}

func (s *processSettings) logFlag(f *pflag.FlagSet, level slog.Level) {
	f.TextVar(&s.logLevel, "log-level", level, "least level that is logged: debug, info, warn or error")
}

// newLogger returns a logger that writes coloured lines to a terminal, and JSON to anything else.
func newLogger(w io.Writer, level slog.Leveler) *slog.Logger {
	if terminal(w) {
		return readableLogger(w, level)
	}
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level}))
}

// readableLogger returns a logger for people. Its lines are coloured on a terminal.
func readableLogger(w io.Writer, level slog.Leveler) *slog.Logger {
	return slog.New(tint.NewTextHandler(w, &tint.Options{
		Level: level, TimeFormat: time.TimeOnly, NoColor: !terminal(w) || os.Getenv("NO_COLOR") != "",
	}))
}

// pool returns a pool for services, which has not connected yet.
func (s *processSettings) pool(ctx context.Context, application string) (*pgxpool.Pool, error) {
	config, err := s.databaseConfig()
	if err != nil {
		return nil, err
	}
	if s.directURL != "" {
		direct, err := s.directConfig()
		if err != nil {
			return nil, err
		}
		s.direct = direct.ConnConfig
	}
	config.ConnConfig.RuntimeParams["application_name"] = application
	config.ConnConfig.Tracer = telemetry.Postgres()
	pool, err := postgres.Open(ctx, config)
	if err != nil {
		return nil, err
	}
	if err := telemetry.WatchPool(pool, application); err != nil {
		pool.Close()
		return nil, fmt.Errorf("show the pool in the metrics: %w", err)
	}
	return pool, nil
}
