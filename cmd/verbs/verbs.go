// Package verbs adds commands of pgjet that need the code of a consumer to your own program, as
// cobra commands:
//
//	root.AddCommand(verbs.Consumer(verbs.Settings{Consumers: []consumers.Consumer{shipping}, Connect: connect}))
//
// and then
//
//	yourprogram consumer ensure --dry-run
//
// There is one such command, ensure. It creates the durable consumers before any process of the
// consumer has run. Use it in an operator's job where NATS does not allow processes to create them.
// All other commands read the consumers from the database, and are those of the program pgjet:
// consumer pause, dead, replay, and also consumer ensure once a process has run.
package verbs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/ensure"
	"github.com/pgjet/pgjet/internal/operation"
	"github.com/pgjet/pgjet/internal/postgres"
)

// Settings describe the consumers of a program.
type Settings struct {
	Consumers []consumers.Consumer
	Stream    string // that all of them read; "" is [events.DefaultStream]
	Prefix    string // of the subjects of its events; "" is [events.Prefix]
	// Connect returns the database of the consumers, PostgreSQL itself and not a pooler, and JetStream with the permissions that
	// pgjet nats permissions operator prints. A command calls it once, and closes both.
	Connect func(ctx context.Context) (*pgxpool.Pool, jetstream.JetStream, error)
}

// Consumer returns the command "consumer" with the command ensure. Errors that are answers, such as
// that a durable consumer differs, have a method ExitCode() int. It returns the exit code of pgjet:
// 6, or 4 if the consumer or the stream does not exist.
func Consumer(s Settings) *cobra.Command {
	cmd := &cobra.Command{Use: "consumer", Short: "Look after the consumers of this program", Args: cobra.NoArgs}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	cmd.AddCommand(s.ensure())
	return cmd
}

func (s Settings) ensure() *cobra.Command {
	var names []string
	for _, c := range s.Consumers {
		names = append(names, c.Name)
	}
	var dryRun, apply bool
	cmd := &cobra.Command{
		Use:   "ensure [NAME...]",
		Short: "Create durable consumers if they are missing; exit code 6 if one is there and differs",
		Long: `Create the durable consumers that the consumers of this program need, if they are
missing. One that exists is compared and left as it is: the differences are shown. They
name the database, so that no other database uses them.

If the only difference is missing event types, --apply adds them. The consumer is paused
meanwhile, and nothing is lost: it also gets the events of those types that the stream
already holds, in order. If the command is interrupted, run it again.

The names are: ` + strings.Join(names, ", ") + `; the default is all of them.`,
		ValidArgs: names,
		RunE: func(cmd *cobra.Command, args []string) error {
			if dryRun && apply {
				return errors.New("--dry-run changes nothing and --apply does: say one of them")
			}
			if len(args) == 0 {
				args = names
			}
			return s.ensureAll(cmd, args, dryRun, apply)
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "compare, and create nothing")
	cmd.Flags().BoolVar(&apply, "apply", false, "add event types that are missing")
	return cmd
}

func (s Settings) ensureAll(cmd *cobra.Command, names []string, dryRun, apply bool) error {
	var all []consumers.Consumer
	for _, name := range names {
		i := slices.IndexFunc(s.Consumers, func(c consumers.Consumer) bool { return c.Name == name })
		if i < 0 {
			return &ensure.Error{Exit: ensure.NotFound, Err: fmt.Errorf("no consumer %q in this program", name)}
		}
		all = append(all, s.Consumers[i])
	}
	db, js, err := s.Connect(cmd.Context())
	if err != nil {
		return err
	}
	defer js.Conn().Close()
	defer postgres.Close(db)
	s.Stream, s.Prefix = cmp.Or(s.Stream, events.DefaultStream), cmp.Or(s.Prefix, events.Prefix)
	place := &ensure.Place{JS: js, DB: db, Stream: s.Stream, Prefix: s.Prefix, By: operation.Actor(), Typed: func(command string) string { return s.typed(cmd, command) }}
	for _, c := range all {
		if apply {
			text, err := place.Apply(cmd.Context(), c)
			fmt.Fprint(cmd.OutOrStdout(), text)
			if err != nil {
				return err
			}
		}
		text, err := place.Make(cmd.Context(), c, dryRun)
		fmt.Fprint(cmd.OutOrStdout(), text)
		if err != nil {
			return err
		}
	}
	return nil
}

// typed returns a command of pgjet with its flags. The command ensure is that of this program.
func (s Settings) typed(cmd *cobra.Command, command string) string {
	if rest, ok := strings.CutPrefix(command, "pgjet consumer ensure"); ok {
		return cmd.CommandPath() + rest
	}
	if s.Stream != events.DefaultStream {
		command += " --stream " + s.Stream
	}
	if s.Prefix != events.Prefix {
		command += " --prefix " + s.Prefix
	}
	return command
}
