package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/internal/jserror"
	"github.com/pgjet/pgjet/internal/natsconn"
	"github.com/pgjet/pgjet/internal/operate"
	"github.com/pgjet/pgjet/relay"
)

func (s *settings) relayStatusCommand() *cobra.Command {
	var natsURL string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show whether events are being published, and if not, why; exit code 6 if not",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := s.relays(cmd)
			if err != nil {
				return err
			}
			s.natsURL = natsURL
			if len(all) == 0 {
				return s.showRelay(cmd)
			}
			var errs []error
			for i, e := range all {
				if i > 0 && outputForm(cmd) == "table" {
					fmt.Fprintln(cmd.OutOrStdout())
				}
				s.use(e)
				if err := s.showRelay(cmd); err != nil {
					errs = append(errs, fmt.Errorf("relay %s: %w", e.name, err))
				}
			}
			return joinByExit(errs)
		},
	}
	outputFlag(cmd.Flags())
	cmd.Flags().StringVar(&natsURL, "nats-url", "", "NATS servers; with them a stream that does not exist is reported before any relay has run")
	s.access.flags(cmd.Flags())
	return cmd
}

// showRelay shows the status of one relay.
func (s *settings) showRelay(cmd *cobra.Command) error {
	return s.withDatabase(cmd.Context(), func(ctx context.Context, db *pgxpool.Pool) error {
		status, err := relay.ReadStatus(ctx, db, s.stream)
		if err != nil {
			return err
		}
		return showStatus(cmd, status, s.missingStream(ctx, status), s.prefix)
	})
}

// joinByExit joins errors. Its exit code is that of the first failure, else that of the first finding.
func joinByExit(errs []error) error {
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

// missingStream returns a sentence that the stream does not exist, and which streams do. It returns
// "" if a relay has run for the stream, or if NATS cannot be asked.
func (s *settings) missingStream(ctx context.Context, status relay.Status) string {
	if s.natsURL == "" || status.Leader != nil && status.Leader.Epoch > 0 {
		return ""
	}
	nc, js, err := s.reachNATS()
	if err != nil {
		return "" // NATS is optional here
	}
	defer nc.Close()
	if _, err := js.Stream(ctx, s.stream); natsconn.Of(err) != jserror.StreamMissing {
		return ""
	}
	return natsconn.NoStream(ctx, js, s.stream)
}

// A relayView is the JSON output of pgjet relay status for one relay.
type relayView struct {
	relay.Status
	Publishing bool              `json:"publishing"`
	Troubles   []operate.Trouble `json:"troubles"` // why it does not publish
}

func showStatus(cmd *cobra.Command, s relay.Status, absent, prefix string) error {
	all := operate.RelayTroubles(s)
	if absent != "" {
		all = slices.Insert(all, 0, operate.Trouble{Cause: string(jserror.StreamMissing), Why: plain(absent), Next: typed("pgjet stream ensure", s.Stream)})
	}
	for i := range all {
		all[i].Next = operate.WithPrefix(all[i].Next, prefix)
	}
	view := relayView{s, len(all) == 0, all}
	if err := show(cmd, view, func(w io.Writer) { writeStatus(w, s, all) }); err != nil {
		return err
	}
	if len(all) > 0 {
		return &exitError{exitFindings, errors.New("not publishing: " + all[0].Cause)}
	}
	return nil
}

func writeStatus(w io.Writer, s relay.Status, all []operate.Trouble) {
	line := lines(w)
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
	line("pending", "%s", aboutPending(s, len(all) > 0))
	if due := s.Scheduled; due.Due > 0 || due.Next != nil {
		line("scheduled", "%s", aboutDue(s.At, due))
	}
	line("quarantine", "%d held, %d to be retried, %d dropped", s.Quarantined.Held, s.Quarantined.Retry, s.Quarantined.Dropped)
	if s.Audit != nil || s.Auditing != nil {
		line("audit", "%s", aboutAudit(s))
	}
	if s.Healing {
		line("healing", "the stream lost events; they are being published again")
	}
	for _, t := range all {
		line("why", "%s", t.Why)
		line("next", "%s", t.Next)
	}
	if operate.AuditFound(s) != nil {
		line("next", "%s", typed("pgjet audit show", s.Stream))
	}
	if s.Quarantined.Held > 0 {
		line("next", "%s", typed("pgjet relay quarantine ls", s.Stream))
	}
}

// aboutPending describes the pending events, those after the newest checkpoint. While the relay
// stands still, the stream may hold some of them.
func aboutPending(s relay.Status, stands bool) string {
	p := s.Pending
	text := fmt.Sprint(p.Events)
	if !p.Exact {
		text = "about " + text
	}
	if p.Events == 0 {
		return text
	}
	text += ", the oldest " + ago(seconds(p.OldestSeconds))
	if stands && s.Checkpoint != nil {
		text += "; some may be in the stream, behind the newest checkpoint"
	}
	return text
}

// aboutDue describes the due events, why they were not moved, and the next one.
func aboutDue(now time.Time, s relay.Scheduled) string {
	text := operate.AtMost(s.Events, "waits", "wait") + ", " + operate.AtMost(s.Due, "due", "due")
	if s.Due > 0 {
		text += ", the first " + ago(seconds(s.OverdueSeconds))
	}
	switch s.Reason {
	case "":
	case "due_held":
		text += ": due_held, other transactions hold them, or earlier ones of their keys; see: pgjet explain due_held"
	default:
		text += ": " + s.Reason
	}
	if s.Next != nil {
		text += "; the next is due " + fromNow(s.Next.Sub(now))
	}
	return text
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
