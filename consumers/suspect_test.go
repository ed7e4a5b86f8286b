package consumers_test

import (
	"context"
	"encoding/json"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

// suspects inserts intents, taken by a session whose process is gone, of events that no stream has.
func (b *fixture) suspects(attempts int, all ...events.Event) {
	b.Helper()
	for _, e := range all {
		subject, header, body := e.Message()
		text, err := json.Marshal(header)
		if err != nil {
			b.Fatal(err)
		}
		testenv.Exec(b, b.db, `insert into pgjet.inbox (consumer, event_id, attempts, generation, state) select name, $1, $2, generation, 'intent' from pgjet.consumer`, e.ID, attempts)
		testenv.Exec(b, b.db, `
			insert into pgjet.intent (consumer, event_id, attempts, generation, type, key, stream, stream_seq, subject, header, data, taken_by, taken_at, due_at)
			select name, $1, $2, generation, $3, $4, stream, 0, $5, $6, $7, 'gone:1:x', now(), now() from pgjet.consumer`,
			e.ID, attempts, e.Type, e.Key, subject, text, body)
	}
}

// TestSuspectsRunAlone: an event at which a process died is attempted while the process does nothing
// else, and holds no other such event. So a death counts for the event that caused it. A session takes
// it only when it has run for some seconds: after an outage, its own process may come back.
func TestSuspectsRunAlone(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	var running, together atomic.Int32
	r, _ := b.startOn(b.js, consumers.Consumer{Workers: 4, Group: 1, Handler: each(func(ctx context.Context, tx pgx.Tx, e events.Event) error {
		others := running.Add(1) - 1
		defer running.Add(-1)
		time.Sleep(20 * time.Millisecond)
		if e.Key == "suspect" {
			time.Sleep(time.Second) // in which others are looked for
			others = max(others, running.Load()-1) + int32(b.count(`select count(*) from pgjet.intent where deaths > 0 and taken_by is not null and taken_by <> 'gone:1:x'`)) - 1
			together.Add(others)
		}
		return write(ctx, tx, e)
	})})
	b.ready(r)
	began := time.Now()
	a, c := keyed("suspect", 1), keyed("suspect", 2)
	b.suspects(1, a, c)
	for n := 3; b.count(`select count(*) from effect where n < 3`) < 2; n++ { // others all the time
		b.publish(event(n))
		if time.Since(began) > patience {
			t.Fatal("the events are not handled")
		}
		if b.count(`select count(*) from effect where n < 3`) > 0 && time.Since(began) < 3*time.Second {
			t.Error("an event was taken from a dead process at once")
			break
		}
	}
	if n := together.Load(); n > 0 {
		t.Errorf("%d events were handled, or held, beside one at which a process died", n)
	}
}

// TestUnrecordedAttempts: an event whose last allowed attempt was begun, and has no recorded end, is
// not attempted again.
func TestUnrecordedAttempts(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	r, _ := b.startOn(b.js, consumers.Consumer{MaxAttempts: 2, Handler: each(write)})
	b.ready(r)
	b.suspects(2, event(1))
	testenv.Eventually(t, patience, "it is a dead letter", func() bool {
		return b.count(`select count(*) from pgjet.dead_letter where error like 'max_attempts:%'`) == 1
	})
	if n := b.count(`select count(*) from effect`); n != 0 {
		t.Error("it was attempted a third time")
	}
}

// TestFloorOfAllProcesses: the recorded floor of an unordered consumer is no later than an event that
// any process still handles.
func TestFloorOfAllProcesses(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.exec(`create function note_floor() returns trigger language plpgsql as $$ begin insert into floors values (new.floor); return null; end $$`)
	b.exec(`create table floors (floor bigint)`)
	b.exec(`create trigger note_floor after update on pgjet.slice for each row execute function note_floor()`)
	goOn := make(chan struct{})
	defer close(goOn)
	var handled [2]atomic.Int32
	for process := range handled {
		b.startOn(b.js, consumers.Consumer{Unordered: true, Workers: 2, Handler: each(func(ctx context.Context, tx pgx.Tx, e events.Event) error {
			if e.Seq == 1 {
				<-goOn
			}
			handled[process].Add(1)
			return write(ctx, tx, e)
		})})
	}
	for n := 1; handled[0].Load() < 5 || handled[1].Load() < 5; n++ {
		b.publish(event(n))
		if n > 2000 {
			t.Fatal("one process gets all events")
		}
		time.Sleep(time.Millisecond)
	}
	time.Sleep(2 * time.Second) // in which both processes save theirs
	if floor := b.count(`select max(floor) from floors`); floor != 0 {
		t.Errorf("the floor is %d, and the first event is being handled", floor)
	}
}
