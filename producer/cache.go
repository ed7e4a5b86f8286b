package producer

import (
	"context"
	"hash/maphash"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/pgjet/pgjet/internal/auth"
)

// A read names a kind of cached answers.
type read string

const (
	listRead    read = "list"    // of users: a change of any user makes it stale
	profileRead read = "profile" // of one user: a change of that one does
)

// A cacheKey identifies one answer. It holds the version of the data from which the answer
// is made, as of the beginning of that work. After a change the old version is no longer
// looked up. So an answer begun before the change is never found after it, however late it
// is stored.
type cacheKey struct {
	read    read
	id      string
	version uint64
}

// A cache keeps answers to reads in this process. The caller must have checked that the
// client may see the answer: a key does not contain who reads.
type cache struct {
	entries *otter.Cache[cacheKey, any]
	on      atomic.Bool
	ttl     atomic.Int64
	list    atomic.Uint64 // version of the list
	// versions of users. Users that share one are forgotten together.
	seed  maphash.Seed
	users [1024]atomic.Uint64

	reads, changes metric.Int64Counter
}

func newCache() *cache {
	c := &cache{seed: maphash.MakeSeed()}
	c.entries = otter.Must(&otter.Options[cacheKey, any]{
		MaximumWeight: uint64(DefaultTuning().Cache.Size),
		Weigher:       func(_ cacheKey, answer any) uint32 { return weight(answer) },
		ExpiryCalculator: otter.ExpiryCreatingFunc(func(otter.Entry[cacheKey, any]) time.Duration {
			return time.Duration(c.ttl.Load())
		}),
	})
	meter := otel.Meter("github.com/pgjet/pgjet/producer")
	var err error
	if c.reads, err = meter.Int64Counter("pgjet.users.cache_reads", metric.WithDescription(
		"Reads by kind and outcome: hit (the answer was there, or on its way), miss (it was read).")); err != nil {
		panic(err) // the name above is wrong
	}
	if c.changes, err = meter.Int64Counter("pgjet.users.cache_invalidations", metric.WithDescription(
		"How often answers were forgotten, by cause: user (one changed), all (changes may have been missed, or the tuning changed).")); err != nil {
		panic(err)
	}
	for _, cause := range []string{"user", "all"} { // both exist from the beginning
		c.changes.Add(context.Background(), 0, metric.WithAttributes(attribute.String("cause", cause)))
	}
	for _, r := range []read{listRead, profileRead} {
		for _, outcome := range []string{"hit", "miss"} {
			c.reads.Add(context.Background(), 0, metric.WithAttributes(attribute.String("read", string(r)), attribute.String("outcome", outcome)))
		}
	}
	return c
}

// weight returns how many users an answer shows, and 1 for an empty page.
func weight(answer any) uint32 {
	if list, ok := answer.(userList); ok {
		return uint32(max(1, len(list.Users)))
	}
	return 1
}

// cached returns the result of load, or an earlier result for the same id, for as long as
// [Tuning] says and no change is known. Calls at the same time share one load. Errors are
// not kept. Many requests get the same value: it must not be changed.
//
// Check first whether the caller may see the answer. load must not depend on the caller:
// its context holds nothing about the caller, and continues if the client leaves.
func cached[T any](ctx context.Context, c *cache, r read, id string, load func(context.Context) (T, error)) (T, error) {
	if !c.on.Load() {
		return load(ctx)
	}
	detached := context.WithValue(context.WithoutCancel(ctx), identityKey{}, auth.Identity{})
	if deadline, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		detached, cancel = context.WithDeadline(detached, deadline)
		defer cancel()
	}
	outcome := "hit"
	v, err := c.entries.Get(detached, cacheKey{r, id, c.version(r, id)}, otter.LoaderFunc[cacheKey, any](
		func(ctx context.Context, _ cacheKey) (any, error) {
			outcome = "miss"
			return load(ctx)
		}))
	c.reads.Add(ctx, 1, metric.WithAttributes(attribute.String("read", string(r)), attribute.String("outcome", outcome)))
	answer, _ := v.(T)
	return answer, err
}

func (c *cache) version(r read, id string) uint64 {
	if r == listRead {
		return c.list.Load()
	}
	return c.user(id).Load()
}

func (c *cache) user(id string) *atomic.Uint64 {
	return &c.users[maphash.String(c.seed, id)%uint64(len(c.users))]
}

// changed forgets the answers that show this user.
func (c *cache) changed(id string) {
	c.list.Add(1)
	c.user(id).Add(1)
	c.changes.Add(context.Background(), 1, metric.WithAttributes(attribute.String("cause", "user")))
}

// forget forgets everything.
func (c *cache) forget() {
	c.list.Add(1)
	for i := range c.users {
		c.users[i].Add(1)
	}
	c.entries.InvalidateAll() // frees the memory
	c.changes.Add(context.Background(), 1, metric.WithAttributes(attribute.String("cause", "all")))
}

// tune applies t at once, also to answers that are kept already.
func (c *cache) tune(t Cache) {
	c.ttl.Store(int64(t.TTL))
	c.on.Store(t.Enabled)
	c.entries.SetMaximum(uint64(t.Size))
	c.forget()
}

// Changed forgets answers that show the user with this id: another process changed it. Call
// it only then: a Server notices its own changes.
func (s *Server) Changed(id string) { s.cache.changed(id) }

// Forget forgets all answers. Call it when changes may have been missed.
func (s *Server) Forget() { s.cache.forget() }

// Close ends the background work of New. Requests are still answered.
func (s *Server) Close() {
	s.cache.entries.StopAllGoroutines()
	s.flood.end()
}
