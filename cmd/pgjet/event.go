package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/internal/lead"
	"github.com/pgjet/pgjet/internal/operate"
)

func eventCommand() *cobra.Command {
	var s settings
	cmd := group(&cobra.Command{
		Use:   "event",
		Short: "See what happened to events",
		Long: `See what happened to events: in the outbox, in the stream, at each consumer, and in sagas.
Payloads are not shown, and mail addresses in errors are masked.`,
	}, s.eventGetCommand(), s.eventTimelineCommand(), s.eventListCommand(), s.eventTailCommand("tail", false), s.eventTailCommand("follow", true))
	s.databaseFlag(cmd.PersistentFlags())
	s.natsFlags(cmd.PersistentFlags())
	return cmd
}

func (s *settings) eventGetCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "get " + eventNames,
		Short: "Show where an event is, or those of a key, a trace, a request or a mail address, and what became of it at each consumer",
		Long: `Show where an event is, and what became of it at each consumer. It is named, and looked for, as
by pgjet event timeline. Of more than one event the first 20 are shown; as JSON each is a line.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.findEvents(cmd.Context(), args[0], func(all []operate.Event, more bool) error {
				for i, e := range all {
					if i > 0 && outputForm(cmd) == "table" {
						fmt.Fprintln(cmd.OutOrStdout())
					}
					if err := show(cmd, e, func(w io.Writer) { writeEvent(w, e) }); err != nil {
						return err
					}
				}
				if more {
					fmt.Fprintln(cmd.ErrOrStderr(), moreEvents)
				}
				return nil
			})
		},
	}
	outputFlag(cmd.Flags())
	return cmd
}

// eventNames is how events are named.
const eventNames = "ID|KEY|TRACE|REQUEST-ID|MESSAGE-ID|MAIL-ADDRESS"

const moreEvents = "there are more events, which are not shown"

// An eventTimeline is the JSON output of pgjet event timeline.
type eventTimeline struct {
	Timeline []operate.Entry `json:"timeline"`
	Events   []operate.Event `json:"events"`
	More     bool            `json:"more"` // more events match
}

func (s *settings) eventTimelineCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "timeline " + eventNames,
		Short: "Show what happened, in order of time, to an event, or to those of a key, a trace, a request or a mail address",
		Long: `Show what happened, in order of time, to an event, or to the events of a key, a trace, a
