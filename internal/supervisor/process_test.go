package supervisor

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
	"time"
)

// A stage records what the parts of a test do.
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
func (s *stage) part(name string, err error) Part {
	return Part{Name: name, Run: func(ctx context.Context) error {
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
		go func() { ended <- Supervise(ctx, []Part{s.part("a", nil), s.part("b", nil), s.part("c", nil)}) }()
		synctest.Wait()
		if len(s.notes) != 0 {
			t.Errorf("before the end: %v", s.notes)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Supervise() = %v, want nil", err)
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
		parts func(s *stage) []Part
		says  []string
		is    error
	}{
		{
			name:  "a failure stops the rest",
			parts: func(s *stage) []Part { return []Part{s.part("a", nil), {Name: "b", Run: fails}, s.part("c", nil)} },
			says:  []string{"b: broken"}, is: broken,
		},
		{
			name: "so does an end without reason",
			parts: func(s *stage) []Part {
				return []Part{s.part("a", nil), {Name: "b", Run: func(context.Context) error { return nil }}, s.part("c", nil)}
			},
			says: []string{"b: ended by itself"},
		},
		{
			name:  "a failure while stopping is reported as well",
			parts: func(s *stage) []Part { return []Part{s.part("a", late), {Name: "b", Run: fails}, s.part("c", nil)} },
			says:  []string{"b: broken", "a: late"}, is: late,
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := &stage{}
			err := Supervise(t.Context(), row.parts(s))
			if err == nil || row.is != nil && !errors.Is(err, row.is) {
				t.Fatalf("Supervise() = %v, want it to be %v", err, row.is)
			}
			for _, w := range row.says {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("Supervise() = %q, want it to say %q", err, w)
				}
			}
			if want := []string{"stop a", "end a", "stop c", "end c"}; !slices.Equal(s.notes, want) {
				t.Errorf("the others did %v, want %v", s.notes, want)
			}
		})
	}
}

// TestServeFinishesWhatItHasBegun: a running request is answered, a later one is not
// accepted.
func TestServeFinishesWhatItHasBegun(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
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
	go func() { ended <- Serve("test", l, 10, handler, slog.New(slog.DiscardHandler)).Run(ctx) }()
	go func() {
		resp, err := http.Get(url)
		if err != nil {
			answer <- err.Error()
			return
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		answer <- string(body)
	}()
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

func TestAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		begun := time.Now()
		late, stop := after(ctx, 3*time.Second)
		defer stop()
		<-late.Done()
		if took := time.Since(begun); took != 5*time.Second {
			t.Errorf("it ended after %s, want 5s", took)
		}
		late, stop = after(t.Context(), time.Hour)
		stop()
		<-late.Done()
	})
}

// TestShutdownCutsOff: a request that exceeds its time is cut off, and the server stops all
// the same.
func TestShutdownCutsOff(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	begun := make(chan struct{})
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(begun)
		<-r.Context().Done()
	})}
	go func() { _ = server.Serve(l) }()
	status := make(chan int, 1)
	go func() {
		resp, err := http.Get("http://" + l.Addr().String())
		if err != nil {
			status <- 0
			return
		}
		resp.Body.Close()
		status <- resp.StatusCode
	}()
	<-begun
	started := time.Now()
	shutdown(t.Context(), server, 300*time.Millisecond)
	if took := time.Since(started); took < 300*time.Millisecond || took > 5*time.Second {
		t.Errorf("it took %s to stop, want 300 ms", took)
	}
	select {
	case code := <-status:
		if code != 0 {
			t.Errorf("the request was answered with %d, want that it is cut off", code)
		}
	case <-time.After(5 * time.Second): // the client would wait for ten
		t.Error("the request was not cut off")
	}
}
