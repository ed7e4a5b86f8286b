//go:build unix

package devserver_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/pgjet/pgjet/internal/devserver"
)

// parentDir makes the test binary a parent of a server in that directory, which
// waits to be killed.
const parentDir = "PGJET_TEST_PARENT_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(parentDir); dir != "" {
		beParent(dir)
	}
	goleak.VerifyTestMain(m)
}

func beParent(dir string) {
	p, err := devserver.StartPostgres(context.Background(), devserver.PostgresOptions{Dir: dir})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(p.PID())
	<-p.Done()
}

// openDir returns a directory that every user may enter, as t.TempDir is not.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pgjet-devserver-") //nolint:usetesting // that is the point
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func start(t *testing.T, o devserver.PostgresOptions) *devserver.Postgres {
	t.Helper()
	p, err := devserver.StartPostgres(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Stop() })
	return p
}

// query returns the one value that sql selects.
func query(t *testing.T, p *devserver.Postgres, sql string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), p.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	value := ""
	if err := conn.QueryRow(t.Context(), sql).Scan(&value); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return value
}

func execute(t *testing.T, p *devserver.Postgres, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), p.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// within polls until cond holds.
func within(t *testing.T, d time.Duration, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(d); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after %s: not yet %s", d, what)
		}
	}
}

// ended reports whether a process is gone, or is a zombie that its parent has not reaped.
func ended(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(stat), ") Z ")
}

func TestPostgresKeepsItsData(t *testing.T) {
	t.Parallel()
	o := devserver.PostgresOptions{Dir: filepath.Join(openDir(t), "a", "pg"), Durable: true}
	p := start(t, o)
	execute(t, p, `create table kept (n int)`)
	execute(t, p, `insert into kept values (7)`)
	for sql, want := range map[string]string{
		`show fsync`:              "on",
		`show synchronous_commit`: "on",
		`show timezone`:           "UTC",
		`show server_encoding`:    "UTF8",
		`select current_user || ' ' || current_database()`: "pgjet pgjet",
	} {
		if got := query(t, p, sql); got != want {
			t.Errorf("%s = %q, want %q", sql, got, want)
		}
	}
	if got := query(t, p, `show server_version`); !strings.HasPrefix(got, p.Version()) {
		t.Errorf("Version() = %q, the server says %q", p.Version(), got)
	}
	for range 2 {
		if err := p.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	<-p.Done()
	if err := p.Err(); err != nil {
		t.Errorf("Err() after Stop = %v, want nil", err)
	}
	if got := query(t, start(t, o), `select n::text from kept`); got != "7" {
		t.Errorf("after a restart the row is %q, want 7", got)
	}
}

func TestPostgresComesBackAfterKill(t *testing.T) {
	t.Parallel()
	p := start(t, devserver.PostgresOptions{Dir: filepath.Join(openDir(t), "pg")})
	conn, err := pgx.Connect(t.Context(), p.URL()) // its process outlives the server for a moment
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if err := syscall.Kill(p.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if err := p.Err(); err == nil || !strings.Contains(err.Error(), "killed") || !strings.Contains(err.Error(), "ready to accept connections") {
		t.Errorf("Err() = %v, want the signal and the server's output", err)
	}
	again := start(t, p.Options())
	if again.URL() != p.URL() {
		t.Errorf("URL() = %s, want %s as before", again.URL(), p.URL())
	}
	query(t, again, `select 'up'`)
}

func TestPostgresDiesWithItsParent(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux signals a child when its parent dies")
	}
	t.Parallel()
	dir := filepath.Join(openDir(t), "pg")
	parent := exec.Command(os.Args[0])
	parent.Env = append(os.Environ(), parentDir+"="+dir)
	parent.Stderr = os.Stderr
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	pid, err2 := strconv.Atoi(strings.TrimSpace(line))
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	parent.Process.Kill()
	parent.Wait()
	// The next server waits until the one before it is gone.
	p := start(t, devserver.PostgresOptions{Dir: dir})
	within(t, 5*time.Second, "the end of the killed parent's server", func() bool { return ended(pid) })
	query(t, p, `select 'up'`)
}

func TestPostgresIgnoresStaleLock(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(openDir(t), "pg")
	if err := start(t, devserver.PostgresOptions{Dir: dir}).Stop(); err != nil {
		t.Fatal(err)
	}
	other := exec.Command("sleep", "60")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer other.Wait()
	defer other.Process.Kill()
	for _, tt := range []struct {
		name string
		pid  int
	}{{"of another program", other.Process.Pid}, {"of nobody", 1<<22 + 1}} {
		t.Run(tt.name, func(t *testing.T) {
			info, err := os.Stat(dir)
			if err != nil {
				t.Fatal(err)
			}
			lock := fmt.Sprintf("%d\n%s\n1700000000\n1\n\n127.0.0.1\n1 1\nready   \n", tt.pid, dir)
			file := filepath.Join(dir, "postmaster.pid")
			if err := os.WriteFile(file, []byte(lock), 0o600); err != nil {
				t.Fatal(err)
			}
			owner := info.Sys().(*syscall.Stat_t)
			if err := os.Chown(file, int(owner.Uid), int(owner.Gid)); err != nil {
				t.Fatal(err)
			}
			query(t, start(t, devserver.PostgresOptions{Dir: dir}), `select 'up'`)
		})
	}
}

func TestPostgresRefusesDataInUse(t *testing.T) {
	t.Parallel()
	p := start(t, devserver.PostgresOptions{Dir: filepath.Join(openDir(t), "pg")})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := devserver.StartPostgres(ctx, p.Options()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second server on the same data: %v, want it to wait for the first", err)
	}
	query(t, p, `select 'still up'`)
}

func TestPostgresInPrivateDirectory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root starts servers as somebody else")
	}
	t.Parallel()
	private := t.TempDir()
	if err := os.Chmod(private, 0o700); err != nil {
		t.Fatal(err)
	}
	o := devserver.PostgresOptions{Dir: filepath.Join(private, "pg")}
	p, err := devserver.StartPostgres(t.Context(), o)
	if err != nil {
		if !strings.Contains(err.Error(), "--dir") {
			t.Errorf("where namespaces are not allowed the error is %v, want one that names --dir", err)
		}
		return
	}
	execute(t, p, `create table kept (n int)`)
	p.Stop()
	if info, err := os.Stat(private); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory of the user is %v %v, want it left at 0700", info.Mode(), err)
	}
	// With access opened, the data is used under another account.
	for _, d := range []string{private, filepath.Dir(private)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p = start(t, o)
	query(t, p, `select count(*)::text from kept`)
	p.Stop()
}

