package session_test

import (
	"bytes"
	"context"
	"errors"
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
		var lines bytes.Buffer
		down, other := errors.New("down"), errors.New("other")
		var begun []time.Time
		k.Run(ctx, slog.New(slog.NewTextHandler(&lines, nil)), func(context.Context) error {
			begun = append(begun, time.Now())
			switch len(begun) {
			case 50:
				if !k.Working() || k.Ready() != nil {
					t.Error("Working() is no news or not ready")
				}
				time.Sleep(10 * time.Second)
				return other
			case 40: // it gets through, and breaks at once
				k.Working()
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
		if got := strings.Count(lines.String(), "no progress, will keep trying"); got != 4 {
			t.Errorf("%d lines were logged, want one for each new reason, 4:\n%s", got, &lines)
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
