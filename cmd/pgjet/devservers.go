package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/internal/devmail"
	"github.com/pgjet/pgjet/internal/devserver"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/migrations"
	"github.com/pgjet/pgjet/migrations/demo"
	"github.com/pgjet/pgjet/relay"
)

// startServers starts, or connects to, PostgreSQL with its tables and NATS with its stream.
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

// password returns the password of the development servers. Only the owner of the state can read
// it. Without it other users of the machine could run programs through PostgreSQL, and write
// events.
func (d *dev) password() (string, error) {
	path := filepath.Join(d.dir, passwordName)
	text, err := os.ReadFile(path)
	if err == nil && len(text) > 0 {
		return string(text), os.Chmod(path, 0o600)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read the password of the development servers: %w", err)
	}
	password := rand.Text()
	err = os.WriteFile(path+".new", []byte(password), 0o600)
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return "", fmt.Errorf("keep a password for the development servers: %w", err)
	}
	return password, nil
}

func (d *dev) startPostgres(ctx context.Context) error {
	if d.databaseURL == "" {
		password, err := d.password()
		if err != nil {
			return err
		}
		d.postgres, err = devserver.StartPostgres(ctx, devserver.PostgresOptions{
			Dir: filepath.Join(d.dir, "postgres"), Port: d.port + postgresPort,
			Bin: d.pgBin, Mirror: d.pgMirror, Durable: true, Password: password, Log: d.servers.With("part", "postgres"),
		})
		if err != nil {
			return &exitError{exitUnreachable, err}
		}
		d.databaseURL = d.postgres.URL()
	}
	config, err := d.directConfig()
	if err != nil {
		return err
	}
	reached, err := reach(ctx, config)
	if err != nil {
		return err
	}
	defer postgres.Close(reached)
	if d.db, err = d.pool(ctx, "pgjet-dev"); err != nil {
		return err
	}
	_, err = migrations.Up(ctx, reached, demo.Sets...)
	return err
}

func (d *dev) startNATS(ctx context.Context) error {
	if d.natsURL == "" {
		password, err := d.password()
		if err != nil {
			return err
		}
		d.nats, err = devserver.StartNATS(devserver.NATSOptions{
			Dir: filepath.Join(d.dir, "nats"), Port: d.port + natsPort, Password: password, Connections: devConnections(), Log: d.servers.With("part", "nats"),
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
	owner, err := relay.ReadOutbox(ctx, d.db, devSource)
	if err != nil {
		return err
	}
	config := relay.StreamConfig(d.stream, 1)
	owner.Own(&config)
	created, differences, err := relay.EnsureStream(ctx, js, config)
	if err == nil && !created {
		_, err = relay.Claim(ctx, d.db, js, d.stream, owner, nil)
	}
	if errors.Is(err, relay.ErrNotClaimed) { // not this run's server
		d.log.WarnContext(ctx, "the stream names no outbox", "stream", d.stream, "err", err)
		err = nil
	}
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

// addTypes adds missing event types to the durable consumers that an older version created.
func (d *dev) addTypes(ctx context.Context, js jetstream.JetStream) error {
	db, err := d.reachDirect(ctx)
	if err != nil {
		return err
	}
	defer postgres.Close(db)
	place := d.place(js)
	place.DB = db
	for name, own := range ownConsumers {
		result, err := place.Extend(ctx, own())
		if err != nil {
			return err
		}
		if len(result.Types) > 0 {
			d.log.InfoContext(ctx, "added types of events to a durable consumer", "consumer", name, "types", result.Types, "earlier_events", result.Earlier)
		}
	}
	return nil
}

func (d *dev) stopServers() {
	if d.nc != nil {
		d.nc.Close()
	}
	if d.db != nil {
		postgres.Close(d.db)
	}
	if n := d.ownNATS(); n != nil {
		n.Stop()
	}
	if d.postgres != nil {
		if err := d.postgres.Stop(); err != nil {
			d.log.Warn("PostgreSQL did not stop cleanly", "err", err)
		}
	}
}

func (d *dev) postgresDone() <-chan struct{} {
	if d.postgres == nil {
		return nil
	}
	return d.postgres.Done()
}
