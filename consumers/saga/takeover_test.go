package saga_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/pgjet/pgjet/consumers/saga"
	"github.com/pgjet/pgjet/internal/testenv"
)

// A frozen process stops at one moment until it thaws.
type frozen struct {
	at     string // the beginning of a statement, or "end " and that
	only   int32  // the first, second, … time
	seen   atomic.Int32
	stands chan struct{}
	thaws  chan struct{}
}

func (f *frozen) passes(moment string) {
	if strings.HasPrefix(moment, f.at) && f.seen.Add(1) == f.only {
		close(f.stands)
		<-f.thaws
	}
}

func words(sql string) string { return strings.Join(strings.Fields(sql), " ") }

func (f *frozen) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	f.passes(words(data.SQL))
	return context.WithValue(ctx, statementKey{}, words(data.SQL))
}

func (f *frozen) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	sql, _ := ctx.Value(statementKey{}).(string)
	f.passes("end " + sql)
}

// TraceBatchStart recognises the statement among those that are sent together.
func (f *frozen) TraceBatchStart(ctx context.Context, conn *pgx.Conn, data pgx.TraceBatchStartData) context.Context {
	for _, q := range data.Batch.QueuedQueries {
		if strings.Contains(q.SQL, "pgjet.saga") {
			return f.TraceQueryStart(ctx, conn, pgx.TraceQueryStartData{SQL: q.SQL})
		}
	}
	return ctx
}

func (f *frozen) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

// TraceBatchEnd recognises its answer.
func (f *frozen) TraceBatchEnd(ctx context.Context, conn *pgx.Conn, _ pgx.TraceBatchEndData) {
	f.TraceQueryEnd(ctx, conn, pgx.TraceQueryEndData{})
}

// A journal records the log.
type journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(b)
}

func (j *journal) says(s string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Contains(j.b.String(), s)
}

// TestZombie freezes a process at a moment, until another one has taken its saga over and ended it.
// When it thaws, it makes no call, and changes nothing.
func TestZombie(t *testing.T) {
	saga.SetTimes(t, 200*time.Millisecond, time.Second)
	const save, begin = "update pgjet.saga set state", "begin"
	for _, row := range []struct {
		name string
		at   string
		only int32
	}{
		{"before it is written down that a is tried", save, 1},
		{"before the call of a", "end " + save, 1},
		{"after the call of a", save, 2},
		{"before the call of b", "end " + save, 2},
		{"before the local step", begin, 1},
		{"before the call of c", "end " + save, 5},
		{"before the last step", begin, 2},
	} {
		t.Run(row.name, func(t *testing.T) {
			b := newFixture(t)
			f := &frozen{at: row.at, only: row.only, stands: make(chan struct{}), thaws: make(chan struct{})}
			config := b.db.Config().Copy()
			config.ConnConfig.Tracer = f
			db, err := pgxpool.NewWithConfig(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(db.Close)
			var calls atomic.Int32
			d := b.definition(func(context.Context, *saga.Saga, string) error { calls.Add(1); return nil })
			d.Timeout, d.Workers = time.Second, 1
			id := b.begin(d, "k")
			log := &journal{}
			stopZombie := b.run(&saga.Runner{Saga: d, DB: db, Log: slog.New(slog.NewTextHandler(log, nil))})
			select {
			case <-f.stands:
			case <-time.After(patience):
				t.Fatal("the process does not come to that moment")
			}
			b.run(&saga.Runner{Saga: d})
			before := b.ends(id, saga.Done)
			were := calls.Load()
			close(f.thaws)
			testenv.Eventually(t, patience, "it notices", func() bool { return log.says("took the saga over") || log.says("was released") })
			stopZombie()
			if after := b.ends(id, saga.Done); after.Epoch != before.Epoch {
				t.Errorf("the saga's epoch is %d, was %d", after.Epoch, before.Epoch)
			}
			if n := calls.Load(); n != were {
				t.Errorf("%d calls, were %d before it thawed", n, were)
			}
			b.books()
		})
	}
}

// TestStopHandsOver: a stopping process finishes the running step, and leaves the rest to others at
// once.
func TestStopHandsOver(t *testing.T) {
	t.Parallel()
	for step, done := range map[int]string{1: "a:done b:done", 2: "a:done b:done local:done"} {
		t.Run(done, func(t *testing.T) {
			t.Parallel()
			b := newFixture(t)
			trying, goOn := make(chan struct{}), make(chan struct{})
			d := b.definition(nil)
			first := d
			first.Steps = slices.Clone(d.Steps)
			first.Steps[1] = saga.Outside("b", func(ctx context.Context, s *saga.Saga) error {
				if step == 1 {
					close(trying)
					<-goOn
				}
				return b.do(ctx, s, "b")
			}, nil)
			first.Steps[2] = saga.Local("local", func(ctx context.Context, tx pgx.Tx, s *saga.Saga) error {
				close(trying)
				<-goOn
				_, err := tx.Exec(ctx, `insert into local (saga) values ($1)`, s.Key)
				return err
			}, nil)
			id := b.begin(d, "k")
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- (&saga.Runner{Saga: first, DB: b.db, Log: testenv.Logger(t)}).Run(ctx) }()
			<-trying
			cancel()
			close(goOn)
			if err := <-ended; err != nil {
				t.Errorf("Run() = %v", err)
			}
			x, err := saga.Get(t.Context(), b.db, id)
			if err != nil || steps(x) != done || x.Process != nil || time.Until(x.DueAt) > time.Second {
				t.Errorf("a stopped process leaves %+v, %v; want %s, and all due", x, err, done)
			}
			b.run(&saga.Runner{Saga: d})
			if x = b.ends(id, saga.Done); x.Steps[step].Attempts != 1 {
				t.Errorf("the step took %d attempts, want 1", x.Steps[step].Attempts)
			}
			b.books()
		})
	}
}

