package consumers

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/events"
)

// A Record is what a database has recorded about a consumer. It is for tools that do not contain
// the consumer.
type Record struct {
	// Consumer has the name, the order, the slices and the event types, so that [Consumer.Configs]
	// returns its durable consumers. Its functions are unknown: in a [Runner] every event is
	// [Unavailable].
	Consumer Consumer
	Stream   string
	Prefix   string // the beginning of the subjects of its events
}

// Recorded returns what the database has recorded about a consumer. It returns an
// [inbox.UnknownError] if no consumer of that name has ever run, and fails if only versions of
// pgjet ran it that did not record the types.
func Recorded(ctx context.Context, db inbox.Reader, name string) (Record, error) {
	is, err := inbox.ReadRecorded(ctx, db, name)
	if err != nil {
		return Record{}, err
	}
	if len(is.Types) == 0 {
		return Record{}, fmt.Errorf("the event types of consumer %s are not recorded: only older versions of pgjet ran it; start its process with this version", name)
	}
	var all []Typed
	for _, t := range is.Types {
		all = append(all, OnType(t, func(context.Context, pgx.Tx, events.Event) error { return Unavailable(errRecorded) }))
	}
	c := Consumer{Name: name, Unordered: !is.Ordered, Slices: is.Slices, Handler: Handle(all...)}
	return Record{Consumer: c, Stream: is.Stream, Prefix: is.Prefix}, nil
}

var errRecorded = errors.New("this program does not contain the consumer's functions")
