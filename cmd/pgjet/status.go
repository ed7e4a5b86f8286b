package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/consumers"
	consumerstatus "github.com/pgjet/pgjet/consumers/status"
	"github.com/pgjet/pgjet/internal/operate"
	"github.com/pgjet/pgjet/relay"
)

func statusCommand() *cobra.Command {
	var s settings
	watch := false
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show whether anything is wrong, and what to do; exit code 6 if something needs an operator",
		Long: `Show whether anything is wrong, the worst first, and what to do: with relays, outbox,
consumers, dead letters, sagas and processes. It takes about a second. If PostgreSQL or NATS
does not answer, the rest is shown, with what is missing. The exit code is 6 if something
needs an operator, 5 if neither answers.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !watch {
				_, err := s.showStatusOnce(cmd)
				return err
			}
			return s.watchStatus(cmd)
		},
	}
	s.databaseFlag(cmd.Flags())
	s.natsFlags(cmd.Flags())
	outputFlag(cmd.Flags())
	cmd.Flags().BoolVar(&watch, "watch", false, "repeat it every two seconds, until Ctrl-C; in JSON one line each time")
	return cmd
}

// showStatusOnce shows the status, and reports whether it did: what is found after Ctrl-C is not
// shown.
func (s *settings) showStatusOnce(cmd *cobra.Command) (shown bool, err error) {
	err = s.withSource(cmd.Context(), func(ctx context.Context, src operate.Source) error {
		status := src.Status(ctx)
		if err := cmd.Context().Err(); err != nil {
			return err
		}
		shown = true
		if err := show(cmd, status, func(w io.Writer) { writeOverview(w, status) }); err != nil {
			return err
		}
		switch {
		case src.Err() != nil:
			return &exitError{exitUnreachable, src.Err()}
		case !status.Healthy:
			return &exitError{exitFindings, errors.New(status.Verdict())}
		}
		return nil
	})
	return shown, err
}

// watchStatus shows the status every two seconds. It returns the result that it showed last.
func (s *settings) watchStatus(cmd *cobra.Command) (last error) {
	ctx, out, isTable := cmd.Context(), cmd.OutOrStdout(), outputForm(cmd) != "json"
	for {
		if terminal(out) && isTable {
			fmt.Fprint(out, "\x1b[H\x1b[2J")
		}
		shown, err := s.showStatusOnce(cmd)
		if ctx.Err() != nil && !shown {
			return last
		}
		last = err
		if exit, ok := errors.AsType[*exitError](err); err != nil && !ok || ok && exit.code == exitUsage {
			return err
		}
		select {
		case <-time.After(2 * time.Second):
		case <-ctx.Done():
			return last
		}
		if isTable {
			fmt.Fprintln(out)
		}
	}
}

// writeOverview writes the verdict, the findings, and the state of each part.
func writeOverview(w io.Writer, s operate.Status) {
	fmt.Fprintf(w, "%s\n\n", s.Verdict())
	for _, f := range s.Findings {
		fmt.Fprintf(w, "%s\t%s\t%s\n", plain(f.What), f.Code, plain(f.Text))
		if !f.Healthy {
			fmt.Fprintf(w, "\t\t-> %s\n", plain(f.Next))
		}
	}
	if i := slices.IndexFunc(s.Findings, func(f operate.Finding) bool { return !f.Healthy }); i >= 0 {
		fmt.Fprintf(w, "\nfor the runbook of a reason, step by step: pgjet explain %s\n", plain(explainable(s.Findings[i])))
	}
	if len(s.Findings) > 0 {
		fmt.Fprintln(w)
	}
	for _, r := range s.Relays {
		fmt.Fprintf(w, "relay\t%s\t%s\n", plain(r.Stream), plain(aboutRelay(r)))
	}
	if len(s.Relays) > 0 && s.Relays[0].Scheduled.Events > 0 { // every relay reports the same outbox
		fmt.Fprintf(w, "scheduled\t%s\n", plain(aboutDue(s.Relays[0].At, s.Relays[0].Scheduled)))
	}
	for _, r := range s.Relays {
		if r.Audit != nil || r.Auditing != nil {
			fmt.Fprintf(w, "audit\t%s\t%s\n", plain(r.Stream), plain(aboutAudit(r)))
		}
	}
	for _, c := range s.Consumers {
		fmt.Fprintf(w, "consumer\t%s\t%s; lag %s, retrying %d, dead letters %d, %s handled, oldest %s%s\n", plain(c.Name), c.Why.Code, lag(c), c.Retrying,
			c.DeadLetters, handled(c), oldest(c), plain(aboutFailures(c)))
		for _, one := range c.Slices {
			if len(c.Slices) > 1 && one.Why.Code != "idle" && !c.Unasked {
				fmt.Fprintf(w, "\tslice %d\t%s; lag %d, of %s\n", one.Slice, one.Why.Code, one.Lag, plain(cmp.Or(one.Process, "nobody")))
			}
		}
	}
	for _, i := range s.Processes {
		cause := ""
		if i.Cause != "" {
			cause = ": " + short(i.Cause)
		}
		fmt.Fprintf(w, "process\t%s\t%s, up %s, %s%s\n", plain(i.Name), i.Health, uptime(i.Started), plain(i.Version), plain(cause))
	}
}

// explainable returns the word with which pgjet explain begins with the runbook of a finding: its
// reason, or the name of the runbook if that reason has another one first.
func explainable(f operate.Finding) string {
	first := slices.IndexFunc(operate.Reasons, func(r operate.Reason) bool { return r.Code == f.Code })
	if f.Runbook == "" || first < 0 || operate.Reasons[first].Runbook == f.Runbook {
		return f.Code
	}
	return strings.TrimSuffix(f.Runbook, ".md")
}

// aboutFailures describes how many of the last attempts failed, and the last error; "" if none did.
func aboutFailures(c consumerstatus.Status) string {
	attempts, failed, last := c.Failures()
	if failed == 0 {
		return ""
	}
	return fmt.Sprintf("; %s: %s", consumers.Share(attempts, failed), last)
}

func aboutRelay(r relay.Status) string {
	leader := "no leader"
	if r.Leads && r.Leader != nil {
		leader = fmt.Sprintf("leader %s since %s", cmp.Or(r.Leader.Process, "unknown"), since(r.At, r.Leader.Since))
	}
	return fmt.Sprintf("%s, %d standing by; pending %s; quarantine %d held", leader, r.Standbys, aboutPending(r, len(operate.RelayTroubles(r)) > 0), r.Quarantined.Held)
}
