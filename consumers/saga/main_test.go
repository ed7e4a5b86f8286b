package saga_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/pgjet/pgjet/consumers/saga"
	"github.com/pgjet/pgjet/internal/testenv"
)

// spans are those of all tests.
var spans = tracetest.NewInMemoryExporter()

// reader reads the metrics of all tests.
var reader = metric.NewManualReader()

func TestMain(m *testing.M) {
	if what := os.Getenv(childVariable); what != "" {
		beChild(what)
	}
	otel.SetTracerProvider(trace.NewTracerProvider(trace.WithSyncer(spans)))
	otel.SetMeterProvider(metric.NewMeterProvider(metric.WithReader(reader)))
	testenv.Main(m)
}

const patience = 40 * time.Second

// A world is what sagas change outside: a service that recognises its idempotency keys, and records
// every call. It is in the same database, in transactions of its own.
type world struct{ db *pgxpool.Pool }

const worldTables = `
	create table call (n bigint generated always as identity, saga text, step text, way text, key text);
	create table effect (key text primary key, saga text, step text);
	create table ended (saga text, how text);
	create table local (saga text)`

// do records a step's effect in the world, once for a key.
func (w world) do(ctx context.Context, s *saga.Saga, step string) error {
	return w.call(ctx, s, step, "do", s.DoKey(), `insert into effect (key, saga, step) values ($1, $2, $3) on conflict (key) do nothing`)
}

// undo removes the effect, if there is one.
func (w world) undo(ctx context.Context, s *saga.Saga, step string) error {
	return w.call(ctx, s, step, "undo", s.UndoKey(), `delete from effect where key || '.undo' = $1 and saga = $2 and step = $3`)
}

func (w world) call(ctx context.Context, s *saga.Saga, step, way, key, effect string) error {
	return pgx.BeginFunc(ctx, w.db, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `insert into call (saga, step, way, key) values ($1, $2, $3, $4)`, s.Key, step, way, key)
		if err == nil {
			_, err = tx.Exec(ctx, effect, key, s.Key, step)
		}
		return err
	})
}

// step returns a step that only does and undoes its effect. hook, if not nil, is called before each
// call with the step's name, or "undo" and the name.
func (w world) step(name string, hook func(ctx context.Context, s *saga.Saga, what string) error) saga.Step {
	return saga.Outside(name,
		func(ctx context.Context, s *saga.Saga) error {
			if hook != nil {
				if err := hook(ctx, s, name); err != nil {
					return err
				}
			}
			return w.do(ctx, s, name)
		},
		func(ctx context.Context, s *saga.Saga) error {
			if hook != nil {
				if err := hook(ctx, s, "undo "+name); err != nil {
					return err
				}
			}
			return w.undo(ctx, s, name)
		})
}

// definition is a saga of outside steps a, b and c, a local one between b and c, and a final one
// that records the end.
func (w world) definition(hook func(ctx context.Context, s *saga.Saga, what string) error) saga.Definition {
	ended := func(how string) func(context.Context, pgx.Tx, *saga.Saga) error {
		return func(ctx context.Context, tx pgx.Tx, s *saga.Saga) error {
			_, err := tx.Exec(ctx, `insert into ended (saga, how) values ($1, $2)`, s.Key, strings.TrimSpace(how+" "+s.Reason))
			return err
		}
	}
	local := saga.Local("local",
		func(ctx context.Context, tx pgx.Tx, s *saga.Saga) error {
			_, err := tx.Exec(ctx, `insert into local (saga) values ($1)`, s.Key)
			return err
		},
		func(ctx context.Context, tx pgx.Tx, s *saga.Saga) error {
			_, err := tx.Exec(ctx, `delete from local where saga = $1`, s.Key)
			return err
		})
	return saga.Definition{
		Name:     "test",
		Steps:    []saga.Step{w.step("a", hook), w.step("b", hook), local, w.step("c", hook), saga.Local("end", ended("done"), nil)},
		Rejected: ended("rejected"),
		MinRetry: time.Millisecond, MaxRetry: 20 * time.Millisecond,
	}
}

