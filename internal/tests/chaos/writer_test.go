package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/outbox"
)

// writerKeys is the number of the writer's aggregates. They are few, so that transactions wait for
// each other.
const writerKeys = 9

// A writer commits events as services do: a transaction changes the rows of its aggregates first
// and appends last. Each event has the number of its aggregate, so the numbers of a key have no
// gaps in commit order. Three of ten transactions, and some savepoints, are rolled back.
type writer struct {
	g     *rig
	pause time.Duration // after each transaction of one of the goroutines
	pad   atomic.Int64  // the most bytes that are added to a payload

	cancel  context.CancelFunc
	running sync.WaitGroup

	mu        sync.Mutex
	committed []uuid.UUID // certainly
	undone    []uuid.UUID // certainly not committed; the rest is unknown
	failed    int
}

// newWriter returns a writer that has not started.
func newWriter(g *rig) *writer {
	_, err := g.db.Exec(g.Context(), `create table public.aggregate (key text primary key, n bigint not null)`)
	if err == nil {
		_, err = g.db.Exec(g.Context(), `insert into public.aggregate select 'key/' || k, 0 from generate_series(1, $1::int) k`, writerKeys)
	}
	if err != nil {
		g.Fatal(err)
	}
	w := &writer{g: g, pause: 5 * time.Millisecond}
	w.pad.Store(300)
	return w
}

// start starts writing, until stop.
func (w *writer) start() {
	ctx, cancel := context.WithCancel(w.g.Context())
	w.cancel = cancel
	for range 3 {
		r := rand.New(rand.NewPCG(w.g.rand.Uint64(), 0))
		w.running.Go(func() {
			for ctx.Err() == nil {
				w.transact(ctx, r)
				time.Sleep(time.Duration(r.Int64N(2 * int64(w.pause))))
			}
		})
	}
	w.g.Cleanup(w.stop)
}

// stop waits until the writer has ended. It may be called twice.
func (w *writer) stop() {
	if w.cancel != nil {
		w.cancel()
	}
	w.running.Wait()
}

// transact runs one transaction, and records the outcome of its events.
func (w *writer) transact(ctx context.Context, r *rand.Rand) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	kept, gone, err := w.try(ctx, r)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.undone = append(w.undone, gone...)
	if err != nil {
		w.failed++
		return
	}
	w.committed = append(w.committed, kept...)
}

// try returns the ids that were committed and those that were rolled back. After an error of the
// commit both are unknown.
func (w *writer) try(ctx context.Context, r *rand.Rand) (kept, gone []uuid.UUID, err error) {
	tx, err := w.g.db.Begin(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer tx.Rollback(ctx)
	keys := r.Perm(writerKeys)[:1+r.IntN(3)]
	slices.Sort(keys) // locks in one order cannot deadlock
	next := make(map[string]int64)
	for _, k := range keys {
		var n int64
		key := fmt.Sprint("key/", k+1)
		if err = tx.QueryRow(ctx, `select n from public.aggregate where key = $1 for update`, key).Scan(&n); err != nil {
			return nil, nil, err
		}
		next[key] = n
	}
	for key, n := range next {
		if r.IntN(5) == 0 {
			ids, err := w.inSavepoint(ctx, tx, r, key, n)
			gone = append(gone, ids...)
			if err != nil {
				return nil, gone, err
			}
		}
		ids, err := w.append(ctx, tx, r, key, n)
		if err != nil {
			return nil, gone, err
		}
		kept = append(kept, ids...)
	}
	if r.IntN(10) < 3 {
		return nil, append(gone, kept...), tx.Rollback(ctx)
	}
	return kept, gone, tx.Commit(ctx)
}

// inSavepoint appends events and rolls them back.
func (w *writer) inSavepoint(ctx context.Context, tx pgx.Tx, r *rand.Rand, key string, n int64) ([]uuid.UUID, error) {
	savepoint, err := tx.Begin(ctx)
	if err != nil {
		return nil, err
	}
	ids, err := w.append(ctx, savepoint, r, key, n)
	return ids, errors.Join(err, savepoint.Rollback(ctx))
}

// append appends the next events of an aggregate that has n.
func (w *writer) append(ctx context.Context, tx pgx.Tx, r *rand.Rand, key string, n int64) (ids []uuid.UUID, err error) {
	var all []events.Payload
	for range 1 + r.IntN(5) {
		n++
		e := events.Event{
			ID: uuid.Must(uuid.NewV7()), Type: "note.made", Key: key,
			Data: fmt.Appendf(nil, `{"n": %d,  "pad":"%s"}`, n, strings.Repeat("ö", int(r.Int64N(w.pad.Load()+1)/2))),
		}
		if r.IntN(3) == 0 {
			e.Traceparent = fmt.Sprintf("00-%016x%016x-%016x-01", r.Uint64()|1, r.Uint64(), r.Uint64()|1)
			e.Header = map[string]string{"ce-tenant": "größe 7%", "tracestate": "a=b"}
		}
		all, ids = append(all, e), append(ids, e.ID)
	}
	if _, err := tx.Exec(ctx, `update public.aggregate set n = $2 where key = $1`, key, n); err != nil {
		return nil, err
	}
	return ids, outbox.Append(ctx, tx, all...)
}

// backlog commits count events in one transaction, each with a key of its own.
func (g *rig) backlog(count, keys int) {
	g.Helper()
	_, err := g.db.Exec(g.Context(), `
		insert into pgjet.outbox (id, type, key, data)
		select gen_random_uuid(), 'note.made', format('backlog/%s/%s', $3::bigint, n % $2),
		       json_build_object('n', n / $2 + 1, 'pad', repeat('x', n % 200))
		  from generate_series(0, $1::int - 1) n`, count, keys, g.rand.Uint32())
	if err != nil {
		g.Fatal(err)
	}
}
