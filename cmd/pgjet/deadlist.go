package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pgjet/pgjet/consumers/inbox"
)

func revealFlag(f *pflag.FlagSet, reveal *bool) {
	f.BoolVar(reveal, "reveal", false, "also show payloads, all headers, and mail addresses")
}

func (s *settings) deadGroupsCommand() *cobra.Command {
	var d deadSelection
	var reveal bool
	cmd := &cobra.Command{
		Use:   "groups",
		Short: "Count dead letters by consumer and error",
		Long: `Count dead letters by consumer and error. Errors that differ only in ids, numbers, quoted
text, addresses and times are one group. At most 1000 are shown, the largest first.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := d.resolve(nil)
			if err != nil {
				return err
			}
			return s.withoutDeadline(cmd.Context(), func(ctx context.Context, db *pgxpool.Pool) error {
				all, err := inbox.Groups(ctx, db, f)
				if err != nil {
					return err
				}
				for i := range all {
					if !reveal {
						all[i].Error, all[i].ErrorGroup = inbox.Mask(all[i].Error), inbox.Mask(all[i].ErrorGroup)
					}
				}
				return showGroups(cmd, all)
			})
		},
	}
	d.flags(cmd.Flags())
	d.stateFlag(cmd.Flags())
	revealFlag(cmd.Flags(), &reveal)
	outputFlag(cmd.Flags())
	return cmd
}

func showGroups(cmd *cobra.Command, all []inbox.Group) error {
	return show(cmd, all, func(w io.Writer) {
		fmt.Fprintln(w, "GROUP\tCONSUMER\tCOUNT\tFIRST\tLAST\tSAMPLE\tERROR")
		for _, g := range all {
			fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%d\t%s\n", g.ID, plain(g.Consumer), g.Count,
				ago(time.Since(g.First)), ago(time.Since(g.Last)), g.SampleID, plain(g.Error))
		}
	})
}

func (s *settings) deadListCommand() *cobra.Command {
	var d deadSelection
	var after int64
	var reveal bool
	cmd := &cobra.Command{
		Use:   "ls [ID...]",
		Short: "List dead letters, without their payloads",
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := d.resolve(args)
			if err != nil {
				return err
			}
			return s.withoutDeadline(cmd.Context(), func(ctx context.Context, db *pgxpool.Pool) error {
				all, err := inbox.Letters(ctx, db, f, after)
				if err != nil {
					return err
				}
				for i := range all {
					if !reveal {
						all[i].Mask()
					}
				}
				if err := showLetters(cmd, all); err != nil {
					return err
				}
				if len(all) >= inbox.Page {
					fmt.Fprintf(cmd.ErrOrStderr(), "there may be more: add --after %d\n", all[len(all)-1].ID)
				}
				return nil
			})
		},
	}
	f := cmd.Flags()
	d.flags(f)
	d.stateFlag(f)
	revealFlag(f, &reveal)
	outputForms(f, "table, json, or name: the ids alone")
	f.Int64Var(&after, "after", 0, "only those with a higher id; 1000 are listed at a time")
	return cmd
}

func showLetters(cmd *cobra.Command, all []inbox.Letter) error {
	if outputForm(cmd) == "name" {
		for _, l := range all {
			fmt.Fprintln(cmd.OutOrStdout(), l.ID)
		}
		return nil
	}
	return show(cmd, all, func(w io.Writer) {
		fmt.Fprintln(w, "ID\tCONSUMER\tTYPE\tKEY\tSTATE\tATTEMPTS\tGIVEN UP\tGROUP\tERROR")
		for _, l := range all {
			fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\n", l.ID, plain(l.Consumer), plain(l.Type), plain(l.Key),
				l.State, l.Attempts, ago(time.Since(l.At)), l.Group, plain(l.Error+lastDecision(l)))
		}
	})
}

// lastDecision describes the last decision of an operator.
func lastDecision(l inbox.Letter) string {
	if l.ChangedBy == "" {
		return ""
	}
	text := "; last decided on by " + l.ChangedBy
	if l.ChangeReason != "" {
		text += ": " + l.ChangeReason
	}
	return text
}

func (s *settings) deadGetCommand() *cobra.Command {
	var reveal bool
	cmd := &cobra.Command{
		Use:   "get ID",
		Short: "Show all about one dead letter: message, attempts, error, stack, trace, and who decided what",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var f inbox.Filter
			err := nameDead(&f, args)
			if err != nil {
				return err
			}
			return s.withoutDeadline(cmd.Context(), func(ctx context.Context, db *pgxpool.Pool) error {
				found, err := inbox.Letters(ctx, db, f, 0)
				if err != nil {
					return err
				}
				if len(found) > 1 {
					return usagef("event %s is a dead letter of %s and %s: name one by its ID, %d or %d",
						args[0], found[0].Consumer, found[1].Consumer, found[0].ID, found[1].ID)
				}
				e, err := inbox.ReadLetter(ctx, db, found[0].ID)
				if err != nil {
					return err
				}
				if !reveal {
					e.Mask()
				}
				return showLetter(cmd, e)
			})
		},
	}
	revealFlag(cmd.Flags(), &reveal)
	outputFlag(cmd.Flags())
	return cmd
}

func showLetter(cmd *cobra.Command, e inbox.LetterDetails) error {
	return show(cmd, e, func(w io.Writer) {
		row := lines(w)
		row("id", "%d", e.ID)
		row("consumer", "%s", e.Consumer)
		row("event", "%s", e.EventID)
		row("type", "%s", e.Type)
		row("key", "%s", e.Key)
		row("place", "stream %s, sequence %d, subject %s", e.Stream, e.StreamSeq, e.Subject)
		row("trace", "%s", e.TraceID)
		row("state", "%s%s", e.State, lastDecision(e.Letter))
		row("given up", "%s, attempts: %d, by %s", ago(time.Since(e.At)), e.Attempts, e.Process)
		row("group", "%s, %s", e.Group, e.ErrorGroup)
		row("error", "%s", e.Error)
		for text := range strings.Lines(e.Stack) {
			row("stack", "%s", strings.ReplaceAll(text, "\t", "    "))
		}
		for _, a := range e.AttemptLog {
			row("attempt", "%d, %s, %s by %s%s", a.Attempt, a.Began.Format(time.RFC3339), a.Outcome, a.Process, attemptOutcome(a))
		}
		for _, o := range e.Operations {
			row("operation", "%s, %s by %s: %s", o.At.Format(time.RFC3339), o.Kind, o.By, o.Reason)
		}
		for _, name := range slices.Sorted(maps.Keys(e.Header)) {
			row("header", "%s: %s", name, strings.Join(e.Header[name], ", "))
		}
		switch {
		case e.Masked:
			row("payload", "%d bytes; --reveal shows them", e.Bytes)
		case e.Data != nil:
			row("payload", "%s", e.Data)
		default:
			row("payload", "%d bytes of %s: %q", e.Bytes, cmp.Or(strings.Join(e.Header["ce-datacontenttype"], ", "), "no JSON"), e.DataBase64)
		}
	})
}

func attemptOutcome(a inbox.Attempt) string {
	text := ""
	if a.Seconds != nil {
		text = fmt.Sprintf(" after %s", seconds(*a.Seconds).Round(time.Millisecond))
	}
	if a.Error != "" {
		text += ": " + a.Error
	}
	return text
}

func (s *settings) deadExportCommand() *cobra.Command {
	var d deadSelection
	var reveal bool
	cmd := &cobra.Command{
		Use:   "export [ID...]",
		Short: "Write whole dead letters, one line of JSON each",
		Long: `Write whole dead letters, one line of JSON each. The payload is data if it is
valid JSON, else data_base64. Without --reveal the lines lack it, and the values of
headers that a producer chose.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := d.resolve(args)
			if err != nil {
				return err
			}
			return s.withoutDeadline(cmd.Context(), func(ctx context.Context, db *pgxpool.Pool) error {
				encoder := json.NewEncoder(cmd.OutOrStdout())
				encoder.SetEscapeHTML(false)
				return inbox.Export(ctx, db, f, func(m inbox.DeadMessage) error {
					if !reveal {
						m.Mask()
					}
					return encoder.Encode(m)
				})
			})
		},
	}
	d.flags(cmd.Flags())
	d.stateFlag(cmd.Flags())
	revealFlag(cmd.Flags(), &reveal)
	return cmd
}
