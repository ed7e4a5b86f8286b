package consumers_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

// brokenMessages are messages that are no events, or have the id of another event: one that was
// handled.
var brokenMessages = map[string]func(msg *nats.Msg){
	"another version":      func(msg *nats.Msg) { msg.Header["ce-specversion"] = []string{"9.9"} },
	"no id":                func(msg *nats.Msg) { delete(msg.Header, "ce-id") },
	"an invalid id":        func(msg *nats.Msg) { msg.Header["ce-id"] = []string{"seven"} },
	"the nil id":           func(msg *nats.Msg) { msg.Header["ce-id"] = []string{uuid.Nil.String()} },
	"an id of other form":  func(msg *nats.Msg) { msg.Header["ce-id"][0] = "{" + msg.Header["ce-id"][0] + "}" },
	"two ids":              func(msg *nats.Msg) { msg.Header["ce-id"] = append(msg.Header["ce-id"], uuid.NewString()) },
	"an id in other case":  func(msg *nats.Msg) { msg.Header["Ce-Id"] = []string{uuid.NewString()} },
	"other content":        func(msg *nats.Msg) { msg.Data = []byte(`{"n":99}`) },
	"another key":          func(msg *nats.Msg) { msg.Header["ce-subject"] = []string{"other"} },
	"no key":               func(msg *nats.Msg) { delete(msg.Header, "ce-subject") },
	"an empty type":        func(msg *nats.Msg) { msg.Header["ce-type"] = []string{""} },
	"a long key":           func(msg *nats.Msg) { msg.Header["ce-subject"] = []string{strings.Repeat("k", 50_000)} },
	"a long type":          func(msg *nats.Msg) { msg.Header["ce-type"] = []string{strings.Repeat("é", 10_000)} },
	"many headers":         func(msg *nats.Msg) { msg.Header["ce-more"] = []string{strings.Repeat("m", 50_000)} },
	"a long version":       func(msg *nats.Msg) { msg.Header["ce-specversion"] = []string{strings.Repeat("9", 50_000)} },
	"a time beyond":        func(msg *nats.Msg) { msg.Header["ce-time"] = []string{"9999-12-31T23:59:59-05:00"} },
	"terminal escapes":     func(msg *nats.Msg) { msg.Header["ce-subject"] = []string{"%1b[2J%00"} },
	"a seq beyond":         func(msg *nats.Msg) { msg.Header["Pgjet-Seq"] = []string{"99999999999999999999"} },
	"nothing but its body": func(msg *nats.Msg) { msg.Header = nil },
}

// TestBrokenMessagesHarmNobody: a message that is no event, or only has the id of one, becomes one
// dead letter under an id of its own. Nothing is delivered again for it.
func TestBrokenMessagesHarmNobody(t *testing.T) {
	consumers.SetCountEvery(t, 30*time.Millisecond)
	handle := func(ctx context.Context, tx pgx.Tx, e events.Event) error { return write(ctx, tx, e) }
	for _, form := range []string{"handle", "batch", "effect"} {
		for _, unordered := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s unordered %t", form, unordered), func(t *testing.T) {
				t.Parallel()
				b := newFixture(t)
				c := consumers.Consumer{Unordered: unordered}
				switch form {
				case "handle":
					c.Handler = each(handle)
				case "batch":
					c.Handler = batch(0, func(ctx context.Context, tx pgx.Tx, all []events.Event) error {
						for _, e := range all {
							if err := handle(ctx, tx, e); err != nil {
								return err
							}
						}
						return nil
					})
				case "effect":
					var effects atomic.Int32
					c.Handler = effect(func(ctx context.Context, e events.Event) error {
						effects.Add(1)
						return pgx.BeginFunc(ctx, b.db, func(tx pgx.Tx) error { return handle(ctx, tx, e) })
					})
				}
				var ways []string
				for way := range brokenMessages {
					ways = append(ways, way)
				}
				slices.Sort(ways)
				var all []events.Event
				for i := range ways {
					e := event(i + 1)
					all = append(all, e, e)
				}
				b.publish(all...)
				_, stop := b.startOn(b.js, c)
				b.settled()
				for i, way := range ways { // the first half while it runs, the other while it does not
					if i == len(ways)/2 {
						b.settled()
						stop()
					}
					subject, header, body := all[2*i].Message()
					msg := &nats.Msg{Subject: subject, Header: header, Data: body}
					brokenMessages[way](msg)
					b.send(msg)
				}
				b.startOn(b.js, c)
				messages := 3 * len(ways)
				b.settled()
				b.once(len(ways))
				if n := b.count(`select count(*) from pgjet.dead_letter d join pgjet.inbox i using (consumer, event_id) where i.state = 'dead'`); n != len(ways) {
					t.Errorf("%d dead letters, want one for each of %d messages", n, len(ways))
				}
				if n := b.count(`select count(*) from pgjet.inbox where state = 'done' and attempts > 0`); n != len(ways) {
					t.Errorf("%d events are done, want %d", n, len(ways))
				}
				testenv.Eventually(t, patience, "all messages are accounted for", func() bool {
					a, err := consumers.ReadAccount(t.Context(), b.db, b.js, "EVENTS", "test")
					return err == nil && a.Unaccounted == 0 && a.Done+a.Dead == int64(messages)
				})
				if n := b.info().Delivered.Consumer; unordered && n != uint64(messages) || n > uint64(messages) {
					t.Errorf("%d messages were delivered %d times", messages, n) // ordered, each session counts again
				}
			})
		}
	}
}
