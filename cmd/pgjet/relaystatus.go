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

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/internal/jserror"
	"github.com/pgjet/pgjet/internal/natsconn"
	"github.com/pgjet/pgjet/relay"
)

func (s *settings) relayStatusCommand() *cobra.Command {
	var output, natsURL string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show whether events are being published, and if not, why; exit code 6 if not",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			all, err := s.relays(cmd)
			if err != nil {
				return err
			}
			s.natsURL = natsURL
			if len(all) == 0 {
				return s.showRelay(cmd, output)
			}
			var errs []error
			for i, e := range all {
				if i > 0 && output == "table" {
					fmt.Fprintln(cmd.OutOrStdout())
				}
				s.take(e)
				if err := s.showRelay(cmd, output); err != nil {
					errs = append(errs, fmt.Errorf("relay %s: %w", e.name, err))
				}
			}
			return worst(errs)
		},
	}
	outputFlag(cmd.Flags(), &output)
	cmd.Flags().StringVar(&natsURL, "nats-url", "", "NATS servers; with them a stream that does not exist is reported before any relay has run")
	s.access.flags(cmd.Flags())
	return cmd
}

// showRelay shows the status of one relay.
func (s *settings) showRelay(cmd *cobra.Command, output string) error {
	return s.withDatabase(cmd.Context(), func(ctx context.Context, db *pgxpool.Pool) error {
		status, err := relay.ReadStatus(ctx, db, s.stream)
		if err != nil {
			return err
		}
		return showStatus(cmd.OutOrStdout(), output, status, s.absent(ctx, status), s.prefix)
	})
}

// worst returns what ended several looks, with the exit code of one that failed before that of one that
// found something.
func worst(errs []error) error {
	code, joined := exitOK, errors.Join(errs...)
	for _, err := range errs {
		one := reasonExit(err)
		if exit, ok := errors.AsType[*exitError](err); ok {
			one = exit.code
		}
		if code == exitOK || code == exitFindings {
			code = one
		}
	}
	if joined == nil {
		return nil
	}
	return &exitError{code, joined}
}

// absent returns that the stream does not exist, and which do, if no relay has ever run for it
// and NATS can be asked; "" otherwise.
func (s *settings) absent(ctx context.Context, status relay.Status) string {
	if s.natsURL == "" || status.Leader != nil && status.Leader.Epoch > 0 {
		return ""
	}
	nc, js, err := s.reachNATS()
	if err != nil {
		return "" // the outbox alone was asked for
	}
	defer nc.Close()
	if _, err := js.Stream(ctx, s.stream); natsconn.Of(err) != jserror.StreamMissing {
		return ""
	}
	return natsconn.NoStream(ctx, js, s.stream)
}

func showStatus(out io.Writer, output string, s relay.Status, absent, prefix string) error {
	all := troubles(s)
	if absent != "" {
		all = slices.Insert(all, 0, trouble{string(jserror.StreamMissing), plain(absent), typed(nextFor(string(jserror.StreamMissing)), s.Stream)})
	}
	for i := range all {
		all[i].Next = withPrefix(all[i].Next, prefix)
	}
	view := struct {
		relay.Status
		Publishing bool      `json:"publishing"`
		Troubles   []trouble `json:"troubles"`
	}{s, len(all) == 0, all}
	if err := show(out, output, view, func(w io.Writer) { writeStatus(w, s, all) }); err != nil {
		return err
	}
	if len(all) > 0 {
		return &exitError{exitFindings, errors.New("not publishing: " + all[0].Cause)}
	}
	return nil
}

func writeStatus(w io.Writer, s relay.Status, all []trouble) {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%s\t%s\n", name, plain(fmt.Sprintf(format, args...)))
	}
	line("stream", "%s", s.Stream)
	line("outbox", "%s", s.Outbox)
	switch l := s.Leader; {
	case s.Leads && l != nil:
		line("leader", "%s, epoch %d, since %s", cmp.Or(l.Process, "unknown"), l.Epoch, since(s.At, l.Since))
	case s.Leads:
		line("leader", "a relay that has just begun")
	case s.Holder != nil:
		line("leader", "none; the lead is %s", s.Holder)
	default:
		line("leader", "none")
	}
	line("standbys", "%d", s.Standbys)
	if c := s.Checkpoint; c != nil {
		line("checkpoint", "stream sequence %d, %d events, %s", c.StreamSeq, c.Events, ago(s.At.Sub(c.At)))
	} else {
		line("checkpoint", "none")
	}
	switch p := s.Pending; {
	case p.Events == 0:
		line("pending", "0")
	case p.Exact:
		line("pending", "%d, the oldest %s", p.Events, ago(seconds(p.OldestSeconds)))
	default:
		line("pending", "about %d, the oldest %s", p.Events, ago(seconds(p.OldestSeconds)))
	}
	if due := s.Scheduled; due.Due > 0 || due.Next != nil {
		line("scheduled", "%s", aboutDue(s.At, due))
	}
	line("quarantine", "%d held, %d to be retried, %d dropped", s.Quarantined.Held, s.Quarantined.Retry, s.Quarantined.Dropped)
	if s.Healing {
		line("healing", "the stream lost events; they are being published again")
	}
	for _, t := range all {
		line("why", "%s", t.Why)
		line("next", "%s", t.Next)
	}
	if s.Quarantined.Held > 0 {
		line("next", "%s", typed("pgjet relay quarantine ls", s.Stream))
	}
}

