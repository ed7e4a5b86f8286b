package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/internal/operate"
	"github.com/pgjet/pgjet/internal/operation"
)

func republishCommand() *cobra.Command {
	var s settings
	return group(&cobra.Command{
		Use: "republish", Short: "Publish events again that were published and are missing in the stream",
		Long: `Publish events again that were published and are missing in the stream, such as after a
message was deleted. The relay publishes again by itself what a stream loses at its end, or
as a whole. What is in the stream is not published twice.`,
	}, append(s.forOneRelay(s.republishPlanCommand()), s.republishRunCommand())...)
}

func (s *settings) republishPlanCommand() *cobra.Command {
	var since, reason string
	var which operate.Lacking
	all := false
	cmd := &cobra.Command{
		Use:   "plan [ID...]",
		Short: "Find what the stream lacks, and plan to publish it again; exit code 4 if it lacks nothing",
		Long: `Find what the stream lacks, as pgjet audit run does, and plan to publish it again: of the
events with these ids, of a range of the outbox, or all. The plan has the exact events,
10000 at most, and their consequences. It can be run once, until another relay takes the
lead. It changes nothing in the stream.`,
		Example: `  pgjet republish plan --all
  pgjet republish plan --since 24h`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := notEmpty(cmd.Flags(), "since"); err != nil {
				return err
			}
			ids, err := eventIDs(args, "pgjet audit run")
			if err != nil {
				return err
			}
			if selects := len(ids) > 0 || since != "" || which.From > 0 || which.To > 0; selects == all {
				return usagef("name events by their ID, or a range by --since, --from-seq or --to-seq, or use --all for all that the stream lacks; not both. See: pgjet audit run")
			}
			at, err := timeFlag("--since", since)
			if err != nil {
				return err
			}
			if which.IDs = ids; !at.IsZero() {
				which.Since = &at
			}
			which.By, which.Reason = actor(), reason
			return s.withFacts(cmd.Context(), func(ctx context.Context, src operate.Source) error {
				return planRepublish(ctx, cmd, src, which)
			})
		},
	}
	f := cmd.Flags()
	s.databaseFlag(f)
	s.natsFlags(f)
	s.relayFlag(f)
	f.BoolVar(&all, "all", false, "whatever the stream lacks")
	f.StringVar(&since, "since", "", "only what was published since a time such as 2026-11-01T00:00:00Z, or how long ago, such as 24h")
	f.Int64Var(&which.From, "from-seq", 0, "only events with this seq of the outbox or a higher one")
	f.Int64Var(&which.To, "to-seq", 0, "only events with this seq of the outbox or a lower one")
	reasonFlag(f, &reason)
	outputFlag(f)
	return cmd
}

func planRepublish(ctx context.Context, cmd *cobra.Command, src operate.Source, which operate.Lacking) error {
	progress := newProgress(cmd.ErrOrStderr(), "audit", src.Stream)
	p, err := src.PlanRepublish(ctx, which, func(done, total int64) { progress.report(0, int(done), int(total)) })
	progress.finish()
	if err != nil {
		return err
	}
	if err := show(cmd, p, func(w io.Writer) { writeRepublication(w, p) }); err != nil {
		return err
	}
	if p.Operation == 0 {
		return &exitError{exitNotFound, errors.New("the stream lacks nothing of that")}
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "nothing was published; to run it: pgjet republish run %d --reason TEXT\n", p.Operation)
	return nil
}

func writeRepublication(w io.Writer, p operate.Republication) {
	line, some := counts(w)
	if p.Operation != 0 {
		line("plan", p.Operation, "can be run once, until another relay takes the lead")
	}
	line("stream", plain(p.Stream), "")
	line("lacking", len(p.Seqs), "were published, and will be again, one by one, in the order of the outbox")
	some("more", p.More, "the stream lacks, too: plan again when this is done")
	some("held", p.Held, "of those named the stream has, or they are pending or in quarantine: not published again")
	some("unknown", int64(p.Unknown), "of those named the outbox does not have")
	some("quarantined", p.Quarantined, "are in quarantine: see pgjet relay quarantine ls")
	if p.Behind > 0 {
		line("order", p.Behind, fmt.Sprintf("have later events of their keys (%d), and will stand behind all of them: consumers that need the order have to cope", p.Keys))
	} else if len(p.Seqs) > 0 {
		line("order", 0, "have later events of their keys: their order stays")
	}
	for _, c := range p.Consumers {
		line("consumer", plain(c.Consumer), fmt.Sprintf("has handled %d of them, which it will skip", c.Done))
	}
}

