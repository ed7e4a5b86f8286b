package outbox_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/trace"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/outbox"
)

// A letter is a payload of about 300 bytes.
type letter struct {
	To   string `json:"to"`
	Text string `json:"text"`
}

func (letter) EventType() string  { return "letter.sent" }
func (l letter) EventKey() string { return l.To }

func letters(n int) []events.Payload {
	all := make([]events.Payload, n)
	for i := range all {
		all[i] = letter{To: fmt.Sprint("user-", i), Text: strings.Repeat("word ", 54)}
	}
	return all
}

// traced returns a context in which events carry a trace context.
func traced() context.Context {
	return trace.ContextWithSpanContext(context.Background(), trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled,
	}))
}

// BenchmarkAppend measures one Append in an open transaction: its round trip alone.
func BenchmarkAppend(b *testing.B) {
	each(b, []int{1, 10, 100}, func(ctx context.Context, tx pgx.Tx, payloads []events.Payload) error {
		return outbox.Append(ctx, tx, payloads...)
	})
}

// BenchmarkAppendSQL is BenchmarkAppend by database/sql.
func BenchmarkAppendSQL(b *testing.B) {
	pool := testenv.Postgres(b)
	for name, open := range drivers {
		db, err := open(pool.Config().ConnString(), &dialer{})
		if err != nil {
			b.Fatal(err)
		}
		defer db.Close()
		for _, n := range []int{1, 10, 100} {
			b.Run(fmt.Sprintf("%s/events=%d", name, n), func(b *testing.B) {
				ctx, payloads := traced(), letters(n)
				tx, err := db.BeginTx(ctx, nil)
				if err != nil {
					b.Fatal(err)
				}
				defer tx.Rollback()
				b.ReportAllocs()
				for b.Loop() {
					if err := outbox.AppendSQL(ctx, tx, payloads...); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkQueue measures the cost of Queue in a batch that has another statement, in an
// open transaction.
func BenchmarkQueue(b *testing.B) {
	each(b, []int{0, 1, 10, 100}, func(ctx context.Context, tx pgx.Tx, payloads []events.Payload) error {
		batch := &pgx.Batch{}
		batch.Queue(`select 1`)
		if err := outbox.Queue(ctx, batch, payloads...); err != nil {
			return err
		}
		return tx.SendBatch(ctx, batch).Close()
	})
}

// each measures fn with that many events at a time, in one transaction.
func each(b *testing.B, counts []int, fn func(ctx context.Context, tx pgx.Tx, payloads []events.Payload) error) {
	db := testenv.Postgres(b)
	for _, n := range counts {
		b.Run(fmt.Sprint("events=", n), func(b *testing.B) {
			ctx, payloads := traced(), letters(n)
			tx, err := db.Begin(ctx)
			if err != nil {
				b.Fatal(err)
			}
			defer tx.Rollback(ctx)
			b.ReportAllocs()
			for b.Loop() {
				if err := fn(ctx, tx, payloads); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
