package console

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/internal/operate"
)

// A deadList is the content of the page Dead letters.
type deadList struct {
	Filter                 inbox.Filter
	Since, Until           string
	Query                  string // of the filter
	RedriveAll, DiscardAll string // the addresses of plans for all that match
	Matches                int64
	Groups                 []inbox.Group
	Letters                []inbox.Letter // shown for one group, or for a state other than dead
	Next                   string
	First                  string
	States                 []string
}

// filterOf returns the filter in the query of a URL, and the part of the query that the filter
// comes from.
func filterOf(q url.Values) (f inbox.Filter, own url.Values, err error) {
	own = url.Values{}
	for _, name := range []string{"consumer", "group", "type", "key", "since", "until", "id"} {
		if values := slices.DeleteFunc(slices.Clone(q[name]), func(v string) bool { return v == "" }); len(values) > 0 {
			own[name] = values
		}
	}
	if f, err = idFilter(own["id"]); err != nil {
		return f, own, err
	}
	f.Consumer, f.Group, f.Type, f.Key = own.Get("consumer"), own.Get("group"), own.Get("type"), own.Get("key")
	if f.Group != "" && !inbox.IsGroup(f.Group) {
		return f, own, wrongf("%q is no group of dead letters", operate.Plain(f.Group))
	}
	if f.Since, err = since(own.Get("since")); err != nil {
		return f, own, err
	}
	f.Until, err = since(own.Get("until"))
	return f, own, err
}

// idFilter returns a filter of ids: of dead letters, or of events.
func idFilter(words []string) (f inbox.Filter, err error) {
	for _, word := range words {
		if !f.AddName(word) {
			return f, wrongf("%q is no id of a dead letter", operate.Plain(word))
		}
	}
	return f, nil
}

func (c *Console) deadPage(ctx context.Context, r *http.Request) (page, error) {
	p := page{Title: "Dead letters", Template: "dead.html"}
	q := r.URL.Query()
	f, own, err := filterOf(q)
	if err != nil {
		return p, err
	}
	l := deadList{Filter: f, Since: own.Get("since"), Until: own.Get("until"), Query: own.Encode(), States: []string{inbox.Dead, inbox.Redriven, inbox.Done, inbox.Discarded}}
	l.Filter.State = inbox.Dead
	if state := q.Get("state"); state != "" {
		if !slices.Contains(l.States, state) {
			return p, wrongf("there is no state %q of dead letters", operate.Plain(state))
		}
		l.Filter.State = state
	}
	p.Command = "pgjet dead groups" + deadFlags(own)
	if l.Filter.Named() {
		p.Command = "pgjet dead ls" + deadFlags(own)
	}
	if l.Filter.State != inbox.Dead {
		p.Command += " --state " + l.Filter.State
	}
	if err := l.Filter.FindGroup(ctx, c.config.DB); err != nil {
		return p, err
	}
	l.RedriveAll, l.DiscardAll = planOf(operate.Redrive, own), planOf(operate.Discard, own)
	l.Groups, err = inbox.Groups(ctx, c.config.DB, l.Filter)
	if err != nil {
		return p, err
	}
	for i := range l.Groups {
		l.Matches += l.Groups[i].Count
		l.Groups[i].Error, l.Groups[i].ErrorGroup = inbox.Mask(l.Groups[i].Error), inbox.Mask(l.Groups[i].ErrorGroup)
	}
	if l.Filter.Group != "" || l.Filter.State != inbox.Dead || len(l.Groups) == 1 || l.Filter.Key != "" {
		after, err := strconv.ParseInt(cmp.Or(q.Get("after"), "0"), 10, 64)
		if err != nil || after < 0 {
			return p, &operate.CursorError{After: q.Get("after")}
		}
		l.Filter.Most = pageRows + 1
		l.Letters, err = inbox.Letters(ctx, c.config.DB, l.Filter, after)
		if err != nil {
			return p, err
		}
		last := ""
		if len(l.Letters) > pageRows {
			l.Letters = l.Letters[:pageRows]
			last = fmt.Sprint(l.Letters[pageRows-1].ID)
		}
		for i := range l.Letters {
			l.Letters[i].Mask()
		}
		l.Next, l.First = pageLinks(r, last)
	}
	p.Content = l
	return p, nil
}

// planOf returns the URL of the plan for everything that a query selects.
func planOf(v operate.Verb, own url.Values) string {
	q, _ := url.ParseQuery(own.Encode())
	q.Set("verb", v.Name)
	q.Set("all", "1")
	return "/dead/plan?" + q.Encode()
}

// mostNamed is how many dead letters the URL of a plan names one by one.
const mostNamed = 100

// reopening returns the URL of the plan that reopens what was discarded: the dead letters with
// these ids, or, if there are more than a URL or the operation names, what the same query selects.
func reopening(own url.Values, upTo int64, ids []int64, changed int64) string {
	if int64(len(ids)) == changed && len(ids) <= mostNamed {
		own = url.Values{}
		for _, id := range ids {
			own.Add("id", strconv.FormatInt(id, 10))
		}
	}
	q, _ := url.ParseQuery(own.Encode())
	if upTo > 0 {
		q.Set("up_to", strconv.FormatInt(upTo, 10))
	}
	return planOf(operate.Reopen, q)
}

