package console

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/internal/operate"
	"github.com/pgjet/pgjet/internal/operation"
)

// An eventView is the content of the page about one event.
type eventView struct {
	operate.Event
	Verdict  []verdict
	Tracks   []track
	Timeline []step
	Content  operate.Content
	Unread   *failure // why the content is not known
	Revealed bool
}

// A verdict is a sentence about what became of an event, or why it does not move.
type verdict struct {
	State string
	Text  string
	Link  string
}

// A step is an entry of the timeline.
type step struct {
	operate.Entry
	Offset string // after the first entry
	Bad    bool
}

func (c *Console) eventPage(ctx context.Context, r *http.Request) (page, error) {
	id, err := uuid.Parse(r.PathValue("id"))
	if err != nil {
		return page{Title: "Event"}, wrongf("%q is no id of an event, which is a UUID", operate.Plain(r.PathValue("id")))
	}
	seq, _ := strconv.ParseInt(r.URL.Query().Get("seq"), 10, 64)
	return c.eventOf(ctx, id, seq)
}

// eventOf returns the page of an event. seq is its seq in the outbox if the caller knows it, else
// 0.
func (c *Console) eventOf(ctx context.Context, id uuid.UUID, seq int64) (page, error) {
	p := page{Title: "Event " + id.String(), Template: "event.html", Command: "pgjet event timeline " + id.String()}
	e, err := c.facts().EventAt(ctx, id, seq)
	if err != nil {
		return p, err
	}
	if e.Quarantine != nil {
		e.Quarantine.Reason = inbox.Mask(e.Quarantine.Reason)
	}
	v := &eventView{Event: e, Tracks: tracks(e, time.Now()), Timeline: steps(operate.Timeline([]operate.Event{e}))}
	p.Title = cmp.Or(e.Type, "Event") + " " + id.String()
	v.Verdict = c.judge(ctx, e)
	c.read(ctx, v, false)
	p.Content = v
	return p, nil
}

// read adds the content of the event.
func (c *Console) read(ctx context.Context, v *eventView, reveal bool) {
	content, err := c.facts().Content(ctx, v.Event, reveal)
	if err != nil {
		f := failureOf(err)
		v.Unread = &f
		return
	}
	v.Content, v.Revealed = content, reveal
}

// revealPage returns the page of an event with its content. Looking at it is recorded as an
// operation, so a console that may record nothing refuses it.
func (c *Console) revealPage(ctx context.Context, r *http.Request) (page, error) {
	p, err := c.eventPage(ctx, r)
	v, found := p.Content.(*eventView)
	if err != nil || !found {
		return p, err
	}
	p.Still = true
	if !c.board.Rights(ctx).Record {
		return page{Title: "Refused", Template: "problem.html", Status: http.StatusForbidden, Still: true, Content: failure{
			Code: "refused", Text: "What an event says is shown only to those who can be recorded, and the database lets the user of this console record nothing.",
		}}, nil
	}
	_, _, err = operation.Note(ctx, c.config.DB, operation.Operation{Kind: "event.reveal", Target: v.ID.String(), By: c.actor(r), Reason: short(r.PostFormValue("reason"))})
	if err != nil {
		return p, fmt.Errorf("record who looks at an event: %w", err)
	}
	c.read(ctx, v, true)
	return p, nil
}

// steps converts the timeline.
func steps(all []operate.Entry) (list []step) {
	var first *time.Time
	for _, e := range all {
		s := step{Entry: e, Offset: "now"}
		switch {
		case e.At != nil && first == nil:
			first, s.Offset = e.At, "+0"
		case e.At != nil:
			s.Offset = "+" + lasts(e.At.Sub(*first))
		}
		for _, word := range []string{": " + inbox.Retried, ": " + inbox.Dead, ": died", "dead letter", "the last error", "set aside"} {
			s.Bad = s.Bad || strings.Contains(e.Text, word)
		}
		list = append(list, s)
	}
	return list
}

