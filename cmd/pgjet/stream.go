package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/relay"
)

// streamLimits are the settings of a stream that differ between services.
type streamLimits struct {
	replicas int
	maxBytes byteSize
	maxAge   time.Duration
	cluster  string
	tags     []string
	compress bool
}

func (l *streamLimits) flags(f *pflag.FlagSet) {
	f.IntVar(&l.replicas, "replicas", 1, "number of servers that keep the stream: 1, 3 or 5")
	f.Var(&l.maxBytes, "max-bytes", "largest size of the stream, such as 10GiB; when it is full, events wait in the outbox; 0 is no limit")
	f.DurationVar(&l.maxAge, "max-age", 0, "how long the stream keeps events; 0 is for ever")
	f.StringVar(&l.cluster, "placement-cluster", "", "NATS cluster that keeps the stream; by default any")
	f.StringSliceVar(&l.tags, "placement-tags", nil, "tags of the servers that may keep the stream")
	f.BoolVar(&l.compress, "compress", false, "compress the stream on disk")
}

func (l *streamLimits) check() error {
	switch {
	case l.replicas < 1 || l.replicas > 5:
		return usagef("--replicas is %d, want 1 to 5", l.replicas)
	case l.maxAge < 0 || l.maxAge > 0 && l.maxAge < time.Second:
		return usagef("--max-age is %s, want 1s or more, or 0", l.maxAge)
	}
	return nil
}

// streamConfig returns the configuration of the stream with these limits.
func (s *settings) streamConfig(l streamLimits) jetstream.StreamConfig {
	c := relay.StreamConfig(s.stream, l.replicas)
	c.Subjects = []string{events.SubjectsOf(s.prefix).All()}
	c.MaxBytes, c.MaxAge = int64(l.maxBytes), l.maxAge
	if l.cluster != "" || len(l.tags) > 0 {
		c.Placement = &jetstream.Placement{Cluster: l.cluster, Tags: l.tags}
	}
	if l.compress {
		c.Compression = jetstream.S2Compression
	}
	return c
}

// A byteSize is the value of a flag such as 512MiB.
type byteSize int64

// units are those of a byteSize, the longest first.
var units = []struct {
	name string
	size int64
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}, {"", 1}}

