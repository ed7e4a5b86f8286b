package replay_test

import (
	"context"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/consumers/replay"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

// TestChaosReplayAtLoad: a third of the effects is lost and brought back by a replay while
// live events flow; each event has its effect once. 100 000 events with PGJET_CHAOS=1.
func TestChaosReplayAtLoad(t *testing.T) {
	t.Parallel()
	before := 3000
	if scale, err := strconv.ParseFloat(os.Getenv("PGJET_CHAOS"), 64); err == nil {
		before = max(before, int(100_000*scale))
	}
	after := before / 10
	b := newLive(t)
	b.start(consumers.Consumer{Handler: consumers.HandleBatch(0, func(ctx context.Context, tx pgx.Tx, all []events.Event) error {
		ids := make([]uuid.UUID, len(all))
		for i, e := range all {
			ids[i] = e.ID
		}
		_, err := tx.Exec(ctx, `insert into effect (event_id, key, n) select unnest($1::uuid[]), '', 0`, ids)
		return err
	}, "note.made")})
	for n := 0; n < before; n += 1000 {
		b.stream(n+1, n+1000)
	}
	done := `select count(*) from pgjet.inbox where state = 'done'`
	for last := 0; last < before; { // for as long as it moves
		testenv.Eventually(b, patience, "more is done", func() bool { return value[int](b, done) > last })
		last = value[int](b, done)
	}
	b.exec(`with gone as (delete from pgjet.inbox where stream_seq % 3 = 0 returning event_id)
		delete from effect using gone where gone.event_id = effect.event_id`)
	live := make(chan struct{})
	go func() {
		defer close(live)
		for n := before; n < before+after; n += 100 {
			b.stream(n+1, n+100)
			time.Sleep(5 * time.Millisecond) // the pace of live events
		}
	}()
	begun := time.Now()
	p, _ := b.watched(replay.Selection{All: true})
	t.Logf("%d events replayed in %s, %d of them run", p.Selected, time.Since(begun).Round(time.Millisecond), p.Run)
	<-live
	b.wait("all are done", done, before+after)
	if n := value[int](b, `select count(*) - count(distinct event_id) from effect`); n != 0 {
		t.Errorf("%d effects happened twice", n)
	}
	if n := value[int](b, `select count(*) from effect`); n != before+after {
		t.Errorf("%d effects of %d events", n, before+after)
	}
}
