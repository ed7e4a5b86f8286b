package config_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/pgjet/pgjet/internal/config"
)

const patience = 20 * time.Second

// A follower is a Live that runs, with a record of what it did.
type follower struct {
	*config.Live
	t     *testing.T
	path  string
	ask   chan os.Signal
	loads atomic.Int64
	mu    sync.Mutex
	log   bytes.Buffer
	seen  []tuning // that were applied, in order
	hash  string   // of the last applied one
}

func (f *follower) Write(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.log.Write(b)
}

func (f *follower) logged() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.log.String()
}

func (f *follower) applied() []tuning {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]tuning(nil), f.seen...)
}

// follow runs a Live on a file until the test ends.
func follow(t *testing.T, path string) *follower {
	t.Helper()
	return followAs(t, schema(), path)
}

func followAs(t *testing.T, schema *config.Schema, path string) *follower {
	t.Helper()
	f := &follower{t: t, path: path, ask: make(chan os.Signal, 1)}
	first, err := schema.Load(path, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	f.Live = config.NewLive(first, func() (*config.Config, error) {
		f.loads.Add(1)
		return schema.Load(path, nil, nil)
	}, slog.New(slog.NewTextHandler(f, nil)))
	f.Subscribe(func(old, now *config.Config) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.hash = now.Hash()
		if config.Get[tuning](old, "users") != config.Get[tuning](now, "users") {
			f.seen = append(f.seen, config.Get[tuning](now, "users"))
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- f.Run(ctx, f.ask) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run() = %v", err)
		}
		if strings.Contains(f.logged(), secret) {
			t.Errorf("the log shows the secret: %s", f.logged())
		}
	})
	return f
}

func (f *follower) eventually(what string, cond func() bool) {
	f.t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			f.t.Fatalf("waited in vain: %s; the log is %s", what, f.logged())
		}
	}
}

// size waits until this batch size holds.
func (f *follower) size(want int) {
	f.t.Helper()
	f.eventually(fmt.Sprintf("batch_size is %d", want), func() bool {
		return config.Get[tuning](f.Current(), "users").BatchSize == want
	})
}

// says waits until the log has this text n times.
func (f *follower) says(text string, n int) {
	f.t.Helper()
	f.eventually(fmt.Sprintf("the log says %q %d times", text, n), func() bool { return strings.Count(f.logged(), text) >= n })
	if got := strings.Count(f.logged(), text); got != n {
		f.t.Fatalf("the log says %q %d times, want %d: %s", text, got, n, f.logged())
	}
}

func batch(n int) string { return fmt.Sprintf("users:\n  batch_size: %d\n", n) }

