package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// A machine describes where a run took place.
type machine struct {
	CPU        string            `json:"cpu"`
	Cores      int               `json:"cores"`
	MemoryGiB  float64           `json:"memory_gib"`
	Kernel     string            `json:"kernel"`
	Filesystem string            `json:"filesystem"` // of the servers' data
	FsyncMicro float64           `json:"fsync_us"`   // median of writing 8 KiB to it
	Go         string            `json:"go"`
	PostgreSQL string            `json:"postgresql"`
	NATS       string            `json:"nats_server"`
	Modules    map[string]string `json:"modules"`
}

// compared are the modules whose versions matter to the figures.
var compared = []string{
	"github.com/ThreeDotsLabs/watermill", "github.com/ThreeDotsLabs/watermill-sql/v4", "github.com/ThreeDotsLabs/watermill-nats/v2",
	"github.com/riverqueue/river", "github.com/nats-io/nats.go", "github.com/jackc/pgx/v5",
}

// machine describes the machine and the versions of the servers. Unknown fields are empty.
func (l *lab) machine(ctx context.Context) machine {
	m := machine{
		CPU: procField("/proc/cpuinfo", "model name"), Cores: runtime.NumCPU(), Go: runtime.Version(),
		Filesystem: filesystem(l.dir), PostgreSQL: l.postgres.Version(), Modules: make(map[string]string),
	}
	kib := 0.0
	_, _ = fmt.Sscan(procField("/proc/meminfo", "MemTotal"), &kib)
	m.MemoryGiB = kib / (1 << 20)
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	m.Kernel = strings.TrimSpace(string(kernel))
	if d, err := fsyncTime(ctx, l.dir); err == nil {
		m.FsyncMicro = float64(d) / float64(time.Microsecond)
	}
	if nc, err := nats.Connect(l.nats[durable].url); err == nil {
		m.NATS = nc.ConnectedServerVersion()
		nc.Close()
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, d := range info.Deps {
			if slices.Contains(compared, d.Path) {
				m.Modules[d.Path] = d.Version
			}
		}
	}
	return m
}

// String returns the head of a report.
func (m machine) String() string {
	var modules []string
	for _, path := range compared {
		if v := m.Modules[path]; v != "" {
			modules = append(modules, strings.TrimPrefix(path, "github.com/")+" "+v)
		}
	}
	return fmt.Sprintf("%s, %d cores, %.0f GiB, %s, fsync %.0f µs on %s, %s, PostgreSQL %s, nats-server %s\n%s",
		m.CPU, m.Cores, m.MemoryGiB, m.Kernel, m.FsyncMicro, m.Filesystem, m.Go, m.PostgreSQL, m.NATS, strings.Join(modules, ", "))
}

// procField returns the text after the first "name : …" of a file.
func procField(file, name string) string {
	b, _ := os.ReadFile(file)
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// filesystem returns the type of the file system that dir is on.
func filesystem(dir string) string {
	b, _ := os.ReadFile("/proc/mounts")
	best, kind := "", ""
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 3 {
			continue
		}
		if rel, err := filepath.Rel(f[1], dir); err == nil && !strings.HasPrefix(rel, "..") && len(f[1]) >= len(best) {
			best, kind = f[1], f[2]
		}
	}
	return kind
}

// fsyncTime returns the median time of writing a page of PostgreSQL to the disk.
func fsyncTime(ctx context.Context, dir string) (time.Duration, error) {
	f, err := os.CreateTemp(dir, "fsync-")
	if err != nil {
		return 0, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	page := make([]byte, 8<<10)
	var took []float64
	for range 200 {
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		began := time.Now()
		if _, err := f.WriteAt(page, 0); err != nil {
			return 0, err
		}
		if err := f.Sync(); err != nil {
			return 0, err
		}
		took = append(took, float64(time.Since(began)))
	}
	return time.Duration(median(took)), nil
}
