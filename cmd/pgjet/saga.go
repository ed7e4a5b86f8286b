package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/consumers/saga"
)

func sagaCommand() *cobra.Command {
	var s settings
	cmd := group(&cobra.Command{
		Use:   "saga",
		Short: "Manage sagas: steps that are all done, or undone", Long: `Manage sagas, whatever process runs them: steps that are all done, or undone. They are in
the database of the service that runs them.`,
	}, s.sagaListCommand(), s.sagaGetCommand(), s.sagaRetryCommand())
	s.databaseFlag(cmd.PersistentFlags())
	return cmd
}

func (s *settings) sagaListCommand() *cobra.Command {
	var f saga.Filter
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List sagas, the newest first",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := notEmpty(cmd.Flags(), "state", "key"); err != nil {
				return err
			}
			return s.withDatabase(cmd.Context(), func(ctx context.Context, db *pgxpool.Pool) error {
				all, err := saga.List(ctx, db, f)
				if err != nil {
					return err
				}
				waiting, err := saga.FindWaiting(ctx, db)
				if err != nil {
					return err
				}
				if len(all) >= saga.Page {
					fmt.Fprintf(cmd.ErrOrStderr(), "these are the newest %d; there may be more, which --state or --key select\n", len(all))
				}
				if err := showSagas(cmd, all); err != nil || outputForm(cmd) == "json" {
					return err
				}
				for _, w := range waiting {
					if !w.NeedsOperator {
						fmt.Fprintf(cmd.OutOrStdout(), "\n%s: %s\n", short(w.Name), plain(w.String()))
					}
				}
				return nil
			})
		},
	}
	flags := cmd.Flags()
	outputFlag(flags)
	flags.StringVar(&f.State, "state", "", "only those that are "+strings.Join(saga.States, ", "))
	flags.StringVar(&f.Key, "key", "", "only those of this key, such as a user's id")
	return cmd
}

// sagaID parses the only argument of a command.
func sagaID(args []string) (uuid.UUID, error) {
	id, err := uuid.Parse(args[0])
	if err != nil {
		return id, usagef("%q is no ID of a saga, which is a UUID; see: pgjet saga ls", short(args[0]))
	}
	return id, nil
}

func (s *settings) sagaGetCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "get ID",
		Short: "Show a saga and its steps",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := sagaID(args)
			if err != nil {
				return err
			}
			return s.withDatabase(cmd.Context(), func(ctx context.Context, db *pgxpool.Pool) error {
				x, err := saga.Get(ctx, db, id)
				if err != nil {
					return err
				}
				return showSaga(cmd, x)
			})
		},
	}
	outputFlag(cmd.Flags())
	return cmd
}

func (s *settings) sagaRetryCommand() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "retry ID",
		Short: "Continue to undo a saga that needs an operator",
		Long: `Continue to undo a saga that needs an operator, from where it stopped, with as many attempts
as at first. Correct the cause before. Author and reason are recorded in pgjet.operation.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := sagaID(args)
			if err := cmp.Or(err, needReason(reason)); err != nil {
				return err
			}
			return s.withDatabase(cmd.Context(), func(ctx context.Context, db *pgxpool.Pool) error {
				if err := saga.Retry(ctx, db, id, actor(), reason); err != nil {
					return err
				}
				return showChanged(cmd, id.String(), true, fmt.Sprintf("saga %s goes on undoing", id), fmt.Sprint("to see what becomes of it: pgjet saga get ", id))
			})
		},
	}
	reasonFlag(cmd.Flags(), &reason)
	outputFlag(cmd.Flags())
	return cmd
}

// showSagas writes one line for each saga, then what to do.
func showSagas(cmd *cobra.Command, all []saga.Record) error {
	err := show(cmd, all, func(w io.Writer) {
		fmt.Fprintln(w, "ID\tNAME\tKEY\tSTATE\tSTEP\tATTEMPTS\tSTARTED\tREASON\tERROR")
		for _, x := range all {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\n", x.ID, plain(x.Name), plain(x.Key), x.State, plain(x.Step), x.Attempts,
				ago(time.Since(x.StartedAt)), cmp.Or(plain(x.Reason), "-"), cmp.Or(plain(x.Error), "-"))
		}
	})
	if err != nil || outputForm(cmd) == "json" {
		return err
	}
	for _, x := range all {
		if x.State == saga.NeedsOperator {
			fmt.Fprintf(cmd.OutOrStdout(), "\n%s needs an operator -> pgjet saga get %s\n", x.ID, x.ID)
		}
	}
	return nil
}

// showSaga writes all that is known of one saga.
func showSaga(cmd *cobra.Command, x *saga.Record) error {
	return show(cmd, x, func(w io.Writer) {
		line := lines(w)
		line("id", "%s", x.ID)
		line("name", "%s", x.Name)
		line("key", "%s", x.Key)
		line("state", "%s", x.State)
		line("started", "%s", ago(time.Since(x.StartedAt)))
		line("changed", "%s", ago(time.Since(x.ChangedAt)))
		if x.Reason != "" {
			line("reason", "%s", x.Reason)
		}
		for _, step := range x.Steps {
			line("step", "%s", aboutStep(step))
		}
		if x.State == saga.Done || x.State == saga.Undone {
			return
		}
		line("at", "%s, %d attempts, %d times what it needs was away", cmp.Or(x.Step, "the beginning"), x.Attempts, x.Waits)
		if x.Error != "" {
			line("last error", "%s", x.Error)
		}
		switch {
		case x.State == saga.NeedsOperator:
			line("next", "correct what the error says, then: pgjet saga retry %s --reason WHY", x.ID)
		case x.Process != nil:
			line("run by", "%s", *x.Process)
		default:
			line("goes on", "%s", x.DueAt.UTC().Format(time.RFC3339))
		}
	})
}

func aboutStep(step saga.StepRecord) string {
	text := step.Name + ": " + step.State
	if step.Attempts > 1 {
		text += fmt.Sprintf(", at attempt %d", step.Attempts)
	}
	if step.Result != nil {
		text += ", kept " + string(step.Result)
	}
	if step.Error != "" {
		text += ": " + step.Error
	}
	return text
}
