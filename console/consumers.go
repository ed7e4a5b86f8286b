package console

import (
	"context"
	"net/http"
	"net/url"
	"strings"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/status"
	"github.com/pgjet/pgjet/internal/operate"
)

// A consumerList is the content of the page Consumers.
type consumerList struct {
	Consumers []consumerRow
	Missing   []operate.Missing
}

// A consumerRow is a row of that page, or the content of the page about one consumer.
type consumerRow struct {
	status.Status
	Share   string // how many of the last attempts failed
	Last    string // the last error
	Steps   []reasonStep
	Missing []operate.Missing
}

// A reasonStep is a reason why a consumer does not move, and what to do.
type reasonStep struct {
	status.Why
	Next string
}

func rowOf(s status.Status) consumerRow {
	row := consumerRow{Status: s}
	attempts, failed, last := s.Failures()
	if attempts > 0 {
		row.Share = consumers.Share(attempts, failed)
	}
	if failed > 0 {
		row.Last = last
	}
	return row
}

func (c *Console) consumersPage(ctx context.Context, _ *http.Request) (page, error) {
	p := page{Title: "Consumers", Template: "consumers.html", Command: "pgjet consumer ls"}
	s := c.board.Status(ctx)
	l := consumerList{Missing: s.Missing}
	for _, one := range s.Consumers {
		l.Consumers = append(l.Consumers, rowOf(one))
	}
	p.Content = l
	return p, nil
}

func (c *Console) consumerPage(ctx context.Context, r *http.Request) (page, error) {
	name := r.PathValue("name")
	p := page{Title: "Consumer " + operate.Plain(name), Template: "consumer.html", Command: "pgjet consumer get " + operate.Word(name)}
	s := c.board.Status(ctx)
	if err := unlessKnown(s, name); err != nil {
		return p, err
	}
	one, _ := consumerIn(s, name)
	row := rowOf(one)
	row.Missing = s.Missing
	for _, w := range one.Reasons() {
		own := c.config.Own != nil && c.config.Own(name)
		next := ""
		if !w.Healthy() {
			next = operate.NextAtConsumer(one, w.Code, own)
		}
		row.Steps = append(row.Steps, reasonStep{w, next})
	}
	p.Content = row
	return p, nil
}

// why returns the reason in a form. It returns an error if a reason is needed and missing.
func why(r *http.Request, needed bool) (string, error) {
	reason := strings.TrimSpace(operate.Plain(r.PostFormValue("reason")))
	if reason == "" && needed {
		return "", wrongf("say why: the reason is kept with the change")
	}
	return reason, nil
}

func (c *Console) pauseConsumer(ctx context.Context, r *http.Request) (next, notice string, err error) {
	name := r.PathValue("name")
	reason, err := why(r, true)
	if err != nil {
		return "", "", err
	}
	p, news, err := inbox.Pause(ctx, c.config.DB, name, c.actor(r), reason)
	switch {
	case err != nil:
		return "", "", err
	case !news:
		notice = name + " was paused already, by " + p.By + ": " + p.Reason
	default:
		notice = "Paused " + name + ". No attempt begins; events wait in the stream."
	}
	return back(r, "/consumers/"+url.PathEscape(name)), notice, nil
}

func (c *Console) resumeConsumer(ctx context.Context, r *http.Request) (next, notice string, err error) {
	name := r.PathValue("name")
	reason, err := why(r, false)
	if err != nil {
		return "", "", err
	}
	p, err := inbox.Resume(ctx, c.config.DB, name, c.actor(r), reason, "")
	switch {
	case err != nil:
		return "", "", err
	case p == nil:
		notice = name + " was not paused."
	default:
		notice = "Resumed " + name + "."
	}
	return back(r, "/consumers/"+url.PathEscape(name)), notice, nil
}
