package console

import (
	"context"
	"time"
)

// A sample is how far outbox and stream have got at a time.
type sample struct {
	at       time.Time
	appended int64 // the last seq of the outbox; -1 if it is not known
	stored   int64 // the last place of the stream; -1 if it is not known
}

// A flow is how fast events go, as far as two samples say it.
type flow struct {
	Appended float64 // into the outbox, each second
	Stored   float64 // into the stream
	Known    bool
	Stream   string
	Last     int64   // place in the stream; -1 if it is not known
	Points   []point // the last minutes, the oldest first
}

// A point of the chart.
type point struct {
	At       int64   `json:"at"`
	Appended float64 `json:"appended"`
	Stored   float64 `json:"stored"`
}

const (
	flowOver   = 10 * time.Second // over which rates are measured
	mostPoints = 150
)

// measure takes a sample: of the sequence of the outbox, whose gaps count too, and of the stream.
func (b *board) measure(ctx context.Context) {
	src, one := b.console.asked(), sample{at: time.Now(), appended: -1, stored: -1}
	if src.DB != nil {
		if err := src.DB.QueryRow(ctx, `select case when is_called then last_value else 0 end from pgjet.outbox_seq_seq`).Scan(&one.appended); err != nil {
			one.appended = -1
		}
	}
	if src.JS != nil {
		if stream, err := src.JS.Stream(ctx, src.Stream); err == nil {
			one.stored = int64(stream.CachedInfo().State.LastSeq) //nolint:gosec // no stream is that long
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.samples = append(b.samples, one)
	b.samples = b.samples[max(0, len(b.samples)-mostPoints):]
}

// flow returns how fast events go.
func (b *board) flow() (f flow) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f.Stream, f.Last = b.console.source.Stream, -1
	for i, s := range b.samples {
		f.Last = s.stored
		from := i
		for from > 0 && s.at.Sub(b.samples[from].at) < flowOver {
			from--
		}
		if from == i {
			continue
		}
		earlier := b.samples[from]
		over := s.at.Sub(earlier.at).Seconds()
		f.Known, f.Appended, f.Stored = true, 0, 0
		if earlier.appended >= 0 && s.appended > earlier.appended {
			f.Appended = float64(s.appended-earlier.appended) / over
		}
		if earlier.stored >= 0 && s.stored > earlier.stored {
			f.Stored = float64(s.stored-earlier.stored) / over
		}
		f.Points = append(f.Points, point{s.at.Unix(), f.Appended, f.Stored})
	}
	return f
}