// replace writes a new file and renames it, as editors do.
func replace(t *testing.T, path, text string) {
	t.Helper()
	write(t, path+".new", text)
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// TestFollowsTheFile, in whichever way it is changed.
func TestFollowsTheFile(t *testing.T) {
	t.Parallel()
	f := follow(t, file(t, "a.yaml", batch(1)))
	write(t, f.path, batch(2))
	f.size(2)
	replace(t, f.path, batch(3))
	f.size(3)
	if err := os.Remove(f.path); err != nil {
		t.Fatal(err)
	}
	f.says("no such file or directory", 1)
	f.size(3)
	write(t, f.path, batch(4))
	f.size(4)
	if err := os.Rename(f.path, f.path+"~"); err != nil { // a backup, then a new one
		t.Fatal(err)
	}
	write(t, f.path, batch(5))
	f.size(5)
	if err := os.RemoveAll(filepath.Dir(f.path)); err != nil {
		t.Fatal(err)
	}
	f.says("no such file or directory", 2)
	if err := os.Mkdir(filepath.Dir(f.path), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, f.path, batch(6)) // in a directory that is not watched
	f.size(6)
	f.says(`msg="configuration changed"`, 5)
	f.says("keys=users.batch_size", 5)
	f.says("hash="+f.Current().Hash(), 1)
}

// TestFollowsKubernetes: a mounted ConfigMap is a link to a file in a linked directory,
// and that link is replaced.
func TestFollowsKubernetes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	mount := func(version string, n int) {
		if err := os.Mkdir(filepath.Join(dir, version), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, version, "pgjet.yaml"), strings.TrimSuffix(batch(n), "\n")) // which may happen
		if err := os.Symlink(version, filepath.Join(dir, "..data_tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	mount("..1", 1)
	if err := os.Symlink("..data/pgjet.yaml", filepath.Join(dir, "pgjet.yaml")); err != nil {
		t.Fatal(err)
	}
	f := follow(t, filepath.Join(dir, "pgjet.yaml"))
	for n := 2; n < 5; n++ {
		mount(fmt.Sprintf("..%d", n), n)
		f.size(n)
		if err := os.RemoveAll(filepath.Join(dir, fmt.Sprintf("..%d", n-1))); err != nil {
			t.Fatal(err)
		}
	}
	if strings.Contains(f.logged(), "ERROR") {
		t.Errorf("the log is %s", f.logged())
	}
}

// TestFollowsALink to a file in another directory.
func TestFollowsALink(t *testing.T) {
	t.Parallel()
	target := file(t, "target.yaml", batch(1))
	link := filepath.Join(t.TempDir(), "a.yaml")
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	f := follow(t, link)
	write(t, target, batch(2))
	f.size(2)
}

// TestRefusesAsAWhole: a file with one fault changes nothing, is reported once, and counted
// each time.
func TestRefusesAsAWhole(t *testing.T) {
	t.Parallel()
	f := follow(t, file(t, "a.yaml", "log_level: info\n"+batch(1)))
	bad := "log_level: debug\nusers:\n  batch_size: 7\n  share: 2\nnonsense: 1\n"
	for i := range 3 {
		replace(t, f.path, bad+strings.Repeat("#", i)+"\n")
		f.eventually("it is read", func() bool { return f.loads.Load() == int64(i+1) })
	}
	f.says("users.share is", 1)
	f.says("nonsense", 1)
	f.ask <- syscall.SIGHUP // an operator asks
	f.says("users.share is", 2)
	f.says("hash="+f.Current().Hash(), 2)
	if got, _ := f.Current().Lookup("log_level"); got.Text != "info" {
		t.Errorf("log_level = %q, want it as it was", got.Text)
	}
	replace(t, f.path, batch(8))
	f.size(8)
	replace(t, f.path, bad)
	f.says("users.share is", 3)
	replace(t, f.path, "users:\n  batch_size: 0\n")
	f.says("users.batch_size is", 1)
	if got := f.applied(); len(got) != 1 || got[0].BatchSize != 8 || got[0].Share != 0 {
		t.Errorf("applied were %+v, want the valid one", got)
	}
}

// TestRefusesWhatNeedsARestart: the rest of that file is refused, too.
func TestRefusesWhatNeedsARestart(t *testing.T) {
	t.Parallel()
	f := follow(t, file(t, "a.yaml", "stream: A\nport: 1\ndatabase_url: postgres://ann:"+secret+"@h/x\n"+batch(1)))
	replace(t, f.path, "stream: B\nport: 1\ndatabase_url: postgres://ann:"+secret+"2@h/x\n"+batch(2))
	f.says("restart it", 2)
	f.says(`a.yaml:1: stream is \"B\", but the process runs with \"A\"`, 1)
	f.says(`database_url is \"****\", but the process runs with \"****\"`, 1)
	if got := config.Get[tuning](f.Current(), "users").BatchSize; got != 1 {
		t.Errorf("batch_size = %d, want 1", got)
	}
	replace(t, f.path, "stream: A\nport: 2\ndatabase_url: postgres://ann:"+secret+"@h/x\n"+batch(3))
	f.size(3) // port is not used by this process
}

// TestHashOfOthersKeys: a key that only other processes use changes the hash, and
// subscribers get the new hash.
func TestHashOfOthersKeys(t *testing.T) {
	t.Parallel()
	f := follow(t, file(t, "a.yaml", batch(1)))
	before := f.Current().Hash()
	replace(t, f.path, batch(1)+"port: 7\n")
	f.says("none of this process", 1)
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := f.Current().Hash(); now == before || f.hash != now {
		t.Errorf("the hash was %s and is %s, and subscribers got %q", before, now, f.hash)
	}
}

// TestAsked: after SIGHUP the file is read at once, and that is logged.
func TestAsked(t *testing.T) {
	t.Parallel()
	f := follow(t, file(t, "a.yaml", batch(1)))
	f.ask <- syscall.SIGHUP
	f.says("no value has changed", 1)
	write(t, f.path, batch(2))
	f.ask <- syscall.SIGHUP
	f.size(2)
	none := follow(t, "")
	none.ask <- syscall.SIGHUP
	none.says("no value has changed", 1)
}

// TestHalfAFile: no intermediate state of a slow writer takes effect, nor does an empty
// file.
func TestHalfAFile(t *testing.T) {
	t.Parallel()
	whole := "users:\n  share: 0.5\n  cache:\n    enabled: false\n  batch_size: 500\n"
	f := follow(t, file(t, "a.yaml", batch(1)))
	write(t, f.path, "")
	f.says("is empty", 1)
	begun, loads := time.Now(), f.loads.Load()
	for n := 1; n <= len(whole); n += 7 {
		write(t, f.path, whole[:n])
	}
	write(t, f.path, strings.TrimSuffix(whole, "00\n")) // valid, but not intended
	time.Sleep(300 * time.Millisecond)                  // nothing must happen
	if got := f.loads.Load(); got != loads && time.Since(begun) < time.Second {
		t.Errorf("a file without an end of its last line was taken at once")
	}
	write(t, f.path, whole)
	wrote := time.Since(begun)
	f.size(500)
	if got := f.applied(); len(got) != 1 && wrote < time.Second {
		t.Errorf("applied were %+v, want one", got)
	}
	write(t, f.path, strings.TrimSuffix(batch(9), "\n")) // and left that way
	f.size(9)
}

// TestReloadStorm: of 100 changes in a second the last one wins, with little work, and each
// intermediate configuration was one of them.
func TestReloadStorm(t *testing.T) {
	t.Parallel()
	f := follow(t, file(t, "a.yaml", batch(1)))
	const writes = 300
	begun, others := time.Now(), filepath.Join(filepath.Dir(f.path), "other")
	for i := range writes {
		text := fmt.Sprintf("users:\n  batch_size: %d\n  share: %v\n", i+2, float64(i+2)/1000)
		if i%2 == 0 {
			write(t, f.path, text)
		} else {
			replace(t, f.path, text)
		}
		write(t, others, text) // a busy directory
		time.Sleep(time.Until(begun.Add(time.Duration(i+1) * 10 * time.Millisecond)))
	}
	last := time.Now()
	f.size(writes + 1)
	t.Logf("%d writes in %s: read %d times, applied %d times, the last %s after it was written",
		writes, last.Sub(begun).Round(time.Millisecond), f.loads.Load(), len(f.applied()), time.Since(last).Round(time.Millisecond))
	if got := f.loads.Load(); got > writes/4 {
		t.Errorf("the file was read %d times for %d writes", got, writes)
	}
	for _, u := range f.applied() {
		if u.Share != float64(u.BatchSize)/1000 {
			t.Errorf("applied was %+v, of which no file was the source", u)
		}
	}
	if strings.Contains(f.logged(), "ERROR") {
		t.Errorf("the log is %.2000s", f.logged())
	}
}

// TestReloadWhileRead: readers see the old values or the new ones.
func TestReloadWhileRead(t *testing.T) {
	t.Parallel()
	f := follow(t, file(t, "a.yaml", "users:\n  batch_size: 1\n  share: 0.001\n"))
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if u := config.Get[tuning](f.Current(), "users"); u.Share != float64(u.BatchSize)/1000 {
					t.Errorf("read %+v", u)
				}
			}
		})
	}
	for n := 2; n < 7; n++ {
		write(t, f.path, fmt.Sprintf("users:\n  batch_size: %d\n  share: %v\n", n, float64(n)/1000))
		f.ask <- syscall.SIGHUP
		f.size(n)
	}
	close(stop)
	readers.Wait()
}

