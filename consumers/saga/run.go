package saga

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/lead"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/session"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

const (
	// patience bounds a query outside of attempts.
	patience = 5 * time.Second
	// stopTime bounds how long a stopping process tries to give its sagas back. After that, other
	// processes take them over when the lease ends.
	stopTime = time.Second
	// pollEvery is how often a process looks for due sagas.
	pollEvery        = 200 * time.Millisecond
	defaultRetention = 30 * 24 * time.Hour
)

var (
	// leaseMargin is the time from the end of an attempt to the end of its lease.
	leaseMargin = 5 * time.Second
	countEvery  = 10 * time.Second
	pruneEvery  = time.Minute
)

// A Runner runs the sagas of one definition. Any number of processes may do so: each takes due
// sagas, and another one takes them over if it dies.
type Runner struct {
	Saga Definition
	DB   *pgxpool.Pool // has pgjet.saga and the tables of local steps; Workers + 2 connections serve well
	Log  *slog.Logger  // nil discards the log
	// Retention is how long ended sagas are kept: meanwhile no saga with the same key can begin. 0
	// is 30 days. Sagas that need an operator stay.
	Retention time.Duration

	keeper  session.Keeper
	metrics *metrics
	counted atomic.Pointer[counts] // as of some seconds ago
	process string                 // host:pid, and a part of this runner alone
}

// Run runs sagas until ctx ends. Then it lets running attempts finish, releases their sagas, and
// returns nil. It keeps trying during an outage of the database. Run fails at once if the
// definition is not complete.
func (r *Runner) Run(ctx context.Context) (err error) {
	if r.Saga, err = r.Saga.withDefaults(); err != nil {
		return err
	}
	r.Retention = cmp.Or(r.Retention, defaultRetention)
	r.Log = cmp.Or(r.Log, slog.New(slog.DiscardHandler)).With("saga", r.Saga.Name)
	if err := postgres.CheckMode(r.DB.Config().ConnConfig); err != nil {
		return fmt.Errorf("start saga %s: %w", r.Saga.Name, err)
	}
	if r.metrics, err = newMetrics(&r.Saga, &r.counted); err != nil {
		return fmt.Errorf("start saga %s: %w", r.Saga.Name, err)
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	r.process = fmt.Sprintf("%s:%d:%s", host, os.Getpid(), uuid.NewString()[:8])
	r.keeper.Run(ctx, r.Log, r.session)
	return r.metrics.stop()
}

// db returns the pool for the runner's own statements.
func (r *Runner) db() postgres.DB { return postgres.DB{Pool: r.DB} }

// Ready returns nil while sagas are run, otherwise why they are not. Its errors begin with a word
// that docs/cli.md explains, such as database_unreachable. A saga that needs an operator does not
// count.
func (r *Runner) Ready(ctx context.Context) error {
	if err := postgres.CheckWritable(ctx, r.DB); err != nil {
		return err
	}
	return r.keeper.Ready()
}

// lease is how long a saga belongs to the process that began an attempt: longer than the attempt
// may last, even if it has to be abandoned.
func (r *Runner) lease() time.Duration { return 2*r.Saga.Timeout + leaseMargin }

// session runs serve, and returns the cause of its end.
func (r *Runner) session(ctx context.Context) error {
	err := r.serve(ctx)
	if err == nil {
		return nil
	}
	r.renew(err)
	return sqlstate.Explain(lead.NameLock(ctx, r.db(), err, "saga"), "pgjet_consumer")
}

// renew has all connections replaced if the database refused a statement of the runner: a step may
// have changed a connection, for example with set role.
func (r *Runner) renew(err error) {
	if _, refused := errors.AsType[*pgconn.PgError](err); refused {
		r.DB.Reset()
	}
}

// serve takes due sagas and runs them until the database fails, or ctx ends.
func (r *Runner) serve(outer context.Context) error {
	ctx, cancel := context.WithCancel(outer)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	if err := postgres.CheckNames(ctx, r.DB); err != nil {
		return err
	}
	if err := r.releaseAll(ctx); err != nil {
		return err
	}
	running.Go(func() { r.tend(ctx) })
	slots := make(chan struct{}, r.Saga.Workers)
	for claims := 1; ; claims++ {
		select {
		case slots <- struct{}{}: // one is free, and perhaps more
			<-slots
		case <-ctx.Done():
			return nil
		}
		free := cap(slots) - len(slots)
		claimant := fmt.Sprintf("%s:%d", r.process, claims)
		all, err := r.take(ctx, claimant, free)
		if err != nil {
			return err
		}
		if r.keeper.Working() {
			r.Log.InfoContext(ctx, "running sagas")
		}
		for _, x := range all {
			slots <- struct{}{}
			running.Go(func() {
				defer func() { <-slots }()
				r.drive(ctx, x, claimant)
			})
		}
		if len(all) < free && !sleep(ctx, pollEvery) {
			return nil
		}
	}
}

// take runs claim, which a shutdown does not cancel: otherwise the claimed sagas would be stuck
// until their lease ends.
func (r *Runner) take(ctx context.Context, claimant string, most int) ([]*Record, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	return r.claim(ctx, claimant, most)
}

// drive runs a saga until it ends, has to wait, or ctx ends.
func (r *Runner) drive(ctx context.Context, x *Record, claimant string) {
	for {
		wait, err := r.step(ctx, x, claimant)
		if err == nil && x.live() && wait == 0 && ctx.Err() == nil {
			continue
		}
		if err == nil && (x.dirty || x.live()) {
			err = r.save(ctx, r.db(), x, nil, wait)
		}
		switch {
		case errors.Is(err, errOvertaken):
			r.Log.WarnContext(ctx, "another process took the saga over while this one could not reach the database", "saga_id", x.ID, "step", x.Step)
		case err != nil:
			r.renew(err)
			r.Log.InfoContext(ctx, "a saga was released, it goes on from its recorded state", "saga_id", x.ID, "step", x.Step, "err", err)
			r.release(ctx, x, claimant, r.Saga.delay(x.Attempts))
		case !x.live():
			r.logEnd(ctx, x)
		}
		return
	}
}

// logEnd logs how a saga ended.
func (r *Runner) logEnd(ctx context.Context, x *Record) {
	log := r.Log.With("saga_id", x.ID, "key", x.Key)
	switch x.State {
	case NeedsOperator:
		log.ErrorContext(ctx, "saga needs an operator; look at it with pgjet saga get", "step", x.Step, "err", x.Error)
	case Undone:
		log.WarnContext(ctx, "saga is undone", "reason", x.Reason)
	default:
		log.DebugContext(ctx, "saga is done")
	}
}

// tend counts and prunes until ctx ends. Counting may use a fiftieth of the time.
func (r *Runner) tend(ctx context.Context) {
	var pruneAt time.Time
	for {
		begun := time.Now()
		c, err := r.count(ctx)
		if err == nil {
			r.counted.Store(&c)
		}
		wait := max(countEvery, 50*time.Since(begun))
		if err == nil && !time.Now().Before(pruneAt) {
			var more bool
			if more, err = r.prune(ctx); err == nil && !more {
				pruneAt = time.Now().Add(pruneEvery)
			}
		}
		if err != nil && ctx.Err() == nil {
			r.Log.InfoContext(ctx, "sagas were not counted or pruned, will retry", "err", err)
		}
		if !sleep(ctx, wait) {
			return
		}
	}
}

// sleep waits, and reports whether ctx goes on.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}
