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
	l, err := c.types(ctx)
	p.Content = l
	return p, err
}

// A typeView is the content of the page about one type.
type typeView struct {
	typeList
	Row    typeRow
	Schema operate.Schema
}

func (c *Console) typePage(ctx context.Context, r *http.Request) (page, error) {
	name := r.PathValue("type")
	p := page{Title: "Type " + operate.Plain(name), Template: "type.html", Command: "pgjet event ls" + flags("type", name)}
	l, err := c.types(ctx)
	if err != nil {
		return p, err
	}
	v := typeView{typeList: l, Row: typeRow{Type: operate.Type{Type: name}}}
	i := slices.IndexFunc(l.Rows, func(one typeRow) bool { return one.Type.Type == name })
	if i >= 0 {
		v.Row = l.Rows[i]
	}
	if v.Schema, err = c.facts().SchemaOf(ctx, name); err != nil {
		return p, err
	}
	if i < 0 && v.Schema.Events == 0 {
		return p, &operate.NotFoundError{What: "type " + operate.Plain(name), Looked: "the newest rows of the outbox have no such event, and no consumer has said that it handles it"}
	}
	p.Content = v
	return p, nil
}

// types returns the types with their rates and the services that append them.
func (c *Console) types(ctx context.Context) (l typeList, err error) {
	src := c.facts()
	t, err := src.EventTypes(ctx)
	if err != nil {
		return l, err
	}
	l.TypeList = t
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
	return l, nil
}
