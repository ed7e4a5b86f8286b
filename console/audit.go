package console

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/pgjet/pgjet/internal/operate"
	"github.com/pgjet/pgjet/relay"
	"github.com/pgjet/pgjet/relay/audit"
)

// An auditView is the content of the page Audit.
type auditView struct {
	Streams []auditPart
	Missing []operate.Missing
	Busy    bool // this console is already comparing
}

// An auditPart is what the page shows of one stream.
type auditPart struct {
	operate.Audits
	LastKinds []kindCount // of the last whole pass
	NowKinds  []kindCount
	Unread    *failure
}

// A kindCount is the number of differences of one kind.
type kindCount struct {
	Kind string
	N    int64
	Says string
}

// Name returns the kind in words.
func (k kindCount) Name() string { return strings.ReplaceAll(k.Kind, "_", " ") }

// kinds describes the kinds of differences.
var kinds = []struct{ kind, says string }{
	{audit.Missing, "published, and not in the stream"},
	{audit.Extra, "in the stream, and the outbox does not know it"},
	{audit.Twice, "in the stream once more"},
	{audit.OutOfOrder, "behind a later event of its key"},
	{audit.Changed, "not what the row of the outbox says"},
}

func countKinds(missing, extra, twice, outOfOrder, changed int64) (all []kindCount) {
	for i, n := range []int64{missing, extra, twice, outOfOrder, changed} {
		all = append(all, kindCount{kinds[i].kind, n, kinds[i].says})
	}
	return all
}

func kindsOf(a *relay.Audited) []kindCount {
	if a == nil {
		return nil
	}
	return countKinds(a.Missing, a.Extra, a.Twice, a.OutOfOrder, a.Changed)
}

func (c *Console) auditPage(ctx context.Context, _ *http.Request) (page, error) {
	p := page{Title: "Audit", Template: "audit.html", Command: "pgjet audit show"}
	s, src := c.board.Status(ctx), c.facts()
	v := auditView{Missing: s.Missing}
	for _, r := range s.Relays {
		src.Stream = r.Stream
		part := auditPart{Audits: operate.Audits{Stream: r.Stream}}
		a, err := src.Audits(ctx)
		if err != nil {
			f := failureOf(err)
			part.Unread = &f
		} else {
			part = auditPart{Audits: a, LastKinds: kindsOf(a.Last), NowKinds: kindsOf(a.Now)}
		}
		v.Streams = append(v.Streams, part)
	}
	p.Content = v
	return p, nil
}

// beginAudit starts a task that compares outbox and stream, or that plans to republish what the
// stream lacks.
func (c *Console) beginAudit(_ context.Context, r *http.Request) (next, notice string, err error) {
	src := c.facts()
	src.Stream = r.PathValue("stream")
	since, err := since(r.PostFormValue("since"))
	if err != nil {
		return "", "", err
	}
	from := &since
	if since.IsZero() {
		from = nil
	}
	t := &task{Stream: src.Stream, By: c.actor(r)}
	progress := func(done, total int64) { t.set(func() { t.done, t.total = done, total }) }
	run := func(ctx context.Context) error {
		a, err := src.Audit(ctx, from, progress)
		if err == nil {
			t.set(func() { t.audit = &a })
		}
		return err
	}
	if r.PostFormValue("do") == "plan" {
		if !c.board.Rights(r.Context()).Republish {
			return "", "", wrongf("this console may not have events published again")
		}
		if t.Reason, err = why(r, false); err != nil {
			return "", "", err
		}
		run = func(ctx context.Context) error {
			p, err := src.PlanRepublish(ctx, operate.Lacking{Since: from, By: t.By, Reason: t.Reason}, progress)
			if err == nil {
				t.set(func() { t.lacking, t.operation = &p, p.Operation })
			}
			return err
		}
	}
	id, err := c.work.begin(c, t, run)
	return "/audit/runs/" + url.PathEscape(id), "", err
}

// An auditRun is the content of the page about a comparison.
type auditRun struct {
	*task
	Running     bool
	Ended       time.Time
	Done, Total int64
	Audit       *operate.Audit
	Kinds       []kindCount
	Lacking     *operate.Republication
	Failed      *failure
	Since       string // start of the range, for a plan of the same range
}

func (c *Console) auditRunPage(_ context.Context, r *http.Request) (page, error) {
	p := page{Title: "Comparison", Template: "auditrun.html", Command: "pgjet audit run"}
	t := c.work.find(r.PathValue("id"))
	if t == nil || t.Stream == "" {
		return p, &operate.NotFoundError{What: "this comparison", Looked: "this console did not make it, or not since it was started; compare again, or see: pgjet audit show"}
	}
	p.Command = operate.Typed(p.Command, t.Stream)
	v := auditRun{task: t, Failed: t.failed()}
	t.set(func() {
		v.Running, v.Ended, v.Done, v.Total, v.Audit, v.Lacking = t.ended.IsZero(), t.ended, t.done, t.total, t.audit, t.lacking
	})
	if a := v.Audit; a != nil {
		v.Kinds = countKinds(a.Missing, a.Extra, a.Twice, a.OutOfOrder, a.Changed)
		if a.Since != nil {
			v.Since = a.Since.Format(time.RFC3339Nano)
		}
		slices.SortStableFunc(v.Kinds, func(x, y kindCount) int { return int(min(y.N, 1) - min(x.N, 1)) })
	}
	if v.Lacking != nil {
		p.Command = operate.Typed("pgjet republish plan --all", t.Stream)
		if v.Lacking.Operation > 0 {
			p.Command = fmt.Sprint("pgjet op get ", v.Lacking.Operation)
		}
	}
	p.Content = v
	return p, nil
}
