package console

import (
	"context"
	"crypto/rand"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/replay"
	"github.com/pgjet/pgjet/internal/operate"
)

// work is what this console changes, and changed lately.
type work struct {
	mu  sync.Mutex
	all map[string]*task
}

// A task is a plan that is being carried out.
type task struct {
	Plan   *planView
	By     string
	Reason string
	Began  time.Time

	mu      sync.Mutex
	ended   time.Time
	outcome []inbox.Outcome
	err     error
}

const (
	mostTasks = 4   // at a time
	keptTasks = 100 // of which the page can be asked for
)

// begin carries a plan out, and returns the id of its page.
func (w *work) begin(c *Console, v *planView, by, reason string, rate int) (id string, err error) {
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
	t := &task{Plan: v, By: by, Reason: reason, Began: time.Now()}
	id = rand.Text()
	began := c.begin(func() {
		var done []inbox.Outcome
		err := guarded("the change", func() (err error) {
			done, err = v.Run(c.ended, c.config.DB, replay.Decision{By: by, Reason: reason, Rate: rate, Progress: t.progress})
			return err
		})
		c.changed()
		t.mu.Lock()
		defer t.mu.Unlock()
		t.outcome, t.err, t.ended = done, err, time.Now()
	})
	if !began {
		return "", c.ended.Err()
	}
	w.all[id] = t
	return id, nil
}

// progress keeps how far the task has got.
func (t *task) progress(outcome []inbox.Outcome) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.outcome = slices.Clone(outcome)
}

func (t *task) running() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ended.IsZero()
}

// A workView is the page about a task.
type workView struct {
	*task
	Running  bool
	Ended    time.Time
	Total    inbox.Outcome
	Progress *inbox.Progress // of what was redriven
	Of       int
	Failed   *failure
	Undo     string // the address of the plan that undoes it; "" if nothing can
}

func (c *Console) workPage(ctx context.Context, r *http.Request) (page, error) {
	c.work.mu.Lock()
	t := c.work.all[r.PathValue("id")]
	c.work.mu.Unlock()
	p := page{Title: "Change", Template: "work.html", Command: "pgjet dead ls --state all"}
	if t == nil {
		return p, &operate.NotFoundError{What: "this change", Looked: "this console did not make it, or not since it was started; what was changed shows: pgjet dead ls --state all"}
	}
	t.mu.Lock()
	v := workView{task: t, Running: t.ended.IsZero(), Ended: t.ended, Total: operate.Total(t.outcome)}
	err := t.err
	t.mu.Unlock()
	if err != nil {
		f := explain(err)
		v.Failed = &f
	}
	if v.Of = len(v.Total.IDs); v.Of > 0 && t.Plan.Verb.Name == operate.Redrive.Name {
		progress, err := inbox.ReadProgress(ctx, c.config.DB, v.Total.IDs)
		if err != nil {
			return p, err
		}
		v.Progress = &progress
	}
	if t.Plan.Verb.Name == operate.Discard.Name && !v.Running && v.Total.Changed > 0 {
		own, _ := url.ParseQuery(t.Plan.Query)
		own.Set("up_to", strconv.FormatInt(t.Plan.UpTo, 10))
		v.Undo = planOf(operate.Reopen, own)
	}
	p.Title = "Change: " + t.Plan.Verb.Name
	p.Content = v
	return p, nil
}
