package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/replay"
	"github.com/pgjet/pgjet/internal/jserror"
	"github.com/pgjet/pgjet/internal/lead"
	"github.com/pgjet/pgjet/internal/natsconn"
	"github.com/pgjet/pgjet/internal/postgres"
)

// extendTime bounds how long types are added to a durable consumer: what the stream
// already holds of them has to be found.
const extendTime = 10 * time.Minute

func (s *settings) consumerEnsureCommand() *cobra.Command {
	var o ensureOptions
	var from string
	own := slices.Sorted(maps.Keys(ownConsumers))
	cmd := &cobra.Command{
		Use:   "ensure NAME...",
		Short: "Create durable consumers if they are missing; exit code 6 if one is there and differs",
		Long: `Create the durable consumer that pgjet consume NAME needs, if it is missing. One that
exists is compared and left as it is: the differences are shown, and the exit code is
6. Processes create what they need by themselves unless NATS forbids it, as in the
accounts that pgjet nats accounts prints.

The names are: ` + strings.Join(own, ", ") + `; ` + followName + `, by which the
user service follows events; and, with --database-url, that of any consumer which a
process has run, or tried to: which events it handles is recorded there.

With --database-url a durable consumer names the database of its consumer, so that no other
database uses it. One that exists and names none is given to it. One that is another database's
is refused, and left as it is: exit code 7. What was another's is given to this one by --take-from, with
the identity of that database, which has to be gone for good: its consumer handles nothing any more.

If all that differs is that types of events are missing, --apply adds them. The consumer
is paused for that moment, and nothing is lost: what the stream already holds of those
types comes as well, in order. Processes of a version that does not know them
handle nothing from then on. If it is interrupted, do it again.`,
		ValidArgs: append(slices.Clone(own), followName),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("give the names of consumers, such as: %s, %s; with --database-url, of those that pgjet consumer ls shows", strings.Join(own, ", "), followName)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := s.checkEnsure(&o, from); err != nil {
				return err
			}
			all, err := s.records(cmd.Context(), args)
			if err != nil {
				return err
			}
			stream, prefix := s.stream, s.prefix
			for _, name := range args {
				s.stream, s.prefix = stream, prefix
				if recorded := all[name].Stream; recorded != "" && !cmd.Flags().Changed("stream") {
					s.stream = recorded
				}
				if recorded := all[name].Prefix; recorded != "" && !cmd.Flags().Changed("prefix") {
					s.prefix = recorded
				}
				text, err := s.ensure(cmd.Context(), all[name].Consumer, o)
				fmt.Fprint(cmd.OutOrStdout(), text)
				if err != nil {
					return err
				}
			}
			return nil
		},
	}
	s.natsFlags(cmd.Flags())
	s.prefixFlag(cmd.Flags())
	s.databaseFlag(cmd.Flags())
	s.directFlag(cmd.Flags())
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "compare, and create nothing")
	cmd.Flags().BoolVar(&o.apply, "apply", false, "add event types that are missing; needs the database")
	cmd.Flags().StringVar(&from, "take-from", "", "identity of the database, which is gone for good, to which the durable consumers belonged")
	return cmd
}

// ensureOptions is how durable consumers are made or compared.
type ensureOptions struct {
	dryRun, apply bool
	from          uuid.UUID // whose they were; uuid.Nil is nobody else's
}

// checkEnsure completes o, or says which flags do not go together.
func (s *settings) checkEnsure(o *ensureOptions, from string) (err error) {
	switch {
	case o.dryRun && o.apply:
		return usagef("--dry-run changes nothing and --apply does: say one of them")
	case from != "" && (o.dryRun || o.apply):
		return usagef("--take-from goes with neither --dry-run nor --apply: run it first")
	case from == "":
		return nil
	case s.databaseURL == "":
		return usagef("--take-from needs --database-url: to which database are the durable consumers to be given?")
	}
	if o.from, err = uuid.Parse(from); err != nil || o.from == uuid.Nil {
		return usagef("--take-from is %q, want the identity of a database, as foreign_durable names it", from)
	}
	return nil
}

