package saga

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"go.opentelemetry.io/otel/propagation"

	"github.com/pgjet/pgjet/internal/postgres"
)

// space is the namespace of the ids of sagas.
var space = uuid.MustParse("5b0d1a5e-1f5c-4c53-9d5c-0f6a8f3f7c11")

func idOf(name, key string) uuid.UUID { return uuid.NewSHA1(space, []byte(name+"\x00"+key)) }

// Start begins a saga in tx, in the trace of ctx: it runs if and only if tx commits. There is one
// for each key, such as an order's id; started is false if it exists already. input is stored as
// JSON, for [Saga.Input]. An ended saga is forgotten after [Runner.Retention].
func (d *Definition) Start(ctx context.Context, tx pgx.Tx, key string, input any) (started bool, err error) {
	b, err := json.Marshal(input)
	if err != nil {
		return false, fmt.Errorf("start saga %s: encode its input: %w", d.Name, err)
	}
	trace := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, trace)
	tag, err := tx.Exec(ctx, `
		insert into pgjet.saga (id, name, key, input, traceparent, tracestate) values ($1, $2, $3, $4, $5, $6)
		on conflict (id) do nothing`,
		idOf(d.Name, key), d.Name, key, string(b), trace["traceparent"], trace["tracestate"])
	if err != nil {
		return false, fmt.Errorf("start saga %s: %w", d.Name, err)
	}
	return tag.RowsAffected() == 1, nil
}

// errOvertaken says that the saga was changed meanwhile: this process could not reach the database
// for long, or an operator changed the saga.
var errOvertaken = errors.New("overtaken: another process has the saga now")

const columns = `id, name, key, state, step, attempts, waits, reason, error, steps, epoch, process, due_at, started_at, changed_at,
	ended_at, input, traceparent, tracestate`

func scan(row pgx.CollectableRow) (*Record, error) {
	var x Record
	err := row.Scan(&x.ID, &x.Name, &x.Key, &x.State, &x.Step, &x.Attempts, &x.Waits, &x.Reason, &x.Error, &x.Steps, &x.Epoch, &x.Process,
		&x.DueAt, &x.StartedAt, &x.ChangedAt, &x.EndedAt, &x.Input, &x.Traceparent, &x.Tracestate)
	return &x, err
}

// claim takes due sagas, at most most, for the duration of the lease. claimant is unique to this
// claim.
func (r *Runner) claim(ctx context.Context, claimant string, most int) ([]*Record, error) {
	return postgres.Collect(ctx, r.db(), scan, `
		with due as materialized (
			select id as due_id from pgjet.saga
			 where name = $1 and state in ('running', 'undoing') and due_at <= statement_timestamp()
			 order by due_at limit $2 for update skip locked
		)
		update pgjet.saga set epoch = epoch + 1, process = $3, due_at = clock_timestamp() + $4::interval
		  from due where id = due_id
		returning `+columns, r.Saga.Name, most, claimant, r.lease())
}

// An execer is a pool or a transaction.
type execer interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// save writes x, unless it was changed meanwhile. The process keeps the saga for the duration of
// the lease, unless the saga ended or has to wait.
func (r *Runner) save(ctx context.Context, db execer, x *Record, process *string, due time.Duration) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	steps, err := json.Marshal(x.Steps)
	if err != nil {
		return err
	}
	if !x.live() {
		process = nil
	}
	tag, err := db.Exec(ctx, `
		update pgjet.saga
		   set state = @state, step = @step, attempts = @attempts, waits = @waits, reason = @reason, error = @error, steps = @steps, process = @process,
		       due_at = clock_timestamp() + @due::interval, epoch = epoch + 1, changed_at = clock_timestamp(),
		       ended_at = case when @state in ('done', 'undone') then clock_timestamp() end
		 where id = @id and epoch = @epoch`,
		pgx.NamedArgs{
			"id": x.ID, "epoch": x.Epoch, "state": x.State, "step": x.Step, "attempts": x.Attempts, "waits": x.Waits,
			"reason": x.Reason, "error": x.Error, "steps": string(steps), "process": process, "due": due,
		})
	switch {
	case err != nil:
		return err
	case tag.RowsAffected() == 0:
		return errOvertaken
	}
	x.Epoch++
	x.dirty = false
	return nil
}

// release gives up a saga whose state in the database is unknown to this process. It tries for a
// while; if it fails, the next session or the end of the lease does it.
func (r *Runner) release(ctx context.Context, x *Record, claimant string, wait time.Duration) {
	stopping := ctx
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*patience)
	defer cancel()
	defer context.AfterFunc(stopping, func() { time.AfterFunc(stopTime, cancel) })()
	err := backoff.Retry(func() error {
		_, err := r.db().Exec(ctx, `
			update pgjet.saga set process = null, due_at = clock_timestamp() + $3::interval, epoch = epoch + 1
			 where id = $1 and process = $2`, x.ID, claimant, wait)
		return err
	}, backoff.WithContext(backoff.NewConstantBackOff(200*time.Millisecond), ctx))
	if err != nil {
		r.Log.InfoContext(ctx, "a saga was not given back, it goes on later", "saga_id", x.ID, "err", err)
	}
}

// releaseAll gives up the sagas of earlier sessions of this runner: claims whose answer got lost,
// and sagas that could not be released.
func (r *Runner) releaseAll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	_, err := r.db().Exec(ctx, `
		update pgjet.saga set process = null, due_at = clock_timestamp(), epoch = epoch + 1
		 where name = $1 and state in ('running', 'undoing') and starts_with(process, $2)`, r.Saga.Name, r.process+":")
	return err
}

const prunedAtOnce = 10_000

// prune deletes some sagas that ended long ago. It reports whether there may be more.
func (r *Runner) prune(ctx context.Context) (more bool, err error) {
	tag, err := r.db().Exec(ctx, `
		delete from pgjet.saga where id = any(array(
			select id from pgjet.saga where name = $1 and ended_at < statement_timestamp() - $2::interval limit $3))`,
		r.Saga.Name, r.Retention, prunedAtOnce)
	return tag.RowsAffected() == prunedAtOnce, err
}

// counts are the numbers of sagas by state, the age of the oldest one that has not ended, and where
// sagas are stuck.
type counts struct {
	states  map[string]int64
	oldest  float64 // seconds
	waiting []Waiting
}

func (r *Runner) count(ctx context.Context) (c counts, err error) {
	c.states = make(map[string]int64)
	type row struct {
		State string
		N     int64
		Age   float64
	}
	all, err := postgres.Collect(ctx, r.db(), pgx.RowToStructByPos[row], `
		select state, count(*), coalesce(extract(epoch from clock_timestamp() - min(started_at) filter (where ended_at is null)), 0)
		  from pgjet.saga where name = $1 group by state`, r.Saga.Name)
	for _, row := range all {
		c.states[row.State], c.oldest = row.N, max(c.oldest, row.Age)
	}
	if err != nil {
		return c, err
	}
	c.waiting, err = FindWaiting(ctx, r.DB)
	c.waiting = slices.DeleteFunc(c.waiting, func(w Waiting) bool { return w.Name != r.Saga.Name })
	return c, err
}
