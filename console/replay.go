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

	"github.com/pgjet/pgjet/consumers/replay"
	"github.com/pgjet/pgjet/internal/operate"
	"github.com/pgjet/pgjet/internal/operation"
)

// A replayView is the content of the page about a replay: the form and, once it is filled in, the
// plan.
type replayView struct {
	Consumer string
	From     string // of the form: all, since, or seq
	Since    string
	Seq      string
	Until    string
	Type     string
	Key      string
	Rate     string
	Again    bool
	Force    bool

	Plan    *replay.Plan
	Events  int    // that will run
	Lasts   string // the forecast; "" if unknown
	By      string // the basis of the forecast
	High    bool   // the number has to be typed
	Refused string
	Query   string // of the plan, with absolute times
}

// replayFields are the fields of the form.
var replayFields = []string{"from", "since", "seq", "until", "type", "key", "rate", "again", "force"}

func (c *Console) replayPage(ctx context.Context, r *http.Request) (page, error) {
	name, q := r.PathValue("name"), r.URL.Query()
	p := page{Title: "Replay " + operate.Plain(name), Template: "replay.html", Still: true, Command: "pgjet replay " + operate.Word(name) + " --since 2h --dry-run"}
	if err := unlessKnown(c.board.Status(ctx), name); err != nil {
		return p, err
	}
	v := &replayView{
		Consumer: name, From: cmp.Or(q.Get("from"), "since"), Since: q.Get("since"), Seq: q.Get("seq"), Until: q.Get("until"), Type: q.Get("type"), Key: q.Get("key"),
		Rate: q.Get("rate"), Again: q.Get("again") != "", Force: q.Get("force") != "",
	}
	p.Content = v
	if !q.Has("from") {
		return p, nil
	}
	frozen, which, err := selection(q)
	if err != nil {
		return p, err
	}
	if v.Plan, err = c.facts().PlanReplay(ctx, name, which); err != nil {
		return p, replayError(err)
	}
	v.Query, v.Events, v.Refused = frozen.Encode(), v.Plan.Run+v.Plan.Again, v.Plan.Refused
	v.High = c.manyToReplay(v.Plan)
	v.Lasts, v.By = c.forecast(ctx, v.Plan)
	p.Command = "pgjet replay " + operate.Word(name) + replayFlags(frozen) + " --dry-run"
	return p, nil
}

// selection returns what a form selects, and the same form with absolute times.
func selection(q url.Values) (frozen url.Values, s replay.Selection, err error) {
	frozen = url.Values{}
	for _, name := range replayFields {
		if value := strings.TrimSpace(q.Get(name)); value != "" {
			frozen.Set(name, value)
		}
	}
	s = replay.Selection{Type: frozen.Get("type"), Key: frozen.Get("key"), Again: frozen.Has("again"), Force: frozen.Has("force")}
	if s.Force && !s.Again {
		return nil, s, wrongf("only what runs again is ever refused: there is nothing to force")
	}
	if s.Rate, err = strconv.Atoi(cmp.Or(frozen.Get("rate"), "0")); err != nil || s.Rate < 0 {
		return nil, s, wrongf("the rate is %q, want a number a second", operate.Plain(frozen.Get("rate")))
	}
	switch frozen.Get("from") {
	case "all":
		s.All = true
	case "seq":
		if s.FromSeq, err = strconv.ParseUint(frozen.Get("seq"), 10, 64); err != nil || s.FromSeq == 0 {
			return nil, s, wrongf("the sequence is %q, want that of the stream from which on it is replayed", operate.Plain(frozen.Get("seq")))
		}
	case "since":
		if s.From, err = since(frozen.Get("since")); err != nil {
			return nil, s, err
		}
		if s.From.IsZero() {
			return nil, s, wrongf("say since when, such as 2h, or choose all that the stream has")
		}
		frozen.Set("since", s.From.UTC().Format(time.RFC3339Nano))
	default:
		return nil, s, wrongf("say from where: all, since a time, or from a sequence on")
	}
	if s.Until, err = since(frozen.Get("until")); err != nil {
		return nil, s, err
	}
	if !s.Until.IsZero() {
		frozen.Set("until", s.Until.UTC().Format(time.RFC3339Nano))
	}
	return frozen, s, nil
}

// replayFlags returns the command-line flags that select the same.
func replayFlags(q url.Values) string {
	text := map[string]string{"all": " --all", "since": " --since " + operate.Word(q.Get("since")), "seq": " --from-stream-seq " + operate.Word(q.Get("seq"))}[q.Get("from")]
	text += flags("until", q.Get("until"), "type", q.Get("type"), "key", q.Get("key"), "rate", q.Get("rate"))
	for _, name := range []string{"again", "force"} {
		if q.Has(name) {
			text += " --" + name
		}
	}
	return text
}

