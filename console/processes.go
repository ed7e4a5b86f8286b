package console

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/pgjet/pgjet/internal/operate"
)

func (c *Console) processesPage(ctx context.Context, _ *http.Request) (page, error) {
	return page{Title: "Processes", Template: "processes.html", Command: "pgjet services ls", Content: c.board.Status(ctx)}, nil
}

// A typeList is the content of the page Types.
type typeList struct {
	operate.TypeList
	Rows      []typeRow
	Producers []string // the services that the streams of this outbox name
	Docs      string   // URL of the description of the types; "" if none
}

// A typeRow is a type and its rate.
type typeRow struct {
	operate.Type
	Rate float64 // per second, over the rows that were read; 0 if unknown
}

func (c *Console) typesPage(ctx context.Context, _ *http.Request) (page, error) {
	p := page{Title: "Types", Template: "types.html", Command: "pgjet event ls --limit 1000"}
	src := c.facts()
	t, err := src.EventTypes(ctx)
	if err != nil {
		return p, err
	}
	l := typeList{TypeList: t}
	if c.config.Dev != nil {
		l.Docs = c.config.Dev.Docs
	}
	var first time.Time // of the rows that were read
	for _, one := range t.Types {
		if one.First != nil && (first.IsZero() || one.First.Before(first)) {
			first = *one.First
		}
	}
	for _, one := range t.Types {
		row := typeRow{Type: one}
		if over := time.Since(first).Seconds(); !first.IsZero() && over > 0 {
			row.Rate = float64(one.Events) / over
		}
		l.Rows = append(l.Rows, row)
	}
	for _, r := range c.board.Status(ctx).Relays {
		src.Stream = r.Stream
		if in, err := src.ReadStream(ctx); err == nil && in.Source != "" && !slices.Contains(l.Producers, in.Source) {
			l.Producers = append(l.Producers, in.Source)
		}
	}
	p.Content = l
	return p, nil
}
