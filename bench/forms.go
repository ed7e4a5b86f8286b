package main

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/jackc/pgx/v5"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver pgx
	_ "github.com/lib/pq"              // the driver postgres
	"golang.org/x/sync/errgroup"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/outbox"
)

// forms measures the cost of a change and its event for a service, by each way to append.
func forms(o options) scenario {
	n := o.rows
	if n == 0 {
		n = orQuick(o, 20_000, 4_000)
	} else {
		n /= 10
	}
	base := inTransactions("Append, pgx", n, openPgx(appendPgx))
	base.base = true
	return scenario{
		name: "append", title: "a change and its event, by each form of Append",
		note: "A transaction inserts a user and appends one event, by 16 connections. Begin, insert, append and commit are a round trip each, and with lib/pq the " +
			"insert is two, since it has arguments; with Queue all is one.",
		variants: []variant{
			base,
			inTransactions("Append, pgx, the payload as bytes", n, openPgx(func(ctx context.Context, db *pgx.Conn, user []any, e events.Event) error {
				e.ContentType = "application/octet-stream"
				return appendPgx(ctx, db, user, e)
			})),
			inTransactions("Queue, pgx", n, openPgx(queuePgx)),
			inTransactions("AppendSQL, database/sql with pgx", n, openSQL("pgx")),
			inTransactions("AppendSQL, database/sql with lib/pq", n, openSQL("postgres")),
		},
	}
}

// A committer commits a user and an event.
type committer func(ctx context.Context, user []any, e events.Event) error

// inTransactions commits n times, over 16 connections that open makes.
func inTransactions(name string, n int, open func(ctx context.Context, dsn string) (committer, func(), error)) variant {
	const writers = 16
	return variant{name: name, run: func(ctx context.Context, l *lab) (result, error) {
		s, err := l.site(ctx, none)
		if err != nil {
			return result{}, err
		}
		defer s.close()
		if err := s.makePartitions(ctx, n); err != nil {
			return result{}, err
		}
		commits := make([]committer, writers)
		for i := range commits {
			commit, done, err := open(ctx, s.dsn)
			if err != nil {
				return result{}, err
			}
			defer done()
			commits[i] = commit
		}
		return s.timed(n, func() error {
			g, ctx := errgroup.WithContext(ctx)
			for w, commit := range commits {
				g.Go(func() error {
					for i := w; i < n; i += writers {
						e := loadEvent(i)
						if err := commit(ctx, []any{e.ID, fmt.Sprintf("user-%d@example.com", i)}, e); err != nil {
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

func openPgx(commit func(ctx context.Context, db *pgx.Conn, user []any, e events.Event) error) func(context.Context, string) (committer, func(), error) {
	return func(ctx context.Context, dsn string) (committer, func(), error) {
		db, err := pgx.Connect(ctx, dsn)
		if err != nil {
			return nil, nil, err
		}
		return func(ctx context.Context, user []any, e events.Event) error { return commit(ctx, db, user, e) },
			func() { db.Close(context.WithoutCancel(ctx)) }, nil
	}
}

func appendPgx(ctx context.Context, db *pgx.Conn, user []any, e events.Event) error {
	return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, insertUser, user...); err != nil {
			return err
		}
		return outbox.Append(ctx, tx, e)
	})
}

func queuePgx(ctx context.Context, db *pgx.Conn, user []any, e events.Event) error {
	b := &pgx.Batch{}
	b.Queue(insertUser, user...)
	if err := outbox.Queue(ctx, b, e); err != nil {
		return err
	}
	return db.SendBatch(ctx, b).Close()
}

func openSQL(driver string) func(context.Context, string) (committer, func(), error) {
	return func(_ context.Context, dsn string) (committer, func(), error) {
		db, err := sql.Open(driver, dsn)
		if err != nil {
			return nil, nil, err
		}
		db.SetMaxOpenConns(1)
		return func(ctx context.Context, user []any, e events.Event) error { return appendSQL(ctx, db, user, e) }, func() { db.Close() }, nil
	}
}

func appendSQL(ctx context.Context, db *sql.DB, user []any, e events.Event) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, insertUser, user...); err != nil {
		return err
	}
	if err := outbox.AppendSQL(ctx, tx, e); err != nil {
		return err
	}
	return tx.Commit()
}
