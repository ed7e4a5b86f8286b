package consumers_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

// A watcher follows a stream and records which events it covered: by an event, or by a gap after
// they were published.
type watcher struct {
	*fixture
	mu        sync.Mutex
	published int
	covered   map[int64]bool // by the events' numbers
	named     []int64
	gaps      int
	lines     bytes.Buffer
	stop      func()
}

func follow(t *testing.T, js, followed jetstream.JetStream, createStream bool) *watcher {
	t.Helper()
	w := &watcher{fixture: &fixture{T: t, js: js}, covered: make(map[int64]bool)}
	if createStream {
		w.createStream()
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		consumers.Follow(ctx, followed, consumers.Feed{Name: "notes-cache", Types: []string{"note.made", "note.torn"}}, slog.New(slog.NewTextHandler(w, nil)), w.onEvent, w.onGap)
	}()
	w.stop = sync.OnceFunc(func() { cancel(); <-ended })
	t.Cleanup(w.stop)
	return w
}

// Write takes what is logged.
func (w *watcher) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lines.Write(b)
}

func (w *watcher) onEvent(e events.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.covered[e.Seq] = true
	w.named = append(w.named, e.Seq)
}

func (w *watcher) onGap() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gaps++
	for n := range w.published {
		w.covered[int64(n+1)] = true
	}
}

// put publishes that many events.
func (w *watcher) put(count int) {
	w.Helper()
	for range count {
		w.publish(event(w.published + 1))
		w.mu.Lock()
		w.published++
		w.mu.Unlock()
	}
}

// knows waits until all events are covered.
func (w *watcher) knows() {
	w.Helper()
	testenv.Eventually(w, patience, "it is told of all events", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.covered) >= w.published
	})
}

// began waits until there were more than n gaps.
func (w *watcher) began(n int) int {
	w.Helper()
	testenv.Eventually(w, patience, fmt.Sprint("there is a gap, after ", n), func() bool { return w.gapCount() > n })
	return w.gapCount()
}

func (w *watcher) gapCount() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.gaps
}

// TestFollow: it begins with a gap, then delivers each event of its types in order, and no other;
// nothing is left in the stream afterwards.
func TestFollow(t *testing.T) {
	t.Parallel()
	js, _ := testenv.JetStream(t)
	w := follow(t, js, js, true)
	w.began(0)
	other := event(7)
	other.Type = "page.made"
	w.publish(other)
	w.send(&nats.Msg{Subject: events.Subject("note.made", "k"), Data: []byte("not an event")})
	w.put(200)
	w.knows()
	for i, n := range w.named {
		if n != int64(i+1) {
			t.Fatalf("event %d came as number %d: %v", n, i+1, w.named)
		}
	}
	if len(w.named) != 200 || w.gaps != 1 {
		t.Errorf("%d events and %d gaps, want 200 and the one at the start", len(w.named), w.gaps)
	}
	w.stop()
	testenv.Eventually(t, patience, "the stream has no consumer left", func() bool {
		s, err := js.Stream(t.Context(), "EVENTS")
		return err == nil && s.CachedInfo().State.Consumers == 0
	})
}

// TestFollowMissesNothing: whatever happens on the way, there is either the event or a gap after
// it.
func TestFollowMissesNothing(t *testing.T) {
	t.Parallel()
	server := testenv.NATS(t)
	proxy, url := proxied(t, server.URL())
	w := follow(t, testenv.Connect(t, server.URL()), testenv.Connect(t, url), true)
	w.began(0)
	for range 5 {
		for range 20 {
			w.put(10)
		}
		cut(t, proxy)
		w.put(30)
		w.knows()
	}

	proxy.Stop() // for longer than the follower's timeout
	w.put(10)
	gaps := w.gapCount()
	testenv.Eventually(t, patience, "it logs why", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return strings.Contains(w.lines.String(), "no_heartbeat")
	})
	if err := proxy.Start(); err != nil {
		t.Fatal(err)
	}
	gaps = w.began(gaps)
	w.put(10)
	w.knows()

	if err := w.js.DeleteStream(t.Context(), "EVENTS"); err != nil {
		t.Fatal(err)
	}
	w.createStream()
	gaps = w.began(gaps)
	w.put(10)
	w.knows()

	server.Stop()
	testenv.RestartNATS(t, server)
	testenv.Eventually(t, patience, "the stream is back", func() bool {
		_, err := w.js.Stream(t.Context(), "EVENTS")
		return err == nil
	})
	w.put(10)
	w.began(gaps)
	w.put(10)
	w.knows()
}

// TestFollowKeepsTrying: a stream that does not exist yet is logged once.
func TestFollowKeepsTrying(t *testing.T) {
	t.Parallel()
	js, _ := testenv.JetStream(t)
	w := follow(t, js, js, false)
	begun := time.Now()
	testenv.Eventually(t, patience, "it tries for a while", func() bool { return time.Since(begun) > 3*time.Second })
	w.mu.Lock()
	lines := w.lines.String()
	w.mu.Unlock()
	if strings.Count(lines, "\n") != 1 || w.gapCount() != 0 {
		t.Errorf("%d gaps, and it logged %q, want none, and one line", w.gapCount(), lines)
	}
	w.createStream()
	w.began(0)
	w.put(1)
	w.knows()
}

// TestFollowHeeds: a heartbeat that counts more messages than arrived is a gap, and so is any
// message that is not an event of the stream.
func TestFollowHeeds(t *testing.T) {
	t.Parallel()
	js, _ := testenv.JetStream(t)
	w := follow(t, js, js, true)
	gaps := w.began(0)
	for name, msg := range map[string]*nats.Msg{
		"a heartbeat": {Header: nats.Header{"Status": {"100"}, "Nats-Last-Consumer": {"5"}}},
		"a stranger":  {},
		"a farewell":  {Header: nats.Header{"Status": {"409"}, "Description": {"Consumer Deleted"}}},
	} {
		w.put(2)
		w.knows()
		msg.Subject = w.delivered()
		if err := js.Conn().PublishMsg(msg); err != nil {
			t.Fatal(err)
		}
		if again := w.began(gaps); again != gaps+1 {
			t.Errorf("%s makes %d gaps, want one", name, again-gaps)
		} else {
			gaps = again
		}
	}
}

// delivered returns the subject of the newest consumer.
func (w *watcher) delivered() string {
	w.Helper()
	s, err := w.js.Stream(w.Context(), "EVENTS")
	if err != nil {
		w.Fatal(err)
	}
	var newest *jetstream.ConsumerInfo
	for c := range s.ListConsumers(w.Context()).Info() {
		if newest == nil || c.Created.After(newest.Created) {
			newest = c
		}
	}
	return newest.Config.DeliverSubject
}
