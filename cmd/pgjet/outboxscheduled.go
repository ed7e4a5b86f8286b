package main

import (
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/internal/upkeep"
)

func (s *settings) scheduledCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "scheduled",
		Short: "Manage events that wait until they are due", Long: `Manage events that wait until they are due. Then the leading relay moves them into the
outbox. 'pgjet relay status' shows how many are due and were not moved, and why.`,
	}, s.scheduledListCommand(), s.scheduledGetCommand(), s.scheduledCancelCommand(), s.bringForwardCommand())
}

func (s *settings) scheduledListCommand() *cobra.Command {
	var after string
	var f upkeep.ScheduledFilter
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List scheduled events, the next one first, without their payloads",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := notEmpty(cmd.Flags(), "type", "key", "after"); err != nil {
				return err
			}
			if after != "" {
				ids, err := eventIDs([]string{after}, scheduledList)
				if err != nil {
					return err
				}
				f.After = ids[0]
			}
			return s.withOutbox(cmd.Context(), func(ctx context.Context, db *pgx.Conn) error {
				all, err := upkeep.ListScheduled(ctx, db, f)
				if err != nil {
					return err
				}
				if err := showScheduled(cmd, all); err != nil {
					return err
				}
				if len(all) >= upkeep.ScheduledPage {
					fmt.Fprintf(cmd.ErrOrStderr(), "there may be more: add --after %s\n", all[len(all)-1].ID)
				}
				return nil
			})
		},
	}
	flags := cmd.Flags()
	outputFlag(flags)
	flags.StringVar(&f.Type, "type", "", "only events of this type")
	flags.StringVar(&f.Key, "key", "", "only events of this key, such as a user's id")
	flags.BoolVar(&f.Due, "due", false, "only those that are due and were not moved")
	flags.StringVar(&after, "after", "", "only those behind the one with this ID; 1000 are listed at a time")
	return cmd
}

func showScheduled(cmd *cobra.Command, all []upkeep.Scheduled) error {
	return show(cmd, all, func(w io.Writer) {
		fmt.Fprintln(w, "ID\tTYPE\tKEY\tDUE\tAT")
		for _, e := range all {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", e.ID, plain(e.Type), plain(e.Key), fromNow(seconds(e.InSeconds)), e.Due.Format(time.RFC3339))
		}
	})
}

// fromNow formats how far ahead, or how long ago, a time is.
func fromNow(d time.Duration) string {
	switch {
	case d <= 0:
		return ago(-d)
	case d < time.Minute:
		return fmt.Sprintf("in %ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("in %dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("in %dh", int(d.Hours()))
	}
	return fmt.Sprintf("in %dd", int(d.Hours())/24)
}

// scheduledList is the command that lists scheduled events.
const scheduledList = "pgjet outbox scheduled ls"

// eventIDs parses arguments. The error names the command see, which shows ids.
func eventIDs(args []string, see string) (ids []uuid.UUID, err error) {
	for _, arg := range args {
		id, err := uuid.Parse(arg)
		if err != nil {
			return nil, usagef("%q is no ID of an event, which is a UUID; see: %s", short(arg), see)
		}
		ids = append(ids, id)
	}
	return ids, nil
}

func (s *settings) scheduledGetCommand() *cobra.Command {
	var reveal bool
	cmd := &cobra.Command{
		Use:   "get ID",
		Short: "Show a scheduled event",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ids, err := eventIDs(args, scheduledList)
			if err != nil {
				return err
			}
			return s.withOutbox(cmd.Context(), func(ctx context.Context, db *pgx.Conn) error {
				e, err := upkeep.GetScheduled(ctx, db, ids[0])
				if err != nil {
					return err
				}
				return showScheduledEvent(cmd, e, reveal)
			})
		},
	}
	cmd.Flags().BoolVar(&reveal, "reveal", false, "show the payload and the values of headers, too")
	outputFlag(cmd.Flags())
	return cmd
}

func showScheduledEvent(cmd *cobra.Command, e upkeep.Scheduled, reveal bool) error {
	size := len(e.Data) + len(e.Body)
	if !reveal {
		e.Data, e.Body = nil, nil
		for name := range e.Header {
			e.Header[name] = "(masked)"
		}
	}
	return show(cmd, e, func(w io.Writer) {
		line := lines(w)
		line("id", "%s", e.ID)
		line("type", "%s", e.Type)
		line("key", "%s", e.Key)
		line("due", "%s, %s", fromNow(seconds(e.InSeconds)), e.Due.Format(time.RFC3339))
		if e.Time != nil {
			line("time", "%s", e.Time.Format(time.RFC3339))
		}
		if e.Traceparent != "" {
			line("traceparent", "%s", e.Traceparent)
		}
		for name, value := range e.Header {
			line("header", "%s: %s", name, value)
		}
		if e.ContentType != "" {
			line("content type", "%s", e.ContentType)
		}
		switch {
		case !reveal:
			line("data", "%d bytes, which --reveal shows", size)
		case e.Data != nil:
			line("data", "%s", e.Data)
		default:
			line("data", "%d bytes: %q", size, base64.StdEncoding.EncodeToString(e.Body))
		}
	})
}

func (s *settings) scheduledCancelCommand() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "cancel ID...",
		Short: "Cancel scheduled events: they are never published",
		Long: `Cancel scheduled events: they are never published, and their content is deleted. If one of
them no longer waits, nothing is changed. Author and reason are recorded in pgjet.operation.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ids, err := eventIDs(args, scheduledList)
			if err := cmp.Or(err, needReason(reason)); err != nil {
				return err
			}
			return s.withOutbox(cmd.Context(), func(ctx context.Context, db *pgx.Conn) error {
				if err := upkeep.CancelScheduled(ctx, db, ids, actor(), reason); err != nil {
					return err
				}
				return showChanges(cmd, args, true, fmt.Sprintf("%d scheduled events cancelled", len(ids)))
			})
		},
	}
	reasonFlag(cmd.Flags(), &reason)
	outputFlag(cmd.Flags())
	return cmd
}

func (s *settings) bringForwardCommand() *cobra.Command {
	var reason, to string
	cmd := &cobra.Command{
		Use:   "bring-forward ID...",
		Short: "Make scheduled events due at once, or at an earlier time",
		Long: `Make scheduled events due at once, or at an earlier time. If one of them no longer waits, or
is due earlier, nothing is changed. Author and reason are recorded in pgjet.operation.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ids, err := eventIDs(args, scheduledList)
			if err != nil {
				return err
			}
			var due *time.Time
			if cmd.Flags().Changed("to") {
				t, err := time.Parse(time.RFC3339, to)
				if err != nil {
					return usagef("--to is %q, want a time such as 2026-11-30T15:04:05Z", short(to))
				}
				due = &t
			}
			return s.withOutbox(cmd.Context(), func(ctx context.Context, db *pgx.Conn) error {
				if err := upkeep.BringForward(ctx, db, ids, due, actor(), reason); err != nil {
					return err
				}
				return showChanges(cmd, args, true, fmt.Sprintf("%d scheduled events brought forward", len(ids)))
			})
		},
	}
	reasonFlag(cmd.Flags(), &reason)
	outputFlag(cmd.Flags())
	cmd.Flags().StringVar(&to, "to", "", "when they are due, such as 2026-11-30T15:04:05Z; left out: now")
	return cmd
}