// aboutDue says what is due, why it was not moved, and when the next event is.
func aboutDue(now time.Time, s relay.Scheduled) string {
	text := fmt.Sprintf("%d due", s.Due)
	if s.Due > 10_000 {
		text = "more than 10000 due"
	}
	if s.Due > 0 {
		text += ", the first " + ago(seconds(s.OverdueSeconds))
	}
	switch s.Reason {
	case "":
	case "due_held":
		text += ": due_held, other transactions hold them, or earlier ones of their keys; see docs/runbooks/relay-not-publishing.md"
	default:
		text += ": " + s.Reason
	}
	if s.Next != nil {
		text += "; the next is due " + fromNow(s.Next.Sub(now))
	}
	return text
}

// A trouble is a reason why nothing is published, and what to type next.
type trouble struct {
	Cause string `json:"cause"` // a word that docs/cli.md explains
	Why   string `json:"why"`
	Next  string `json:"next"`
}

// attempts is how long a relay that keeps trying may be away between two sessions.
const attempts = 30 * time.Second

// troubles returns why nothing is published; nothing if that goes on.
func troubles(s relay.Status) []trouble {
	all := []trouble{}
	add := func(cause, next, format string, args ...any) {
		all = append(all, trouble{cause, plain(fmt.Sprintf(format, args...)), typed(next, s.Stream)})
	}
	if s.Paused != nil {
		add("paused", "pgjet relay resume", "paused by %s %s: %s", s.Paused.By, ago(s.At.Sub(s.Paused.At)), s.Paused.Reason)
	}
	if s.Unknown > 0 {
		add("halted", "pgjet relay adopt --dry-run", "the stream holds %s messages that the outbox does not know; see docs/runbooks/halted.md", atMost(s.Unknown))
	}
	if s.Holder != nil {
		add("lead_taken", nextFor("lead_taken"), "%s", relay.Taken(*s.Holder))
		return all
	}
	l := s.Leader
	if l == nil {
		l = &relay.Leader{}
	}
	word, _, _ := strings.Cut(l.Cause, ":")
	told := word == "paused" && s.Paused != nil || word == "halted" && s.Unknown > 0
	trying := l.CauseAt != nil && s.At.Sub(*l.CauseAt) < attempts && word != "" && word != "stopped"
	switch {
	case s.Leads && word != "" && !told:
		add(word, nextFor(word), "%s", l.Cause)
	case s.Leads:
	case trying && !told:
		add(word, nextFor(word), "%s keeps trying: %s", l.Process, l.Cause)
	case !trying && l.Epoch == 0:
		add("no_leader", "pgjet relay", "no relay has ever run")
	case !trying && word == "":
		add("no_leader", "pgjet relay", "no relay leads; the last one was %s, which ended without a word", l.Process)
	case !trying:
		add("no_leader", "pgjet relay", "no relay leads; the last one was %s, which said %s: %s", l.Process, since(s.At, l.CauseAt), l.Cause)
	}
	return all
}

// nextFor returns what to do about a cause that a relay gives.
func nextFor(word string) string {
	switch word {
	case "stream_missing":
		return "pgjet stream ensure"
	case relay.ForeignOutbox:
		return "give this outbox a stream of its own: pgjet stream ensure --stream NAME --prefix NAME; see docs/runbooks/foreign-outbox.md"
	case relay.OutboxCopied:
		return "see docs/runbooks/foreign-outbox.md"
	case "schema_outdated":
		return "pgjet migrate up"
	case "starting", "paused", "halted", "sequence_set_back": // it is about to change
		return "pgjet relay status"
	}
	return "see docs/runbooks/relay-not-publishing.md"
}

// atMost says 1000 as "1000 or more".
func atMost(n int) string {
	if n >= 1000 {
		return fmt.Sprint(n, " or more")
	}
	return fmt.Sprint(n)
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
