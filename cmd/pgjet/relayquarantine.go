package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/relay"
)

func (s *settings) quarantineListCommand() *cobra.Command {
	var state string
	var after int64
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the events in quarantine, without their payloads",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.withDatabase(cmd.Context(), func(ctx context.Context, db *pgxpool.Pool) error {
				all, err := relay.Quarantine(ctx, db, state, after)
				if err != nil {
					return err
				}
				if err := showQuarantine(cmd, all); err != nil {
					return err
				}
				if len(all) >= relay.QuarantinePage {
					fmt.Fprintf(cmd.ErrOrStderr(), "there may be more: add --after %d\n", all[len(all)-1].Seq)
				}
				return nil
			})
		},
	}
	f := cmd.Flags()
	outputFlag(f)
	f.StringVar(&state, "state", "", "only those that are held, retry or dropped")
	f.Int64Var(&after, "after", 0, "only those with a higher seq; 1000 are listed at a time")
	return cmd
}

func showQuarantine(cmd *cobra.Command, all []relay.Quarantined) error {
	return show(cmd, all, func(w io.Writer) {
		fmt.Fprintln(w, "SEQ\tEVENT\tTYPE\tKEY\tSTATE\tSINCE\tREASON")
		for _, q := range all {
			at, reason := q.At, q.Reason
			if q.State != "held" && q.ChangedAt != nil {
				at, reason = *q.ChangedAt, fmt.Sprintf("%s; %s by %s: %s", q.Reason, q.State, q.ChangedBy, q.ChangeReason)
			}
			fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%s\n", q.Seq, q.EventID, plain(q.Type), plain(q.Key), q.State, ago(time.Since(at)), plain(reason))
		}
	})
}

func showUnknown(s stdio, all []relay.UnknownMessage) error {
	const shown = 20
	return s.show(all, func(w io.Writer) {
		fmt.Fprintln(w, "SEQUENCE\tEVENT\tSUBJECT\tFOUND")
		for i, m := range all {
			if i >= shown-1 && i < len(all)-1 {
				if i == shown-1 {
					fmt.Fprintf(w, "…\t%d more, which -o json shows\n", len(all)-shown)
				}
				continue
			}
			id := "none of ours"
			if m.EventID != nil {
				id = m.EventID.String()
			}
			fmt.Fprintf(w, "%d\t%s\t%s\t%s\n", m.StreamSeq, id, plain(m.Subject), ago(time.Since(m.At)))
		}
	})
}

func (s *settings) quarantineRetryCommand() *cobra.Command {
	cmd := s.decideCommand(decision{decide: func(ctx context.Context, db *pgxpool.Pool, seqs []int64, reason string) ([]int64, error) {
		return relay.RetryQuarantined(ctx, db, seqs, actor(), reason)
	}, done: "%d events to be published by the relay; what the stream still refuses comes back as held\n"})
	cmd.Use = "retry [SEQ...]"
	cmd.Short = "Publish events that are in quarantine, if the stream accepts them now"
	cmd.Long = `Publish events that are in quarantine, if the stream accepts them now. Those that it still
refuses come back as held. --all is all that are held; dropped ones have to be named.`
	return cmd
}

func (s *settings) quarantineDropCommand() *cobra.Command {
	cmd := s.decideCommand(decision{decide: func(ctx context.Context, db *pgxpool.Pool, seqs []int64, reason string) ([]int64, error) {
		return relay.DropQuarantined(ctx, db, seqs, actor(), reason)
	}, done: "%d events dropped; 'pgjet relay quarantine retry SEQ' brings one back\n", needsReason: true, asks: true})
	cmd.Use = "drop [SEQ...]"
	cmd.Short = "Give up events that are in quarantine"
	cmd.Long = `Give up events that are in quarantine: consumers never get them. They stay in the
outbox until they are pruned; until then 'pgjet relay quarantine retry SEQ' brings
one back. --all is all that are held.`
	return cmd
}

// A decision is a command that retries or drops events in quarantine.
type decision struct {
	decide      func(ctx context.Context, db *pgxpool.Pool, seqs []int64, reason string) ([]int64, error)
	done        string // the format of the line with the number of events
	needsReason bool
	asks        bool // for confirmation before it changes all
}

// A quarantineResult is the JSON output of pgjet relay quarantine retry and drop.
type quarantineResult struct {
	Changed []int64 `json:"changed"` // seqs
}

func (s *settings) decideCommand(d decision) *cobra.Command {
	var reason string
	var all, yes bool
	cmd := &cobra.Command{RunE: func(cmd *cobra.Command, args []string) error {
		seqs, err := selection(args, all)
		if err == nil && d.needsReason {
			err = needReason(reason)
		}
		if err != nil {
			return err
		}
		if d.asks && all && !yes {
			if !terminal(cmd.InOrStdin()) {
				return usagef("see what is held with pgjet relay quarantine ls, then use --yes")
			}
			if !confirm(cmd.InOrStdin(), cmd.ErrOrStderr(), "Drop all events that are held?") {
				fmt.Fprintln(cmd.ErrOrStderr(), "nothing was changed")
				return nil
			}
		}
		return s.withDatabase(cmd.Context(), func(ctx context.Context, db *pgxpool.Pool) error {
			changed, err := d.decide(ctx, db, seqs, reason)
			if err == nil {
				result := quarantineResult{append([]int64{}, changed...)}
				err = show(cmd, result, func(w io.Writer) { fmt.Fprintf(w, d.done, len(changed)) })
			}
			return err
		})
	}}
	reasonFlag(cmd.Flags(), &reason)
	outputFlag(cmd.Flags())
	cmd.Flags().BoolVar(&all, "all", false, "all that are held")
	if d.asks {
		cmd.Flags().BoolVar(&yes, "yes", false, "do not ask before all are dropped")
	}
	return cmd
}

// selection returns the seqs in args, or nil for all. All are selected only by --all.
func selection(args []string, all bool) ([]int64, error) {
	if all == (len(args) > 0) {
		return nil, usagef("name events by their SEQ, or use --all for all that are held; not both. See: pgjet relay quarantine ls")
	}
	var seqs []int64
	for _, arg := range args {
		seq, err := strconv.ParseInt(arg, 10, 64)
		if err != nil || seq < 1 {
			return nil, usagef("%q is no SEQ, which is a number such as 42", arg)
		}
		seqs = append(seqs, seq)
	}
	return seqs, nil
}