func TestPostgresSaysWhyItDoesNotStart(t *testing.T) {
	t.Parallel()
	dir := openDir(t)
	_, err := devserver.StartPostgres(t.Context(), devserver.PostgresOptions{
		Dir: filepath.Join(dir, "pg"), Settings: map[string]string{"max_connections": "many"}})
	if err == nil || !strings.Contains(err.Error(), `parameter "max_connections": "many"`) {
		t.Errorf("a wrong setting: %v, want the server's own words", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "mine"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = devserver.StartPostgres(t.Context(), devserver.PostgresOptions{Dir: dir})
	if err == nil || !strings.Contains(err.Error(), dir+" is not empty") {
		t.Errorf("a directory of others: %v, want a refusal", err)
	}
	if _, err := devserver.StartPostgres(t.Context(), devserver.PostgresOptions{}); err == nil {
		t.Error("no directory: no error")
	}
}

func TestPostgresNamesBusyPort(t *testing.T) {
	t.Parallel()
	port := listen(t)
	_, err := devserver.StartPostgres(t.Context(), devserver.PostgresOptions{Dir: filepath.Join(openDir(t), "pg"), Port: port})
	if _, ok := errors.AsType[*devserver.PortsError](err); !ok || !strings.Contains(err.Error(), fmt.Sprintf("port %d (PostgreSQL) is in use", port)) {
		t.Errorf("busy port: %v", err)
	}
}

// TestStandby: a read-only server is ready, too.
func TestStandby(t *testing.T) {
	t.Parallel()
	p, err := devserver.StartPostgres(t.Context(), devserver.PostgresOptions{Dir: filepath.Join(openDir(t), "pg")})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(p.Options().Dir, "standby.signal"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	again, err := devserver.StartPostgres(t.Context(), p.Options())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := again.Stop(); err != nil {
			t.Error(err)
		}
	}()
	conn, err := pgx.Connect(t.Context(), again.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	var standby bool
	if err := conn.QueryRow(t.Context(), `select pg_is_in_recovery()`).Scan(&standby); err != nil || !standby {
		t.Errorf("in recovery: %t, %v", standby, err)
	}
}
