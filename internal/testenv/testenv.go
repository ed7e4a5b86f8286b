// Package testenv gives tests real servers: a migrated PostgreSQL database of their own, a NATS
// server, or a whole PostgreSQL server for fault injection. They last until the test ends and are
// then removed. Package pgjettest offers a part of this to the tests of users.
//
// The databases of a test process are in one PostgreSQL server, which is started for the first of
// them, and is fast because it is not crash-safe. If PGJET_TEST_DATABASE_URL is set, they are in
// that server instead; its role must be a superuser. The server ends soon after the process, where
// there is a shell, and before that in a package that has
//
//	func TestMain(m *testing.M) { testenv.Main(m) }
//
// All tests may run in parallel. A server that is missing or does not start fails the test: no test
// is skipped.
package testenv

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/internal/devserver"
)

// Main runs the tests, stops the shared server, and exits the process.
func Main(m *testing.M) {
	code := m.Run()
	if err := shared.stop(); err != nil {
		fmt.Fprintln(os.Stderr, "testenv:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// PostgresServer starts a PostgreSQL server for tests that stop or kill it;
// [devserver.Postgres.Options] can start it again. It has the database pgjet without any table. A
// running server is stopped at cleanup.
func PostgresServer(t testing.TB) *devserver.Postgres {
	t.Helper()
	return PostgresServerWith(t, devserver.PostgresOptions{})
}

// PostgresServerWith is [PostgresServer] with options. An existing server in o.Dir, which is kept,
// is started unchanged; "" makes a new one.
func PostgresServerWith(t testing.TB, o devserver.PostgresOptions) *devserver.Postgres {
	t.Helper()
	dir := o.Dir
	if dir == "" {
		dir = filepath.Join(Dir(t), "pg")
	}
	all := serverOptions(dir)
	all.Bin, all.Port = cmp.Or(o.Bin, all.Bin), o.Port
	maps.Copy(all.Settings, o.Settings)
	p, err := devserver.StartPostgres(t.Context(), all)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// NATS starts a NATS server with JetStream in a directory of its own. It does not wait for the
// disk. The test may stop it, and start it again with [devserver.NATS.Options].
func NATS(t testing.TB) *devserver.NATS {
	t.Helper()
	return NATSWith(t, "")
}

// NATSWith is NATS with more configuration, in the format of NATS's own file.
func NATSWith(t testing.TB, config string) *devserver.NATS {
	t.Helper()
	n, err := devserver.StartNATS(devserver.NATSOptions{Dir: t.TempDir(), Lazy: true, Config: config})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Stop)
	return n
}

// OtherVersion returns the address of a proxy for the NATS server at url that reports another
// version.
func OtherVersion(t testing.TB, url, version string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			go proxyINFO(client, strings.TrimPrefix(url, "nats://"), version)
		}
	}()
	return "nats://" + l.Addr().String()
}

var versionInINFO = regexp.MustCompile(`"version":"[^"]*"`)

func proxyINFO(client net.Conn, server, version string) {
	defer client.Close()
	upstream, err := net.Dial("tcp", server)
	if err != nil {
		return
	}
	defer upstream.Close()
	go func() { _, _ = io.Copy(upstream, client); upstream.Close() }()
	from := bufio.NewReader(upstream)
	for { // every line of the server ends with a line end
		line, err := from.ReadString('\n')
		if strings.HasPrefix(line, "INFO ") {
			line = versionInINFO.ReplaceAllString(line, `"version":"`+version+`"`)
		}
		if _, failed := io.WriteString(client, line); err != nil || failed != nil {
			return
		}
	}
}

// JetStream returns a connection to a NATS server of its own, without any stream,
// and the address of that server. The connection reconnects for ever.
func JetStream(t testing.TB) (jetstream.JetStream, string) {
	t.Helper()
	n := NATS(t)
	return Connect(t, n.URL()), n.URL()
}

// Connect returns a connection to the NATS server at url. It reconnects for ever.
func Connect(t testing.TB, url string) jetstream.JetStream {
	t.Helper()
	conn, err := nats.Connect(url, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// RestartNATS starts a stopped server again, on its port and with its data.
func RestartNATS(t testing.TB, stopped *devserver.NATS) *devserver.NATS {
	t.Helper()
	n, err := devserver.StartNATS(stopped.Options())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Stop)
	return n
}

// Logger returns a logger that writes to the output of the test. Records after the end of the test
// are dropped.
func Logger(t testing.TB) *slog.Logger { return LoggerFrom(t, slog.LevelDebug) }

// LoggerFrom is [Logger] for records from a level on.
func LoggerFrom(t testing.TB, level slog.Level) *slog.Logger {
	w := &output{t: t}
	t.Cleanup(w.close)
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}

// An output writes to a test until the test has ended.
type output struct {
	mu     sync.Mutex
	t      testing.TB
	closed bool
}

func (w *output) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return len(b), nil
	}
	return w.t.Output().Write(b)
}

