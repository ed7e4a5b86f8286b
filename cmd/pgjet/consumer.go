package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/consumers/directory"
	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/mailer"
	"github.com/pgjet/pgjet/consumers/onboarding"
	"github.com/pgjet/pgjet/consumers/status"
	"github.com/pgjet/pgjet/internal/natsconn"
	"github.com/pgjet/pgjet/internal/postgres"
)

// ownConsumers are the consumers that this binary can run.
var ownConsumers = map[string]func() consumers.Consumer{
	directory.Name:  directory.Consumer,
	mailer.Name:     func() consumers.Consumer { return new(mailer.Mailer).Consumer() },
	onboarding.Name: func() consumers.Consumer { return new(onboarding.Onboarding).Consumer() },
}

func consumerCommand() *cobra.Command {
	var s settings
	cmd := group(&cobra.Command{
		Use:   "consumer",
		Short: "Manage consumers", Long: `Manage consumers, whatever process runs them. A consumer is known from the first time a
process runs it.`,
	}, s.consumerListCommand(), s.consumerGetCommand(), s.consumerPauseCommand(), s.consumerResumeCommand(), s.consumerEnsureCommand())
	return cmd
}

// oneName checks that the only argument is the name of a consumer or a service, which kind says.
func oneName(kind, list string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 || args[0] == "" {
			return fmt.Errorf("%s takes the name of one %s, not %q; see: %s", cmd.CommandPath(), kind, args, list)
		}
		return nil
	}
}

var oneConsumer = oneName("consumer", "pgjet consumer ls")

// withConsumers calls fn with the status of all consumers, or of the named one. If NATS does not
// answer, missing is why, and the status is what the database knows.
func (s *settings) withConsumers(ctx context.Context, fn func(all []status.Status, missing error) error, name ...string) error {
	return s.withDatabase(ctx, func(ctx context.Context, db *pgxpool.Pool) error {
		nc, js, missing := s.reachNATS()
		if exit, ok := errors.AsType[*exitError](missing); ok && exit.code == exitUsage {
			return missing
		}
		if missing == nil {
			defer nc.Close()
			all, err := askConsumers(ctx, db, js, name)
			if err == nil {
				return fn(all, nil)
			}
			if missing = err; natsconn.Of(err) == "" {
				return err
			}
		}
		all, err := status.Known(ctx, db)
		if len(name) > 0 {
			all = slices.DeleteFunc(all, func(one status.Status) bool { return one.Name != name[0] })
		}
		if err != nil || len(name) > len(all) {
			return cmp.Or(err, missing)
		}
		return fn(all, missing)
	})
}

func askConsumers(ctx context.Context, db *pgxpool.Pool, js jetstream.JetStream, name []string) ([]status.Status, error) {
	if len(name) == 0 {
		return status.List(ctx, db, js)
	}
	one, err := status.Get(ctx, db, js, name[0])
	return []status.Status{one}, err
}

