package producer

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.uber.org/goleak"

	"github.com/pgjet/pgjet/internal/auth"
)

// startCache returns a cache that keeps a hundred answers for ten seconds.
func startCache(t *testing.T) *cache {
	t.Helper()
	c := newCache()
	t.Cleanup(func() { c.entries.StopAllGoroutines() })
	c.tune(Cache{Enabled: true, TTL: 10 * time.Second, Size: 100})
	return c
}

// A source counts how often it is read.
type source struct{ loads atomic.Int64 }

func (s *source) load(context.Context) (int64, error) { return s.loads.Add(1), nil }

func (s *source) read(t *testing.T, c *cache, r read, id string, want int64) {
	t.Helper()
	got, err := cached(t.Context(), c, r, id, s.load)
	if err != nil || got != want {
		t.Errorf("%s %s: answer %d (%v), want that of load %d", r, id, got, err, want)
	}
}

func TestCacheForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, list, ann, bob := startCache(t), &source{}, &source{}, &source{}
		for c.user("ann") == c.user("bob") {
			c.seed = maphash.MakeSeed()
		}
		all := func(wantList, wantAnn, wantBob int64) {
			t.Helper()
			for range 2 {
				list.read(t, c, listRead, "", wantList)
				ann.read(t, c, profileRead, "ann", wantAnn)
				bob.read(t, c, profileRead, "bob", wantBob)
			}
		}
		all(1, 1, 1)
		c.changed("ann")
		all(2, 2, 1)
		c.forget()
		all(3, 3, 2)
		time.Sleep(11 * time.Second)
		all(4, 4, 3)
		c.tune(Cache{Enabled: true, TTL: time.Second, Size: 100})
		all(5, 5, 4)
		time.Sleep(2 * time.Second)
		all(6, 6, 5)
		c.tune(Cache{Enabled: false, TTL: time.Second, Size: 100})
		for n := range int64(3) {
			list.read(t, c, listRead, "", 7+n)
		}
	})
}

func TestCacheKeepsPagesApart(t *testing.T) {
	c, s := startCache(t), &source{}
	s.read(t, c, listRead, "1", 1)
	s.read(t, c, listRead, "2", 2)
	s.read(t, c, profileRead, "1", 3)
	s.read(t, c, listRead, "1", 1)
}

func TestCacheIsBounded(t *testing.T) {
	c, s := startCache(t), &source{}
	for n := range int64(1000) {
		s.read(t, c, listRead, fmt.Sprint(n), n+1)
	}
	c.entries.CleanUp()
	if n := c.entries.EstimatedSize(); n > 100 {
		t.Errorf("%d answers are kept, want 100 at most", n)
	}
	c.tune(Cache{Enabled: true, TTL: time.Hour, Size: 10})
	for n := range int64(100) {
		s.read(t, c, listRead, fmt.Sprint(n), 1000+n+1)
	}
	c.entries.CleanUp()
	if n := c.entries.EstimatedSize(); n > 10 {
		t.Errorf("%d answers are kept, want 10 at most", n)
	}
}

// TestCacheWeighsPages: ten thousand pages of 200 are two million users.
func TestCacheWeighsPages(t *testing.T) {
	c := startCache(t)
	c.tune(Cache{Enabled: true, TTL: time.Hour, Size: 1000})
	read := func(id string, users int) (loaded bool) {
		t.Helper()
		_, err := cached(t.Context(), c, listRead, id, func(context.Context) (userList, error) {
			loaded = true
			return userList{Users: make([]User, users)}, nil
		})
		if err != nil {
			t.Error(err)
		}
		c.entries.CleanUp()
		return loaded
	}
	for n := range 100 {
		read(fmt.Sprint(n), 200)
	}
	if n := c.entries.EstimatedSize(); n < 1 || n > 5 {
		t.Errorf("%d pages of 200 users are kept, want 1 to 5", n)
	}
	c.forget()
	read("empty", 0)
	if read("empty", 0) {
		t.Error("an empty page is not kept")
	}
	c.forget()
	read("long", 1001)
	if !read("long", 1001) {
		t.Error("a page of more users than may be kept is kept")
	}
}

func TestCacheKeepsNoErrors(t *testing.T) {
	c, s, down := startCache(t), &source{}, errors.New("down")
	_, err := cached(t.Context(), c, listRead, "", func(context.Context) (int64, error) { return 0, down })
	if !errors.Is(err, down) {
		t.Errorf("the error is %v, want the load's", err)
	}
	s.read(t, c, listRead, "", 1)
}

// TestCachePanic: a load that panics harms its own request only.
func TestCachePanic(t *testing.T) {
	c, s := startCache(t), &source{}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic did not come through")
			}
		}()
		_, _ = cached(t.Context(), c, listRead, "", func(context.Context) (int64, error) { panic("boom") })
	}()
	s.read(t, c, listRead, "", 1)
}

