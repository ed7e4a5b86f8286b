package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pgjet/pgjet/internal/operate"
)

// eventStates are the values of --state of pgjet event ls.
var eventStates = []string{operate.Pending, operate.Published, operate.Quarantined, operate.Retrying, "dead"}

// An eventSelection selects events by flags.
type eventSelection struct {
	filter       operate.Filter
	since, until string
}

func (e *eventSelection) flags(f *pflag.FlagSet) {
	f.StringVar(&e.filter.Type, "type", "", "only events of this type")
	f.StringVar(&e.filter.Key, "key", "", "only events of this key, such as a user's id")
	f.StringVar(&e.since, "since", "", "only from this time on: a time, or how long ago")
	f.StringVar(&e.until, "until", "", "only before this time: a time, or how long ago")
}

// resolve returns the filter.
func (e *eventSelection) resolve(f *pflag.FlagSet) (operate.Filter, error) {
	if err := notEmpty(f, "type", "key", "consumer", "state", "after", "since", "until"); err != nil {
		return e.filter, err
	}
	var err error
	if e.filter.Since, err = timeFlag("--since", e.since); err != nil {
		return e.filter, err
	}
	e.filter.Until, err = timeFlag("--until", e.until)
	return e.filter, err
}

// mostListed is the largest --limit.
const mostListed = 1000

func checkLimit(limit int) error {
	if limit < 1 || limit > mostListed {
		return usagef("--limit is %d, want 1 to %d", limit, mostListed)
	}
	return nil
}

func (s *settings) eventListCommand() *cobra.Command {
	var selection eventSelection
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List events: of the outbox the newest first, or those that are retried or dead",
		Long: `List events: of the outbox the newest first, all or those that are pending, published or
quarantined; or, by consumer, those that are retrying or dead. The outbox has no index of
types, keys and times: a page searches 200 000 rows at most. If there may be more, the
command prints the flag for the next page.`,
		Example: `  pgjet event ls --state pending
  pgjet event ls --state retrying --consumer welcome-mailer
  pgjet event ls --type user.created --since 2h`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := selection.resolve(cmd.Flags())
			switch {
			case err != nil:
				return err
			case f.Consumer != "" && f.State != operate.Retrying && f.State != "dead":
				return usagef("--consumer is for --state retrying and --state dead; what became of an event of the outbox at each consumer shows: pgjet event get ID")
			}
			if err := checkLimit(f.Limit); err != nil {
				return err
			}
			return s.askEvents(cmd.Context(), func(ctx context.Context, src operate.Source) error {
				page, err := src.List(ctx, f)
				if cursor, ok := errors.AsType[*operate.CursorError](err); ok {
					return usagef("--after: %w", cursor)
				}
				if err != nil {
					return err
				}
				if err := show(cmd, page, func(w io.Writer) { writeItems(w, f.State, page.Events) }); err != nil {
					return err
				}
				if page.Next != "" {
					fmt.Fprintf(cmd.ErrOrStderr(), "there may be more: add --after %s\n", word(page.Next))
				}
				return nil
			})
		},
	}
	flags := cmd.Flags()
	outputFlag(flags)
	selection.flags(flags)
	flags.StringVar(&selection.filter.State, "state", "", "only these: "+strings.Join(eventStates, ", "))
	flags.StringVar(&selection.filter.Consumer, "consumer", "", "only at this consumer, of those that are retrying or dead")
	flags.StringVar(&selection.filter.After, "after", "", "where the next page begins: as the previous page printed")
	flags.IntVar(&selection.filter.Limit, "limit", 100, "how many to show, 1 to 1000")
	return cmd
}

// writeItems writes one line for each event.
func writeItems(w io.Writer, state string, all []operate.Item) {
	at := func(t *time.Time) string {
		if t == nil {
			return "-"
		}
		return t.Format(time.RFC3339)
	}
	switch state {
	case operate.Retrying:
		fmt.Fprintln(w, "CONSUMER\tID\tTYPE\tKEY\tSTATE\tATTEMPTS\tDUE\tERROR")
		for _, i := range all {
			due := at(i.DueAt)
			switch {
			case i.TakenBy != "":
				due = "now"
			case i.Behind:
				due = "behind its key"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\n", plain(i.Consumer), i.ID, plain(i.Type), plain(i.Key), i.State, i.Attempts, due, plain(i.Error))
		}
	case "dead":
		fmt.Fprintln(w, "CONSUMER\tLETTER\tID\tTYPE\tKEY\tSINCE\tATTEMPTS\tERROR")
		for _, i := range all {
			fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\t%d\t%s\n", plain(i.Consumer), i.Letter, i.ID, plain(i.Type), plain(i.Key), at(i.Time), i.Attempts, plain(i.Error))
		}
	default:
		fmt.Fprintln(w, "SEQ\tTIME\tID\tTYPE\tKEY\tSTATE")
		for _, i := range all {
			fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\n", i.Seq, at(i.Time), i.ID, plain(i.Type), plain(i.Key), i.State)
		}
	}
}

// followEvery is the interval at which the outbox is polled for new events.
const followEvery = 500 * time.Millisecond

func (s *settings) eventTailCommand(use string, follow bool) *cobra.Command {
	var selection eventSelection
	cmd := &cobra.Command{
		Use:   use,
		Short: map[bool]string{false: "Show the events that were appended last", true: "Show events as they are appended, until Ctrl-C"}[follow],
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := selection.resolve(cmd.Flags())
			if err != nil {
				return err
			}
			if err := checkLimit(f.Limit); err != nil {
				return err
			}
			return s.tail(cmd, f, follow)
		},
	}
	flags := cmd.Flags()
	outputFlag(flags)
	selection.flags(flags)
	flags.IntVar(&selection.filter.Limit, "limit", 20, "how many existing ones to show, 1 to 1000")
	if !follow {
		flags.BoolVarP(&follow, "follow", "f", false, "also show new ones, until Ctrl-C; in JSON one line each")
	}
	return cmd
}

// tail shows the last events, one line each, then new ones if follow is set. While it follows, it
// reports that the database is away and tries again.
func (s *settings) tail(cmd *cobra.Command, f operate.Filter, follow bool) error {
	src, done, err := s.facts(cmd.Context())
	if err != nil {
		return err
	}
	defer done()
	if src.DB == nil {
		return src.DBErr
	}
	for tail := src.Tail(f); ; {
		news, err := next(cmd.Context(), tail)
		switch {
		case cmd.Context().Err() != nil:
			return nil
		case err != nil && !follow:
			return err
		case err != nil:
			fmt.Fprintln(cmd.ErrOrStderr(), "pgjet:", harmless(reasoned(err)))
		}
		for _, i := range news {
			if err := writeTail(cmd, i); err != nil {
				return err
			}
		}
		if !follow {
			return nil
		}
		select {
		case <-time.After(followEvery):
		case <-cmd.Context().Done():
			return nil
		}
	}
}

func next(ctx context.Context, tail *operate.Tail) ([]operate.Item, error) {
	ctx, cancel := context.WithTimeout(ctx, operateTime)
	defer cancel()
	return tail.Next(ctx)
}

func writeTail(cmd *cobra.Command, i operate.Item) error {
	w := cmd.OutOrStdout()
	if outputForm(cmd) == "json" {
		return json.NewEncoder(w).Encode(i)
	}
	at := "-"
	if i.Time != nil {
		at = i.Time.Format("2006-01-02 15:04:05.000Z")
	}
	_, err := fmt.Fprintf(w, "%s  %d  %s  %s  key %s  %s\n", at, i.Seq, i.ID, plain(i.Type), plain(i.Key), i.State)
	return err
}
