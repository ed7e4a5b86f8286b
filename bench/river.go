package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

// A riverForm is a way to work River's jobs.
type riverForm struct {
	workers  int
	cooldown time.Duration // 0 is River's default, 100 ms
	row      bool          // the job inserts a row, and is completed in that transaction
	insert   bool          // jobs are inserted while others are worked, not before
}

var rivers = map[string]riverForm{
	"river":       {workers: 100},
	"river-tuned": {workers: 1000, cooldown: time.Millisecond},
	"river-both":  {workers: 1000, cooldown: time.Millisecond, insert: true},
	"river-row":   {workers: 64, cooldown: time.Millisecond, row: true},
}

// A riverJob has the payload of an event.
type riverJob struct {
	ID      uuid.UUID `json:"id"`
	N       int64     `json:"n"`
	Payload []byte    `json:"payload"`
}

func (riverJob) Kind() string { return "user_created" }

// fillRiver makes River's tables, and inserts n jobs unless the part does.
func (s *site) fillRiver(ctx context.Context, f riverForm, n int) error {
	driver := riverpgxv5.New(s.db)
	migrator, err := rivermigrate.New(driver, nil)
	if err != nil {
		return err
	}
	if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return fmt.Errorf("make River's tables: %w", err)
	}
	client, err := river.NewClient(driver, &river.Config{})
	if err != nil || f.insert {
		return err
	}
	return insertJobs(ctx, client, n)
}

// insertJobs inserts n jobs in River's fastest way.
func insertJobs(ctx context.Context, client *river.Client[pgx.Tx], n int) error {
	const together = 5000
	for from := 0; from < n; from += together {
		jobs := make([]river.InsertManyParams, min(together, n-from))
		for i := range jobs {
			e := newEvent(from+i+1, time.Now())
			jobs[i].Args = riverJob{e.ID, int64(from + i + 1), e.Data}
		}
		if _, err := client.InsertManyFast(ctx, jobs); err != nil {
			return fmt.Errorf("insert jobs: %w", err)
		}
	}
	return nil
}

// work works jobs until ctx ends.
func (f riverForm) work(ctx context.Context, db *pgxpool.Pool, count *counter) error {
	workers := river.NewWorkers()
	river.AddWorker(workers, river.WorkFunc(func(ctx context.Context, job *river.Job[riverJob]) error {
		count.add(1)
		if !f.row {
			return nil
		}
		return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, insertEffect, job.Args.ID, job.Args.N, "User"); err != nil {
				return err
			}
			_, err := river.JobCompleteTx[*riverpgxv5.Driver](ctx, tx, job)
			return err
		})
	}))
	client, err := river.NewClient(riverpgxv5.New(db), &river.Config{
		FetchCooldown: f.cooldown,
		Queues:        map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: f.workers}},
		Workers:       workers,
		Logger:        slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})),
	})
	if err != nil {
		return err
	}
	if err := client.Start(ctx); err != nil {
		return err
	}
	if f.insert {
		if err := insertJobs(ctx, client, int(count.of)); err != nil {
			return err
		}
	}
	<-ctx.Done()
	stopped, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace/2)
	defer cancel()
	return client.StopAndCancel(stopped)
}