// queryOf returns the query of a URL that selects the same as f; see [selected].
func queryOf(f inbox.Filter) url.Values {
	own := url.Values{}
	for name, value := range map[string]string{"consumer": f.Consumer, "group": f.Group, "type": f.Type, "key": f.Key} {
		if value != "" {
			own.Set(name, value)
		}
	}
	for name, at := range map[string]time.Time{"since": f.Since, "until": f.Until} {
		if !at.IsZero() {
			own.Set(name, at.UTC().Format(time.RFC3339Nano))
		}
	}
	for _, id := range f.IDs {
		own.Add("id", strconv.FormatInt(id, 10))
	}
	for _, id := range f.EventIDs {
		own.Add("id", id.String())
	}
	return own
}

// deadFlags returns the command-line flags that select the same.
func deadFlags(own url.Values) string {
	var b strings.Builder
	b.WriteString(flags("consumer", own.Get("consumer"), "group", own.Get("group"), "type", own.Get("type"), "key", own.Get("key"), "since", own.Get("since"), "until", own.Get("until")))
	for _, id := range own["id"] {
		b.WriteString(" " + operate.Word(id))
	}
	return b.String()
}

// A planView is the content of the page that shows what a change would do.
type planView struct {
	operate.DeadPlan
	Total   inbox.Outcome
	Query   string
	UpTo    int64
	Back    string
	High    bool // the number has to be typed
	Effects []string
}

// highCount is the number of dead letters or events above which a change needs the number typed. If
// it repeats effects outside the database, the number is highWithEffects.
const highCount, highWithEffects = 10_000, 1000

func (c *Console) planPage(ctx context.Context, r *http.Request) (page, error) {
	q := r.URL.Query()
	v, err := c.plan(ctx, q)
	if err != nil {
		return page{Title: "Plan"}, err
	}
	p := page{Title: strings.ToUpper(v.Verb.Name[:1]) + v.Verb.Name[1:] + " dead letters", Template: "plan.html", Still: true, Content: v}
	own, _ := url.ParseQuery(v.Query)
	p.Command = "pgjet dead " + v.Verb.Name + deadFlags(own)
	if len(own) == 0 {
		p.Command += " --all"
	}
	p.Command += " --dry-run" // like this page, it changes nothing
	return p, nil
}

// plan counts what the query of a URL would change.
func (c *Console) plan(ctx context.Context, q url.Values) (*planView, error) {
	verb, known := operate.VerbOf(q.Get("verb"))
	if !known {
		return nil, wrongf("there is no verb %q: want redrive, discard or reopen", operate.Plain(q.Get("verb")))
	}
	f, own, err := filterOf(q)
	if err != nil {
		return nil, err
	}
	if len(own) == 0 && q.Get("all") == "" {
		return nil, wrongf("nothing is selected: tick dead letters, or choose all that match")
	}
	for name, at := range map[string]time.Time{"since": f.Since, "until": f.Until} { // 2h ago moves on
		if !at.IsZero() {
			own.Set(name, at.UTC().Format(time.RFC3339Nano))
		}
	}
	if f.UpTo, err = strconv.ParseInt(cmp.Or(q.Get("up_to"), "0"), 10, 64); err != nil {
		return nil, wrongf("the plan is not one of this console")
	}
	if err := f.FindGroup(ctx, c.config.DB); err != nil {
		return nil, err
	}
	made, err := operate.CountDead(ctx, c.config.DB, verb, f, highCount)
	if err != nil {
		return nil, err
	}
	v := &planView{DeadPlan: made, Total: operate.Total(made.Outcomes), Query: own.Encode(), UpTo: made.Filter.UpTo, Back: "/dead?" + own.Encode()}
	status := c.board.Status(ctx)
	for _, o := range made.Outcomes {
		if one, known := consumerIn(status, o.Consumer); known && one.Effects && verb.Name == operate.Redrive.Name {
			v.Effects = append(v.Effects, o.Consumer)
		}
	}
	v.High = v.Total.Changed > highCount || len(v.Effects) > 0 && v.Total.Changed > highWithEffects
	return v, nil
}

// runPlan starts a plan, unless it has changed since it was shown.
func (c *Console) runPlan(ctx context.Context, r *http.Request) (next, notice string, err error) {
	if err := r.ParseForm(); err != nil {
		return "", "", wrongf("the form cannot be read")
	}
	q, err := url.ParseQuery(r.PostFormValue("query"))
	if err != nil {
		return "", "", wrongf("the plan is not one of this console")
	}
	q.Set("verb", r.PostFormValue("verb"))
	q.Set("up_to", r.PostFormValue("up_to"))
	q.Set("all", "1") // the plan that was shown selected something
	v, err := c.plan(ctx, q)
	if err != nil {
		return "", "", err
	}
	reason, err := why(r, v.Verb.NeedsReason)
	if err != nil {
		return "", "", err
	}
	if shown := r.PostFormValue("count"); shown != fmt.Sprint(v.Total.Changed) {
		return "", "", wrongf("%s were planned and %d would be %s now: look at the plan again", operate.Plain(shown), v.Total.Changed, v.Verb.Past)
	}
	if v.High && strings.TrimSpace(r.PostFormValue("typed")) != fmt.Sprint(v.Total.Changed) {
		return "", "", wrongf("type the number, %d, to confirm", v.Total.Changed)
	}
	rate, err := strconv.Atoi(cmp.Or(r.PostFormValue("rate"), "0"))
	if err != nil || rate < 0 {
		return "", "", wrongf("the rate is %q, want a number a second", operate.Plain(r.PostFormValue("rate")))
	}
	next, err = c.startPlan(ctx, v, c.actor(r), reason, rate)
	return next, "", err
}

var errBusy = errors.New("as many changes as one console makes at a time are being made: wait until one has ended")
