package session_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pgjet/pgjet/internal/session"
)

func TestRunKeepsTrying(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var k session.Keeper
		if k.Ready() == nil {
			t.Error("Ready() before the first session = nil, want an error")
		}
		ctx, cancel := context.WithCancel(t.Context())
		down, other := errors.New("down"), errors.New("other")
		var begun []time.Time
		k.Run(ctx, slog.New(slog.DiscardHandler), func(context.Context) error {
			begun = append(begun, time.Now())
			switch len(begun) {
			case 50:
				k.Working()
				time.Sleep(10 * time.Second)
				return other
			case 40: // it gets through, and breaks at once
				if !k.Working() || k.Ready() != nil {
					t.Error("Working() is no news or not ready")
				}
			case 52:
				cancel()
			}
			if len(begun) > 1 && len(begun) < 50 && len(begun) != 40 && !errors.Is(k.Ready(), down) {
				t.Errorf("Ready() = %v, want down", k.Ready())
			}
			return down
		})
		if k.Ready() == nil {
			t.Error("Ready() after Run = nil, want an error")
		}
		if longest := begun[49].Sub(begun[48]); longest < 2*time.Second || longest > 8*time.Second {
			t.Errorf("the wait grew to %s, want about 5 s", longest)
		}
		if after := begun[50].Sub(begun[49]) - 10*time.Second; after > 200*time.Millisecond {
			t.Errorf("the wait after a session that worked is %s, want about 100 ms", after)
		}
		if after := begun[40].Sub(begun[39]); after < 2*time.Second {
			t.Errorf("the wait after a session that broke at once is %s, want about 5 s", after)
		}
	})
}

// TestLogsACauseOnceAMinute: a cause is logged when it begins, once a minute while it
// lasts, and when it ends. A cause that comes and goes all the time is logged no more
// often.
func TestLogsACauseOnceAMinute(t *testing.T) {
	down, other := errors.New("down: 1"), errors.New("other: 1")
	for _, c := range []struct {
		name       string
		session    func(k *session.Keeper, n int) (news bool, err error) // the session n
		down, news int                                                   // how often it is logged in ten minutes
	}{
		{"it lasts", func(*session.Keeper, int) (bool, error) { return false, down }, 10, 0},
		{"its text changes", func(_ *session.Keeper, n int) (bool, error) { return false, fmt.Errorf("down: %d", n) }, 10, 0},
		{"two take turns", func(_ *session.Keeper, n int) (bool, error) { return false, []error{down, other}[n%2] }, 20, 0},
		{"it comes and goes", func(k *session.Keeper, _ int) (bool, error) { return k.Working(), down }, 10, 10},
		{"another one in between", func(k *session.Keeper, _ int) (bool, error) { return k.Waiting(other), down }, 10, 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var k session.Keeper
				var lines bytes.Buffer
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
				defer cancel()
				sessions, other := 0, 0
				k.Run(ctx, slog.New(slog.NewTextHandler(&lines, nil)), func(context.Context) error {
					sessions++
					news, err := c.session(&k, sessions)
					if news {
						other++
					}
					return err
				})
				if got := strings.Count(lines.String(), "no progress, will keep trying"); got > c.down || got < c.down*8/10 {
					t.Errorf("%d of %d sessions were logged, want about %d", got, sessions, c.down)
				}
				if other > c.news+1 || other < c.news*8/10 {
					t.Errorf("what happened in them was logged %d times, want about %d", other, c.news)
				}
			})
		})
	}
}

// TestOrdinaryEnd: a session that ends because somebody wanted it to is no warning, whether it did
// its work or waited, unless sessions keep ending in that way without doing anything.
func TestOrdinaryEnd(t *testing.T) {
	changed := errors.New("the consumer was changed")
	work := func(k *session.Keeper) { k.Working() }
	wait := func(k *session.Keeper) { k.Waiting(errors.New("paused by ann")) }
	nothing := func(*session.Keeper) {}
	for _, c := range []struct {
		name           string
		does           []func(*session.Keeper)
		info, warnings int
	}{
		{"paused and resumed", []func(*session.Keeper){work, wait, work, work}, 1, 0},
		{"another process wants it otherwise, for ever", []func(*session.Keeper){nothing, nothing, nothing, nothing}, 1, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := session.Keeper{Ordinary: changed}
				var lines bytes.Buffer
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				n := 0
				k.Run(ctx, slog.New(slog.NewTextHandler(&lines, nil)), func(context.Context) error {
					if n == len(c.does) {
						cancel()
						return nil
					}
					c.does[n](&k)
					n++
					return fmt.Errorf("%w: beginning again", changed)
				})
				if info, warnings := strings.Count(lines.String(), "level=INFO"), strings.Count(lines.String(), "level=WARN"); info != c.info || warnings != c.warnings {
					t.Errorf("%d lines and %d warnings, want %d and %d:\n%s", info, warnings, c.info, c.warnings, lines.String())
				}
			})
		})
	}
}

// TestLogsWhatPeopleDo: a pause is logged however soon it comes after another.
func TestLogsWhatPeopleDo(t *testing.T) {
	var k session.Keeper
	paused := errors.New("paused: by ann")
	for range 3 {
		if !k.Working() || k.Working() {
			t.Error("Working() is not news once")
		}
		if !k.Waiting(paused) || k.Waiting(paused) {
			t.Error("Waiting() is not news once")
		}
	}
}
