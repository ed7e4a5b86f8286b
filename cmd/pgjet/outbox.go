package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/internal/upkeep"
	"github.com/pgjet/pgjet/relay"
)

func outboxCommand() *cobra.Command {
	var s settings
	cmd := group(&cobra.Command{Use: "outbox", Short: "Look at the outbox, prune it, and manage scheduled events"},
		s.outboxStatusCommand(), s.outboxPruneCommand(), s.scheduledCommand())
	s.databaseFlag(cmd.PersistentFlags())
	return cmd
}

func (s *settings) outboxStatusCommand() *cobra.Command {
	exact := false
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Count what was written, published and pruned, and show the partitions",
		Long: `Count, in one snapshot of the database, the written events, and how many of them are
published, pending, quarantined or pruned; and show the partitions. Above some 64 MB the
numbers are estimates, from the first and the last seq of each partition. --exact reads the
whole outbox, which takes seconds and slows a relay down.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.withOutbox(cmd.Context(), func(ctx context.Context, db *pgx.Conn) error {
				read := upkeep.ReadQuickStatus
				if exact {
					read = upkeep.ReadStatus
				}
				status, err := read(ctx, db)
				if err != nil {
					return err
				}
				return show(cmd, status, func(w io.Writer) { showOutbox(w, status) })
			})
		},
	}
	outputFlag(cmd.Flags())
	cmd.Flags().BoolVar(&exact, "exact", false, "read the whole outbox, however large it is")
	return cmd
}

func showOutbox(w io.Writer, s upkeep.Status) {
	if !s.Exact {
		fmt.Fprint(w, "about ")
	}
	fmt.Fprintf(w, "written %d = published %d + pending %d + quarantined %d + pruned %d\n\n",
		s.Written, s.Published, s.Pending, s.Quarantined, s.Pruned)
	if s.HeldBackBy != "" {
		fmt.Fprintf(w, "stream %s holds back partitions that all others have published; %s\n\n", plain(s.HeldBackBy), plain(upkeep.Retire(s.HeldBackBy)))
	}
	now := time.Now()
	fmt.Fprintln(w, "PARTITION\tLOW\tHIGH\tEVENTS\tMIB\tOLDEST\tNEWEST")
	for _, p := range s.Partitions {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%.1f\t%s\t%s\n", p.Name, orDash(p.Low), orDash(p.High),
			p.Events, float64(p.Bytes)/(1<<20), since(now, p.Oldest), since(now, p.Newest))
	}
}

func orDash(n *int64) string {
	if n == nil {
		return "-"
	}
	return fmt.Sprint(*n)
}

// A pruneResult is the JSON output of pgjet outbox prune.
type pruneResult struct {
	DryRun bool     `json:"dry_run"`
	Pruned []string `json:"pruned"` // partitions; in a dry run those that would be pruned
	Events int64    `json:"events"`
	Busy   string   `json:"busy"`
}

func (s *settings) outboxPruneCommand() *cobra.Command {
	var age time.Duration
	var reason string
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Prune what is published and old, as the relay does; exit code 6 if something has to wait",
		Long: `Drop the partitions whose events were all published in every stream, longer than
--older-than ago. The relay does so by itself; by hand it can be done earlier. It is
recorded in pgjet.operation. The exit code is 6 if a partition that is old enough cannot be
dropped now.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if age < 0 {
				return usagef("--older-than is %s, want 0 or more", age)
			}
			return s.withOutbox(cmd.Context(), func(ctx context.Context, db *pgx.Conn) error {
				p, err := prune(ctx, db, age, reason, dryRun)
				if len(p.Pruned) == 0 && err != nil {
					return err
				}
				return errors.Join(p.show(cmd), err)
			})
		},
	}
	cmd.Flags().DurationVar(&age, "older-than", relay.DefaultRetention, "how long ago it has to have been published")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the record")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "show what would be pruned, and prune nothing")
	outputFlag(cmd.Flags())
	return cmd
}

func prune(ctx context.Context, db *pgx.Conn, age time.Duration, reason string, dryRun bool) (pruneResult, error) {
	if dryRun {
		names, err := upkeep.Prunable(ctx, db, age)
		return pruneResult{DryRun: true, Pruned: append([]string{}, names...)}, err
	}
	done, err := upkeep.Prune(ctx, db, age, actor(), reason)
	return pruneResult{Pruned: append([]string{}, done.Dropped...), Events: done.Pruned, Busy: done.Busy}, err
}

func (p pruneResult) show(cmd *cobra.Command) error {
	err := show(cmd, p, func(w io.Writer) {
		switch names := plain(strings.Join(p.Pruned, ", ")); {
		case p.DryRun && names != "":
			fmt.Fprintf(w, "would prune %s\n", names)
		case names != "":
			fmt.Fprintf(w, "pruned %s: %d events\n", names, p.Events)
		case p.Busy == "":
			fmt.Fprintln(w, "nothing to prune: no whole partition is published and old enough")
		}
	})
	if err != nil {
		return err
	}
	if p.Busy != "" {
		return &exitError{exitFindings, fmt.Errorf("something has to wait: %s", plain(p.Busy))}
	}
	return nil
}
