package operate

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

// A Type is an event type, as counted in some rows of the outbox.
type Type struct {
	Type      string     `json:"type"`
	Events    int64      `json:"events"`
	First     *time.Time `json:"first"` // the earliest and latest append; nil if it is not in the years 1 to 9999
	Last      *time.Time `json:"last"`
	Consumers []string   `json:"consumers"` // that handle it, as recorded by their processes
}

// A TypeList is a list of event types.
type TypeList struct {
	Types  []Type `json:"types"`  // the most frequent first
	Looked int64  `json:"looked"` // number of rows of the outbox that were read, the newest ones
	More   bool   `json:"more"`   // there are older rows, or further types
}

// mostTypes is the most types that [Source.EventTypes] returns, and typeRows the number of rows of
// the outbox that it reads.
const mostTypes, typeRows = 200, 20_000

// EventTypes returns the types of the newest events of the outbox, and of those that consumers
// handle.
func (s Source) EventTypes(ctx context.Context) (t TypeList, err error) {
	if s.DB == nil {
		return t, s.DBErr
	}
	t.Types, err = collect(ctx, s.DB, func(row pgx.CollectableRow) (one Type, err error) {
		err = row.Scan(&one.Type, &one.Events, &one.First, &one.Last)
		one.First, one.Last = utc(one.First), utc(one.Last)
		return one, err
	}, `
		select left(type, 200), count(*), min(time) filter (where time >= '0001-01-01' and time < '10000-01-01'),
		       max(time) filter (where time >= '0001-01-01' and time < '10000-01-01')
		  from (select type, time from pgjet.outbox order by seq desc limit $1) o
		 group by left(type, 200) order by 2 desc, 1 limit $2`, typeRows, mostTypes+1)
	if err != nil {
		return t, sqlstate.Wrap("list types of events", err)
	}
	for _, one := range t.Types {
		t.Looked += one.Events
	}
	t.More = t.Looked >= typeRows || len(t.Types) > mostTypes
	t.Types = t.Types[:min(len(t.Types), mostTypes)]
	names, err := collect(ctx, s.DB, pgx.RowTo[string], `select name from pgjet.consumer order by name limit $1`, mostTypes)
	if err != nil {
		return t, sqlstate.Wrap("list consumers", err)
	}
	for _, name := range names {
		is, err := inbox.ReadRecorded(ctx, s.DB, name)
		if err != nil {
			return t, err
		}
		t.handledBy(name, is.Types)
	}
	return t, nil
}

// handledBy adds a consumer of types, or patterns of them.
func (t *TypeList) handledBy(consumer string, types []string) {
	for _, pattern := range types {
		if !strings.ContainsAny(pattern, "*>") && !slices.ContainsFunc(t.Types, func(one Type) bool { return one.Type == pattern }) {
			t.Types = append(t.Types, Type{Type: pattern})
		}
		for i := range t.Types {
			if one := &t.Types[i]; covers(pattern, one.Type) && !slices.Contains(one.Consumers, consumer) {
				one.Consumers = append(one.Consumers, consumer)
			}
		}
	}
}
