package main

import (
	"fmt"
	"io"
	"time"

	"github.com/schollz/progressbar/v3"
)

// A progress shows how far something is, such as the replay of a consumer: a bar on a terminal, else now and then a line.
type progress struct {
	out        io.Writer
	what, name string
	bar        *progressbar.ProgressBar // nil without a terminal
	began      time.Time                // the first report
	told       time.Time
	first      int // what was done at the first report
}

// progressInterval is how often there is a line without a terminal.
const progressInterval = 5 * time.Second

// rateTime is for how long something has to go on before it has a rate.
const rateTime = time.Second

func newProgress(out io.Writer, what, name string) *progress {
	p := &progress{out: out, what: what, name: name}
	if terminal(out) {
		p.draw(screenOf(out).colour)
	}
	return p
}

// draw makes it a bar.
func (p *progress) draw(colour bool) {
	p.bar = progressbar.NewOptions(-1, progressbar.OptionSetWriter(p.out), progressbar.OptionSetDescription(p.describe(0, 0)),
		progressbar.OptionShowCount(), progressbar.OptionEnableColorCodes(colour), progressbar.OptionSetSpinnerChangeInterval(0),
		progressbar.OptionThrottle(100*time.Millisecond))
}

// report says that so many of a total are done. What is done besides, such as an event that came meanwhile, makes the total larger.
func (p *progress) report(operation int64, done, total int) {
	total = max(total, done)
	now := time.Now()
	if p.began.IsZero() {
		p.began, p.told, p.first = now, now, done
	}
	rate := 0.0
	if took := now.Sub(p.began); took >= rateTime {
		rate = max(0, float64(done-p.first)/took.Seconds())
	}
	if p.bar != nil {
		p.bar.Describe(p.describe(operation, rate))
		p.bar.ChangeMax(total)
		_ = p.bar.Set(done) // a bar that is not drawn stops nothing
		return
	}
	if now.Sub(p.told) < progressInterval {
		return
	}
	p.told = now
	fmt.Fprintf(p.out, "%s %d/%d %.0f/s\n", p.describe(operation, 0), done, total, rate)
}

// describe returns what goes on, and how fast, if that is known.
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

// finish leaves the line of the bar.
func (p *progress) finish() {
	if p.bar != nil {
		fmt.Fprintln(p.out)
	}
}
