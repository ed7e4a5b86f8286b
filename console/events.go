package console

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/internal/operate"
)

// pageRows is the number of rows of a list.
const pageRows = 50

// An eventList is the content of the page Events: a list, or the result of a search.
type eventList struct {
	operate.Page
	Filter operate.Filter
	Since  string
	States []string
	Next   string // the address of the next page
	First  string // of the first page; "" if it is this one
	Find   string
	Field  string // of the payload
	Value  string
	Found  operate.Found
}

// Bound returns how many rows a page searches.
func (l *eventList) Bound() int64 { return lookRows }

// Asked returns what was searched for.
func (l *eventList) Asked() string {
	if l.Field != "" {
		return l.Field + " = " + l.Value
	}
	return l.Find
}

func (c *Console) eventsPage(ctx context.Context, r *http.Request) (page, error) {
	q := r.URL.Query()
	l := eventList{Find: strings.TrimSpace(q.Get("find")), Field: strings.TrimSpace(q.Get("field")), Value: q.Get("value"), Since: q.Get("since"), States: []string{operate.Pending, operate.Published, operate.Quarantined}}
	p := page{Title: "Events", Template: "events.html"}
	if l.Find != "" || l.Field != "" {
		return c.foundPage(ctx, r, p, &l)
	}
	l.Filter = operate.Filter{State: q.Get("state"), Type: q.Get("type"), Key: q.Get("key"), After: q.Get("after"), Limit: pageRows}
	p.Command = "pgjet event ls" + flags("state", l.Filter.State, "type", l.Filter.Type, "key", l.Filter.Key, "since", l.Since, "after", l.Filter.After)
	if l.Filter.State != "" && !slices.Contains(l.States, l.Filter.State) {
		return p, wrongf("there is no state %q of events in the outbox", operate.Plain(l.Filter.State))
	}
	var err error
	if l.Filter.Since, err = since(l.Since); err != nil {
		return p, err
	}
	l.Page, err = c.facts().List(ctx, l.Filter)
	l.Next, l.First = pageLinks(r, l.Page.Next)
	p.Content = &l
	return p, err
}

// foundPage searches as many rows of the outbox as one page may.
func (c *Console) foundPage(ctx context.Context, r *http.Request, p page, l *eventList) (page, error) {
	p.Content, p.Still = l, true
	search := operate.Search{What: l.Find, Field: l.Field, Value: l.Value}
	var err error
	if after := r.URL.Query().Get("after"); after != "" {
		if search.Before, err = strconv.ParseInt(after, 10, 64); err != nil || search.Before < 1 {
			return p, &operate.CursorError{After: after}
		}
	}
	if l.Find != "" {
		search.Field, search.Value, l.Field, l.Value = "", "", "", ""
		p.Command = "pgjet event timeline " + operate.Word(l.Find)
		if id, err := uuid.Parse(l.Find); err == nil && search.Before == 0 {
			e, err := c.facts().Event(ctx, id)
			if err == nil {
				l.Found.Events = []operate.Event{e}
				return p, nil
			} else if !isAbsent(err) {
				return p, err
			}
		}
	}
	if l.Found, err = c.facts().Search(ctx, search); err != nil {
		return p, err
	}
	next := ""
	if l.Found.Next > 0 {
		next = strconv.FormatInt(l.Found.Next, 10)
	}
	l.Next, l.First = pageLinks(r, next)
	return p, nil
}

// pageLinks returns the URLs of the next and of the first page of a list, with the same filter. Either
// is "" if there is none, or if it is this page.
func pageLinks(r *http.Request, after string) (next, first string) {
	q := r.URL.Query()
	q.Del("live")
	at := func(q url.Values) string { return strings.TrimSuffix(r.URL.EscapedPath()+"?"+q.Encode(), "?") }
	if q.Has("after") {
		begin, _ := url.ParseQuery(q.Encode())
		begin.Del("after")
		first = at(begin)
	}
	if after != "" {
		q.Set("after", after)
		next = at(q)
	}
	return next, first
}

// since parses a time, or how long ago it was, such as 2h.
func since(text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return time.Now().Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return t, wrongf("since is %q, want how long ago, such as 2h, or a time, such as 2026-11-30T15:04:05Z", operate.Plain(text))
	}
	return t, nil
}

// flags returns command-line flags, without those that have no value.
func flags(pairs ...string) string {
	var b strings.Builder
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			b.WriteString(" --" + pairs[i] + " " + operate.Word(pairs[i+1]))
		}
	}
	return b.String()
}

// find redirects to the event with this id, or to the events that match.
func (c *Console) find(w http.ResponseWriter, r *http.Request) {
	what := strings.TrimSpace(r.FormValue("find"))
	if id, err := uuid.Parse(what); err == nil {
		ctx, cancel := context.WithTimeout(r.Context(), pageTime)
		defer cancel()
		if e, err := c.facts().Event(ctx, id); err == nil {
			http.Redirect(w, r, c.config.Path+"/events/"+e.ID.String(), http.StatusSeeOther)
			return
		}
	}
	http.Redirect(w, r, c.config.Path+"/events"+query("find", what), http.StatusSeeOther)
}

// letter shows the event of a dead letter.
func (c *Console) letter(w http.ResponseWriter, r *http.Request) {
	c.show("dead", func(ctx context.Context, r *http.Request) (page, error) {
		f, err := idFilter([]string{r.PathValue("id")})
		if err != nil {
			return page{}, err
		}
		all, err := inbox.Letters(ctx, c.config.DB, f, 0)
		if err != nil {
			return page{}, err
		}
		return c.eventOf(ctx, all[0].EventID, 0)
	})(w, r)
}
