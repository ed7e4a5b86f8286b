package main

import (
	"context"
	"fmt"
	"io"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/internal/operate"
)

func retryCommand() *cobra.Command {
	var s settings
	var consumer, reason string
	cmd := &cobra.Command{
		Use:   "retry [ID...]",
		Short: "Make events due now that wait for their next attempt",
		Long: `Make events due now that wait for their next attempt: events by their id, at all consumers
or at one, or all that wait at one consumer. The number of attempts is kept, and so is the
order of the events of a key. Dead letters are not retried: see pgjet dead redrive.`,
		Example: `  pgjet retry 0199b1c2-6f00-7000-8000-000000000001
  pgjet retry --consumer welcome-mailer --reason 'the mail server is back'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := notEmpty(cmd.Flags(), "consumer"); err != nil {
				return err
			}
			ids, err := eventIDs(args, "pgjet event ls")
			if err != nil {
				return err
			}
			if len(ids) == 0 && consumer == "" {
				return usagef("name events by their ID, or a consumer by --consumer. See: pgjet event ls --state retrying")
			}
			return s.withoutDeadline(cmd.Context(), func(ctx context.Context, db *pgxpool.Pool) error {
				all, err := operate.Retry(ctx, db, consumer, ids, actor(), reason)
				if err != nil {
					return err
				}
				return show(cmd, all, func(w io.Writer) { writeRetried(w, all) })
			})
		},
	}
	s.databaseFlag(cmd.Flags())
	cmd.Flags().StringVar(&consumer, "consumer", "", "at this consumer only; without an ID, all that waits there")
	reasonFlag(cmd.Flags(), &reason)
	outputFlag(cmd.Flags())
	return cmd
}

func writeRetried(w io.Writer, all []inbox.RetryOutcome) {
	if len(all) == 0 {
		fmt.Fprintln(w, "nothing waits for an attempt")
	}
	for _, o := range all {
		fmt.Fprintf(w, "%s: %d retried now; %d were due already, %d run, %d wait behind another event of their key\n", plain(o.Consumer), o.Retried, o.Due, o.Running, o.Behind)
	}
}
