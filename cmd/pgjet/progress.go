package main

import (
	"fmt"
	"io"
	"time"

	"github.com/schollz/progressbar/v3"
)

// A progress shows how far an operation is: a bar on a terminal, elsewhere a line now and then.
type progress struct {
	out        io.Writer
	what, name string
	bar        *progressbar.ProgressBar // nil without a terminal
	began      time.Time                // the first report
	printed    time.Time
	first      int // how many were done at the first report
}

// progressInterval is the time between two lines without a terminal.
const progressInterval = 5 * time.Second

// rateTime is the time from which on a rate is shown.
const rateTime = time.Second

func newProgress(out io.Writer, what, name string) *progress {
	p := &progress{out: out, what: what, name: name}
	if terminal(out) {
		p.draw(screenOf(out).colour)
	}
	return p
}

// draw shows a bar.
func (p *progress) draw(colour bool) {
	p.bar = progressbar.NewOptions(-1, progressbar.OptionSetWriter(p.out), progressbar.OptionSetDescription(p.describe(0, 0)),
		progressbar.OptionShowCount(), progressbar.OptionEnableColorCodes(colour), progressbar.OptionSetSpinnerChangeInterval(0),
		progressbar.OptionThrottle(100*time.Millisecond))
}

// report records that done of total are done. If more are done, such as events that were stored
// since, the total grows.
func (p *progress) report(operation int64, done, total int) {
	total = max(total, done)
	now := time.Now()
	if p.began.IsZero() {
		p.began, p.printed, p.first = now, now, done
	}
	rate := 0.0
	if took := now.Sub(p.began); took >= rateTime {
		rate = max(0, float64(done-p.first)/took.Seconds())
	}
	if p.bar != nil {
		p.bar.Describe(p.describe(operation, rate))
		p.bar.ChangeMax(total)
		_ = p.bar.Set(done) // a bar that cannot be drawn is no failure
		return
	}
	if now.Sub(p.printed) < progressInterval {
		return
	}
	p.printed = now
	fmt.Fprintf(p.out, "%s %d/%d %.0f/s\n", p.describe(operation, 0), done, total, rate)
}

// describe names the operation, and its rate if it is known.
func (p *progress) describe(operation int64, rate float64) string {
	text := p.what
	if operation != 0 {
		text += fmt.Sprint(" ", operation)
	}
	if p.name != "" {
		text += " " + plain(p.name)
	}
	if rate > 0 {
		text += fmt.Sprintf(" %.0f/s", rate)
	}
	return text
}

// finish ends the line of the bar.
func (p *progress) finish() {
	if p.bar != nil {
		fmt.Fprintln(p.out)
	}
}
