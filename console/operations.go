package console

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/internal/operate"
	"github.com/pgjet/pgjet/internal/operation"
)

// An operationList is the content of the page Operations.
type operationList struct {
	Operations []operation.Record
	Filter     operation.Filter
	States     []string
	Next       string
	First      string
}

func (c *Console) operationsPage(ctx context.Context, r *http.Request) (page, error) {
	q := r.URL.Query()
	l := operationList{Filter: operation.Filter{Kind: q.Get("kind"), Target: q.Get("target"), State: q.Get("state"), Most: pageRows + 1}, States: operation.States}
	p := page{Title: "Operations", Template: "operations.html", Command: "pgjet op ls" + flags("kind", l.Filter.Kind, "target", l.Filter.Target, "state", l.Filter.State, "before", q.Get("after"))}
	if l.Filter.State != "" && !slices.Contains(l.States, l.Filter.State) {
		return p, wrongf("there is no state %q of operations", operate.Plain(l.Filter.State))
	}
	var err error
	if after := q.Get("after"); after != "" {
		if l.Filter.Before, err = strconv.ParseInt(after, 10, 64); err != nil || l.Filter.Before < 1 {
			return p, &operate.CursorError{After: after}
		}
	}
	if l.Operations, err = c.facts().ListOperations(ctx, l.Filter); err != nil {
		return p, err
	}
	last := ""
	if len(l.Operations) > pageRows {
		l.Operations = l.Operations[:pageRows]
		last = fmt.Sprint(l.Operations[pageRows-1].ID)
	}
	for i := range l.Operations {
		l.Operations[i].Reason = inbox.Mask(l.Operations[i].Reason)
	}
	l.Next, l.First = pageLinks(r, last)
	p.Content = l
	return p, nil
}

// An operationView is the content of the page about one operation.
type operationView struct {
	operate.OperationState
	Facts     string   // its detail
	Failed    *failure // why this console could not finish it
	CanResume bool
	CanCancel bool
	CanRun    bool // it is a plan
	Events    int64
	High      bool   // the number has to be typed
	Page      string // URL of its target; "" if none
	Undo      string // URL of the plan that undoes it; "" if nothing does
}

// mostFacts is how many characters of an operation's detail are shown.
const mostFacts = 4000

func (c *Console) operationPage(ctx context.Context, r *http.Request) (page, error) {
	id, err := operationID(r)
	p := page{Title: "Operation", Template: "operation.html"}
	if err != nil {
		return p, err
	}
	p.Title, p.Command = fmt.Sprint("Operation ", id), fmt.Sprint("pgjet op get ", id)
	o, err := c.facts().ReadOperation(ctx, id)
	if err != nil {
		return p, err
	}
	rights := c.board.Rights(ctx)
	v := operationView{OperationState: o, Page: targetPage(o.Record), CanResume: operate.CanResume(o.Record) && rights.Dead && (o.Kind != "replay" || rights.Consumers)}
	v.CanCancel = rights.Operations && slices.Contains([]string{operation.Planned, operation.Running, operation.Stopped, operation.Failed}, o.State)
	v.CanRun = rights.Republish && o.State == operation.Planned
	if o.Total != nil {
		v.Events = *o.Total
	}
	v.High = v.Events > highCount
	if rights.Dead {
		v.Undo = undoOf(o.Record)
	}
	if t := c.work.of(id); t != nil {
		v.Failed = t.failed()
	}
	v.Reason = inbox.Mask(o.Reason)
	var text bytes.Buffer
	if json.Indent(&text, o.Detail, "", "  ") == nil {
		v.Facts = inbox.Mask(text.String())
	}
	if len(v.Facts) > mostFacts {
		v.Facts = strings.ToValidUTF8(v.Facts[:mostFacts], "") + "\n… all of it: pgjet op get " + fmt.Sprint(id) + " -o json"
	}
	p.Content = v
	return p, nil
}

