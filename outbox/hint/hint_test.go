package hint_test

import (
	"math"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/outbox/hint"
)

// TestHintsAreCoalesced: many calls make few hints, far apart, and the last call is not lost.
func TestHintsAreCoalesced(t *testing.T) {
	_, url := testenv.JetStream(t)
	nc, err := nats.Connect(url, nats.ReconnectBufSize(-1))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	hints, err := testenv.Connect(t, url).Conn().SubscribeSync(events.HintSubject("EVENTS"))
	if err != nil {
		t.Fatal(err)
	}
	if err := hints.SetPendingLimits(-1, -1); err != nil {
		t.Fatal(err)
	}
	if err := testenv.Connect(t, url).Conn().Flush(); err != nil {
		t.Fatal(err)
	}
	s := hint.New(nc, "EVENTS")
	begun := time.Now()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for time.Since(begun) < 50*time.Millisecond {
				s.Committed()
			}
		})
	}
	wg.Wait()
	// The last hint comes at most a longGap later, and the first few come before the rate
	// is known to be high.
	most := int((time.Since(begun)+hint.LongGap)/hint.LongGap) + int(hint.Window/hint.Gap) + 4
	n := 0
	for {
		if _, err := hints.NextMsg(100 * time.Millisecond); err != nil {
			break
		}
		n++
	}
	if n == 0 || n > most {
		t.Errorf("many calls made %d hints, want 1 to %d", n, most)
	}
	s.Committed()
	if _, err := hints.NextMsg(5 * time.Second); err != nil {
		t.Errorf("a hint after the others: %v", err)
	}
}

// TestRests: hints are rare while many commits come, and immediate while few do.
func TestRests(t *testing.T) {
	for _, tt := range []struct {
		commits   int
		meanwhile time.Duration
		want      time.Duration
	}{
		{1, 2 * time.Millisecond, hint.Gap},
		{5, 2 * time.Millisecond, hint.Gap},
		{6, 2 * time.Millisecond, hint.LongGap},
		{14, 5 * time.Millisecond, hint.Gap},
		{15, 5 * time.Millisecond, hint.LongGap},
		{30, time.Hour, hint.Gap},
		{30, math.MaxInt64, hint.Gap}, // at the first hint
	} {
		if got := hint.RestAfter(tt.commits, tt.meanwhile); got != tt.want {
			t.Errorf("after %d commits in %s a rest of %s, want %s", tt.commits, tt.meanwhile, got, tt.want)
		}
	}
}

// TestRestsByTheWindow: commits of a whole window decide, however many hints it has. A hint that no
// commit follows is the last one.
func TestRestsByTheWindow(t *testing.T) {
	js, _ := testenv.JetStream(t)
	s := hint.New(js.Conn(), "EVENTS")
	for _, tt := range []struct {
		commits int
		ago     time.Duration // of the window's beginning
		rest    time.Duration
	}{
		{1, time.Hour, hint.Gap},
		{500_000, -time.Hour, hint.Gap}, // the window goes on
		{1, hint.Window, hint.LongGap},  // with those before
		{1, hint.Window, hint.Gap},
	} {
		if rest, due := hint.Announce(s, tt.commits, tt.ago); rest != tt.rest || due {
			t.Errorf("after %d commits in %s a rest of %s, want %s; another hint is due: %t", tt.commits, tt.ago, rest, tt.rest, due)
		}
	}
}

// A valve is a dialer whose connection sends nothing while it is shut.
type valve struct {
	net.Conn
	shut sync.Mutex
}

func (v *valve) Dial(network, address string) (_ net.Conn, err error) {
	v.Conn, err = net.Dial(network, address)
	return v, err
}

func (v *valve) Write(b []byte) (int, error) {
	v.shut.Lock()
	defer v.shut.Unlock()
	return v.Conn.Write(b)
}

// TestCommitWhileAHintHangs: a commit while a hint is being sent gets a hint of its own.
func TestCommitWhileAHintHangs(t *testing.T) {
	_, url := testenv.JetStream(t)
	var v valve
	nc, err := nats.Connect(url, nats.SetCustomDialer(&v), nats.ReconnectBufSize(-1))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	receiver := testenv.Connect(t, url).Conn()
	hints, err := receiver.SubscribeSync(events.HintSubject("EVENTS"))
	if err != nil {
		t.Fatal(err)
	}
	if err := receiver.Flush(); err != nil {
		t.Fatal(err)
	}
	s := hint.New(nc, "EVENTS")
	v.shut.Lock()
	for range 2 { // the first is being sent then, the second waits for the connection
		s.Committed()
		testenv.Eventually(t, 5*time.Second, "a hint is being sent", func() bool { return hint.Unannounced(s) == 0 })
	}
	s.Committed()
	v.shut.Unlock()
	for n := range 3 {
		if _, err := hints.NextMsg(5 * time.Second); err != nil {
			t.Fatalf("hint %d of 3: %v", n+1, err)
		}
	}
}

// TestHintNeverBlocks: the caller does not notice that NATS is away.
func TestHintNeverBlocks(t *testing.T) {
	server := testenv.NATS(t)
	nc, err := nats.Connect(server.URL(), nats.ReconnectBufSize(-1), nats.MaxReconnects(-1))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	server.Stop()
	s := hint.New(nc, "EVENTS")
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 100000 {
			s.Committed()
		}
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Error("100 000 calls take more than 10 s")
	}
}