func (w *output) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
}

// Run calls run, such as the Run of a relay, until stop is called or the test ends. The test fails
// if run returns an error.
func Run(t testing.TB, run func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run() = %v, want nil after its context ended", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// Eventually polls until cond holds. If it does not within that time, the test fails and ends, with
// a message such as "timed out after 5s: the row exists".
func Eventually(t testing.TB, within time.Duration, what string, cond func() bool) {
	t.Helper()
	for range Tries(within) {
		if cond() {
			return
		}
	}
	t.Fatalf("timed out after %s: %s", within, what)
}

// Tries yields until that time has passed, and then once more, with a pause after each try. Servers
// and tests share the processors, so tests that wait must not keep them busy: the pause is 5 ms at
// first, and grows to 50 ms with the time that has passed. It is no shorter than the try before it,
// up to a quarter of a second.
func Tries(within time.Duration) iter.Seq[time.Duration] {
	return func(yield func(waited time.Duration) bool) {
		begun := time.Now()
		for waited := time.Duration(0); yield(waited) && waited <= within; waited = time.Since(begun) {
			tried := time.Since(begun) - waited
			time.Sleep(max(5*time.Millisecond, min(waited/32, 50*time.Millisecond), min(tried, 250*time.Millisecond)))
		}
	}
}

// dirPrefix begins the names of directories that hold servers of tests.
const dirPrefix = "pgjet-test-"

// Dir returns a new directory for the data of servers, which every user may enter, in memory if
// there is room. It is removed at cleanup.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := makeDirIn(memoryOr(os.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(t, dir) })
	return dir
}

// makeDir returns a new directory, which the user of PostgreSQL may enter.
func makeDir() (string, error) { return makeDirIn(os.TempDir()) }

// makeDirIn is makeDir in a parent directory. First it removes those of tests that died a day ago
// or earlier.
func makeDirIn(parent string) (string, error) {
	old, _ := filepath.Glob(filepath.Join(parent, dirPrefix+"*"))
	for _, dir := range old {
		if info, err := os.Stat(dir); err == nil && time.Since(info.ModTime()) > 24*time.Hour {
			os.RemoveAll(dir)
		}
	}
	dir, err := os.MkdirTemp(parent, dirPrefix)
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o755)
}

// remove removes a directory to which a killed server may still be writing.
func remove(t testing.TB, dir string) {
	Eventually(t, 10*time.Second, "remove "+dir, func() bool { return os.RemoveAll(dir) == nil })
}

// serverOptions trade safety for speed, and allow many databases.
func serverOptions(dir string) devserver.PostgresOptions {
	return devserver.PostgresOptions{
		Dir: dir,
		Bin: os.Getenv("PGJET_PG_BIN"), Mirror: os.Getenv("PGJET_PG_MIRROR"),
		Settings: map[string]string{"max_connections": "400", "max_wal_size": "256MB", "max_prepared_transactions": "20"},
	}
}
