package console

import (
	"bytes"
	"context"
	"net/http"
	"strings"
	"sync"
	"time"
)

// shared caches page contents for a moment, so that a page costs the same however many people look
// at it.
type shared struct {
	console *Console
	mu      sync.Mutex
	all     map[string]*content
	slots   chan struct{} // limits how many are made at a time
}

// A content is what a page shows. It may still be in the making.
type content struct {
	made   chan struct{}
	status int
	body   []byte
	took   time.Duration
}

// atOnce is how many live pages are made at a time. After each there is a pause of restAfter times
// its duration, at most a second. However many different pages are open, they use less than half of
// one connection.
const atOnce, restAfter = 2, 4

// get returns the content for a key. produce makes it, unless it was made just now.
func (s *shared) get(ctx context.Context, key string, produce func() (int, []byte)) (*content, error) {
	s.mu.Lock()
	if s.all == nil {
		s.all, s.slots = make(map[string]*content), make(chan struct{}, atOnce)
	}
	one, found := s.all[key]
	if !found {
		one = &content{made: make(chan struct{})}
		began := s.console.begin(func() {
			select {
			case s.slots <- struct{}{}:
			case <-s.console.ended.Done():
				close(one.made)
				return
			}
			begun := time.Now()
			if err := guarded("the page", func() error { one.status, one.body = produce(); return nil }); err != nil {
				s.console.logProblem(ctx, "live", failureOf(err), err)
				one.status = http.StatusInternalServerError
			}
			one.took = time.Since(begun)
			time.AfterFunc(min(restAfter*one.took, time.Second), func() { <-s.slots })
			close(one.made)
			time.AfterFunc(liveEvery/2, func() {
				s.mu.Lock()
				defer s.mu.Unlock()
				if s.all[key] == one {
					delete(s.all, key)
				}
			})
		})
		if !began {
			s.mu.Unlock()
			return nil, s.console.ended.Err()
		}
		s.all[key] = one
	}
	s.mu.Unlock()
	select {
	case <-one.made:
		if one.status == 0 { // the console was closed first
			return nil, context.Canceled
		}
		return one, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// forget drops all contents, after a change.
func (s *shared) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.all)
}

// wantsLive reports whether a request asks for the changes of a page.
func wantsLive(r *http.Request) bool {
	return r.URL.Query().Has("live") && strings.Contains(r.Header.Get("Accept"), "text/event-stream")
}

// costs is the ratio of the pause after making a live page to the time that it took. The pause is
// at most rest. An open page uses less than a hundredth of a core.
const costs, rest = 150, 20 * time.Second

// pauseAfter returns the pause after making a page, from the last two durations. The shorter one
// counts, because a page may have to wait for others once.
func pauseAfter(before, last time.Duration) time.Duration { return min(costs*min(before, last), rest) }

// live sends the content of a page whenever it changes, as server-sent events.
func (c *Console) live(w http.ResponseWriter, r *http.Request, render func(context.Context) (int, []byte)) {
	out := http.NewResponseController(w)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no")
	ticker := time.NewTicker(liveEvery)
	defer ticker.Stop()
	var last []byte
	var due time.Time
	var took time.Duration // the previous duration
	for {
		message := []byte(": nothing new\n\n")
		if !time.Now().Before(due) {
			one, err := c.shared.get(r.Context(), r.URL.RequestURI(), func() (int, []byte) {
				ctx, cancel := context.WithTimeout(c.ended, pageTime)
				defer cancel()
				return render(ctx)
			})
			if err != nil {
				return
			}
			due = time.Now().Add(pauseAfter(took, one.took) - liveEvery/2)
			took = one.took
			if !bytes.Equal(one.body, last) {
				last, message = one.body, asEvent(one.body)
			}
		}
		_ = out.SetWriteDeadline(time.Now().Add(writeTime)) // not every server has deadlines
		if _, err := w.Write(message); err != nil || out.Flush() != nil {
			return
		}
		select {
		case <-ticker.C:
		case <-r.Context().Done():
			return
		case <-c.ended.Done():
			return
		}
	}
}

// asEvent encodes a text as a server-sent event.
func asEvent(text []byte) []byte {
	event := append([]byte("data: "), bytes.ReplaceAll(bytes.TrimSpace(text), []byte("\n"), []byte("\ndata: "))...)
	return append(event, "\n\n"...)
}