request, a mail or a mail address: appends, attempts, waits, errors, dead letters, decisions
of operators, sagas, and what is not known. A trace is an id of 32 hex digits, or a
traceparent; a request has the id of its header X-Request-Id; a mail has its Message-ID. The
first 20 events are shown. Only ids have an index: the rest is searched in the newest
200 000 rows of the outbox, keys also among waiting and dead events.`,
		Example: `  pgjet event timeline ada@example.com
  pgjet event timeline 4bf92f3577b34da6a3ce929d0e0e4736`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.findEvents(cmd.Context(), args[0], func(all []operate.Event, more bool) error {
				found := eventTimeline{operate.Timeline(all), all, more}
				return show(cmd, found, func(w io.Writer) { writeEventTimeline(w, found) })
			})
		},
	}
	outputFlag(cmd.Flags())
	return cmd
}

// findEvents calls fn with the events that what names, at least one, and whether there are more.
func (s *settings) findEvents(ctx context.Context, what string, fn func(all []operate.Event, more bool) error) error {
	if what == "" {
		return usagef("name an event by its id, its key, its trace, its request, a Message-ID or a mail address")
	}
	return s.askEvents(ctx, func(ctx context.Context, src operate.Source) error {
		all, more, err := src.Find(ctx, what)
		if err != nil {
			return err
		}
		return fn(all, more)
	})
}

// askEvents calls fn with the sources of facts about events. The database is required. Without NATS
// some facts are missing.
func (s *settings) askEvents(ctx context.Context, fn func(context.Context, operate.Source) error) error {
	return s.withSource(ctx, func(ctx context.Context, src operate.Source) error {
		if src.DB == nil {
			return src.DBErr
		}
		return lead.NameLock(ctx, src.DB, fn(ctx, src))
	})
}

// writeEvent writes where an event is.
func writeEvent(w io.Writer, e operate.Event) {
	line := lines(w)
	line("id", "%s", e.ID)
	line("type", "%s", cmp.Or(e.Type, "not known"))
	line("key", "%s", cmp.Or(e.Key, "not known"))
	line("trace", "%s", cmp.Or(e.TraceID, "none"))
	if e.RequestID != "" {
		line("request", "%s", e.RequestID)
	}
	if r := e.Outbox; r != nil {
		at := "at no time that can be written"
		if r.Time != nil {
			at = r.Time.Format(time.RFC3339Nano)
		}
		line("outbox", "%s; seq %d, appended %s by transaction %s, %d bytes", publishState(e), r.Seq, at, r.XID, r.Bytes)
	}
	if h := e.Quarantine; h != nil {
		line("quarantine", "%s since %s: %s", h.State, h.At.Format(time.RFC3339), h.Reason)
	}
	if m := e.Stored; m != nil {
		line("stream", "%s, sequence %d, subject %s, stored %s", m.Stream, m.Seq, m.Subject, m.Time.Format(time.RFC3339Nano))
	}
	for _, h := range e.Consumers {
		line("consumer", "%s", aboutHandling(h))
	}
	for _, x := range e.Sagas {
		line("saga", "%s %s, %s", x.Name, x.ID, x.State)
	}
	for _, text := range e.Unknown {
		line("not known", "%s", text)
	}
	line("next", "pgjet event timeline %s", e.ID)
}

// publishState describes how far an event of the outbox has come.
func publishState(e operate.Event) string {
	switch {
	case e.Quarantine != nil:
		return "in quarantine"
	case e.Stored != nil || e.Outbox.Published:
		return "published"
	}
	return "pending"
}

func aboutHandling(h operate.Handling) string {
	text := h.Consumer + ": " + h.State
	if h.Attempts > 0 {
		text += fmt.Sprintf(", attempts %d", h.Attempts)
	}
	if l := h.Letter; l != nil {
		text += fmt.Sprintf(", dead letter %d %s", l.ID, l.State)
	}
	if h.Error != "" && h.State != "done" {
		text += ": " + h.Error
	}
	return text
}

// writeEventTimeline writes one line for each event, then what happened, then what is not known.
func writeEventTimeline(w io.Writer, s eventTimeline) {
	for _, e := range s.Events {
		var states []string
		for _, h := range e.Consumers {
			if h.State != operate.Ignored {
				states = append(states, h.Consumer+" "+h.State)
			}
		}
		fmt.Fprintf(w, "%s  %s  key %s  %s\n", e.ID, cmp.Or(plain(e.Type), "?"), cmp.Or(plain(e.Key), "?"), plain(strings.Join(states, ", ")))
	}
	if s.More {
		fmt.Fprintln(w, moreEvents)
	}
	fmt.Fprintln(w)
	writeTimeline(w, s)
	fmt.Fprintln(w)
	var said []string
	for _, e := range s.Events {
		for _, text := range e.Unknown {
			if !slices.Contains(said, text) {
				said = append(said, text)
				fmt.Fprintf(w, "not known: %s\n", plain(text))
			}
		}
	}
}

// writeTimeline writes one line for each entry, with its offset from the first one.
func writeTimeline(w io.Writer, s eventTimeline) {
	var first *time.Time
	for _, e := range s.Timeline {
		at := "now"
		switch {
		case e.At != nil && first == nil:
			first, at = e.At, e.At.Format("2006-01-02 15:04:05.000Z")
		case e.At != nil:
			at = "+" + offset(e.At.Sub(*first))
		}
		which := ""
		if len(s.Events) > 1 {
			i := slices.IndexFunc(s.Events, func(x operate.Event) bool { return x.ID == e.Event })
			which = "\t" + short(s.Events[i].Type)
		}
		fmt.Fprintf(w, "%s%s\t%s\t%s\n", at, which, plain(e.Place), plain(e.Text))
	}
}

// offset formats the time between two entries.
func offset(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(10 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}