func (s *settings) consumerListCommand() *cobra.Command {
	var exitCode bool
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the consumers: which events wait, and why; exit code 6 if one is not healthy",
		Long: `List the consumers: which events wait, and why. The rate is measured for half a second.
Problems come last, with the command to type next.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.withConsumers(cmd.Context(), func(all []status.Status, missing error) error {
				if err := showConsumers(cmd, all); err != nil {
					return err
				}
				return cmp.Or(missing, unhealthy(exitCode, all))
			})
		},
	}
	s.statusFlags(cmd, &exitCode)
	return cmd
}

func (s *settings) consumerGetCommand() *cobra.Command {
	var exitCode bool
	cmd := &cobra.Command{
		Use:   "get NAME",
		Short: "Show all that is known of a consumer, and its processes; exit code 6 if it is not healthy",
		Args:  oneConsumer,
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.withConsumers(cmd.Context(), func(all []status.Status, missing error) error {
				if err := showConsumer(cmd, all[0]); err != nil {
					return err
				}
				return cmp.Or(missing, unhealthy(exitCode, all))
			}, args[0])
		},
	}
	s.statusFlags(cmd, &exitCode)
	return cmd
}

func (s *settings) statusFlags(cmd *cobra.Command, exitCode *bool) {
	f := cmd.Flags()
	s.databaseFlag(f)
	s.natsURLFlag(f)
	s.access.flags(f)
	outputFlag(f)
	f.BoolVar(exitCode, "exit-code", true, "end with exit code 6 if one is not healthy")
}

// unhealthy returns an error that names the consumers which are not healthy, if wanted.
func unhealthy(wanted bool, all []status.Status) error {
	var names []string
	for _, s := range all {
		if !s.Why.Healthy() {
			names = append(names, s.Name+" ("+s.Why.Code+")")
		}
	}
	if !wanted || len(names) == 0 {
		return nil
	}
	return &exitError{exitFindings, errors.New("not healthy: " + strings.Join(names, ", "))}
}

// drainTime bounds how long a pause waits for attempts that are under way.
const drainTime = 10 * time.Second

func (s *settings) consumerPauseCommand() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "pause NAME",
		Short: "Let no attempt of a consumer begin until it is resumed",
		Long: `Let no attempt of a consumer begin until it is resumed, wherever its processes are. Running
attempts may finish: the command waits for them, 10 seconds at most. Events wait in the
stream. Pausing twice changes nothing.`,
		Args: oneConsumer,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := needReason(reason); err != nil {
				return err
			}
			return s.pause(cmd, args[0], reason)
		},
	}
	s.databaseFlag(cmd.Flags())
	reasonFlag(cmd.Flags(), &reason)
	outputFlag(cmd.Flags())
	return cmd
}

func (s *settings) pause(cmd *cobra.Command, name, reason string) error {
	var said []string
	paused, ctx := false, cmd.Context()
	err := s.withDatabase(ctx, func(ctx context.Context, db *pgxpool.Pool) error {
		p, news, err := inbox.Pause(ctx, db, name, actor(), reason)
		switch {
		case err != nil:
			return err
		case !news:
			said = append(said, fmt.Sprintf("consumer %s was paused already, by %s %s: %s", name, p.By, ago(time.Since(p.At)), p.Reason))
		default:
			said = append(said, fmt.Sprintf("paused consumer %s; no attempt begins, events wait in the stream", name))
		}
		paused = news
		return nil
	})
	if err != nil {
		return err
	}
	drained, err := s.drain(ctx, func(ctx context.Context, db *pgxpool.Pool) (bool, error) {
		return status.Drain(ctx, db, name, drainTime)
	})
	if err == nil && !drained {
		err = &exitError{exitTimeout, fmt.Errorf("the pause is recorded, but after %s attempts that began before it are still in flight; to see whether they are, run the same command again", drainTime)}
	}
	if err == nil {
		said = append(said, "no attempt is in flight")
	}
	return errors.Join(showChanged(cmd, name, paused, append(said, "to go on: pgjet consumer resume "+word(name))...), err)
}

// drain asks for drainTime whether what was paused is at rest.
func (s *settings) drain(ctx context.Context, ask func(ctx context.Context, db *pgxpool.Pool) (bool, error)) (drained bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, drainTime+operateTime)
	defer cancel()
	db, err := s.reach(ctx)
	if err != nil {
		return false, err
	}
	defer postgres.Close(db)
	return ask(ctx, db)
}

func (s *settings) consumerResumeCommand() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "resume NAME",
		Short: "End a pause",
		Args:  oneConsumer,
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.withDatabase(cmd.Context(), func(ctx context.Context, db *pgxpool.Pool) error {
				name := args[0]
				p, err := inbox.Resume(ctx, db, name, actor(), reason, "")
				switch {
				case err != nil:
					return err
				case p == nil:
					return showChanged(cmd, name, false, fmt.Sprintf("consumer %s was not paused", name))
				}
				return showChanged(cmd, name, true,
					fmt.Sprintf("resumed consumer %s, paused by %s %s: %s", name, p.By, ago(time.Since(p.At)), p.Reason), "to see it go: pgjet consumer get "+word(name))
			})
		},
	}
	s.databaseFlag(cmd.Flags())
	reasonFlag(cmd.Flags(), &reason)
	outputFlag(cmd.Flags())
	return cmd
}