// A fixture is a database with a world, and runners of sagas.
type fixture struct {
	*testing.T
	world
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	b := &fixture{t, world{testenv.Postgres(t)}}
	b.exec(worldTables)
	return b
}

func (b *fixture) exec(sql string, args ...any) {
	b.Helper()
	testenv.Exec(b, b.db, sql, args...)
}

// text returns the result of a query, joined by spaces.
func (b *fixture) text(sql string, args ...any) string {
	b.Helper()
	rows, _ := b.db.Query(b.Context(), sql, args...)
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		b.Fatal(err)
	}
	return strings.Join(all, " ")
}

// begin starts a saga, and returns its id.
func (b *fixture) begin(d saga.Definition, key string) uuid.UUID {
	b.Helper()
	err := pgx.BeginFunc(b.Context(), b.db, func(tx pgx.Tx) error {
		started, err := d.Start(b.Context(), tx, key, map[string]string{"for": key})
		if err == nil && !started {
			err = fmt.Errorf("saga %s was there already", key)
		}
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return uuid.MustParse(b.text(`select id::text from pgjet.saga where name = $1 and key = $2`, d.Name, key))
}

// pool returns another pool, for steps that change their connections.
func (b *fixture) pool() *pgxpool.Pool {
	b.Helper()
	db, err := pgxpool.NewWithConfig(b.Context(), b.db.Config())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(db.Close)
	return db
}

// run runs a runner until stop is called or the test ends.
func (b *fixture) run(r *saga.Runner) (stop func()) {
	b.Helper()
	if r.DB == nil {
		r.DB = b.db
	}
	if r.Log == nil {
		r.Log = testenv.Logger(b)
	}
	return testenv.Run(b, r.Run)
}

// ends waits until a saga is in a state, which has to last.
func (b *fixture) ends(id uuid.UUID, state string) *saga.Record {
	b.Helper()
	var x *saga.Record
	testenv.Eventually(b, patience, "saga is "+state, func() bool {
		var err error
		x, err = saga.Get(b.Context(), b.db, id)
		if err != nil {
			b.Fatal(err)
		}
		return x.State == state
	})
	return x
}

// steps returns the names and states of a saga's steps.
func steps(x *saga.Record) string {
	var all []string
	for _, s := range x.Steps {
		all = append(all, s.Name+":"+s.State)
	}
	return strings.Join(all, " ")
}

// calls returns the first call of each kind, in order.
func (b *fixture) calls(key string) string {
	b.Helper()
	return b.text(`select case way when 'do' then step else 'undo-' || step end from call where saga = $1 group by step, way order by min(n)`, key)
}

// books compares the world with the database: one key for each call, each effect once or undone,
// and one call of Rejected.
func (b *fixture) books() {
	b.Helper()
	for what, query := range map[string]string{
		"calls with more than one key": `select saga || ':' || step from call group by saga, step, way having count(distinct key) > 1`,
		"keys of more than one call":   `select key from call group by key having count(distinct (saga, step, way)) > 1`,
		"sagas that have not ended":    `select key from pgjet.saga where state not in ('done', 'undone')`,
		"done sagas without all effects": `select key from pgjet.saga s where state = 'done' and (
			3 <> (select count(*) from effect e where e.saga = s.key) or 1 <> (select count(*) from local l where l.saga = s.key))`,
		"undone sagas with effects": `select key from pgjet.saga s where state = 'undone' and (
			exists (select from effect e where e.saga = s.key) or exists (select from local l where l.saga = s.key))`,
		"sagas without one last word": `select key from pgjet.saga s where 1 <> (select count(*) from ended e where e.saga = s.key
			and e.how = case when state = 'done' then 'done' else 'rejected ' || reason end) or 1 <> (select count(*) from ended e where e.saga = s.key)`,
		"undos that are not in reverse order": `select distinct x.saga from call x join call y using (saga)
			where x.way = 'undo' and y.way = 'undo' and x.step > y.step and x.n > y.n`,
	} {
		if got := b.text(query); got != "" {
			b.Errorf("%s: %s", what, got)
		}
	}
}