// TestDatabaseGoesAway: connections break all the time; nothing is lost or done twice.
func TestDatabaseGoesAway(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	d := b.definition(nil)
	d.MaxAttempts = 1000
	config := b.db.Config().Copy()
	config.ConnConfig.RuntimeParams["application_name"] = "victim"
	db, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	for n := range 40 {
		b.begin(d, fmt.Sprint("k", n))
	}
	b.run(&saga.Runner{Saga: d, DB: db, Log: discard})
	testenv.Eventually(t, patience, "all end", func() bool {
		b.exec(`select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'victim' and datname = current_database() and random() < 0.05`)
		return b.text(`select count(*)::text from pgjet.saga where ended_at is null`) == "0"
	})
	b.books()
}

// TestLostClaim: a saga whose claim was not answered goes on as soon as the process reaches the
// database again, not only when the lease ends.
func TestLostClaim(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	trying := make(chan struct{}, 1)
	d := b.definition(func(_ context.Context, s *saga.Saga, what string) error {
		if s.Key == "first" && what == "b" {
			select {
			case trying <- struct{}{}:
			default:
			}
			return saga.Unavailable(errors.New("away"))
		}
		return nil
	})
	b.begin(d, "first")
	config := b.db.Config().Copy()
	config.ConnConfig.RuntimeParams["application_name"] = "victim"
	db, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	b.run(&saga.Runner{Saga: d, DB: db, Log: discard})
	<-trying
	process := ""
	testenv.Eventually(t, patience, "a process has the saga", func() bool {
		process = b.text(`select process from pgjet.saga where process is not null`)
		return process != ""
	})
	b.exec(`insert into pgjet.saga (id, name, key, input, process, due_at) values (gen_random_uuid(), 'test', 'lost', '{}', $1, now() + interval '1 hour')`,
		process[:strings.LastIndex(process, ":")]+":0")
	testenv.Eventually(t, patience, "the other saga ends", func() bool {
		b.exec(`select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'victim' and datname = current_database() and random() < 0.05`)
		return b.text(`select state from pgjet.saga where key = 'lost'`) == saga.Done
	})
}

// TestReady: a process is ready, except when it cannot reach the tables.
func TestReady(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	r := &saga.Runner{Saga: b.definition(nil), DB: b.db}
	b.run(r)
	testenv.Eventually(t, patience, "it is ready", func() bool { return r.Ready(t.Context()) == nil })
	b.exec(`alter table pgjet.saga rename to gone`)
	testenv.Eventually(t, patience, "it says what is missing", func() bool {
		err := r.Ready(t.Context())
		return err != nil && strings.HasPrefix(err.Error(), "schema_outdated: ")
	})
	b.exec(`alter table pgjet.gone rename to saga`)
	testenv.Eventually(t, patience, "it is ready again", func() bool { return r.Ready(t.Context()) == nil })
}

