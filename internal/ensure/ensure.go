// Package ensure implements the verb consumer ensure: it makes the durable consumers of a
// consumer, compares existing ones, and adds event types to them.
package ensure

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/replay"
	"github.com/pgjet/pgjet/internal/jserror"
	"github.com/pgjet/pgjet/internal/lead"
	"github.com/pgjet/pgjet/internal/natsconn"
)

const (
	// lookTime bounds the requests to the servers for one consumer.
	lookTime = 10 * time.Second
	// extendTime bounds how long adding types takes: their events that the stream already
	// holds have to be found.
	extendTime = 10 * time.Minute
)

// Exit codes of a command that ends with an [Error], as in docs/cli.md.
const (
	NotFound = 4
	Findings = 6
)

// An Error is an unwanted result, such as that a durable consumer differs.
type Error struct {
	Exit int // code
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// ExitCode returns the exit code of the command.
func (e *Error) ExitCode() int { return e.Exit }

// A Place is where durable consumers are, and to which database they belong.
type Place struct {
	JS     jetstream.JetStream
	Stream string
	Prefix string        // what the subjects of the events begin with
	DB     *pgxpool.Pool // of the consumer; nil: durable consumers name no database
	From   uuid.UUID     // another database, gone for good, to which the durable consumers may belong; uuid.Nil is none
	By     string        // the operator that makes a change
	// Typed returns a command of pgjet, such as consumer ensure NAME, as the user has to
	// type it.
	Typed func(command string) string
}

// Extend adds the types that c handles and its durable consumers lack. DB must reach
// PostgreSQL directly, not through a pooler.
func (p *Place) Extend(ctx context.Context, c consumers.Consumer) (result replay.Extended, err error) {
	want, err := c.Configs(p.Prefix)
	if err != nil {
		return result, err
	}
	ctx, cancel := context.WithTimeout(ctx, extendTime)
	defer cancel()
	result, err = replay.Extend(ctx, p.DB, p.JS, p.Stream, c.Name, want, p.By)
	if err = lead.NameLock(ctx, p.DB, err); err != nil {
		return result, fmt.Errorf("add types to durable consumer %s of stream %s: %w", c.Name, p.Stream, err)
	}
	return result, nil
}

// Apply is Extend, and returns a report of what it did.
func (p *Place) Apply(ctx context.Context, c consumers.Consumer) (text string, err error) {
	result, err := p.Extend(ctx, c)
	if err != nil || len(result.Types) == 0 {
		return "", err
	}
	text = fmt.Sprintf("added %s to durable consumer %s of stream %s\n", strings.Join(result.Types, ", "), c.Name, p.Stream)
	if result.Earlier > 0 {
		text += fmt.Sprintf("the stream held %d events already, which come as well; to see them go: pgjet consumer get %s\n", result.Earlier, c.Name)
	}
	if result.Paused {
		text += "the consumer is paused, as before; to go on: pgjet consumer resume " + c.Name + "\n"
	}
	return text, nil
}

// Make creates the missing durable consumers of c, and returns a report of what it did. If
// one differs, or a dry run finds one missing, the error is an [Error].
func (p *Place) Make(ctx context.Context, c consumers.Consumer, dryRun bool) (text string, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	want, err := p.configs(ctx, c)
	if err != nil {
		return "", err
	}
	names, made := []string{}, 0
	var claimed claims
	claim := func(one jetstream.ConsumerConfig) error {
		err := claimed.add(consumers.Claim(ctx, p.JS, p.Stream, one, p.From))
		if err != nil && natsconn.Of(err) != jserror.ConsumerMissing {
			return fmt.Errorf("have durable consumer %s of stream %s name the database: %w", one.Durable, p.Stream, natsconn.Explain(p.JS.Conn(), err, "operator --consumer "+c.Name))
		}
		return nil
	}
	for _, one := range want {
		if p.From != uuid.Nil {
			if err := claim(one); err != nil {
				return claimed.String(), err
			}
		}
		if dryRun {
			_, err = p.JS.Consumer(ctx, p.Stream, one.Durable)
		}
		var created bool
		var differences []string
		if err == nil {
			created, differences, err = consumers.Ensure(ctx, p.JS, p.Stream, one)
		}
		if len(differences) > 0 {
			left := "nothing was changed"
			if claimed.named > 0 {
				left = "nothing else was changed"
			}
			return claimed.String(), &Error{Findings, fmt.Errorf("durable consumer %s of stream %s differs, %s:\n  %s%s",
				one.Durable, p.Stream, left, strings.Join(differences, "\n  "), p.toAdd(ctx, c.Name, want))}
		}
		if _, err := p.Made(ctx, one.Durable, created, err); err != nil {
			return claimed.String(), err
		}
		names = append(names, one.Durable)
		switch {
		case created:
			made++
		case !dryRun:
			if err := claim(one); err != nil {
				return claimed.String(), err
			}
		}
	}
	switch n := len(names); {
	case n == 1:
		text, err := p.Made(ctx, names[0], made == 1, nil)
		return claimed.String() + text, err
	case made == 0:
		return fmt.Sprintf("%vthe %d durable consumers of stream %s, %s to %s, are as they should be\n", claimed, n, p.Stream, names[0], names[n-1]), nil
	default:
		return fmt.Sprintf("%vcreated %d of the %d durable consumers of stream %s, %s to %s\n", claimed, made, n, p.Stream, names[0], names[n-1]), nil
	}
}

// configs returns the durable consumers that c needs. With a database they name it.
func (p *Place) configs(ctx context.Context, c consumers.Consumer) ([]jetstream.ConsumerConfig, error) {
	want, err := c.Configs(p.Prefix)
	if err != nil || p.DB == nil {
		return want, err
	}
	identity, err := inbox.ReadIdentity(ctx, p.DB)
	if err != nil {
		return nil, lead.NameLock(ctx, p.DB, err)
	}
	for i := range want {
		want[i].Metadata = identity.Named(want[i].Metadata)
	}
	return want, nil
}

// Made returns a report of the result of making a durable consumer.
func (p *Place) Made(ctx context.Context, name string, created bool, err error) (string, error) {
	switch class := natsconn.Of(err); {
	case class == jserror.ConsumerMissing:
		return "", &Error{Findings, fmt.Errorf("durable consumer %s of stream %s is missing, nothing was changed", name, p.Stream)}
	case class == jserror.StreamMissing:
		return "", &Error{NotFound, fmt.Errorf("%s: %s; run: %s", class, natsconn.NoStream(ctx, p.JS, p.Stream), p.Typed("pgjet stream ensure"))}
	case err != nil:
		return "", fmt.Errorf("ensure durable consumer %s of stream %s: %w", name, p.Stream, natsconn.Explain(p.JS.Conn(), err, "operator --consumer "+name))
	case created:
		return fmt.Sprintf("created durable consumer %s of stream %s\n", name, p.Stream), nil
	}
	return fmt.Sprintf("durable consumer %s of stream %s is as it should be\n", name, p.Stream), nil
}

// toAdd returns the command to type if types are missing.
func (p *Place) toAdd(ctx context.Context, consumer string, want []jetstream.ConsumerConfig) string {
	lacks, err := replay.Lacks(ctx, p.JS, p.Stream, want)
	if err != nil || len(lacks) == 0 {
		return ""
	}
	return fmt.Sprintf("\nto add %s: %s", strings.Join(lacks, ", "), p.Typed("pgjet consumer ensure "+consumer+" --apply"))
}

// A claims counts the results of [consumers.Claim] for durable consumers that named no
// database.
type claims struct{ named, refused int }

// add counts a result of [consumers.Claim]. It is no error if NATS does not permit it:
// processes work without.
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