// TestCacheLoadKnowsNoCaller: an answer must not depend on who asked first.
func TestCacheLoadKnowsNoCaller(t *testing.T) {
	c := startCache(t)
	ctx := context.WithValue(t.Context(), identityKey{}, auth.Identity{Subject: "ann", Roles: []string{auth.Admin}})
	who, err := cached(ctx, c, listRead, "", func(ctx context.Context) (auth.Identity, error) {
		who, _ := ctx.Value(identityKey{}).(auth.Identity)
		return who, nil
	})
	if err != nil || who.Subject != "" || who.Has(auth.Admin) {
		t.Errorf("the load knows %+v (%v), want nobody", who, err)
	}
}

// TestCacheSharesLoads: fifty readers at once share one load, even if the one that began it
// goes away.
func TestCacheSharesLoads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := startCache(t), &source{}
		slow := func(ctx context.Context) (int64, error) {
			select {
			case <-time.After(time.Second):
				return s.load(ctx)
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		}
		first, leave := context.WithTimeout(t.Context(), 5*time.Second)
		var readers sync.WaitGroup
		for n := range 50 {
			ctx := t.Context()
			if n == 0 {
				ctx = first
			}
			readers.Go(func() {
				if v, err := cached(ctx, c, listRead, "", slow); v != 1 || err != nil {
					t.Errorf("reader %d got %d (%v), want 1", n, v, err)
				}
			})
			synctest.Wait()
		}
		leave()
		readers.Wait()
	})
}

// TestCacheRace lets readers and a writer meet in every order that a seed makes. A read
// that begins after a change is known never returns an older version.
func TestCacheRace(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	synctest.Test(t, func(t *testing.T) {
		c := startCache(t)
		var stored, known atomic.Int64 // versions of the user: in the database, announced
		pause := func(r *rand.Rand) { time.Sleep(time.Duration(r.IntN(20)) * time.Millisecond) }
		var all sync.WaitGroup
		for n := range uint64(8) {
			r := rand.New(rand.NewPCG(seed, n))
			all.Go(func() {
				for range 500 {
					least := known.Load()
					got, err := cached(t.Context(), c, profileRead, "ann", func(context.Context) (int64, error) {
						pause(r)
						v := stored.Load()
						pause(r) // the answer is on its way
						return v, nil
					})
					if err != nil || got < least {
						t.Errorf("seed %d: a read got version %d (%v) after %d was known", seed, got, err, least)
						return
					}
					pause(r)
				}
			})
		}
		all.Go(func() {
			r := rand.New(rand.NewPCG(seed, 99))
			for v := range int64(300) {
				pause(r)
				stored.Store(v + 1)
				pause(r)
				if r.IntN(10) == 0 {
					c.forget()
				} else {
					c.changed("ann")
				}
				known.Store(v + 1)
			}
		})
		all.Wait()
	})
}

func TestCacheMetrics(t *testing.T) {
	reader, before := sdkmetric.NewManualReader(), otel.GetMeterProvider()
	otel.SetMeterProvider(sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)))
	defer otel.SetMeterProvider(before)
	c, s := startCache(t), &source{} // tuned once: one invalidation
	s.read(t, c, listRead, "", 1)
	s.read(t, c, listRead, "", 1)
	c.changed("ann")
	s.read(t, c, listRead, "", 2)
	var all metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	got := make(map[string]int64)
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			if !strings.HasPrefix(m.Name, "pgjet.users.cache_") {
				continue // from other tests
			}
			for _, p := range m.Data.(metricdata.Sum[int64]).DataPoints {
				got[m.Name+p.Attributes.Encoded(attribute.DefaultEncoder())] = p.Value
			}
		}
	}
	want := map[string]int64{
		"pgjet.users.cache_readsoutcome=miss,read=list": 2, "pgjet.users.cache_readsoutcome=hit,read=list": 1,
		"pgjet.users.cache_readsoutcome=miss,read=profile": 0, "pgjet.users.cache_readsoutcome=hit,read=profile": 0,
		"pgjet.users.cache_invalidationscause=user": 1, "pgjet.users.cache_invalidationscause=all": 1,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("counted (-want +got):\n%s", diff)
	}
}

func TestCloseLeavesNothingBehind(t *testing.T) {
	ignore := goleak.IgnoreCurrent()
	c := newCache()
	c.entries.StopAllGoroutines()
	goleak.VerifyNone(t, ignore)
}

func BenchmarkCacheHit(b *testing.B) {
	c := newCache()
	defer c.entries.StopAllGoroutines()
	c.tune(Cache{Enabled: true, TTL: time.Hour, Size: 100})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := cached(b.Context(), c, listRead, "", func(context.Context) (int, error) { return 1, nil }); err != nil {
			b.Fatal(err)
		}
	}
}
