package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/internal/ensure"
	"github.com/pgjet/pgjet/internal/postgres"
)

func (s *settings) consumerEnsureCommand() *cobra.Command {
	var o ensureOptions
	var from string
	own := slices.Sorted(maps.Keys(ownConsumers))
	cmd := &cobra.Command{
		Use:   "ensure NAME...",
		Short: "Create durable consumers if they are missing; exit code 6 if one is there and differs",
		Long: `Create the durable consumer that pgjet consume NAME needs, if it is missing. One that
exists is compared and left as it is: the differences are shown, and the exit code is
6. Processes create what they need by themselves unless NATS forbids it, as in the
accounts that pgjet nats accounts prints.

The names are: ` + strings.Join(own, ", ") + `; ` + followName + `, by which the
user service follows events; and, with --database-url, any consumer that a process has
run, or tried to run: the database records which events it handles.

With --database-url a durable consumer names the database of its consumer, so that no
other database uses it. An existing one without a database gets this one. One of another
database is refused, and left as it is: exit code 7. --take-from, with the identity of
that database, gives it to this one. The other database has to be gone for good: its
consumer then handles nothing.

If the only difference is missing event types, --apply adds them. The consumer is paused
meanwhile, and nothing is lost: it also gets the events of those types that the stream
already holds, in order. Processes of a version without those types handle nothing from
then on. If the command is interrupted, run it again.`,
		ValidArgs: append(slices.Clone(own), followName),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("give the names of consumers, such as: %s, %s; with --database-url, of those that pgjet consumer ls shows", strings.Join(own, ", "), followName)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := s.checkEnsure(&o, from); err != nil {
				return err
			}
			all, err := s.records(cmd.Context(), args)
			if err != nil {
				return err
			}
			stream, prefix := s.stream, s.prefix
			var said []string
			for _, name := range args {
				s.stream, s.prefix = stream, prefix
				if recorded := all[name].Stream; recorded != "" && !cmd.Flags().Changed("stream") {
					s.stream = recorded
				}
				if recorded := all[name].Prefix; recorded != "" && !cmd.Flags().Changed("prefix") {
					s.prefix = recorded
				}
				text, err := s.ensure(cmd.Context(), all[name].Consumer, o)
				said = append(said, strings.FieldsFunc(text, func(r rune) bool { return r == '\n' })...)
				if err != nil {
					return errors.Join(showEnsured(cmd, args, said), err)
				}
			}
			return showEnsured(cmd, args, said)
		},
	}
	s.natsFlags(cmd.Flags())
	s.prefixFlag(cmd.Flags())
	s.databaseFlag(cmd.Flags())
	s.directFlag(cmd.Flags())
	outputFlag(cmd.Flags())
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "compare, and create nothing")
	cmd.Flags().BoolVar(&o.apply, "apply", false, "add event types that are missing; needs the database")
	cmd.Flags().StringVar(&from, "take-from", "", "identity of the database, which is gone for good, to which the durable consumers belonged")
	return cmd
}

// ensureOptions says how durable consumers are created or compared.
type ensureOptions struct {
	dryRun, apply bool
	from          uuid.UUID // the database that owned them; uuid.Nil: none
}

// checkEnsure completes o, or returns which flags exclude each other.
func (s *settings) checkEnsure(o *ensureOptions, from string) (err error) {
	switch {
	case o.dryRun && o.apply:
		return usagef("--dry-run changes nothing and --apply does: say one of them")
	case from != "" && (o.dryRun || o.apply):
		return usagef("--take-from excludes --dry-run and --apply: run it first")
	case from == "":
		return nil
	case s.databaseURL == "":
		return usagef("--take-from needs --database-url: the database that gets the durable consumers")
	}
	if o.from, err = uuid.Parse(from); err != nil || o.from == uuid.Nil {
		return usagef("--take-from is %q, want the identity of a database, as foreign_durable names it", from)
	}
	return nil
}

// records returns the consumers of these names: this binary's own, and others as the database
// records them. The record of followName is zero.
func (s *settings) records(ctx context.Context, names []string) (map[string]consumers.Record, error) {
	all := make(map[string]consumers.Record)
	var others []string
	for _, name := range names {
		switch own := ownConsumers[name]; {
		case own != nil:
			all[name] = consumers.Record{Consumer: own()}
		case name != followName:
			others = append(others, name)
		}
	}
	switch {
	case len(others) == 0:
		return all, nil
	case s.databaseURL == "":
		return nil, &exitError{exitNotFound, fmt.Errorf("no consumer %q in this pgjet, there is: %s, %s; for a consumer of another program give --database-url, where a process that ran it recorded what it handles",
			others[0], strings.Join(slices.Sorted(maps.Keys(ownConsumers)), ", "), followName)}
	}
	return all, s.withDatabase(ctx, func(ctx context.Context, db *pgxpool.Pool) (err error) {
		for _, name := range others {
			if all[name], err = consumers.Recorded(ctx, db, name); err != nil {
				return err
			}
		}
		return nil
	})
}

// ensure creates or compares the durable consumers of c. It returns what it did.
func (s *settings) ensure(ctx context.Context, c consumers.Consumer, o ensureOptions) (text string, err error) {
	if o.apply {
		if text, err = s.extendConsumer(ctx, c); err != nil {
			return text, replayExit(err)
		}
	}
	nc, js, err := s.reachNATS()
	if err != nil {
		return text, err
	}
	defer nc.Close()
	place := s.place(js)
	if c.Name == "" {
		return s.ensureFollowed(ctx, place, o.dryRun)
	}
	if s.databaseURL != "" {
		if place.DB, err = s.reach(ctx); err != nil {
			return text, err
		}
		defer postgres.Close(place.DB)
	}
	place.From = o.from
	made, err := place.Make(ctx, c, o.dryRun)
	return text + made, err
}

// place returns where the durable consumers are, without the database.
func (s *settings) place(js jetstream.JetStream) *ensure.Place {
	return &ensure.Place{JS: js, Stream: s.stream, Prefix: s.prefix, By: actor(), Typed: s.typed}
}

// extendConsumer adds missing event types to the durable consumers of c. It returns what it did.
func (s *settings) extendConsumer(ctx context.Context, c consumers.Consumer) (string, error) {
	if c.Name == "" {
		return "", nil // the feed of the user service lacks no types
	}
	db, err := s.reachDirect(ctx)
	if err != nil {
		return "", err
	}
	defer postgres.Close(db)
	nc, js, err := s.reachNATS()
	if err != nil {
		return "", err
	}
	defer nc.Close()
	place := s.place(js)
	place.DB = db
	return place.Apply(ctx, c)
}

// ensureFollowed creates or compares the durable consumer that the user service follows.
func (s *settings) ensureFollowed(ctx context.Context, place *ensure.Place, dryRun bool) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, operateTime)
	defer cancel()
	var created bool
	var err error
	if dryRun {
		_, err = place.JS.PushConsumer(ctx, s.stream, followName)
	}
	if err == nil {
		created, err = consumers.EnsureFollowed(ctx, place.JS, s.followed())
	}
	return place.Made(ctx, followName, created, err)
}