// replayError turns an error that only another selection can avoid into a wrongError.
func replayError(err error) error {
	for _, wrong := range []error{replay.ErrSelection, replay.ErrRefused, replay.ErrBusy, replay.ErrChanged, replay.ErrNoConsumer, operate.ErrPlanChanged} {
		if errors.Is(err, wrong) {
			return wrongf("%s", err)
		}
	}
	return err
}

// manyToReplay reports whether the number of events has to be typed.
func (c *Console) manyToReplay(p *replay.Plan) bool {
	n := p.Run + p.Again
	return n > highCount || p.Effects && n > highWithEffects || p.Again > 0
}

// forecast returns how long a replay takes, and what the estimate is based on; "" if it is unknown.
func (c *Console) forecast(ctx context.Context, p *replay.Plan) (lasting, by string) {
	n := p.Run + p.Again
	if n == 0 {
		return "", ""
	}
	workers, seconds := 0, 0.0
	if one, known := consumerIn(c.board.Status(ctx), p.Consumer); known {
		for _, process := range one.Processes {
			workers += process.Workers
			seconds = max(seconds, process.Seconds)
		}
	}
	able := float64(workers) / max(seconds, 0.0001)
	switch {
	case p.Rate > 0 && (workers == 0 || seconds == 0 || float64(p.Rate) <= able):
		return lasts(max(secondsOf(float64(n)/float64(p.Rate)), time.Second)), fmt.Sprintf("at %d a second", p.Rate)
	case workers == 0 || seconds == 0:
		return "", ""
	}
	return lasts(max(secondsOf(float64(n)/able), time.Second)), fmt.Sprintf("(workers: %d; the last attempts took %s each)", workers, lasts(secondsOf(seconds)))
}

// runReplay starts a replay that was shown, unless its number of events has changed.
func (c *Console) runReplay(ctx context.Context, r *http.Request) (next, notice string, err error) {
	name := r.PathValue("name")
	q, err := url.ParseQuery(r.PostFormValue("query"))
	if err != nil {
		return "", "", wrongf("the plan is not one of this console")
	}
	_, which, err := selection(q)
	if err != nil {
		return "", "", err
	}
	reason, err := why(r, true)
	if err != nil {
		return "", "", err
	}
	src := c.facts()
	plan, err := src.PlanReplay(ctx, name, which)
	if err != nil {
		return "", "", replayError(err)
	}
	n := plan.Run + plan.Again
	switch {
	case plan.Refused != "":
		return "", "", wrongf("%s", plan.Refused)
	case n == 0:
		return "", "", wrongf("there is nothing to replay")
	case r.PostFormValue("count") != fmt.Sprint(n):
		return "", "", wrongf("%s events were planned and %d would be replayed now: look at the plan again", operate.Plain(r.PostFormValue("count")), n)
	case c.manyToReplay(plan) && strings.TrimSpace(r.PostFormValue("typed")) != fmt.Sprint(n):
		return "", "", wrongf("type the number, %d, to confirm", n)
	}
	before, err := src.NewestOperation(ctx)
	if err != nil {
		return "", "", err
	}
	t := &task{By: c.actor(r), Reason: reason}
	if _, err := c.work.begin(c, t, func(ctx context.Context) error { return src.RunReplay(ctx, name, which, n, t.By, reason) }); err != nil {
		return "", "", err
	}
	id, err := c.awaitOperation(ctx, t, name, before)
	return fmt.Sprint("/operations/", id), fmt.Sprintf("The replay of %d events to %s has begun.", n, name), replayError(err)
}

// awaitOperation waits until a replay is recorded as an operation, and returns the operation's id.
func (c *Console) awaitOperation(ctx context.Context, t *task, consumer string, before int64) (int64, error) {
	for {
		all, err := c.facts().ListOperations(ctx, operation.Filter{Kind: "replay", Target: consumer, Most: 1})
		if err != nil {
			return 0, err
		}
		if i := slices.IndexFunc(all, func(o operation.Record) bool { return o.ID > before }); i >= 0 {
			t.set(func() { t.operation = all[i].ID })
			return all[i].ID, nil
		}
		if !t.running() {
			t.mu.Lock()
			defer t.mu.Unlock()
			if t.err == nil {
				return 0, wrongf("there is nothing to replay any more")
			}
			return 0, t.err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}
