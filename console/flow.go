package console

import (
	"context"
	"time"
)

// A sample is the progress of outbox and stream at one moment.
type sample struct {
	at       time.Time
	appended int64 // the last seq of the outbox; -1 if unknown
	stored   int64 // the last sequence of the stream; -1 if unknown
}

// A flow is the rate of events between two samples.
type flow struct {
	Appended *float64 // into the outbox, per second; nil if unknown
	Stored   *float64 // into the stream, per second; nil if unknown
	Stream   string
	Last     int64   // sequence of the stream; -1 if unknown
	Points   []point // the last minutes, the oldest first
}

// A point is a point of the chart.
type point struct {
	At       int64    `json:"at"`
	Appended *float64 `json:"appended"`
	Stored   *float64 `json:"stored"`
}

const (
	flowOver   = 10 * time.Second // over which rates are measured
	mostPoints = 150
)

// measure takes a sample: of the sequence of the outbox, including its gaps, and of the stream.
func (b *board) measure(ctx context.Context) {
	src, one := b.console.facts(), sample{at: time.Now(), appended: -1, stored: -1}
	if src.DB != nil {
		if err := src.DB.QueryRow(ctx, `select case when is_called then last_value else 0 end from pgjet.outbox_seq_seq`).Scan(&one.appended); err != nil {
			one.appended = -1
		}
	}
	if src.JS != nil {
		if stream, err := src.JS.Stream(ctx, src.Stream); err == nil {
			one.stored = int64(stream.CachedInfo().State.LastSeq) //nolint:gosec // no stream is so long
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.samples = append(b.samples, one)
	b.samples = b.samples[max(0, len(b.samples)-mostPoints):]
}

// flow returns the rates of the last minutes.
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
		f.Appended, f.Stored = gain(earlier.appended, s.appended, over), gain(earlier.stored, s.stored, over)
		f.Points = append(f.Points, point{s.at.Unix(), f.Appended, f.Stored})
	}
	return f
}

// gain returns the rate from one number to another; nil if one of them is unknown.
func gain(from, to int64, seconds float64) *float64 {
	if from < 0 || to < 0 {
		return nil
	}
	return new(float64(max(0, to-from)) / seconds) // a stream that was made again begins at 0
}