// judge returns what became of an event, problems first.
func (c *Console) judge(ctx context.Context, e operate.Event) (all []verdict) {
	status := c.board.Status(ctx)
	waits := 0
	for _, h := range e.Consumers {
		switch h.State {
		case inbox.Dead:
			all = append(all, c.dead(ctx, h))
		case operate.Retrying, operate.Waiting, operate.Running, operate.Unknown:
			waits++
			all = append(all, c.waiting(status, h))
		}
	}
	switch {
	case e.Quarantine != nil && e.Quarantine.State == "held":
		all = append([]verdict{{"quarantined", "In quarantine: " + e.Quarantine.Reason, "/relay"}}, all...)
	case e.Quarantine != nil && e.Quarantine.State == operate.Dropped && e.Stored == nil:
		all = append([]verdict{{operate.Dropped, "Dropped from quarantine: no consumer gets it. It was there because: " + e.Quarantine.Reason, "/relay"}}, all...)
	case e.Outbox != nil && e.Stored == nil && !e.Outbox.Published:
		why := "the relay has not published it yet"
		for _, r := range status.Relays {
			if troubles := operate.RelayTroubles(r); len(troubles) > 0 {
				why = troubles[0].Why
			}
		}
		all = append([]verdict{{"pending", "In the outbox: " + why, "/relay"}}, all...)
	case len(all) == 0 && slices.ContainsFunc(e.Consumers, func(h operate.Handling) bool { return h.State != operate.Ignored }):
		all = append(all, verdict{inbox.Done, "Done at every consumer that handles it" + took(e), ""})
	case len(all) == 0:
		all = append(all, verdict{operate.Ignored, "No consumer that is known handles events of this type.", "/types"})
	}
	return all
}

// dead describes a dead letter, and how many others have the same error.
func (c *Console) dead(ctx context.Context, h operate.Handling) verdict {
	v := verdict{inbox.Dead, "Dead in " + h.Consumer + " after " + attempts(h.Attempts) + ": " + h.Error, "/dead" + query("consumer", h.Consumer)}
	if h.Letter == nil {
		return v
	}
	letters, err := inbox.Letters(ctx, c.config.DB, inbox.Filter{IDs: []int64{h.Letter.ID}}, 0)
	if err != nil || len(letters) == 0 {
		return v
	}
	groups, err := inbox.Groups(ctx, c.config.DB, inbox.Filter{Consumer: h.Consumer, State: inbox.Dead}) // cheaper than reading one group
	i := slices.IndexFunc(groups, func(g inbox.Group) bool { return g.ID == letters[0].Group })
	if err != nil || i < 0 {
		return v
	}
	v.Link = "/dead" + query("group", groups[i].ID)
	if n := groups[i].Count - 1; n > 0 {
		v.Text += fmt.Sprintf("; %s like it since %s", count(n), groups[i].First.UTC().Format("15:04 UTC on 2 Jan"))
	}
	return v
}

// waiting describes why an event waits at a consumer.
func (c *Console) waiting(s operate.Status, h operate.Handling) verdict {
	v := verdict{h.State, "", "/consumers/" + url.PathEscape(h.Consumer)}
	switch {
	case h.State == operate.Running:
		v.Text = h.Consumer + " handles it now, in " + h.TakenBy
	case h.State == operate.Unknown:
		v.Text = "What became of it at " + h.Consumer + " is not known"
	case h.Behind:
		v.Text = "Waits at " + h.Consumer + " behind an earlier event of its key"
	case h.State == operate.Retrying:
		v.Text = fmt.Sprintf("Waits at %s for attempt %d", h.Consumer, h.Attempts+1)
	default:
		v.Text = "Waits for " + h.Consumer
	}
	if h.Error != "" {
		v.Text += ". The last error: " + h.Error
	}
	if one, known := consumerIn(s, h.Consumer); known && !one.Why.Healthy() && one.Why.Text != "" {
		v.Text += ". The consumer is " + strings.ReplaceAll(one.Why.Code, "_", " ") + ": " + one.Why.Text
	}
	return v
}

// attempts formats a number of attempts.
func attempts(n int) string {
	if n == 1 {
		return "1 attempt"
	}
	return fmt.Sprintf("%d attempts", n)
}

// took formats how long after its append all consumers had handled an event.
func took(e operate.Event) string {
	if e.Outbox == nil || e.Outbox.Time == nil {
		return "."
	}
	var last time.Time
	for _, h := range e.Consumers {
		if h.At != nil && h.At.After(last) {
			last = *h.At
		}
	}
	if last.IsZero() {
		return "."
	}
	return ", " + lasts(last.Sub(*e.Outbox.Time)) + " after it was appended."
}
