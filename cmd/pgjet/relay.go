package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/internal/operate"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/supervisor"
	"github.com/pgjet/pgjet/relay"
)

func relayCommand() *cobra.Command {
	var s processSettings
	cmd := &cobra.Command{
		Use:   "relay",
		Short: "Publish the outbox to the stream",
		Long: `Publish the outbox to the stream. Any number of relays may run: one leads, the others stand
by. The commands below manage them from anywhere; they need only the database.

One process can run several relays, one for each database in the section relays of the
configuration; the commands below then take --relay NAME.`,
		Args: commandsAlone,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log := s.logger(cmd)
			parts, err := s.relayParts(cmd, log)
			if err != nil {
				return err
			}
			// This connection logs nothing: the connections of the relay's sessions report the same trouble.
			quiet := slog.New(slog.DiscardHandler)
			s.registryConn, _, err = s.connectNATS("pgjet-relay-registry", quiet, nats.CustomInboxPrefix(inboxPrefix("relay")))
			if err != nil {
				return err
			}
			defer s.registryConn.Close()
			return s.serve(cmd.Context(), log, "pgjet-relay", parts...)
		},
	}
	s.databaseFlag(cmd.PersistentFlags())
	s.streamFlag(cmd.PersistentFlags())
	s.prefixFlag(cmd.PersistentFlags())
	s.relayFlag(cmd.PersistentFlags())
	f := cmd.Flags()
	s.sourceFlag(f)
	s.directFlag(f)
	s.natsURLFlag(f)
	s.access.flags(f)
	s.outboxFlags(f)
	s.processFlags(f)
	cmd.AddCommand(s.relayStatusCommand())
	cmd.AddCommand(s.forOneRelay(s.relayPauseCommand(), s.relayResumeCommand(), s.relayAdoptCommand(),
		group(&cobra.Command{Use: "quarantine", Short: "Decide on events that a stream refused"},
			s.quarantineListCommand(), s.quarantineRetryCommand(), s.quarantineDropCommand()))...)
	return cmd
}

func (s *processSettings) relayPart(log *slog.Logger) (part, error) {
	config, err := s.directConfig()
	if err != nil {
		return part{}, err
	}
	r, err := s.newRelay(config.ConnConfig, log)
	if err != nil {
		return part{}, err
	}
	return supervisor.Of("relay", r), nil
}

func (s *processSettings) newRelay(database *pgx.ConnConfig, log *slog.Logger) (*relay.Relay, error) {
	if err := s.checkNATS(); err != nil {
		return nil, err
	}
	if s.retention <= 0 {
		return nil, usagef("--retention is %s, want more than 0", s.retention)
	}
	if s.auditRate < 0 {
		return nil, usagef("--audit-rate is %d, want 0 or more", s.auditRate)
	}
	return &relay.Relay{
		Database: database, NATSURL: s.natsURL, NATS: s.access.options(), Domain: s.access.domain,
		Stream: s.stream, Prefix: s.prefix, Source: s.source, Retention: s.retention, AuditRate: cmp.Or(s.auditRate, -1), Log: log,
	}, nil
}

