package service

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cenkalti/backoff/v4"
)

// TestPauses: a pause is as long as the service asks for, up to a limit, and as long as there is time for another request.
func TestPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, test := range []struct{ asked, left, want time.Duration }{
			{maxPause, 0, maxPause},
			{maxPause + 1, 0, backoff.Stop},
			{time.Second, time.Second + 1, time.Second},
			{time.Second, time.Second, backoff.Stop},
		} {
			ctx := t.Context()
			if test.left > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, test.left)
				defer cancel()
			}
			p := newPauses(ctx, 1)
			p.asked = test.asked
			if got := p.NextBackOff(); got != test.want {
				t.Errorf("asked for %s with %s left: %s, want %s", test.asked, test.left, got, test.want)
			}
			if p.asked != 0 {
				t.Error("what was asked for holds for the next pause, too")
			}
		}
	})
}

// TestRetryAfter: a service asks in seconds, or for a time.
func TestRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for value, want := range map[string]time.Duration{
			"": 0, "0": 0, "-1": 0, "1": time.Second, "99999999": 1 << 20 * time.Second, "x": 0,
			time.Now().Add(3 * time.Second).UTC().Format(http.TimeFormat): 3 * time.Second,
			time.Now().Add(-time.Minute).UTC().Format(http.TimeFormat):    0,
		} {
			if got := retryAfter(&http.Response{Header: http.Header{"Retry-After": {value}}}); got != want {
				t.Errorf("Retry-After %q is %s, want %s", value, got, want)
			}
		}
	})
}

// TestAddresses: only URLs of HTTP with a host are instances, and one that failed is avoided for a while.
func TestAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		found := []string{"ftp://a", "http://", "a:1", "%", "http://b:1", "https://c"}
		i := &instances{name: "s", find: func(context.Context, string) ([]string, error) { return found, nil }}
		all, err := i.addresses(t.Context(), "")
		if err != nil || len(all) != 2 || all[0].Host != "b:1" || all[1].Host != "c" {
			t.Errorf("addresses() = %v, %v", all, err)
		}
		picked := func() (hosts [4]string) {
			for n := range hosts {
				at, err := i.pick(t.Context(), "")
				if err != nil {
					t.Fatal(err)
				}
				hosts[n] = at.Host
			}
			return hosts
		}
		i.failed("b:1")
		if got := picked(); got != [4]string{"c", "c", "c", "c"} {
			t.Errorf("beside one that failed %q are asked", got)
		}
		time.Sleep(avoidFor)
		if got := picked(); got != [4]string{"b:1", "c", "b:1", "c"} && got != [4]string{"c", "b:1", "c", "b:1"} {
			t.Errorf("later %q are asked, want both in turns", got)
		}
		i.failed("c")
		if len(i.failedAt) != 1 {
			t.Errorf("failures of long ago are kept: %v", i.failedAt)
		}
		found = []string{"ftp://a"}
		if _, err := i.addresses(t.Context(), ""); !errors.Is(err, errNotFound) {
			t.Errorf("addresses() = %v without one, want %v", err, errNotFound)
		}
	})
}
