package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
)

// A stage is where parts of a test report what they do.
type stage struct {
	mu    sync.Mutex
	notes []string
}

func (s *stage) note(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notes = append(s.notes, what)
}

// part returns one that runs until it is stopped, and then returns err.
func (s *stage) part(name string, err error) part {
	return part{name: name, run: func(ctx context.Context) error {
		<-ctx.Done()
		s.note("stop " + name)
		s.note("end " + name)
		return err
	}}
}

func TestSuperviseStopsInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := &stage{}
		ended := make(chan error)
		go func() { ended <- supervise(ctx, []part{s.part("a", nil), s.part("b", nil), s.part("c", nil)}) }()
		synctest.Wait()
		if len(s.notes) != 0 {
			t.Errorf("before the end: %v", s.notes)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("supervise() = %v, want nil", err)
		}
		if want := []string{"stop a", "end a", "stop b", "end b", "stop c", "end c"}; !slices.Equal(s.notes, want) {
			t.Errorf("parts did %v, want %v", s.notes, want)
		}
	})
}

func TestSuperviseNamesWhatFailed(t *testing.T) {
	broken, late := errors.New("broken"), errors.New("late")
	fails := func(context.Context) error { return broken }
	for _, row := range []struct {
		name  string
		parts func(s *stage) []part
		says  []string
		is    error
	}{
		{
			name:  "a failure stops the rest",
			parts: func(s *stage) []part { return []part{s.part("a", nil), {name: "b", run: fails}, s.part("c", nil)} },
			says:  []string{"b: broken"}, is: broken,
		},
		{
			name: "so does an end without reason",
			parts: func(s *stage) []part {
				return []part{s.part("a", nil), {name: "b", run: func(context.Context) error { return nil }}, s.part("c", nil)}
			},
			says: []string{"b: ended by itself"},
		},
		{
			name:  "a failure while stopping is told as well",
			parts: func(s *stage) []part { return []part{s.part("a", late), {name: "b", run: fails}, s.part("c", nil)} },
			says:  []string{"b: broken", "a: late"}, is: late,
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := &stage{}
			err := supervise(t.Context(), row.parts(s))
			if err == nil || row.is != nil && !errors.Is(err, row.is) {
				t.Fatalf("supervise() = %v, want it to be %v", err, row.is)
			}
			for _, w := range row.says {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("supervise() = %q, want it to say %q", err, w)
				}
			}
			if want := []string{"stop a", "end a", "stop c", "end c"}; !slices.Equal(s.notes, want) {
				t.Errorf("the others did %v, want %v", s.notes, want)
			}
		})
	}
}

func TestWaitReadyTellsTheCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		soon := func(context.Context) error {
			if asked++; asked < 3 {
				return errors.New("not yet")
			}
			return nil
		}
		if err := waitReady(t.Context(), []part{{name: "a"}, {name: "b", ready: soon}}); err != nil {
			t.Errorf("waitReady() = %v, want nil", err)
		}
		never := func(context.Context) error { return errors.New("no tables") }
		err := waitReady(t.Context(), []part{{name: "b", ready: soon}, {name: "c", ready: never}})
		if err == nil || err.Error() != "c did not become ready: no tables" {
			t.Errorf("waitReady() = %v, want what c said last", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := waitReady(ctx, []part{{name: "c", ready: never}}); err != nil {
			t.Errorf("waitReady() = %v after an interrupt, want nil", err)
		}
	})
}

// TestServeHTTPFinishesWhatItHasBegun: a request in hand is answered, a later one
// is not taken.
func TestServeHTTPFinishesWhatItHasBegun(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", anyPort)
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + l.Addr().String()
	begun, finish := make(chan struct{}), make(chan struct{})
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(begun)
		<-finish
		io.WriteString(w, "done")
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended, answer := make(chan error), make(chan string)
	go func() { ended <- serveHTTP("test", l, handler, slog.New(slog.DiscardHandler)).run(ctx) }()
	go func() { _, body := get(t, url); answer <- body }()
	<-begun
	cancel()
	refused := func() bool {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err == nil {
			conn.Close()
		}
		return err != nil
	}
	for !refused() { // until the test's own time is up
		select {
		case err := <-ended:
			t.Fatalf("run() = %v while a request is in hand", err)
		default:
		}
	}
	close(finish)
	if body := <-answer; body != "done" {
		t.Errorf("the request in hand got %q, want done", body)
	}
	if err := <-ended; err != nil {
		t.Errorf("run() = %v, want nil", err)
	}
}