// undoOf returns the URL of the plan that reopens what an operation has discarded; "" if it has
// discarded nothing, or something else. The operation keeps what it needs, so any console can undo
// it.
func undoOf(o operation.Record) string {
	var was struct {
		Filter  inbox.Filter `json:"filter"`
		Changed int64        `json:"changed"`
		IDs     []int64      `json:"ids"`
	}
	if o.Kind != inbox.Discard.Kind || json.Unmarshal(o.Detail, &was) != nil || was.Changed == 0 {
		return ""
	}
	if was.Filter.UpTo == 0 && int64(len(was.IDs)) != was.Changed { // the filter would also select what was discarded later
		return ""
	}
	was.Filter.Consumer = o.Target
	return reopening(queryOf(was.Filter), was.Filter.UpTo, was.IDs, was.Changed)
}

// targetPage returns the URL of the page about an operation's target; "" if there is none.
func targetPage(o operation.Record) string {
	kind, _, _ := strings.Cut(o.Kind, ".")
	switch kind {
	case "consumer", "dead", "replay", "retry":
		if o.Target != "" {
			return "/consumers/" + url.PathEscape(o.Target)
		}
	case "relay", "quarantine":
		return "/relay"
	case "republish":
		return "/audit"
	case "event":
		return "/events/" + url.PathEscape(o.Target)
	}
	return ""
}

func operationID(r *http.Request) (int64, error) {
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	if err != nil || id < 1 {
		return 0, wrongf("%q is no id of an operation", operate.Plain(r.PathValue("id")))
	}
	return id, nil
}

// cancelOperation ends an operation. What it has done is kept.
func (c *Console) cancelOperation(ctx context.Context, r *http.Request) (next, notice string, err error) {
	id, err := operationID(r)
	if err != nil {
		return "", "", err
	}
	reason, err := why(r, true)
	if err != nil {
		return "", "", err
	}
	_, err = operate.CancelOperation(ctx, c.config.DB, id, c.actor(r), reason)
	return fmt.Sprint("/operations/", id), fmt.Sprintf("Cancelled operation %d. What it has done is kept.", id), err
}

// resumeOperation resumes an operation that stopped.
func (c *Console) resumeOperation(ctx context.Context, r *http.Request) (next, notice string, err error) {
	id, err := operationID(r)
	if err != nil {
		return "", "", err
	}
	src := c.facts()
	o, err := src.Resumable(ctx, id)
	if err != nil {
		return "", "", err
	}
	if o.Kind == "replay" && !c.board.Rights(ctx).Consumers {
		return "", "", wrongf("this console may not replay")
	}
	_, err = c.work.begin(c, &task{By: c.actor(r), operation: id}, func(ctx context.Context) error { return src.Resume(ctx, o) })
	return fmt.Sprint("/operations/", id), fmt.Sprintf("Operation %d goes on.", id), err
}

// runOperation runs a plan to publish events again.
func (c *Console) runOperation(ctx context.Context, r *http.Request) (next, notice string, err error) {
	id, err := operationID(r)
	if err != nil {
		return "", "", err
	}
	reason, err := why(r, true)
	if err != nil {
		return "", "", err
	}
	o, err := c.facts().ReadOperation(ctx, id)
	if err != nil {
		return "", "", err
	}
	if err := confirmed(r, o.Total); err != nil {
		return "", "", err
	}
	n, err := operate.RunRepublish(ctx, c.config.DB, id, c.actor(r), reason)
	return fmt.Sprint("/operations/", id), fmt.Sprintf("%d events were handed over to the relay, which publishes them again.", n), err
}

// confirmed returns an error unless the form shows the operation's number of events, and repeats it
// where it has to be typed.
func confirmed(r *http.Request, total *int64) error {
	n := int64(0)
	if total != nil {
		n = *total
	}
	switch {
	case r.PostFormValue("count") != fmt.Sprint(n):
		return wrongf("%s were shown and there are %d now: look at the plan again", operate.Plain(r.PostFormValue("count")), n)
	case n > highCount && strings.TrimSpace(r.PostFormValue("typed")) != fmt.Sprint(n):
		return wrongf("type the number, %d, to confirm", n)
	}
	return nil
}
