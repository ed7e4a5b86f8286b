package console

import (
	"context"
	"net/http"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/operate"
	"github.com/pgjet/pgjet/internal/sqlstate"
	"github.com/pgjet/pgjet/internal/upkeep"
)

// A scheduledList is the content of the page Scheduled.
type scheduledList struct {
	Events []upkeep.Scheduled
	Filter upkeep.ScheduledFilter
	Next   string
	First  string
}

func (c *Console) scheduledPage(ctx context.Context, r *http.Request) (page, error) {
	q := r.URL.Query()
	l := scheduledList{Filter: upkeep.ScheduledFilter{Type: q.Get("type"), Key: q.Get("key"), Due: q.Get("due") != ""}}
	p := page{Title: "Scheduled", Template: "scheduled.html", Command: "pgjet outbox scheduled ls" + flags("type", l.Filter.Type, "key", l.Filter.Key, "after", q.Get("after"))}
	if l.Filter.Due {
		p.Command += " --due"
	}
	if after := q.Get("after"); after != "" {
		var err error
		if l.Filter.After, err = uuid.Parse(after); err != nil {
			return p, &operate.CursorError{After: after}
		}
	}
	err := c.config.DB.AcquireFunc(ctx, func(conn *pgxpool.Conn) (err error) {
		l.Events, err = upkeep.ListScheduled(ctx, conn.Conn(), l.Filter)
		return err
	})
	last := ""
	if len(l.Events) > pageRows {
		l.Events = l.Events[:pageRows]
		last = l.Events[pageRows-1].ID.String()
	}
	l.Next, l.First = pageLinks(r, last)
	p.Content = l
	return p, sqlstate.Wrap("list scheduled events", err)
}

// decideScheduled cancels a scheduled event, or makes it due now.
func (c *Console) decideScheduled(ctx context.Context, r *http.Request) (next, notice string, err error) {
	id, err := uuid.Parse(r.PathValue("id"))
	if err != nil {
		return "", "", wrongf("%q is no id of an event", operate.Plain(r.PathValue("id")))
	}
	cancel := r.PostFormValue("do") == "cancel"
	reason, err := why(r, cancel)
	if err != nil {
		return "", "", err
	}
	notice = "The event " + id.String() + " is due now."
	err = c.config.DB.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		if cancel {
			notice = "Cancelled the event " + id.String() + ": it is never published."
			return upkeep.CancelScheduled(ctx, conn.Conn(), []uuid.UUID{id}, c.actor(r), reason)
		}
		return upkeep.BringForward(ctx, conn.Conn(), []uuid.UUID{id}, nil, c.actor(r), reason)
	})
	return "/scheduled", notice, err
}
