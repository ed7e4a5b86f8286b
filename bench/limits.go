package main

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/pgjet/pgjet/relay/backlog"
)

// limits measures the limits of PostgreSQL and JetStream, each on its own.
func limits(o options) scenario {
	rows := o.rows
	if rows == 0 {
		rows = orQuick(o, 100_000, 50_000)
	}
	limit := compareAndAppend(batch, rows, 1, durable)
	limit.base = true
	return scenario{
		name: "limits", title: "what PostgreSQL and JetStream do at most, each on its own",
		note: "Messages are encoded before the clock starts and sent without a client library, but for async publish and consume. " +
			"Appends expect the last sequence of the stream. A transaction inserts a user and an outbox row.",
		variants: []variant{
			readPages("keyset reading, pgx", rows, readPlain),
			readPages("keyset reading, backlog.Reader", rows, readOutbox),
			limit,
			compareAndAppend(batch, rows, 2, durable),
			compareAndAppend(batch, rows, 1, lazy),
			compareAndAppend(batch, rows, 2, lazy),
			compareAndAppend(chain, rows, 1, lazy),
			compareAndAppend(chain, rows, 2, lazy),
			asyncPublish(rows, lazy),
			asyncPublish(rows/20, durable),
			transactions("transaction, 4 round trips", rows/20, fourTrips),
			transactions("transaction, 1 round trip", rows/10, oneTrip),
			rawConsume(rows, lazy),
			rawConsume(rows, durable).once(),
		},
	}
}

// readPages reads an outbox of n rows once, over one connection, in pages of 1000.
func readPages(name string, n int, read func(context.Context, *pgx.Conn) (int, error)) variant {
	return variant{name: name, run: func(ctx context.Context, l *lab) (result, error) {
		s, err := l.site(ctx, none)
		if err != nil {
			return result{}, err
		}
		defer s.close()
		if err := s.fill(ctx, n); err != nil {
			return result{}, err
		}
		db, err := pgx.Connect(ctx, s.dsn)
		if err != nil {
			return result{}, err
		}
		defer db.Close(context.WithoutCancel(ctx))
		return s.timed(n, func() error {
			got, err := read(ctx, db)
			if err == nil && got != n {
				err = fmt.Errorf("read %d of %d rows", got, n)
			}
			return err
		})
	}}
}

func readPlain(ctx context.Context, db *pgx.Conn) (n int, err error) {
	var seq int64
	var id uuid.UUID
	var kind, key, traceparent string
	var data []byte
	var at time.Time
	for floor := int64(0); ; floor = seq {
		rows, err := db.Query(ctx, `
			select seq, id, type, key, traceparent, data::text, time
			  from pgjet.outbox where seq > $1 order by seq limit 1000`, floor)
		if err != nil {
			return n, err
		}
		tag, err := pgx.ForEachRow(rows, []any{&seq, &id, &kind, &key, &traceparent, &data, &at}, func() error { return nil })
		if err != nil || tag.RowsAffected() == 0 {
			return n, err
		}
		n += int(tag.RowsAffected())
	}
}

func readOutbox(ctx context.Context, db *pgx.Conn) (n int, err error) {
	r := backlog.NewReader(db)
	for at := (backlog.Position{}); ; {
		before := n
		at, err = backlog.Read(ctx, r, at, func(backlog.Record) error { n++; return nil })
		if err != nil || n == before {
			return n, err
		}
	}
}

// The writes of a sign-up, without any library between.
const (
	insertUser  = `insert into users.users (id, email, name, password) values ($1, $2, 'User', 'none')`
	insertEvent = `insert into pgjet.outbox (id, type, key, traceparent, data) values ($1, 'user.created', $2, $3, $4)`
)

// transactions commits a user and an event n times, over 16 connections.
func transactions(name string, n int, commit func(ctx context.Context, db *pgx.Conn, user, event []any) error) variant {
	const writers = 16
	return variant{name: name + fmt.Sprintf(", %d connections", writers), run: func(ctx context.Context, l *lab) (result, error) {
		s, err := l.site(ctx, none)
		if err != nil {
			return result{}, err
		}
		defer s.close()
		if err := s.makePartitions(ctx, n); err != nil {
			return result{}, err
		}
		conns := make([]*pgx.Conn, writers)
		for i := range conns {
			if conns[i], err = pgx.Connect(ctx, s.dsn); err != nil {
				return result{}, err
			}
			defer conns[i].Close(context.WithoutCancel(ctx))
		}
		return s.timed(n, func() error {
			g, ctx := errgroup.WithContext(ctx)
			for w, db := range conns {
				g.Go(func() error {
					for i := w; i < n; i += writers {
						e := loadEvent(i)
						user := []any{e.ID, fmt.Sprintf("user-%d@example.com", i)}
						if err := commit(ctx, db, user, []any{e.ID, e.Key, e.Traceparent, string(e.Data)}); err != nil {
							return err
						}
					}
					return nil
				})
			}
			return g.Wait()
		})
	}}
}

func fourTrips(ctx context.Context, db *pgx.Conn, user, event []any) error {
	return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, insertUser, user...); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, insertEvent, event...)
		return err
	})
}

// oneTrip sends both statements at once, which makes them a transaction.
func oneTrip(ctx context.Context, db *pgx.Conn, user, event []any) error {
	b := &pgx.Batch{}
	b.Queue(insertUser, user...)
	b.Queue(insertEvent, event...)
	return db.SendBatch(ctx, b).Close()
}