func (b *byteSize) Set(text string) error {
	for _, u := range units {
		number, ok := strings.CutSuffix(text, u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
		if err != nil || n < 0 || n > (1<<62)/u.size {
			break
		}
		*b = byteSize(n * u.size)
		return nil
	}
	return fmt.Errorf("%q is no size such as 10GiB, 512MiB or 1000000", text)
}

// String returns the size in the largest unit that divides it.
func (b *byteSize) String() string {
	for _, u := range units {
		if n := int64(*b); n >= u.size && n%u.size == 0 && u.name != "B" {
			return fmt.Sprint(n/u.size) + u.name
		}
	}
	return "0"
}
func (*byteSize) Type() string { return "size" }

func streamCommand() *cobra.Command {
	var s settings
	return group(&cobra.Command{Use: "stream", Short: "Look at the JetStream stream, and create it"}, s.forOneRelay(s.streamEnsureCommand(), s.streamStatusCommand(), s.streamGetCommand())...)
}

func (s *settings) streamEnsureCommand() *cobra.Command {
	var limits streamLimits
	var from string
	ensure := &cobra.Command{
		Use:   "ensure",
		Short: "Create the stream if it is missing; exit code 6 if it is there and differs",
		Long: `Create the stream if it is missing. One that exists is compared and left as it
is: the differences are shown, and the exit code is 6. Limits, compression and placement are
compared if they are set.

With --database-url the stream names the outbox there, so that no other outbox is published
to it. An existing stream without an outbox gets this one if the stream is empty, or if its
last message is an event of this outbox. A stream of another outbox is refused: exit code 7.
--take-from, with the id of that outbox, or none if the stream names none, gives it to this
one. Then nothing of the other outbox can be published there.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := limits.check(); err != nil {
				return err
			}
			takeFrom, err := parseOutbox(from)
			if err != nil {
				return err
			}
			if takeFrom != nil && s.databaseURL == "" {
				return usagef("--take-from needs --database-url: the database whose outbox gets the stream")
			}
			said, err := s.ensureStream(cmd.Context(), limits, takeFrom)
			return errors.Join(showEnsured(cmd, []string{s.stream}, said), err)
		},
	}
	f := ensure.Flags()
	s.natsFlags(f)
	s.prefixFlag(f)
	s.databaseFlag(f)
	s.sourceFlag(f)
	s.relayFlag(f)
	limits.flags(f)
	outputFlag(f)
	f.StringVar(&from, "take-from", "", "id of the previous outbox of the stream, which is gone for good; none if it names none")
	return ensure
}

// parseOutbox returns the id of an outbox, [uuid.Nil] for none, and nil for "".
func parseOutbox(text string) (*uuid.UUID, error) {
	switch text {
	case "":
		return nil, nil
	case "none":
		return new(uuid.Nil), nil
	}
	id, err := uuid.Parse(text)
	if err != nil {
		return nil, usagef("--take-from is %q, want the id of an outbox, or none", text)
	}
	return &id, nil
}

// ensureStream creates or compares the stream. With a database it also makes the stream name the
// outbox there. It returns what it did.
func (s *settings) ensureStream(ctx context.Context, limits streamLimits, from *uuid.UUID) (said []string, err error) {
	if s.databaseURL == "" {
		return s.compareStream(ctx, s.streamConfig(limits), nil)
	}
	err = s.withDatabase(ctx, func(ctx context.Context, db *pgxpool.Pool) error {
		o, err := relay.ReadOutbox(ctx, db, s.source)
		if err != nil {
			return err
		}
		config := s.streamConfig(limits)
		o.Own(&config)
		said, err = s.compareStream(ctx, config, func(js jetstream.JetStream) (string, error) {
			return s.claimStream(ctx, db, js, o, from)
		})
		return err
	})
	return said, err
}

// claimStream makes an existing stream name the outbox. It returns what it did.
func (s *settings) claimStream(ctx context.Context, db *pgxpool.Pool, js jetstream.JetStream, o relay.Outbox, from *uuid.UUID) (string, error) {
	news, err := relay.Claim(ctx, db, js, s.stream, o, from)
	switch {
	case errors.Is(err, relay.ErrNotClaimed) && from == nil: // the relay works without it, and warns
		return fmt.Sprintf("stream %s names no outbox, and %s; run this once as a user who may change streams", s.stream, relay.ErrNotClaimed), nil
	case err != nil || !news:
		return "", err
	}
	return fmt.Sprintf("stream %s now belongs to %s", s.stream, o), nil
}

// compareStream creates the stream. If the stream exists, it calls claim, unless that is nil, and
// compares the stream.
func (s *settings) compareStream(ctx context.Context, want jetstream.StreamConfig, claim func(jetstream.JetStream) (string, error)) (said []string, err error) {
	nc, js, err := s.reachNATS()
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	created, differences, err := relay.EnsureStream(ctx, js, want)
	owner := relay.Owner(want)
	switch {
	case err != nil:
		return nil, err
	case created && owner.ID == uuid.Nil:
		return []string{"created stream " + s.stream}, nil
	case created:
		return []string{fmt.Sprintf("created stream %s for %s", s.stream, owner)}, nil
	}
	if claim != nil {
		line, err := claim(js)
		if err != nil {
			return nil, err
		}
		if line != "" {
			said = append(said, line)
		}
	}
	if len(differences) > 0 {
		left := "nothing was changed"
		if len(said) > 0 {
			left = "nothing else was changed"
		}
		return said, &exitError{exitFindings, fmt.Errorf("stream %s differs, %s:\n  %s",
			s.stream, left, strings.Join(differences, "\n  "))}
	}
	return append(said, fmt.Sprintf("stream %s is as it should be", s.stream)), nil
}
