package consumers_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/devserver"
	"github.com/pgjet/pgjet/internal/testenv"
)

// childVariable makes this program run as the child process that it describes.
const childVariable = "PGJET_TEST_CHILD"

// A child is a process of a test: a NATS server, or one that runs the consumer test.
type child struct {
	Server *devserver.NATSOptions

	Database, NATS string
	Form           string // of the handler: handle, batch or effect
	Unordered      bool
	Slices         int
	Workers        int
	AckWait        time.Duration
	Slow           time.Duration // each attempt
	Timeout        time.Duration

	Die string // before, inside, between, committed, acked, exit; "" if it lives on
	At  int    // the event, or the transaction, at which it dies
}

// beChild runs as a child process. It ends with its parent.
func beChild(what string) {
	var c child
	err := json.Unmarshal([]byte(what), &c)
	switch {
	case err != nil:
	case c.Server != nil:
		err = c.serve()
	default:
		err = c.consume()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func (c child) serve() error {
	n, err := devserver.StartNATS(*c.Server)
	if err != nil {
		return err
	}
	fmt.Println(n.Options().Port)
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func (c child) consume() error {
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1)
	}()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	conn, err := nats.Connect(c.NATS, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond), nats.RetryOnFailedConnect(true))
	if err != nil {
		return err
	}
	js, err := jetstream.New(conn)
	if err != nil {
		return err
	}
	config, err := pgxpool.ParseConfig(c.Database)
	if err != nil {
		return err
	}
	d := &doomed{child: c, js: js}
	config.MaxConns = 16
	config.ConnConfig.Tracer = d
	if d.db, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return err
	}
	consumers.SetTimes(c.AckWait, 500*time.Millisecond, time.Second)
	r := &consumers.Runner{Consumer: d.consumer(), DB: d.db, JS: js,
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	fmt.Println("running")
	return r.Run(ctx)
}

// A doomed process dies at the moment that its child specifies.
type doomed struct {
	child
	db           *pgxpool.Pool
	js           jetstream.JetStream
	transactions atomic.Int32
	handled      atomic.Bool // the event at which to die
}

func (d *doomed) consumer() consumers.Consumer {
	c := consumers.Consumer{Name: "test", Unordered: d.Unordered, Slices: max(1, d.Slices), Workers: d.Workers, Timeout: d.Timeout,
		MinRetry: 5 * time.Millisecond, MaxRetry: 50 * time.Millisecond}
	switch d.Form {
	case "batch":
		c.Handler = batch(5, func(ctx context.Context, tx pgx.Tx, all []events.Event) error {
			for _, e := range all {
				if err := d.handle(ctx, tx, e); err != nil {
					return err
				}
			}
			return nil
		})
	case "effect":
		c.Handler = effect(func(ctx context.Context, e events.Event) error {
			return pgx.BeginFunc(ctx, d.db, func(tx pgx.Tx) error { return d.handle(ctx, tx, e) })
		})
	default:
		c.Handler = each(d.handle)
		if d.Die == "before" && d.Workers == 1 { // At counts transactions
			c.Group = 1
		}
	}
	return c
}

func (d *doomed) handle(ctx context.Context, tx pgx.Tx, e events.Event) error {
	p, err := events.Decode[noted](e)
	if err != nil {
		return err
	}
	time.Sleep(d.Slow)
	if p.N == d.At {
		switch d.Die {
		case "inside":
			die()
		case "exit":
			os.Exit(3)
		case "goroutine":
			go panic("in a goroutine that the handler started")
			select {}
		case "acked":
			go d.dieAfterAck(e.ID.String())
		}
		d.handled.Store(true)
	}
	return record(ctx, tx, e)
}

func die() { _ = syscall.Kill(os.Getpid(), syscall.SIGKILL); select {} }

// dieAfterAck waits until JetStream has acknowledged everything so far.
func (d *doomed) dieAfterAck(id string) {
	for {
		var seq uint64
		err := d.db.QueryRow(context.Background(), `select stream_seq from pgjet.inbox where event_id = $1 and state = 'done'`, id).Scan(&seq)
		if c, cErr := d.js.Consumer(context.Background(), "EVENTS", "test"); err == nil && cErr == nil && c.CachedInfo().AckFloor.Stream >= seq {
			die()
		}
		time.Sleep(time.Millisecond)
	}
}

// TraceBatchStart recognises the first statements of an attempt's transaction.
func (d *doomed) TraceBatchStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceBatchStartData) context.Context {
	attempt := slices.ContainsFunc(data.Batch.QueuedQueries, func(q *pgx.QueuedQuery) bool {
		return strings.Contains(q.SQL, inbox.AttemptName)
	})
	if d.Die == "before" && attempt && d.transactions.Add(1) == int32(d.At) {
		die()
	}
	return ctx
}

func (d *doomed) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}
func (d *doomed) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData)     {}

func (d *doomed) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	return context.WithValue(ctx, statementKey{}, data.SQL)
}

type statementKey struct{}

// TraceQueryEnd recognises that the handler's transaction has committed.
func (d *doomed) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	if sql, _ := ctx.Value(statementKey{}).(string); sql != "commit" || !d.handled.Load() {
		return
	}
	switch {
	case d.Die == "between" && d.Form == "effect": // between the effect and its commit
		die()
	case d.Die == "committed" && d.Form != "effect":
		die()
	case d.Die == "committed" && d.transactions.Add(1) == 2: // the first is the effect's own
		die()
	}
}

// A process is a running child.
type process struct {
	t     testing.TB
	child child
	cmd   *exec.Cmd
	done  chan struct{}
}

// start runs a child, waits for its first line, and ends it at cleanup.
func (c child) start(t testing.TB) (*process, string) {
	t.Helper()
	what, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, child: c, cmd: exec.Command(os.Args[0]), done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), childVariable+"="+string(what))
	p.cmd.Stderr = t.Output()
	p.cmd.WaitDelay = time.Second
	_, inErr := p.cmd.StdinPipe() // closed by the end of this process
	out, outErr := p.cmd.StdoutPipe()
	if err := errors.Join(inErr, outErr, p.cmd.Start()); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	go func() {
		_ = p.cmd.Wait() // killed, mostly
		close(p.done)
	}()
	t.Cleanup(p.kill)
	if err != nil {
		t.Fatalf("a process did not start: %v", err)
	}
	return p, strings.TrimSpace(line)
}

// kill ends it by force, frozen or not.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it has ended otherwise
	<-p.done
}

// ends waits until the process has ended without being asked.
func (p *process) ends() {
	p.t.Helper()
	testenv.Eventually(p.t, time.Minute, fmt.Sprintf("the process dies %s at %d", p.child.Die, p.child.At), func() bool {
		select {
		case <-p.done:
			return true
		default:
			return false
		}
	})
}

// stop asks the process to end, and waits until it has.
func (p *process) stop() {
	p.t.Helper()
	p.signal(syscall.SIGTERM)
	p.ends()
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		p.t.Errorf("a process that was asked to end exited with %d", code)
	}
}

func (p *process) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}
