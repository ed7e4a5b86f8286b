package saga_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/consumers/saga"
	"github.com/pgjet/pgjet/internal/testenv"
)

var discard = slog.New(slog.DiscardHandler)

// childVariable makes this program run as the child process that it describes.
const childVariable = "PGJET_TEST_CHILD"

// A child is a process that runs sagas, and kills itself at a moment: the beginning or the end of
// an outside call, or of a statement that commits.
type child struct {
	Database string
	Fails    string // what is refused: a, b or c; "" if all succeeds
	Moment   int32
}

// beChild runs as a child process. It ends with its parent.
func beChild(what string) {
	var c child
	err := json.Unmarshal([]byte(what), &c)
	if err == nil {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			os.Exit(1)
		}()
		err = c.run()
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func (c child) run() error {
	config, err := pgxpool.ParseConfig(c.Database)
	if err != nil {
		return err
	}
	outside, err := pgxpool.NewWithConfig(context.Background(), config.Copy())
	if err != nil {
		return err
	}
	d := &doomed{moment: c.Moment}
	config.ConnConfig.Tracer = d
	db, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		return err
	}
	w := world{outside}
	r := saga.Runner{Saga: w.killed(c.Fails, d.passes), DB: db, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	fmt.Println("running")
	return r.Run(context.Background())
}

// killed is the definition that child and test run: one step of it may be refused.
func (w world) killed(fails string, passes func()) saga.Definition {
	d := w.definition(nil)
	for i, name := range map[int]string{0: "a", 1: "b", 3: "c"} {
		d.Steps[i] = saga.Outside(name,
			func(ctx context.Context, s *saga.Saga) error {
				passes()
				defer passes()
				if name == fails {
					return saga.Refused("odd")
				}
				return w.do(ctx, s, name)
			},
			func(ctx context.Context, s *saga.Saga) error {
				passes()
				defer passes()
				return w.undo(ctx, s, name)
			})
	}
	return d
}

// A doomed process dies at its moment.
type doomed struct {
	moment int32
	passed atomic.Int32
}

func (d *doomed) passes() {
	if d.passed.Add(1) == d.moment {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}

type statementKey struct{}

// commits reports whether a statement changes sagas.
func commits(sql string) bool {
	return sql == "commit" || strings.Contains(sql, "update pgjet.saga")
}

// TraceQueryStart is called before a statement is sent; the first claim does not count.
func (d *doomed) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if commits(data.SQL) && !strings.Contains(data.SQL, "skip locked") {
		d.passes()
	}
	return context.WithValue(ctx, statementKey{}, data.SQL)
}

// TraceQueryEnd is called after a statement was answered.
func (d *doomed) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	if sql, _ := ctx.Value(statementKey{}).(string); commits(sql) {
		d.passes()
	}
}

// TraceBatchStart is called before statements are sent together.
func (d *doomed) TraceBatchStart(ctx context.Context, conn *pgx.Conn, data pgx.TraceBatchStartData) context.Context {
	for _, q := range data.Batch.QueuedQueries {
		if q.SQL != "commit" && commits(q.SQL) {
			return d.TraceQueryStart(ctx, conn, pgx.TraceQueryStartData{SQL: q.SQL})
		}
	}
	return ctx
}

// TraceBatchQuery is called after the answer to one of them.
func (d *doomed) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

// TraceBatchEnd is called after statements were answered together.
func (d *doomed) TraceBatchEnd(ctx context.Context, conn *pgx.Conn, _ pgx.TraceBatchEndData) {
	d.TraceQueryEnd(ctx, conn, pgx.TraceQueryEndData{})
}

// start runs a child until it is dead, or the saga has ended. It reports whether the saga has
// ended.
func (c child) start(b *fixture, id uuid.UUID) (ended bool) {
	b.Helper()
	what, err := json.Marshal(c)
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"="+string(what))
	cmd.Stderr = b.Output()
	cmd.WaitDelay = time.Second
	_, inErr := cmd.StdinPipe() // closed by the end of this process
	out, outErr := cmd.StdoutPipe()
	if err := errors.Join(inErr, outErr, cmd.Start()); err != nil {
		b.Fatal(err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		b.Errorf("a process did not start: %v", err)
	}
	dead := make(chan struct{})
	go func() { _ = cmd.Wait(); close(dead) }() // killed, mostly
	defer func() { _ = cmd.Process.Kill(); <-dead }()
	testenv.Eventually(b, patience, "the process dies, or the saga ends", func() bool {
		x, err := saga.Get(b.Context(), b.db, id)
		ended = err == nil && x.EndedAt != nil
		select {
		case <-dead:
			return true
		default:
			return ended
		}
	})
	return ended
}

// TestKilledAtEachMoment kills the process at each moment of a saga in turn, and lets another one
// go on: for sagas that succeed, and for sagas that are refused at each step.
func TestKilledAtEachMoment(t *testing.T) {
	t.Parallel()
	for fails, least := range map[string]int{"": 20, "a": 9, "b": 16, "c": 27} {
		t.Run("refused "+fails, func(t *testing.T) {
			t.Parallel()
			b := newFixture(t)
			n := 0
			for ended := false; !ended; {
				n++
				ended = b.killedAt(fmt.Sprint("k", n), fails, int32(n))
			}
			if n < least {
				t.Errorf("the process was killed at %d moments, want %d or more", n, least)
			}
			t.Logf("%d moments", n)
			b.books()
		})
	}
}

// TestKilledAgain also kills the processes that take over, at random moments.
func TestKilledAgain(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 2))
	b := newFixture(t)
	for n := range 6 {
		fails := []string{"", "c"}[n%2]
		b.killedAt(fmt.Sprint("k", n), fails, 1+random.Int32N(8), 1+random.Int32N(8), 1+random.Int32N(8))
	}
	b.books()
}

// killedAt runs a saga in processes that die at moments, and then in one that does not. It reports
// whether the saga had ended before that.
func (b *fixture) killedAt(key, fails string, moments ...int32) (ended bool) {
	b.Helper()
	d := b.killed(fails, func() {})
	id := b.begin(d, key)
	for _, m := range moments {
		c := child{Database: b.db.Config().ConnString(), Fails: fails, Moment: m}
		if c.start(b, id) {
			return true
		}
		// As if the lease of the dead process had ended.
		b.exec(`update pgjet.saga set due_at = now() where id = $1`, id)
	}
	stop := b.run(&saga.Runner{Saga: d, Log: discard})
	defer stop()
	state := saga.Done
	if fails != "" {
		state = saga.Undone
	}
	b.ends(id, state)
	return false
}
