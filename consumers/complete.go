package consumers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/cenkalti/backoff/v4"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/events"
)

// withDefaults returns c with its defaults. It fails, and says what to change, if a part is
// missing, does not fit another one, or is refused by JetStream or PostgreSQL later.
func (c Consumer) withDefaults() (Consumer, error) {
	if err := validName("Name", c.Name); err != nil {
		return c, fmt.Errorf("consumer %q: %w", c.Name, err)
	}
	for _, check := range []func() error{c.checkHandlers, c.checkNumbers, c.dispatch, c.checkTypes} {
		if err := check(); err != nil {
			return c, fmt.Errorf("consumer %s: %w", c.Name, err)
		}
	}
	workers := 8
	if c.HandleBatch != nil {
		workers = 1
		c.Batch = cmp.Or(c.Batch, 200)
	} else {
		c.Batch = 1
	}
	c.Workers = cmp.Or(c.Workers, workers)
	c.Group = cmp.Or(c.Group, 16)
	c.Timeout = cmp.Or(c.Timeout, 20*time.Second)
	c.MinRetry, c.MaxRetry = retryWaits(c.MinRetry, c.MaxRetry)
	c.MaxAttempts = cmp.Or(c.MaxAttempts, 20)
	return c, nil
}

// most returns how many events one attempt may be about.
func (c *Consumer) most() int {
	if c.HandleBatch == nil && c.Effect == nil {
		return c.Group
	}
	return c.Batch
}

// retryWaits returns the shortest and the longest wait. The default of the one does not
// contradict the other.
func retryWaits(shortest, longest time.Duration) (time.Duration, time.Duration) {
	switch {
	case longest == 0:
		shortest = cmp.Or(shortest, 500*time.Millisecond)
		longest = max(shortest, 2*time.Minute)
	case shortest == 0:
		shortest = min(longest, 500*time.Millisecond)
	}
	return shortest, longest
}

