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

// A typeList is the page Types.
type typeList struct {
	operate.TypeList
	Rows      []typeRow
	Producers []string // services whose events the streams of this outbox say they hold
	Docs      string   // where their form is described; "" if nowhere
}

// A typeRow is a type, and how many of its events there are each second.
type typeRow struct {
	operate.Type
	Rate float64 // over the time of the rows that were looked at; 0 if that is not known
}

func (c *Console) typesPage(ctx context.Context, _ *http.Request) (page, error) {
	p := page{Title: "Types", Template: "types.html", Command: "pgjet event ls --limit 1000"}
	src := c.asked()
	t, err := src.EventTypes(ctx)
	if err != nil {
		return p, err
	}
	l := typeList{TypeList: t}
	if c.config.Dev != nil {
		l.Docs = c.config.Dev.Docs
	}
	var first time.Time // of the rows that were looked at
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