// TestLeastRights: pgjet_consumer is enough for the runner, pgjet_operator for the rest.
func TestLeastRights(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.exec(`grant all on call, effect, ended, local to pgjet_consumer`)
	d := b.definition(at("undo a", errors.New("ouch")))
	d.Steps[1] = saga.Outside("b", func(context.Context, *saga.Saga) error { return saga.Refused("no") }, nil)
	d.MaxUndos = 1
	as := func(role string) *pgxpool.Pool {
		config := b.db.Config().Copy()
		config.AfterConnect = func(ctx context.Context, c *pgx.Conn) error { _, err := c.Exec(ctx, `set role `+role); return err }
		db, err := pgxpool.NewWithConfig(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(db.Close)
		return db
	}
	consumer, operator := as("pgjet_consumer"), as("pgjet_operator")
	err := pgx.BeginFunc(t.Context(), consumer, func(tx pgx.Tx) error {
		_, err := d.Start(t.Context(), tx, "k", nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	b.run(&saga.Runner{Saga: d, DB: consumer})
	testenv.Eventually(t, patience, "it needs an operator", func() bool {
		all, err := saga.List(t.Context(), operator, saga.Filter{State: saga.NeedsOperator, Key: "k"})
		return err == nil && len(all) == 1
	})
	all, err := saga.List(t.Context(), operator, saga.Filter{})
	if err != nil || len(all) != 1 {
		t.Fatalf("List() = %v, %v", all, err)
	}
	if _, err := saga.Get(t.Context(), operator, all[0].ID); err != nil {
		t.Error(err)
	}
	if err := saga.Retry(t.Context(), operator, all[0].ID, "me", "r"); err != nil {
		t.Error(err)
	}
}

// TestMetricsAndRetention: existing sagas are counted, and those that ended long ago are forgotten.
func TestMetricsAndRetention(t *testing.T) {
	saga.SetTimes(t, time.Second, 50*time.Millisecond)
	b := newFixture(t)
	d := b.definition(at("b", saga.Unavailable(errors.New("away"))))
	d.Name = "metrics"
	b.begin(d, "waits")
	for _, row := range []struct{ state, ended string }{
		{"done", "1 day"}, {"done", "3 days"}, {"undone", "4 days"}, {"needs_operator", ""},
	} {
		b.exec(`insert into pgjet.saga (id, name, key, input, state, ended_at, started_at)
			values (gen_random_uuid(), 'metrics', $1, '{}', $1, now() - nullif($2, '')::interval, now() - interval '9 days')`, row.state, row.ended)
	}
	b.run(&saga.Runner{Saga: d, Retention: 48 * time.Hour})
	want := "done=1 needs_operator=1 oldest=9d running=1 tried=true undoing=0 undone=0 waiting=1"
	got := ""
	testenv.Eventually(t, patience, "the metrics say "+want, func() bool {
		got = measured(t, "metrics")
		return got == want
	})
	if keys := b.text(`select state from pgjet.saga where name = 'metrics' order by state`); keys != "done needs_operator running" {
		t.Errorf("kept are %s", keys)
	}
}

// measured returns the metrics of a saga.
func measured(t *testing.T, name string) string {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	values := map[string]string{"tried": "false"}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			switch data := m.Data.(type) {
			case metricdata.Gauge[int64]:
				for _, p := range data.DataPoints {
					if of, _ := p.Attributes.Value("saga"); of.AsString() == name {
						key := "waiting"
						if state, ok := p.Attributes.Value("state"); ok {
							key = state.AsString()
						}
						values[key] = fmt.Sprint(p.Value)
					}
				}
			case metricdata.Gauge[float64]:
				for _, p := range data.DataPoints {
					if of, _ := p.Attributes.Value("saga"); of.AsString() == name {
						values["oldest"] = fmt.Sprintf("%.0fd", p.Value/86400)
					}
				}
			case metricdata.Sum[int64]:
				for _, p := range data.DataPoints {
					of, _ := p.Attributes.Value("saga")
					result, _ := p.Attributes.Value("result")
					step, _ := p.Attributes.Value("step")
					if of.AsString() == name && step.AsString() == "b" && result.AsString() == "unavailable" && p.Value > 0 {
						values["tried"] = "true"
					}
				}
			}
		}
	}
	var lines []string
	for k, v := range values {
		lines = append(lines, k+"="+v)
	}
	slices.Sort(lines)
	return strings.Join(lines, " ")
}
