package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/consumers/replay"
	"github.com/pgjet/pgjet/internal/operate"
	"github.com/pgjet/pgjet/internal/operation"
)

func opCommand() *cobra.Command {
	var s settings
	cmd := group(&cobra.Command{
		Use: "op", Short: "List changes that were made by hand, and resume or cancel them",
		Long: `List changes that were made by hand, by whom and why: replays, redrives, republishes,
discards, prunes, pauses. Long ones show their progress and can be cancelled; those that
stopped can be resumed.`,
	}, s.opListCommand(), s.opGetCommand(), s.opResumeCommand(), s.opCancelCommand())
	s.databaseFlag(cmd.PersistentFlags())
	return cmd
}

func (s *settings) opListCommand() *cobra.Command {
	f := operation.Filter{}
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List operations, the newest first",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := notEmpty(cmd.Flags(), "kind", "state", "target"); err != nil {
				return err
			}
			if err := checkLimit(f.Most); err != nil {
				return err
			}
			return s.withDatabase(cmd.Context(), func(ctx context.Context, db *pgxpool.Pool) error {
				all, err := operate.Source{DB: db}.ListOperations(ctx, f)
				if err != nil {
					return err
				}
				if err := show(cmd, all, func(w io.Writer) { writeOperations(w, all) }); err != nil {
					return err
				}
				if len(all) == f.Most {
					fmt.Fprintf(cmd.ErrOrStderr(), "there may be more: add --before %d\n", all[len(all)-1].ID)
				}
				return nil
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.Kind, "kind", "", "only of this kind, such as replay or dead.redrive, or of kinds with this beginning, such as dead")
	flags.StringVar(&f.Target, "target", "", "only on this target, such as the name of a consumer")
	flags.StringVar(&f.State, "state", "", "only those that are planned, running, stopped, done, failed or cancelled")
	flags.Int64Var(&f.Before, "before", 0, "only those with a lower id")
	flags.IntVar(&f.Most, "limit", 50, "the most to list, up to 1000")
	outputFlag(flags)
	return cmd
}

func writeOperations(w io.Writer, all []operation.Record) {
	fmt.Fprintln(w, "ID\tWHEN\tKIND\tTARGET\tSTATE\tPROGRESS\tBY\tREASON")
	for _, o := range all {
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", o.ID, ago(time.Since(o.At)), plain(o.Kind), plain(o.Target), o.State, howFar(o), plain(o.By), plain(o.Reason))
	}
}

// howFar formats the progress of an operation.
func howFar(o operation.Record) string {
	switch {
	case o.Done == nil && o.Total == nil:
		return "-"
	case o.Total == nil:
		return fmt.Sprint(*o.Done)
	case o.Done == nil:
		return fmt.Sprint("0/", *o.Total)
	}
	return fmt.Sprintf("%d/%d", *o.Done, *o.Total)
}

func (s *settings) opGetCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "get ID",
		Short: "Show one operation, with what was planned and done",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := operationID(args[0])
			if err != nil {
				return err
			}
			return s.withoutDeadline(cmd.Context(), func(ctx context.Context, db *pgxpool.Pool) error {
				o, err := operate.Source{DB: db}.ReadOperation(ctx, id)
				if err != nil {
					return err
				}
				return show(cmd, o, func(w io.Writer) { writeOperation(w, o) })
			})
		},
	}
	outputFlag(cmd.Flags())
	return cmd
}

func writeOperation(w io.Writer, o operate.OperationState) {
	line := lines(w)
	line("operation", "%d, %s of %s", o.ID, o.Kind, o.Target)
	line("state", "%s", o.State)
	if o.Total != nil || o.Done != nil {
		line("progress", "%s", howFar(o.Record))
	}
	if o.Refused > 0 {
		line("refused", "%d, which are in quarantine", o.Refused)
	}
	line("by", "%s, %s", o.By, o.At.Format(time.RFC3339))
	line("reason", "%s", o.Reason)
	if o.ChangedAt != nil {
		line("changed", "%s", o.ChangedAt.Format(time.RFC3339))
	}
	if len(o.Detail) > 0 {
		var detail map[string]json.RawMessage
		if json.Unmarshal(o.Detail, &detail) == nil {
			for _, name := range slices.Sorted(maps.Keys(detail)) {
				line(name, "%s", cut(string(detail[name])))
			}
		}
	}
	if o.Next != "" {
		line("next", "%s", o.Next)
	}
}

// cut returns s, shortened for one line.
func cut(s string) string {
	const most = 200
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "… (all with -o json)"
	}
	return s
}

func (s *settings) opResumeCommand() *cobra.Command {
	rate := 0
	cmd := &cobra.Command{
		Use:   "resume ID",
		Short: "Resume an operation whose command ended too early",
		Long: `Resume a replay, a redrive or a discard whose command ended too early: with the rest of its
selection, for its reason, and at its rate unless --rate sets another one. The leading relay
continues its own work by itself. Exit code 7 if there is nothing to resume.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := operationID(args[0])
			if err == nil && rate < 0 {
				err = usagef("--rate is %d, want 0 or more", rate)
			}
			if err != nil {
				return err
			}
			return s.withoutDeadline(cmd.Context(), func(ctx context.Context, db *pgxpool.Pool) error {
				return s.resumeOperation(ctx, cmd, db, id, rate)
			})
		},
	}
	s.directFlag(cmd.Flags())
	s.natsURLFlag(cmd.Flags())
	s.access.flags(cmd.Flags())
	cmd.Flags().IntVar(&rate, "rate", 0, "the most per second; 0 keeps the rate")
	outputFlag(cmd.Flags())
	return cmd
}

func (s *settings) resumeOperation(ctx context.Context, cmd *cobra.Command, db *pgxpool.Pool, id int64, rate int) error {
	o, err := operate.Source{DB: db}.Resumable(ctx, id)
	switch {
	case err != nil:
		return err
	case o.Kind == "replay":
		a := replayRun{settings: s, consumer: o.Target, reason: o.Reason, yes: true, continues: &o, rate: rate, stdio: stdioOf(cmd)}
		err = replayExit(a.replay(ctx))
	default:
		if _, err = replay.Resume(ctx, db, o, rate); err == nil {
			return watchOperation(ctx, cmd, db, id, true)
		}
	}
	return err
}

func (s *settings) opCancelCommand() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "cancel ID",
		Short: "End an operation that is planned, running or stopped; what it has done is kept",
		Long: `End an operation that is planned, running or stopped. What it has done is kept. Its command
ends after the current step. Exit code 7 if it has ended already.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := operationID(args[0])
			if err == nil {
				err = needReason(reason)
			}
			if err != nil {
				return err
			}
			return s.withoutDeadline(cmd.Context(), func(ctx context.Context, db *pgxpool.Pool) error {
				r, err := operate.CancelOperation(ctx, db, id, actor(), reason)
				if err != nil {
					return err
				}
				r.Detail = nil
				return show(cmd, r, func(w io.Writer) {
					fmt.Fprintf(w, "cancelled operation %d, %s of %s; done: %s\n", r.ID, plain(r.Kind), plain(r.Target), howFar(r))
				})
			})
		},
	}
	reasonFlag(cmd.Flags(), &reason)
	outputFlag(cmd.Flags())
	return cmd
}
