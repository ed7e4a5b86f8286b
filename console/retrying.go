package console

import (
	"context"
	"fmt"
	"net/http"

	"github.com/google/uuid"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/internal/operate"
)

// groupedRetries is the most events that wait for another attempt which a page groups by their
// errors.
const groupedRetries = 5000

// A retryList is the content of the page Retrying.
type retryList struct {
	operate.Page
	Consumer string
	Groups   []inbox.RetryGroup // on the first page
	More     bool               // not all events are in Groups
	Names    []string
	Next     string
	First    string
}

func (c *Console) retryingPage(ctx context.Context, r *http.Request) (page, error) {
	q := r.URL.Query()
	l := retryList{Consumer: q.Get("consumer")}
	p := page{Title: "Retrying", Template: "retrying.html", Command: "pgjet event ls --state retrying" + flags("consumer", l.Consumer, "after", q.Get("after"))}
	var err error
	l.Page, err = c.facts().List(ctx, operate.Filter{State: operate.Retrying, Consumer: l.Consumer, After: q.Get("after"), Limit: pageRows})
	if err != nil {
		return p, err
	}
	s := c.board.Status(ctx)
	for _, one := range s.Consumers {
		l.Names = append(l.Names, one.Name)
	}
	if l.Consumer != "" {
		if err := unlessKnown(s, l.Consumer); err != nil {
			return p, err
		}
	}
	if !q.Has("after") {
		if l.Groups, l.More, err = inbox.RetryGroups(ctx, c.config.DB, l.Consumer, groupedRetries); err != nil {
			return p, err
		}
	}
	l.Next, l.First = pageLinks(r, l.Page.Next)
	p.Content = &l
	return p, nil
}

// Bound returns how many events a page groups.
func (l *retryList) Bound() int { return groupedRetries }

// retry makes one event due now, or all events that wait at a consumer.
func (c *Console) retry(ctx context.Context, r *http.Request) (next, notice string, err error) {
	reason, err := why(r, false)
	if err != nil {
		return "", "", err
	}
	consumer := r.PostFormValue("consumer")
	var ids []uuid.UUID
	if text := r.PostFormValue("event"); text != "" {
		id, err := uuid.Parse(text)
		if err != nil {
			return "", "", wrongf("%q is no id of an event", operate.Plain(text))
		}
		ids = []uuid.UUID{id}
	}
	if consumer == "" && ids == nil {
		return "", "", wrongf("name an event or a consumer")
	}
	all, err := operate.Retry(ctx, c.config.DB, consumer, ids, c.actor(r), reason)
	if err != nil {
		return "", "", err
	}
	return back(r, "/retrying"+query("consumer", consumer)), retried(all), nil
}

func retried(all []inbox.RetryOutcome) string {
	var t inbox.RetryOutcome
	for _, o := range all {
		t.Retried += o.Retried
		t.Due += o.Due
		t.Running += o.Running
		t.Behind += o.Behind
	}
	return fmt.Sprintf("%d retried now; %d were due already, %d run, %d wait behind another event of their key.", t.Retried, t.Due, t.Running, t.Behind)
}
