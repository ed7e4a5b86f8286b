package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	for _, tt := range []struct {
		values []float64
		want   float64
	}{
		{[]float64{3}, 3},
		{[]float64{4, 1}, 2.5},
		{[]float64{9, 1, 2}, 2},
		{[]float64{9, 1, 2, 4}, 3},
	} {
		if got := median(tt.values); got != tt.want {
			t.Errorf("median(%v) = %v, want %v", tt.values, got, tt.want)
		}
	}
}

func TestPercentile(t *testing.T) {
	var sorted []float64
	for i := range 1000 {
		sorted = append(sorted, float64(i+1))
	}
	for p, want := range map[float64]float64{0: 1, 50: 500, 99: 990, 99.9: 999, 99.99: 1000, 100: 1000} {
		if got := percentile(sorted, p); got != want {
			t.Errorf("percentile(%v) = %v, want %v", p, got, want)
		}
	}
	if got := percentile([]float64{7}, 99); got != 7 {
		t.Errorf("of one: %v", got)
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0.00", 0.1234: "0.123", 1.234: "1.23", 9.996: "10.0", 31.44: "31.4", 99.96: "100", 612.3: "612",
		999.6: "1.00k", 61234: "61.2k", 612340: "612k", 999_600: "1.00M", 1.5e6: "1.50M",
	} {
		if got := number(v); got != want {
			t.Errorf("number(%v) = %s, want %s", v, got, want)
		}
	}
}

func testReport() *report {
	rounds := func(r *row, name, unit string, all ...float64) *row {
		for _, v := range all {
			r.add(result{values: []value{{name, unit, v}}}, time.Second)
		}
		return r
	}
	latency := &row{Variant: "pgjet", group: "200", base: true}
	latency.add(result{values: []value{{"p50", "ms", 0.5}}, samples: map[string][]float64{"latency, ms": slices.Repeat([]float64{0.5, 0.6, 3}, 100)}}, time.Second)
	other := &row{Variant: "other", group: "200"}
	other.add(result{values: []value{{"p50", "ms", 2}}, samples: map[string][]float64{"x n": {1, 1000}, "y rate": {5, 6}}}, time.Second)
	failed := &row{Variant: "broken", Server: "lazy", Failed: []string{"no"}}
	return &report{
		Machine: machine{CPU: "A CPU", Cores: 2, MemoryGiB: 4, Kernel: "6.1", FsyncMicro: 100, Filesystem: "ext4", Go: "go1.26", PostgreSQL: "15.1", NATS: "2.15"},
		Began:   time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Took: "1m0s",
		Tables: []*table{
			{Name: "drain", Title: "Draining", Note: "How.", Rows: []*row{
				rounds(rounds(&row{Variant: "limit", Server: "durable"}, "events", "/s", 120_000), "CPU", "s/M", 4),
				rounds(&row{Variant: "pgjet", Server: "durable"}, "events", "/s", 61_000, 59_000, 60_000),
				failed,
			}},
			{Name: "counts", Title: "Counts", Rows: []*row{rounds(&row{Variant: "pgjet"}, "lost", "", 0, 12_345, 1)}},
			{Name: "latency", Title: "Latency", Rows: []*row{latency, other}},
			{Name: "later", Rows: []*row{{Variant: "pgjet"}}},
		},
	}
}

func TestReport(t *testing.T) {
	var text bytes.Buffer
	if err := testReport().print(&text); err != nil {
		t.Fatal(err)
	}
	const want = `
A CPU, 2 cores, 4 GiB, 6.1, fsync 100 µs on ext4, go1.26, PostgreSQL 15.1, nats-server 2.15

Began 2026-01-02T03:04:05Z, took 1m0s. Medians of the rounds, in brackets the least and the most.

DRAIN: Draining
variant  server   ratio  events /s            CPU s/M
limit    durable  ×2.00  120k                 4.00
pgjet    durable  ×1     60.0k (59.0k–61.0k)  
broken   lazy                                   1 rounds FAILED
ratio: of the first figure to that of the row ×1. How. (5s)

COUNTS: Counts
variant  server  ratio  lost
pgjet            ×1     1 (0–12345)
ratio: of the first figure to that of the row ×1.  (3s)

LATENCY: Latency
variant  server  ratio  p50 ms
pgjet            ×1     0.500
other            ×4.00  2.00
ratio: of the first figure to that of the row ×1.  (2s)
`
	if got := text.String(); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

func TestPlots(t *testing.T) {
	dir := t.TempDir()
	if err := testReport().plot(dir); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 5 {
		t.Errorf("%q, %v", files, err)
	}
	for _, f := range files {
		checkXML(t, f)
	}
}

// TestDocument: tables of a document are replaced if their scenarios ran, and nothing else is.
func TestDocument(t *testing.T) {
	const before, after = `# Figures

<!-- bench: counts -->

| variant | lost |
|---|---:|
| pgjet | 7 |

In words.

<!-- bench: later -->

| variant |
|---|
| not run |
`, `# Figures

<!-- bench: counts -->

| variant | server | ratio | lost |
|---|---|---:|---:|
| pgjet |  | ×1 | 1 (0–12345) |

In words.

<!-- bench: later -->

| variant |
|---|
| not run |
`
	if got := testReport().inDoc(before); got != after {
		t.Errorf("the document is now\n%s", got)
	}
	file := filepath.Join(t.TempDir(), "benchmarks.md")
	if err := os.WriteFile(file, []byte(before), 0o600); err != nil {
		t.Fatal(err)
	}
	documented, err := os.ReadFile("../docs/benchmarks.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range scenarios(options{}) {
		if n := strings.Count(string(documented), "\n<!-- bench: "+s.name+" -->\n\n|"); n != 1 {
			t.Errorf("docs/benchmarks.md has %d tables of the scenario %s", n, s.name)
		}
	}
	r := testReport()
	r.Quick = true
	if err := r.updateDoc(file); err == nil {
		t.Error("a quick run is documented")
	}
	r.Quick = false
	err = r.updateDoc(file)
	if got, failed := os.ReadFile(file); err != nil || failed != nil || string(got) != after {
		t.Errorf("the file has %q, %v, %v", got, err, failed)
	}
}