// TestMetrics: the configuration in force, since when, and refusals.
func TestMetrics(t *testing.T) {
	reader := metric.NewManualReader()
	was := otel.GetMeterProvider()
	otel.SetMeterProvider(metric.NewMeterProvider(metric.WithReader(reader)))
	t.Cleanup(func() { otel.SetMeterProvider(was) })
	f := follow(t, file(t, "a.yaml", batch(1)))
	collect := func() string {
		var all metricdata.ResourceMetrics
		if err := reader.Collect(t.Context(), &all); err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		for _, scope := range all.ScopeMetrics {
			for _, m := range scope.Metrics {
				fmt.Fprintf(&b, "%s %v\n", m.Name, m.Data)
			}
		}
		return b.String()
	}
	first := f.Current().Hash()
	f.eventually("the hash is there", func() bool { return strings.Contains(collect(), first) })
	replace(t, f.path, batch(0))
	f.says("batch_size", 1)
	replace(t, f.path, batch(2))
	f.size(2)
	all := collect()
	if strings.Contains(all, first) || !strings.Contains(all, f.Current().Hash()) {
		t.Errorf("metrics are\n%s\nwant the hash %s alone", all, f.Current().Hash())
	}
	for _, want := range []string{"pgjet.config ", "pgjet.config.loaded ", "pgjet.config.reload_failures "} {
		if !strings.Contains(all, want) {
			t.Errorf("metrics are\n%s\nwant %s", all, want)
		}
	}
	for line := range strings.Lines(all) {
		if strings.HasPrefix(line, "pgjet.config.reload_failures") && !strings.Contains(line, " 1 ") {
			t.Errorf("want 1 failure: %s", line)
		}
	}
}

// TestFollowsAFileOfTheSameTime: another file of the same size and time takes the place of the file.
func TestFollowsAFileOfTheSameTime(t *testing.T) {
	t.Parallel()
	path := file(t, "a.yaml", batch(1))
	at := time.Now().Add(-time.Hour)
	if err := os.Chtimes(path, at, at); err != nil {
		t.Fatal(err)
	}
	f := follow(t, path)
	write(t, path+".new", batch(2))
	if err := os.Chtimes(path+".new", at, at); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	f.size(2)
}
