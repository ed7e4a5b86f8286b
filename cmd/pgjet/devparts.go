package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"github.com/pgjet/pgjet/console"
	"github.com/pgjet/pgjet/consumers/directory"
	"github.com/pgjet/pgjet/consumers/mailer"
	"github.com/pgjet/pgjet/consumers/onboarding"
	"github.com/pgjet/pgjet/internal/devservices"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/registry"
	"github.com/pgjet/pgjet/internal/supervisor"
	"github.com/pgjet/pgjet/internal/web"
	"github.com/pgjet/pgjet/outbox/hint"
	"github.com/pgjet/pgjet/producer"
)

// devListeners are the ports of the services, without PostgreSQL and NATS.
var devListeners = []int{usersPort, inboxPort, adminPort, smtpPort, directoryPort, profilesPort, billingPort, consolePort}

// devSource is the source of the events of the user service.
const devSource = "/users"

// devConnections returns how many connections each listener and the NATS server may hold. All share
// the limit of this process.
func devConnections() int { return web.Connections(len(devListeners) + 1) }

// supervise runs the services until ctx ends, a service fails, or PostgreSQL ends.
func (d *dev) supervise(ctx context.Context, metrics http.Handler) error {
	parts, admin, err := d.parts()
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { d.log.Info("stopping, which a second Ctrl-C does at once") })
	p := supervisor.Process{Version: version(), Admin: admin, Metrics: metrics, Log: d.log, Registrar: d.register(d.log), Instances: d.instances(), Breakers: d.breakers}
	return p.Run(ctx, append(parts, part{Name: "ready", Run: func(ctx context.Context) error {
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
	}})...)
}

// parts returns the services in the order in which they stop, and the listener of the admin pages.
func (d *dev) parts() (parts []part, admin net.Listener, err error) {
	d.source = devSource
	relayPart, err := d.relayPart(d.log)
	if err != nil {
		return nil, nil, err
	}
	mailerPart, err := d.mailerPart(d.db, d.js, d.log)
	if err != nil {
		return nil, nil, err
	}
	onboardingParts, err := d.onboardingParts(d.db, d.js, d.log)
	if err != nil {
		return nil, nil, err
	}
	api, err := d.userService()
	if err != nil {
		return nil, nil, err
	}
	at := make(map[int]net.Listener)
	for _, port := range devListeners {
		if at[port], err = listen("development", d.addr(port), "--port"); err != nil {
			return nil, nil, err
		}
	}
	serve := func(name string, l net.Listener, h http.Handler) part {
		return supervisor.Serve(name, l, devConnections(), web.Guard(h), d.log)
	}
	smtp := web.NewDoor(at[smtpPort], "smtp", devConnections(), d.log)
	parts = []part{
		serve("users", at[usersPort], api),
		watchDatabase(d.db, d.log),
		d.configPart(),
		d.invalidationPart(api, d.js, d.log),
		relayPart,
		mailerPart,
		d.directoryPart(d.db, d.js, d.log),
		serve("directory-api", at[directoryPort], directory.New(d.db, d.log)),
		{Name: "smtp", Run: func(ctx context.Context) error { return d.mail.ServeSMTP(ctx, smtp) }},
		serve("inbox", at[inboxPort], d.mail.Handler()),
	}
	parts = append(parts, onboardingParts...)
	for _, name := range []string{devservices.Profiles, devservices.Billing} {
		handler, err := devservices.New(name, filepath.Join(d.dir, "services"), d.log)
		if err != nil {
			return nil, nil, err
		}
		port := map[string]int{devservices.Profiles: profilesPort, devservices.Billing: billingPort}[name]
		parts = append(parts, serve(name, at[port], handler))
	}
	consolePart, err := d.consolePart(at[consolePort])
	if err != nil {
		return nil, nil, err
	}
	return append(parts, consolePart), at[adminPort], nil
}

// consolePart returns the console, with a pool of its own.
func (d *dev) consolePart(l net.Listener) (part, error) {
	db, err := d.consolePool(context.Background())
	if err != nil {
		return part{}, err
	}
	c := console.New(console.Config{DB: db, NATS: d.nc, JS: d.js, Stream: d.stream, Own: isOwnConsumer, Dev: d.lab(), Name: "development", Log: d.log})
	p := consolePart(c, l, devConnections(), c, d.log)
	serve := p.Run
	p.Run = func(ctx context.Context) error {
		defer postgres.Close(db)
		return serve(ctx)
	}
	return p, nil
}

// userService returns the user service. Its key is kept between runs.
func (d *dev) userService() (*producer.Server, error) {
	d.tokenKeyFile = filepath.Join(d.dir, keyName)
	if _, err := keepKey(d.tokenKeyFile); err != nil {
		return nil, err
	}
	issuer, err := d.tokenIssuer(d.log)
	if err != nil {
		return nil, err
	}
	profiles, err := d.serviceClient(devservices.Profiles, d.log)
	if err != nil {
		return nil, err
	}
	api := producer.New(d.db, issuer, d.log)
	api.Committed, api.Profiles = hint.New(d.nc, d.stream).Committed, profiles.HTTP()
	return api, d.tune(api)
}

// instances lists what this process registers: one instance for each part that is a process
// elsewhere.
func (d *dev) instances() []registry.Instance {
	at := func(port int) string { return "http://" + d.addr(port) }
	ready := at(adminPort) + "/readyz"
	ours := map[string]string{registry.StreamKey: d.stream}
	return []registry.Instance{
		{Name: "pgjet-users", Address: at(usersPort), HealthURL: ready, Metadata: ours},
		{Name: "pgjet-relay", HealthURL: ready, Metadata: ours},
		{Name: "pgjet-" + mailer.Name, HealthURL: ready, Metadata: ours},
		{Name: "pgjet-" + directory.Name, Address: at(directoryPort), HealthURL: ready, Metadata: ours},
		{Name: "pgjet-" + onboarding.Name, HealthURL: ready, Metadata: ours},
		{Name: devservices.Profiles, Address: at(profilesPort), HealthURL: at(profilesPort) + "/livez"},
		{Name: devservices.Billing, Address: at(billingPort), HealthURL: at(billingPort) + "/livez"},
	}
}

// waitReady returns when every part is ready. It returns an error if one is not ready in time.
func waitReady(ctx context.Context, parts []part) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	for _, p := range parts {
		for p.Ready != nil {
			err := p.Ready(ctx)
			if err == nil {
				break
			}
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
				if errors.Is(ctx.Err(), context.Canceled) {
					return nil
				}
				return fmt.Errorf("%s did not become ready: %w", p.Name, err)
			}
		}
	}
	return nil
}
