package relay_test

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/relay"
)

// A lines keeps what is logged, for a test to count.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) count(part string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), part)
}

// epoch returns how often a relay took the lead.
func (b *bench) epoch() (n int64) {
	b.Helper()
	if l := b.status().Leader; l != nil {
		n = l.Epoch
	}
	return n
}

// TestALastingCause: a cause that ends one session after the other is logged when it begins
// and when it ends. In between, readiness and status name this cause and no other, whatever
// the session is doing.
func TestALastingCause(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		cause      string
		begin, end func(b *bench)
	}{
		{"stream_full", (*bench).limit, func(b *bench) { b.resize(-1) }},
		{"stream_missing", func(b *bench) {
			if err := b.js.DeleteStream(b.Context(), "EVENTS"); err != nil {
				b.Fatal(err)
			}
		}, (*bench).createStream},
		{"permission_denied", func(b *bench) { b.exec(`revoke insert on pgjet.checkpoint from pgjet_relay`) },
			func(b *bench) { b.exec(`grant insert on pgjet.checkpoint to pgjet_relay`) }},
	} {
		for _, restarted := range []bool{false, true} {
			name := c.cause
			if restarted {
				name += ", then the relay begins"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				b, log := newBench(t), &lines{}
				start := func() *relay.Relay {
					r, _ := b.startLogged(slog.New(slog.NewTextHandler(log, nil)))
					return r
				}
				var r *relay.Relay
				if !restarted {
					r = start()
					b.append(1)
					b.settled()
					b.ready(r)
				}
				c.begin(b)
				b.appendAtOnce(5, "")
				if restarted {
					r = start()
				}
				b.lasts(r, c.cause)
				if n := log.count(c.cause); n != 1 {
					t.Errorf("%s is logged %d times, want once:\n%s", c.cause, n, &log.text)
				}
				c.end(b)
				b.settled()
				b.ready(r)
				testenv.Eventually(t, patience, "the status names no cause", func() bool { return b.status().Leader.Cause == "" })
				if n, want := log.count("relay leads"), map[bool]int{true: 1, false: 2}[restarted]; n != want {
					t.Errorf("it is logged %d times that the relay leads, want %d:\n%s", n, want, &log.text)
				}
			})
		}
	}
}

// lasts fails the test unless a blocked relay reports this cause for five sessions, and
// before that nothing except that it starts.
func (b *bench) lasts(r *relay.Relay, cause string) {
	b.Helper()
	until := int64(0)
	testenv.Eventually(b, patience, "five sessions end by "+cause, func() bool {
		ready, status := "ready", "starting"
		if err := r.Ready(b.Context()); err != nil {
			ready = err.Error()
		}
		if l := b.status().Leader; l != nil {
			status = l.Cause
		}
		if halted := relay.Halted(r); until > 0 && halted != cause {
			b.Fatalf("the metrics say %q, want %s", halted, cause)
		}
		if until == 0 && strings.HasPrefix(ready, cause) {
			until = b.epoch() + 5
		}
		for _, said := range []string{ready, status} {
			begins := until == 0 && (said == "ready" || said == "" || said == "starting" || said == "stopped")
			switching := cause == "stream_missing" && said == "starting"
			if !strings.HasPrefix(said, cause) && !begins && !switching {
				b.Fatalf("the relay says %q, want %s", said, cause)
			}
		}
		return until > 0 && b.epoch() >= until
	})
}

// limit makes the stream full.
func (b *bench) limit() {
	b.Helper()
	b.resize(int64(len(b.stored())) + 2)
}

func (b *bench) resize(most int64) {
	b.Helper()
	config := relay.StreamConfig("EVENTS", 1)
	config.MaxMsgs = most
	if _, err := b.js.UpdateStream(b.Context(), config); err != nil {
		b.Fatal(err)
	}
}