func (s *settings) relayPauseCommand() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "pause",
		Short: "Publish nothing until it is resumed",
		Long: `Publish nothing until it is resumed; events wait in the outbox. The command waits until the
leading relay has stopped, which takes about a second. Pausing twice changes nothing.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needReason(reason); err != nil {
				return err
			}
			return s.pauseRelay(cmd, reason)
		},
	}
	reasonFlag(cmd.Flags(), &reason)
	outputFlag(cmd.Flags())
	return cmd
}

func (s *settings) pauseRelay(cmd *cobra.Command, reason string) error {
	var p relay.Paused
	news, ctx := false, cmd.Context()
	err := s.withDatabase(ctx, func(ctx context.Context, db *pgxpool.Pool) error {
		status, err := relay.ReadStatus(ctx, db, s.stream)
		if err != nil {
			return err
		}
		if status.Leader == nil && status.Paused == nil {
			return &exitError{exitNotFound, fmt.Errorf("no relay has ever run for stream %s", s.stream)}
		}
		p, news, err = relay.Pause(ctx, db, s.stream, actor(), reason)
		return err
	})
	if err != nil {
		return err
	}
	said := []string{fmt.Sprintf("paused stream %s; events wait in the outbox", s.stream)}
	if !news {
		said[0] = fmt.Sprintf("stream %s was paused already, by %s %s: %s", s.stream, p.By, ago(time.Since(p.At)), p.Reason)
	}
	quiet, err := s.drain(ctx, func(ctx context.Context, db *pgxpool.Pool) (bool, error) {
		return relay.Quiet(ctx, db, s.stream, p, drainTime)
	})
	if err == nil && !quiet {
		err = &exitError{exitTimeout, fmt.Errorf("the pause is recorded, but after %s the leading relay has not reported that it stopped; to see why: %s",
			drainTime, s.typed("pgjet relay status"))}
	}
	if err == nil {
		said = append(said, "nothing more is published")
	}
	return errors.Join(showChanged(cmd, s.stream, news, append(said, "to go on: "+s.typed("pgjet relay resume"))...), err)
}

func (s *settings) relayResumeCommand() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "resume",
		Short: "End a pause",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.withDatabase(cmd.Context(), func(ctx context.Context, db *pgxpool.Pool) error {
				p, err := relay.Resume(ctx, db, s.stream, actor(), reason)
				if err != nil {
					return err
				}
				if p == nil {
					return showChanged(cmd, s.stream, false, fmt.Sprintf("stream %s was not paused", s.stream))
				}
				return showChanged(cmd, s.stream, true,
					fmt.Sprintf("resumed stream %s, paused by %s %s: %s", s.stream, p.By, ago(time.Since(p.At)), p.Reason), "to see it go: "+s.typed("pgjet relay status"))
			})
		},
	}
	reasonFlag(cmd.Flags(), &reason)
	outputFlag(cmd.Flags())
	return cmd
}

func (s *settings) relayAdoptCommand() *cobra.Command {
	var a adoption
	cmd := &cobra.Command{
		Use:   "adopt",
		Short: "Accept messages of the stream that the outbox does not know and for which the relay halted",
		Long: `Accept messages of the stream that the outbox does not know and for which the relay halted.
The command lists them, and adopts what it listed; then a relay continues behind it. Nothing
is deleted, and it cannot be undone.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.check(cmd.InOrStdin()); err != nil {
				return err
			}
			a.stdio = stdioOf(cmd)
			return s.adopt(cmd.Context(), a)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&a.dryRun, "dry-run", false, "list, and change nothing")
	f.BoolVar(&a.yes, "yes", false, "do not ask")
	reasonFlag(f, &a.reason)
	outputFlag(f)
	return cmd
}

// An adoption is one run of pgjet relay adopt.
type adoption struct {
	stdio

	dryRun, yes bool
	reason      string
}

func (a adoption) check(in io.Reader) error {
	if a.dryRun {
		return nil
	}
	if err := needReason(a.reason); err != nil {
		return err
	}
	if !a.yes && !terminal(in) {
		return usagef("adopt accepts for good what the relay halted for: see it with --dry-run, then use --yes")
	}
	return nil
}

// adopt lists the unknown messages, asks, and adopts what it listed.
func (s *settings) adopt(ctx context.Context, a adoption) error {
	var listed []relay.UnknownMessage
	err := s.withDatabase(ctx, func(ctx context.Context, db *pgxpool.Pool) (err error) {
		listed, err = relay.UnknownMessages(ctx, db, s.stream)
		return err
	})
	if err == nil && len(listed) == 0 {
		err = relay.ErrNothingToAdopt
	}
	if err != nil {
		return err
	}
	if err := showUnknown(a.stdio, listed); err != nil {
		return err
	}
	if a.dryRun {
		fmt.Fprintln(a.err, "nothing was changed")
		return nil
	}
	last := listed[len(listed)-1].StreamSeq
	if !a.yes && !confirmByTyping(a.in, a.err, fmt.Sprintf("Accept what stream %s holds up to sequence %d, for good?", s.stream, last), s.stream) {
		fmt.Fprintln(a.err, "nothing was adopted")
		return nil
	}
	err = s.withDatabase(ctx, func(ctx context.Context, db *pgxpool.Pool) error {
		return postgres.Within(ctx, db, func(tx pgx.Tx) error {
			adopted, err := relay.Adopt(ctx, tx, s.stream, actor(), a.reason)
			if err == nil && !slices.EqualFunc(adopted, listed, sameMessage) {
				err = errors.New("the relay found other messages meanwhile, nothing was adopted; look again: " +
					s.typed("pgjet relay adopt --dry-run"))
			}
			return err
		})
	})
	if err == nil {
		fmt.Fprintf(a.err, "adopted what stream %s holds up to sequence %d; a relay goes on behind it\n", s.stream, last)
	}
	return err
}

func sameMessage(a, b relay.UnknownMessage) bool {
	return a.StreamSeq == b.StreamSeq && a.StreamCreated.Equal(b.StreamCreated)
}

// typed returns a command with the flags for this stream.
func (s *settings) typed(command string) string {
	return operate.WithPrefix(typed(command, s.stream), s.prefix)
}

func typed(command, stream string) string { return operate.Typed(command, stream) }