// records returns the consumers of these names: those of this binary, and others as the database records them. That of followName is zero.
func (s *settings) records(ctx context.Context, names []string) (map[string]consumers.Record, error) {
	all := make(map[string]consumers.Record)
	var others []string
	for _, name := range names {
		switch own := ownConsumers[name]; {
		case own != nil:
			all[name] = consumers.Record{Consumer: own()}
		case name != followName:
			others = append(others, name)
		}
	}
	switch {
	case len(others) == 0:
		return all, nil
	case s.databaseURL == "":
		return nil, &exitError{exitNotFound, fmt.Errorf("no consumer %q in this pgjet, there is: %s, %s; for a consumer of another program give --database-url, where a process that ran it recorded what it handles",
			others[0], strings.Join(slices.Sorted(maps.Keys(ownConsumers)), ", "), followName)}
	}
	return all, s.withDatabase(ctx, func(ctx context.Context, db *pgxpool.Pool) (err error) {
		for _, name := range others {
			if all[name], err = consumers.Recorded(ctx, db, name); err != nil {
				return found(err)
			}
		}
		return nil
	})
}

// ensure says what it did for a consumer.
func (s *settings) ensure(ctx context.Context, c consumers.Consumer, o ensureOptions) (string, error) {
	if c.Name == "" {
		return s.ensureFollowed(ctx, o.dryRun)
	}
	var added string
	if o.apply {
		var err error
		if added, err = s.extendConsumer(ctx, c); err != nil {
			return added, err
		}
	}
	text, err := s.ensureConsumer(ctx, c, o)
	return added + text, err
}

// extendConsumer adds what is missing to the durable consumer, and says so.
func (s *settings) extendConsumer(ctx context.Context, c consumers.Consumer) (string, error) {
	want, err := c.Configs(s.prefix)
	if err != nil {
		return "", err
	}
	db, err := s.reachDirect(ctx)
	if err != nil {
		return "", err
	}
	defer postgres.Close(db)
	nc, js, err := s.reachNATS()
	if err != nil {
		return "", err
	}
	defer nc.Close()
	result, err := s.extend(ctx, db, js, c.Name, want)
	if err != nil || len(result.Types) == 0 {
		return "", replayExit(err)
	}
	text := fmt.Sprintf("added %s to durable consumer %s of stream %s\n", strings.Join(result.Types, ", "), c.Name, s.stream)
	if result.Earlier > 0 {
		text += fmt.Sprintf("the stream held %d events already, which come as well; to see them go: pgjet consumer get %s\n", result.Earlier, c.Name)
	}
	if result.Paused {
		text += "the consumer is paused, as before; to go on: pgjet consumer resume " + c.Name + "\n"
	}
	return text, nil
}

func (s *settings) extend(ctx context.Context, db *pgxpool.Pool, js jetstream.JetStream, consumer string, want []jetstream.ConsumerConfig) (replay.Extended, error) {
	ctx, cancel := context.WithTimeout(ctx, extendTime)
	defer cancel()
	result, err := replay.Extend(ctx, db, js, s.stream, consumer, want, actor())
	if err = lead.NameLock(ctx, db, err); err != nil {
		return result, fmt.Errorf("add types to durable consumer %s of stream %s: %w", consumer, s.stream, err)
	}
	return result, nil
}

// ensureConsumer says what it did. A difference, or what a dry run finds missing, is an
// error.
func (s *settings) ensureConsumer(ctx context.Context, c consumers.Consumer, o ensureOptions) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, operateTime)
	defer cancel()
	want, err := s.ownedConfigs(ctx, c)
	if err != nil {
		return "", err
	}
	nc, js, err := s.reachNATS()
	if err != nil {
		return "", err
	}
	defer nc.Close()
	names, made := []string{}, 0
	var claimed claims
	claim := func(one jetstream.ConsumerConfig) error {
		err := claimed.add(consumers.Claim(ctx, js, s.stream, one, o.from))
		if err != nil && natsconn.Of(err) != jserror.ConsumerMissing {
			return fmt.Errorf("have durable consumer %s of stream %s name the database: %w", one.Durable, s.stream, natsconn.Explain(js.Conn(), err, "operator --consumer "+c.Name))
		}
		return nil
	}
	for _, one := range want {
		if o.from != uuid.Nil {
			if err := claim(one); err != nil {
				return claimed.String(), err
			}
		}
		if o.dryRun {
			_, err = js.Consumer(ctx, s.stream, one.Durable)
		}
		var created bool
		var differences []string
		if err == nil {
			created, differences, err = consumers.Ensure(ctx, js, s.stream, one)
		}
		if len(differences) > 0 {
			left := "nothing was changed"
			if claimed.named > 0 {
				left = "nothing else was changed"
			}
			return claimed.String(), &exitError{exitFindings, fmt.Errorf("durable consumer %s of stream %s differs, %s:\n  %s%s",
				one.Durable, s.stream, left, strings.Join(differences, "\n  "), s.toAdd(ctx, js, c.Name, want))}
		}
		if _, err := s.ensured(ctx, js, one.Durable, created, err); err != nil {
			return claimed.String(), err
		}
		names = append(names, one.Durable)
		switch {
		case created:
			made++
		case !o.dryRun:
			if err := claim(one); err != nil {
				return claimed.String(), err
			}
		}
	}
	switch n := len(names); {
	case n == 1:
		text, err := s.ensured(ctx, js, names[0], made == 1, nil)
		return claimed.String() + text, err
	case made == 0:
		return fmt.Sprintf("%vthe %d durable consumers of stream %s, %s to %s, are as they should be\n", claimed, n, s.stream, names[0], names[n-1]), nil
	default:
		return fmt.Sprintf("%vcreated %d of the %d durable consumers of stream %s, %s to %s\n", claimed, made, n, s.stream, names[0], names[n-1]), nil
	}
}

