package consumers_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

// lock locks a table in a transaction of another session, until unlock is called or the test ends,
// and returns the reason that names the session.
func (b *fixture) lock(table string) (reason string, unlock func()) {
	b.Helper()
	conn, err := pgx.Connect(b.Context(), b.db.Config().ConnString()+"&application_name=psql")
	if err != nil {
		b.Fatal(err)
	}
	unlock = sync.OnceFunc(func() { _ = conn.Close(context.Background()) })
	b.Cleanup(unlock)
	if _, err := conn.Exec(b.Context(), `begin; lock table pgjet.`+table); err != nil {
		b.Error(err)
	}
	return fmt.Sprintf(`database_timeout: the lock on table pgjet.%s is held by process %d of the server, application "psql"`, table, conn.PgConn().PID()), unlock
}

// TestLockedTable: another session locks a table that a consumer needs, while it runs and before it
// begins. The consumer is not ready, names the session, spends no attempt, and goes on when the
// lock is released.
func TestLockedTable(t *testing.T) {
	t.Parallel()
	for _, table := range []string{"inbox", "intent", "consumer", "process"} {
		for _, unordered := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s unordered=%t", table, unordered), func(t *testing.T) {
				t.Parallel()
				b := newFixture(t)
				c := consumers.Consumer{Handler: each(write), Unordered: unordered, MaxAttempts: 1, Timeout: time.Second}
				r, stop := b.startOn(b.js, c)
				b.publish(event(1))
				b.handled(1)
				for n := 2; n <= 3; n++ {
					if n == 3 {
						stop()
					}
					reason, unlock := b.lock(table)
					if n == 3 {
						r, _ = b.startOn(b.js, c)
					}
					b.publish(event(n))
					b.blocked(r, reason)
					if table != "process" {
						testenv.Eventually(t, patience, "the database says so", func() bool {
							return b.count(`select count(*) from pgjet.process where cause like $1`, reason+"%") == 1
						})
					}
					unlock()
					b.handled(n)
					b.ready(r)
				}
				b.once(3)
				if spent := b.count(`select count(*) from pgjet.attempt where outcome <> 'done'`) + b.count(`select count(*) from pgjet.inbox where attempts <> 1`); spent != 0 {
					t.Errorf("%d attempts were spent on the lock, want none", spent)
				}
			})
		}
	}
}

// TestLockWantedByWaiter: a statement that changes a table waits for a long transaction, and all
// other sessions wait behind it.
func TestLockWantedByWaiter(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	r, _ := b.start(write)
	b.publish(event(1))
	b.handled(1)
	reader, err := b.db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Rollback(context.Background())
	if _, err := reader.Exec(t.Context(), `select from pgjet.inbox`); err != nil {
		t.Fatal(err)
	}
	altered := make(chan error, 1)
	go func() {
		_, err := b.db.Exec(context.Background(), `alter table pgjet.inbox add column later int`)
		altered <- err
	}()
	b.blocked(r, "database_timeout: everybody waits for table pgjet.inbox behind a statement that asks for a lock: the lock will be held by process")
	b.blocked(r, fmt.Sprintf("; that one waits for process %d;", reader.Conn().PgConn().PID()))
	if err := reader.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-altered; err != nil {
		t.Fatal(err)
	}
	b.publish(event(2))
	b.handled(2)
	b.ready(r)
}

// TestLockSpendsNoAttempt: a handler or an effect has succeeded, and a lock keeps the consumer from
// recording that for longer than it tries. The attempt of the handler does not count, and the
// effect does not happen again.
func TestLockSpendsNoAttempt(t *testing.T) {
	consumers.SetRememberTime(t, time.Second)
	for _, form := range []string{"handler", "effect"} {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			b := newFixture(t)
			calls, unlock := make(chan int, 100), func() {}
			n := 0
			try := func() error {
				n++
				calls <- n
				switch n {
				case 1:
					return errors.New("the first attempt fails")
				case 2:
					_, unlock = b.lock("inbox")
				}
				return nil
			}
			c := consumers.Consumer{Workers: 1, MaxAttempts: 3, Timeout: time.Second}
			if form == "effect" {
				c.Handler = effect(func(context.Context, events.Event) error { return try() })
			} else {
				c.Handler = each(func(ctx context.Context, tx pgx.Tx, e events.Event) error {
					return errors.Join(try(), write(ctx, tx, e))
				})
			}
			r, _ := b.startOn(b.js, c)
			b.publish(event(1))
			wait := 2
			if form == "handler" {
				wait = 5 // the second, third and fourth were undone
			}
			testenv.Eventually(t, patience, "the attempts are made", func() bool { return len(calls) >= wait })
			b.blocked(r, "database_timeout: ")
			unlock()
			b.settled()
			if state := b.count(`select count(*) from pgjet.inbox where state = 'done' and attempts = 2`); state != 1 {
				t.Error("the event is not done with its second attempt")
			}
			if form == "effect" && n != 2 {
				t.Errorf("the effect happened %d times, want 2", n)
			}
		})
	}
}
