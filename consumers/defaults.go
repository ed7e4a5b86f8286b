package consumers

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/events"
)

// withDefaults returns c with its defaults. It fails, and says what to change, if a part is
// missing, does not fit another one, or is refused by JetStream or PostgreSQL later.
func (c Consumer) withDefaults() (Consumer, error) {
	if err := validName("Name", c.Name); err != nil {
		return c, fmt.Errorf("consumer %q: %w", c.Name, err)
	}
	if c.Slices == 0 {
		c.Slices = 1
		if !c.Unordered {
			c.Slices = DefaultSlices
		}
	}
	for _, check := range []func() error{c.checkHandler, c.checkNumbers, c.checkTypes, c.checkDurables} {
		if err := check(); err != nil {
			return c, fmt.Errorf("consumer %s: %w", c.Name, err)
		}
	}
	workers := 8
	if c.Handler.batch != nil {
		workers = 1
	}
	c.Workers = cmp.Or(c.Workers, workers)
	if c.Handler.each != nil {
		c.Group = cmp.Or(c.Group, 64)
	}
	if c.Rate > 0 {
		c.Burst = cmp.Or(c.Burst, int(min(math.Ceil(c.Rate), math.MaxInt32)))
	}
	c.Timeout = cmp.Or(c.Timeout, 20*time.Second)
	c.MinRetry, c.MaxRetry = retryWaits(c.MinRetry, c.MaxRetry)
	c.MaxAttempts = cmp.Or(c.MaxAttempts, 20)
	if c.MaxAttempts == Unlimited {
		c.MaxAttempts = math.MaxInt32 // more than there is time for
	}
	return c, nil
}

// most returns the most events of one attempt.
func (c *Consumer) most() int {
	most := c.Handler.most
	if c.Handler.each != nil {
		most = c.Group
	}
	if c.Rate > 0 {
		most = min(most, c.Burst)
	}
	return most
}

// retryWaits returns the shortest and the longest wait. The default of one never contradicts the
// other.
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

// validName returns an error if JetStream does not accept the name of a consumer or stream.
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

func (c *Consumer) checkHandler() error {
	h := &c.Handler
	switch {
	case h.err != nil:
		return h.err
	case h.each == nil && h.batch == nil && h.effect == nil:
		return errors.New("it has no Handler: make one with Handle, HandleBatch or Effect")
	case h.each == nil && c.Group != 0:
		return errors.New("it has a Group, which only a Handler of Handle has: drop it")
	case c.Unordered && c.Slices > 1:
		return errors.New("it is Unordered and has Slices, which only a consumer that keeps the order needs: drop one of them")
	case c.Unordered && c.ParkKey:
		return errors.New("it is Unordered and has ParkKey: there is no order to keep; drop one of them")
	}
	return nil
}

// longestTimeout is the longest time for an attempt: PostgreSQL counts twice that in milliseconds,
// in 32 bits.
const longestTimeout = 12 * 24 * time.Hour

const mostWorkers = 10_000

func (c *Consumer) checkNumbers() error {
	for _, n := range []struct {
		name  string
		value int64
	}{
		{"Workers", int64(c.Workers)}, {"Group", int64(c.Group)}, {"Burst", int64(c.Burst)},
		{"Timeout", int64(c.Timeout)}, {"MinRetry", int64(c.MinRetry)}, {"MaxRetry", int64(c.MaxRetry)},
	} {
		if n.value < 0 {
			return fmt.Errorf("%s is negative; 0 is the default", n.name)
		}
	}
	switch {
	case c.Slices < 0 || c.Slices > inbox.Tokens || c.Slices&(c.Slices-1) != 0:
		return fmt.Errorf("its Slices are %d: it must be 1, 2, 4, 8, 16, 32 or 64", c.Slices)
	case c.Workers > mostWorkers:
		return fmt.Errorf("its Workers are %d, more than %d: each slice has that many goroutines", c.Workers, mostWorkers)
	case c.MaxAttempts < 0 && c.MaxAttempts != Unlimited:
		return errors.New("MaxAttempts is negative; 0 is the default, and Unlimited no limit")
	case !(c.Rate >= 0) || math.IsInf(c.Rate, 0):
		return fmt.Errorf("its Rate is %g: it must be a positive number of events a second, or 0 for no limit", c.Rate)
	case c.Rate == 0 && c.Burst > 0:
		return errors.New("it has a Burst but no Rate; drop Burst or set Rate")
	case c.Timeout > longestTimeout:
		return fmt.Errorf("its Timeout is %s, more than %s", c.Timeout, longestTimeout)
	case c.MaxAttempts > math.MaxInt32:
		return fmt.Errorf("MaxAttempts is more than %d", math.MaxInt32)
	case c.MaxRetry > 0 && c.MinRetry > c.MaxRetry:
		return fmt.Errorf("MinRetry, %s, is more than MaxRetry, %s", c.MinRetry, c.MaxRetry)
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{{"Timeout", c.Timeout}, {"MinRetry", c.MinRetry}, {"MaxRetry", c.MaxRetry}} {
		if d.value > 0 && d.value < time.Millisecond { // probably a number without its unit
			return fmt.Errorf("its %s is %s, less than %s: give it a unit, such as 2*time.Second", d.name, d.value, time.Millisecond)
		}
	}
	return nil
}

// writeTime is how long a transaction may take to record what happened to an event: as long as a
// handler may, but not as short as that.
func (c *Consumer) writeTime() time.Duration { return max(c.Timeout, pingTime) }

// checkTypes returns an error for types that JetStream does not accept as a filter, or that
// overlap. It sorts the types.
func (c *Consumer) checkTypes() error {
	types := slices.Clone(c.Handler.types)
	if len(types) == 0 {
		return errors.New("its Handler was given no types: name the event types that it handles")
	}
	for _, t := range types {
		parts := strings.Split(t, ".")
		for i, part := range parts {
			if part == "*" || part == ">" && i == len(parts)-1 {
				parts[i] = "any"
			}
		}
		if !plainType(strings.Join(parts, ".")) {
			return fmt.Errorf("%q is no event type: it must be letters, digits, _ and - in parts joined by dots, such as user.created; a part may be *, and the last one >", t)
		}
	}
	slices.Sort(types)
	types = slices.Compact(types)
	for i, t := range types {
		for _, other := range types[i+1:] {
			if overlap(t, other) {
				return fmt.Errorf("types %s and %s overlap, which JetStream refuses: remove the narrower one", t, other)
			}
		}
	}
	c.Handler.types = types
	return nil
}

// ofSlice matches the names of durable consumers of slices.
var ofSlice = regexp.MustCompile(`-[0-9]+of[0-9]+$`)

// checkDurables returns an error if the names of the durable consumers would be invalid, or those
// of another consumer.
func (c *Consumer) checkDurables() error {
	if ofSlice.MatchString(c.Name) {
		return errors.New("its Name is that of a slice of another consumer: end it in another way")
	}
	last := inbox.Slice{Number: c.Slices - 1, Of: c.Slices}.Durable(c.Name)
	if err := validName("Name, with that of a slice,", last); err != nil && c.Slices > 1 {
		return err
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
