package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/internal/operate"
)

func keyCommand() *cobra.Command {
	var s settings
	cmd := &cobra.Command{
		Use:   "key KEY",
		Short: "Show what holds the events of one key back, and what waits behind it",
		Long: `Show what holds the events of one key, such as a user's id, back, and what waits behind
it: in the outbox, scheduled, at each consumer, and in sagas.`,
		Example: "  pgjet key 0199b1c2-6f00-7000-8000-000000000001",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] == "" {
				return usagef("name a key, such as a user's id")
			}
			return s.askEvents(cmd.Context(), func(ctx context.Context, src operate.Source) error {
				k, err := src.OfKey(ctx, args[0])
				if err != nil {
					return err
				}
				return show(cmd, k, func(w io.Writer) { writeKey(w, k) })
			})
		},
	}
	s.databaseFlag(cmd.Flags())
	s.natsFlags(cmd.Flags())
	outputFlag(cmd.Flags())
	return cmd
}

// mostShown is how many events of one kind the table has.
const mostShown = 10

func writeKey(w io.Writer, k operate.Key) {
	fmt.Fprintf(w, "key %s, slice token %s\n\n", plain(k.Key), k.Token)
	if len(k.Held) == 0 {
		fmt.Fprintln(w, "nothing holds it back")
	}
	for _, text := range k.Held {
		fmt.Fprintln(w, plain(text))
	}
	fmt.Fprintln(w)
	more := func(n int) {
		if n > mostShown {
			fmt.Fprintf(w, "\t\tand %d more, see -o json\n", n-mostShown)
		}
	}
	for _, c := range k.Consumers {
		for _, i := range c.Waiting[:min(len(c.Waiting), mostShown)] {
			fmt.Fprintf(w, "%s\t%s\t%s %s, attempts %d\n", plain(c.Consumer), i.State, i.ID, plain(i.Type), i.Attempts)
		}
		more(len(c.Waiting))
		for _, i := range c.Dead[:min(len(c.Dead), mostShown)] {
			fmt.Fprintf(w, "%s\tdead\t%s %s, dead letter %d: %s\n", plain(c.Consumer), i.ID, plain(i.Type), i.Letter, plain(i.Error))
		}
		more(len(c.Dead))
	}
	for _, x := range k.Sagas {
		fmt.Fprintf(w, "saga %s\t%s\t%s, at %s\n", plain(x.Name), x.State, x.ID, plain(x.Step))
	}
	for _, e := range k.Scheduled[:min(len(k.Scheduled), mostShown)] {
		fmt.Fprintf(w, "scheduled\t%s\t%s %s\n", fromNow(time.Until(e.Due)), e.ID, plain(e.Type))
	}
	more(len(k.Scheduled))
	for _, e := range k.Events[:min(len(k.Events), mostShown)] {
		fmt.Fprintf(w, "outbox\t%s\t%s %s, seq %d\n", e.State, e.ID, plain(e.Type), e.Seq)
	}
	more(len(k.Events))
	for _, text := range k.Unknown {
		fmt.Fprintf(w, "not known: %s\n", plain(text))
	}
}