// validName returns an error if JetStream does not take a name, of a consumer or stream.
func validName(what, name string) error {
	const most = 255
	switch {
	case name == "":
		return fmt.Errorf("%s is empty", what)
	case len(name) > most:
		return fmt.Errorf("%s is longer than %d bytes", what, most)
	case !utf8.ValidString(name), strings.ContainsAny(name, `.*>/\`),
		strings.ContainsFunc(name, func(c rune) bool { return unicode.IsSpace(c) || !unicode.IsPrint(c) }):
		return fmt.Errorf(`%s must not have blanks, control characters, or any of . * > / \, which JetStream refuses: use letters, digits, _ and -`, what)
	}
	return nil
}

func (c *Consumer) checkHandlers() error {
	var have []string
	for _, form := range []struct {
		name string
		set  bool
	}{{"On", len(c.On) > 0}, {"Handle", c.Handle != nil}, {"HandleBatch", c.HandleBatch != nil}, {"Effect", c.Effect != nil}} {
		if form.set {
			have = append(have, form.name)
		}
	}
	switch {
	case len(have) == 0:
		return errors.New("it has no handler, want one of On, Handle, HandleBatch and Effect")
	case len(have) > 1:
		return fmt.Errorf("it has %s, want one of them", strings.Join(have, " and "))
	case c.Unordered && c.ParkKey:
		return errors.New("it is Unordered and has ParkKey: there is no order to keep; drop one of them")
	case c.Batch > 1 && c.HandleBatch == nil:
		return errors.New("it has a Batch but no HandleBatch; drop the one or set the other")
	}
	return nil
}

// longestTimeout is how long an attempt may take: PostgreSQL counts twice that in
// milliseconds, in 32 bits.
const longestTimeout = 12 * 24 * time.Hour

func (c *Consumer) checkNumbers() error {
	for _, n := range []struct {
		name  string
		value int64
	}{
		{"Workers", int64(c.Workers)}, {"Batch", int64(c.Batch)}, {"Group", int64(c.Group)}, {"MaxAttempts", int64(c.MaxAttempts)},
		{"Timeout", int64(c.Timeout)}, {"MinRetry", int64(c.MinRetry)}, {"MaxRetry", int64(c.MaxRetry)},
	} {
		if n.value < 0 {
			return fmt.Errorf("%s is negative; 0 is the default", n.name)
		}
	}
	switch {
	case c.Timeout > longestTimeout:
		return fmt.Errorf("its Timeout is %s, more than %s", c.Timeout, longestTimeout)
	case c.MaxAttempts > math.MaxInt32:
		return fmt.Errorf("MaxAttempts is more than %d", math.MaxInt32)
	case c.MaxRetry > 0 && c.MinRetry > c.MaxRetry:
		return fmt.Errorf("MinRetry, %s, is more than MaxRetry, %s", c.MinRetry, c.MaxRetry)
	}
	return nil
}

// dispatch makes Handle of On, and adds the types of On to Types.
func (c *Consumer) dispatch() error {
	if len(c.On) == 0 {
		return nil
	}
	handlers, types := make(map[string]Handler), slices.Clone(c.Types)
	for _, on := range c.On {
		switch {
		case on.err != nil:
			return fmt.Errorf("a handler of On: %w", on.err)
		case !plainType(on.eventType):
			return fmt.Errorf("a handler of On is for type %q, which no event has: EventType of its payload must return one such as user.created, also for the zero value", on.eventType)
		case on.handle == nil:
			return fmt.Errorf("the handler of On for %s is nil", on.eventType)
		case handlers[on.eventType] != nil:
			return fmt.Errorf("it has two On handlers for %s: keep one", on.eventType)
		}
		handlers[on.eventType] = on.handle
		if !slices.ContainsFunc(c.Types, func(t string) bool { return overlap(t, on.eventType) }) {
			types = append(types, on.eventType)
		}
	}
	c.Types, c.On, c.Handle = types, nil, func(ctx context.Context, tx pgx.Tx, e events.Event) error {
		handle := handlers[e.Type]
		if handle == nil {
			return backoff.Permanent(fmt.Errorf("unknown_type: this consumer has no handler for %s", e.Type))
		}
		return handle(ctx, tx, e)
	}
	return nil
}

// checkTypes refuses what JetStream takes for no filter, or for two that overlap. It
// sorts Types.
func (c *Consumer) checkTypes() error {
	if len(c.Types) == 0 {
		return errors.New("it has no Types: name the event types that it handles")
	}
	for _, t := range c.Types {
		parts := strings.Split(t, ".")
		for i, part := range parts {
			if part == "*" || part == ">" && i == len(parts)-1 {
				parts[i] = "any"
			}
		}
		if !plainType(strings.Join(parts, ".")) {
			return fmt.Errorf("type %q is none: it must be letters, digits, _ and - in parts joined by dots, such as user.created; a part may be *, and the last one >", t)
		}
	}
	c.Types = slices.Clone(c.Types)
	slices.Sort(c.Types)
	c.Types = slices.Compact(c.Types)
	for i, t := range c.Types {
		for _, other := range c.Types[i+1:] {
			if overlap(t, other) {
				return fmt.Errorf("types %s and %s overlap, which JetStream refuses: remove the narrower one", t, other)
			}
		}
	}
	return nil
}

// plainType reports whether an event may have this type.
func plainType(t string) bool {
	return (events.Event{ID: uuid.Max, Type: t, Key: "any", Data: []byte("null")}).Validate() == nil
}

// overlap reports whether there may be an event type that matches both patterns.
func overlap(a, b string) bool {
	as, bs := strings.Split(a, "."), strings.Split(b, ".")
	for i := range min(len(as), len(bs)) {
		switch {
		case as[i] == ">" || bs[i] == ">":
			return true
		case as[i] != bs[i] && as[i] != "*" && bs[i] != "*":
			return false
		}
	}
	return len(as) == len(bs)
}