func (s *settings) republishRunCommand() *cobra.Command {
	var reason string
	yes, detach := false, false
	cmd := &cobra.Command{
		Use:   "run PLAN",
		Short: "Publish what a plan lists",
		Long: `Publish what a plan lists. The leading relay does it, one event after the other, behind
everything that the stream has; it continues if this command ends. If another relay has
taken the lead since the plan was made, the exit code is 7, and nothing is changed. What the
stream refuses is put into quarantine.`,
		Example: `  pgjet republish run 42 --reason 'deleted by mistake'`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := operationID(args[0])
			if err == nil {
				err = needReason(reason)
			}
			if err != nil {
				return err
			}
			if !yes && !terminal(cmd.InOrStdin()) {
				return usagef("see the plan with pgjet op get %d, then use --yes: there is no terminal to ask on", id)
			}
			return s.withoutDeadline(cmd.Context(), func(ctx context.Context, db *pgxpool.Pool) error {
				o, err := operate.Source{DB: db}.ReadOperation(ctx, id)
				if err != nil {
					return err
				}
				if !yes && o.Total != nil && !confirm(cmd.InOrStdin(), cmd.ErrOrStderr(), fmt.Sprintf("Publish %d events to stream %s again?", *o.Total, short(o.Target))) {
					fmt.Fprintln(cmd.ErrOrStderr(), "nothing was changed")
					return nil
				}
				n, err := operate.RunRepublish(ctx, db, id, actor(), reason)
				if err != nil {
					return err
				}
				fmt.Fprintf(cmd.ErrOrStderr(), "%d events are handed over to the leading relay; to stop it: pgjet op cancel %d\n", n, id)
				return watchOperation(ctx, cmd, db, id, detach)
			})
		},
	}
	f := cmd.Flags()
	s.databaseFlag(f)
	f.BoolVar(&yes, "yes", false, "do not ask")
	f.BoolVar(&detach, "detach", false, "return at once, without watching it")
	reasonFlag(f, &reason)
	outputFlag(f)
	return cmd
}

// operationID parses the id of an operation.
func operationID(text string) (int64, error) {
	id, err := strconv.ParseInt(text, 10, 64)
	if err != nil || id < 1 {
		return 0, usagef("%q is no operation, which is a number such as 42; see: pgjet op ls", short(text))
	}
	return id, nil
}

// watchOperation shows the progress of an operation until it ends, then the operation. If detach is
// set, it shows the operation at once. The exit code is 3 if the stream refused some events.
func watchOperation(ctx context.Context, cmd *cobra.Command, db *pgxpool.Pool, id int64, detach bool) error {
	src := operate.Source{DB: db}
	var o operate.OperationState
	progress := newProgress(cmd.ErrOrStderr(), "operation", "")
	for {
		var err error
		if o, err = src.ReadOperation(ctx, id); err != nil {
			return err
		}
		if o.Done != nil && o.Total != nil {
			progress.report(id, int(*o.Done), int(*o.Total))
		}
		if detach || o.State != operation.Running {
			break
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			fmt.Fprintf(cmd.ErrOrStderr(), "the relay goes on; to see how far it is: pgjet op get %d; to stop it: pgjet op cancel %d\n", id, id)
			return &exitError{exitInterrupted, errors.New("interrupted")}
		}
	}
	progress.finish()
	if err := show(cmd, o, func(w io.Writer) { writeOperation(w, o) }); err != nil {
		return err
	}
	if o.Refused > 0 {
		return &exitError{exitPartly, fmt.Errorf("the stream refused %d of them; see: pgjet relay quarantine ls", o.Refused)}
	}
	return nil
}
