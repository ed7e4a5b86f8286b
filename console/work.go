package console

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/replay"
	"github.com/pgjet/pgjet/internal/operate"
	"github.com/pgjet/pgjet/internal/operation"
)

// work holds the tasks of this console, running and recent.
type work struct {
	mu  sync.Mutex
	all map[string]*task
}

// A task runs in the background of the console: a change of dead letters, a resumed operation, or
// an audit.
type task struct {
	Plan   *planView // of a change of dead letters; else nil
	Stream string    // of an audit
	By     string
	Reason string
	Began  time.Time

	mu          sync.Mutex
	ended       time.Time
	done, total int64
	outcome     []inbox.Outcome
	audit       *operate.Audit
	lacking     *operate.Republication
	operation   int64 // that it resumes, or began; 0 if none
	err         error
}

const (
	mostTasks = 4   // at a time
	keptTasks = 100 // with a page
)

// begin runs a task, and returns the id of its page.
func (w *work) begin(c *Console, t *task, run func(ctx context.Context) error) (id string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.all == nil {
		w.all = make(map[string]*task)
	}
	busy := 0
	var oldest string
	for id, t := range w.all {
		if t.running() {
			busy++
		} else if oldest == "" || t.Began.Before(w.all[oldest].Began) {
			oldest = id
		}
	}
	if busy >= mostTasks {
		return "", errBusy
	}
	if len(w.all) >= keptTasks {
		delete(w.all, oldest)
	}
	t.Began = time.Now()
	id = rand.Text()
	began := c.begin(func() {
		err := guarded("the change", func() error { return run(c.ended) })
		c.changed()
		t.mu.Lock()
		defer t.mu.Unlock()
		t.err, t.ended = err, time.Now()
	})
	if !began {
		return "", c.ended.Err()
	}
	w.all[id] = t
	return id, nil
}

// find returns the task with an id; nil if this console does not know it any more.
func (w *work) find(id string) *task {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.all[id]
}

// of returns the latest task on an operation; nil if there is none.
func (w *work) of(operation int64) (last *task) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, t := range w.all {
		t.mu.Lock()
		if t.operation == operation && (last == nil || t.Began.After(last.Began)) {
			last = t
		}
		t.mu.Unlock()
	}
	return last
}

// set changes what a page of the task reads.
func (t *task) set(change func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	change()
}

func (t *task) running() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ended.IsZero()
}

// failed returns why the task failed; nil if it did not.
func (t *task) failed() *failure {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err == nil {
		return nil
	}
	f := failureOf(t.err)
	return &f
}

// A workView is the content of the page about a change of dead letters.
type workView struct {
	*task
	Running    bool
	Ended      time.Time
	Total      inbox.Outcome
	Progress   *inbox.Progress // of what was redriven
	Of         int
	Failed     *failure
	Operations []operation.Record // at each consumer
	Undo       string             // URL of the plan that undoes it; "" if nothing does
}

func (c *Console) workPage(ctx context.Context, r *http.Request) (page, error) {
	q := r.URL.Query()
	p := page{Title: "Change", Template: "work.html", Command: "pgjet op ls --kind dead"}
	verb, known := operate.VerbOf(q.Get("verb"))
	upTo, _ := strconv.ParseInt(q.Get("up_to"), 10, 64)
	after, err := strconv.ParseInt(q.Get("since"), 10, 64)
	if !known || upTo == 0 || err != nil {
		return p, wrongf("the address does not say which change")
	}
	p.Title = "Change: " + verb.Name
	v := workView{}
	if v.Operations, err = c.facts().OperationsOfPlan(ctx, verb, upTo, after); err != nil {
		return p, err
	}
	for i := range v.Operations {
		v.Operations[i].Reason = inbox.Mask(v.Operations[i].Reason)
	}
	if v.task = c.work.find(r.PathValue("id")); v.task == nil || v.Plan == nil { // after a restart the operations are all that is known
		if len(v.Operations) == 0 {
			return p, &operate.NotFoundError{What: "this change", Looked: "this console did not make it, or not since it was started, and no operation says that anything was changed"}
		}
		p.Template, p.Content = "works.html", v
		return p, nil
	}
	t := v.task
	t.set(func() { v.Running, v.Ended, v.Total = t.ended.IsZero(), t.ended, operate.Total(t.outcome) })
	v.Failed = t.failed()
	if v.Of = len(v.Total.IDs); v.Of > 0 && verb.Name == operate.Redrive.Name {
		progress, err := inbox.ReadProgress(ctx, c.config.DB, v.Total.IDs)
		if err != nil {
			return p, err
		}
		v.Progress = &progress
	}
	if verb.Name == operate.Discard.Name && !v.Running && v.Total.Changed > 0 {
		own, _ := url.ParseQuery(t.Plan.Query)
		v.Undo = reopening(own, t.Plan.UpTo, v.Total.IDs, v.Total.Changed)
	}
	p.Content = v
	return p, nil
}

// startPlan starts a plan, and returns the URL of its page. The URL is enough to find the change
// after a restart.
func (c *Console) startPlan(ctx context.Context, v *planView, by, reason string, rate int) (string, error) {
	before, err := c.facts().NewestOperation(ctx)
	if err != nil {
		return "", err
	}
	t := &task{Plan: v, By: by, Reason: reason}
	id, err := c.work.begin(c, t, func(ctx context.Context) error {
		keep := func(outcome []inbox.Outcome) { t.set(func() { t.outcome = slices.Clone(outcome) }) }
		done, err := v.Run(ctx, c.config.DB, replay.Decision{By: by, Reason: reason, Rate: rate, Progress: keep})
		keep(done)
		return err
	})
	return "/changes/" + id + query("verb", v.Verb.Name, "up_to", fmt.Sprint(v.UpTo), "since", fmt.Sprint(before)), err
}
