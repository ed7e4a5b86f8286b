package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/internal/operate"
	"github.com/pgjet/pgjet/relay"
	"github.com/pgjet/pgjet/relay/audit"
)

func auditCommand() *cobra.Command {
	var s settings
	return group(&cobra.Command{Use: "audit", Short: "Compare the outbox with the stream"}, s.forOneRelay(s.auditRunCommand(), s.auditShowCommand())...)
}

func (s *settings) auditRunCommand() *cobra.Command {
	var since string
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Compare the outbox with the stream, in both directions; exit code 6 if they differ",
		Long: `Compare the outbox with the stream, in both directions: events that were published and are
missing, messages that the outbox does not know, and events that are there twice, behind a
later one of their key, or different from their row. What was pruned or has aged out cannot
be compared; it is counted, but not as a difference. The command changes nothing.

It reads everything that both still have, or with --since what was published after the last
checkpoint before that time. Memory is bounded: one bit for each event, and some MiB.`,
		Example: `  pgjet audit run
  pgjet audit run --since 24h`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := notEmpty(cmd.Flags(), "since"); err != nil {
				return err
			}
			at, err := timeFlag("--since", since)
			if err != nil {
				return err
			}
			return s.withFacts(cmd.Context(), func(ctx context.Context, src operate.Source) error {
				return runAudit(ctx, cmd, src, at)
			})
		},
	}
	s.databaseFlag(cmd.Flags())
	s.natsFlags(cmd.Flags())
	s.relayFlag(cmd.Flags())
	cmd.Flags().StringVar(&since, "since", "", "only what was published since a time such as 2026-11-01T00:00:00Z, or how long ago, such as 24h")
	outputFlag(cmd.Flags())
	return cmd
}

func runAudit(ctx context.Context, cmd *cobra.Command, src operate.Source, since time.Time) error {
	var from *time.Time
	if !since.IsZero() {
		from = &since
	}
	progress := newProgress(cmd.ErrOrStderr(), "audit", src.Stream)
	a, err := src.Audit(ctx, from, func(done, total int64) { progress.report(0, int(done), int(total)) })
	progress.finish()
	if err != nil {
		return err
	}
	if err := show(cmd, a, func(w io.Writer) { writeAudit(w, a) }); err != nil {
		return err
	}
	if !a.Agrees {
		return &exitError{exitFindings, fmt.Errorf("outbox and stream differ at %d places; see: pgjet explain audit_differs", a.Result.Differences())}
	}
	return nil
}

func (s *settings) auditShowCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show what the background audit of the leading relay found; exit code 6 if outbox and stream differ",
		Long: `Show what the background audit of the leading relay found: the last complete pass, the
running one, and the first hundred differences. A pass begins an hour after the last one, or
when events were published again.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.withDatabase(cmd.Context(), func(ctx context.Context, db *pgxpool.Pool) error {
				a, err := operate.Source{DB: db, Stream: s.stream}.Audits(ctx)
				if err != nil {
					return err
				}
				if err := show(cmd, a, func(w io.Writer) { writeAudits(w, a) }); err != nil {
					return err
				}
				if len(a.Differences) > 0 {
					return &exitError{exitFindings, errors.New("outbox and stream differ; see: pgjet explain audit_differs")}
				}
				return nil
			})
		},
	}
	s.databaseFlag(cmd.Flags())
	s.streamFlag(cmd.Flags())
	s.relayFlag(cmd.Flags())
	outputFlag(cmd.Flags())
	return cmd
}

func writeAudits(w io.Writer, a operate.Audits) {
	fmt.Fprintf(w, "stream\t%s\n", plain(a.Stream))
	fmt.Fprintf(w, "last pass\t%s\n", aboutPass(a.At, a.Last))
	fmt.Fprintf(w, "under way\t%s\n", aboutPass(a.At, a.Now))
	writeDifferences(w, a.Differences, int64(len(a.Differences)))
}

// aboutPass describes in one line what a pass of the background audit found, or returns "none".
func aboutPass(now time.Time, a *relay.Audited) string {
	switch {
	case a == nil:
		return "none"
	case a.EndedAt != nil:
		return operate.DescribeAudit(*a) + ", ended " + since(now, a.EndedAt)
	}
	return fmt.Sprintf("%s, up to sequence %d, began %s", operate.DescribeAudit(*a), a.StreamSeq, since(now, &a.BeganAt))
}

// aboutAudit describes in one line the background audit of a stream.
func aboutAudit(r relay.Status) string {
	if r.Auditing == nil {
		return "last pass: " + aboutPass(r.At, r.Audit)
	}
	return "last pass: " + aboutPass(r.At, r.Audit) + "; under way: " + aboutPass(r.At, r.Auditing)
}

func writeAudit(w io.Writer, a operate.Audit) {
	line, some := counts(w)
	fmt.Fprintf(w, "stream\t%s\t\n", plain(a.Stream))
	line("compared", a.Compared, "messages that are events of the outbox")
	line("missing", a.Missing, "were published, and are no longer in the stream")
	line("extra", a.Extra, "are in the stream, and the outbox does not know them")
	line("twice", a.Twice, "are in the stream twice")
	line("out of order", a.OutOfOrder, "are behind a later event of their key")
	line("changed", a.Changed, "differ from their row")
	some("pending", a.Pending, "are not published yet: no difference")
	some("quarantined", a.Quarantined, "are in quarantine, or to be published again: no difference")
	some("before", a.Before, "were published before, or have aged out: not compared")
	some("pruned", a.Pruned, "were pruned from the outbox: not compared")
	some("adopted", a.Adopted, "were accepted by an operator: not compared")
	some("moved", a.Moved, "were published again, or after their quarantine: behind later events of their key")
	some("overlapping", a.Overlapping, "are behind a later event of their key, whose transaction may have committed first: no difference")
	writeDifferences(w, a.Differences, a.Result.Differences())
}

// shownDifferences is the number of differences that a table lists.
const shownDifferences = 20

func writeDifferences(w io.Writer, all []audit.Difference, total int64) {
	if len(all) == 0 {
		return
	}
	fmt.Fprintln(w, "\nDIFFERENCE\tEVENT\tSEQ\tSTREAM SEQ\tWHAT")
	for _, d := range all[:min(len(all), shownDifferences)] {
		id := "-"
		if d.ID != uuid.Nil {
			id = d.ID.String()
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", d.Kind, id, orDash(notZero(d.Seq)), orDash(notZero(int64(d.StreamSeq))), plain(d.Text))
	}
	if more := total - shownDifferences; more > 0 {
		fmt.Fprintf(w, "…\t%d more; -o json names the first %d\n", more, len(all))
	}
}

// notZero returns n, or nil for 0.
func notZero(n int64) *int64 {
	if n == 0 {
		return nil
	}
	return &n
}