// ownedConfigs returns the durable consumers that c needs. With --database-url they name the database.
func (s *settings) ownedConfigs(ctx context.Context, c consumers.Consumer) ([]jetstream.ConsumerConfig, error) {
	want, err := c.Configs(s.prefix)
	if err != nil || s.databaseURL == "" {
		return want, err
	}
	err = s.withDatabase(ctx, func(ctx context.Context, db *pgxpool.Pool) error {
		identity, err := inbox.ReadIdentity(ctx, db)
		for i := range want {
			want[i].Metadata = identity.Named(want[i].Metadata)
		}
		return err
	})
	return want, err
}

// claims says of how many durable consumers that named no database [consumers.Claim] had what success.
type claims struct{ named, refused int }

// add counts what [consumers.Claim] returned. That NATS does not let it is no error: processes work without.
func (c *claims) add(news bool, err error) error {
	switch {
	case errors.Is(err, consumers.ErrNotClaimed):
		c.refused++
		return nil
	case news:
		c.named++
	}
	return err
}

func (c claims) String() (text string) {
	if c.named > 0 {
		text += fmt.Sprintf("durable consumers that name this database from now on: %d\n", c.named)
	}
	if c.refused > 0 {
		text += fmt.Sprintf("durable consumers that name no database: %d; %s\n", c.refused, consumers.ErrNotClaimed)
	}
	return text
}

// ensureFollowed does the same for the consumer that the user service follows.
func (s *settings) ensureFollowed(ctx context.Context, dryRun bool) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, operateTime)
	defer cancel()
	nc, js, err := s.reachNATS()
	if err != nil {
		return "", err
	}
	defer nc.Close()
	if dryRun {
		_, err = js.PushConsumer(ctx, s.stream, followName)
	}
	var created bool
	if err == nil {
		created, err = consumers.EnsureFollowed(ctx, js, s.followed())
	}
	return s.ensured(ctx, js, followName, created, err)
}

// ensured says what became of a durable consumer.
func (s *settings) ensured(ctx context.Context, js jetstream.JetStream, name string, created bool, err error) (string, error) {
	switch class := natsconn.Of(err); {
	case class == jserror.ConsumerMissing:
		return "", &exitError{exitFindings, fmt.Errorf("durable consumer %s of stream %s is missing, nothing was changed", name, s.stream)}
	case class == jserror.StreamMissing:
		return "", &exitError{exitNotFound, fmt.Errorf("%s: %s; run: %s", class, natsconn.NoStream(ctx, js, s.stream), s.typed("pgjet stream ensure"))}
	case err != nil:
		return "", fmt.Errorf("ensure durable consumer %s of stream %s: %w", name, s.stream, natsconn.Explain(js.Conn(), err, "operator --consumer "+name))
	case created:
		return fmt.Sprintf("created durable consumer %s of stream %s\n", name, s.stream), nil
	}
	return fmt.Sprintf("durable consumer %s of stream %s is as it should be\n", name, s.stream), nil
}

// toAdd says what to type if types are missing.
func (s *settings) toAdd(ctx context.Context, js jetstream.JetStream, consumer string, want []jetstream.ConsumerConfig) string {
	lacks, err := replay.Lacks(ctx, js, s.stream, want)
	if err != nil || len(lacks) == 0 {
		return ""
	}
	return fmt.Sprintf("\nto add %s: %s", strings.Join(lacks, ", "), s.typed("pgjet consumer ensure "+consumer+" --apply"))
}
