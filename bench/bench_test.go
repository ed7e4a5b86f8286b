package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"
)

// TestMain lets the test binary be the parts that the lab starts.
func TestMain(m *testing.M) {
	if kind := os.Getenv(childVariable); kind != "" {
		os.Exit(runChild(kind))
	}
	os.Exit(m.Run())
}

// pick returns variants of a scenario by their titles.
func pick(t *testing.T, s scenario, titles ...string) []scenario {
	t.Helper()
	s.variants = slices.DeleteFunc(s.variants, func(v variant) bool { return !slices.Contains(titles, v.title()) })
	if len(s.variants) != len(titles) {
		t.Fatalf("%s has %d of the variants %q", s.name, len(s.variants), titles)
	}
	return []scenario{s}
}

// TestLimits runs some limits with next to no load, on the real servers.
func TestLimits(t *testing.T) {
	o := options{quick: true, rounds: 2, rows: 2000, json: filepath.Join(t.TempDir(), "report.json"), plots: t.TempDir()}
	chosen := pick(t, limits(o), "keyset reading, backlog.Reader", "atomic batches of 1000, 2 on the way durable",
		"chains of 1000, 1 on the way lazy", "transaction, 1 round trip, 16 connections", "consume, explicit ack lazy")
	r, err := measure(t.Context(), o, chosen, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range r.Tables[0].Rows {
		if c := row.column("events"); c == nil || len(c.Rounds) != 2 || c.Median <= 0 {
			t.Errorf("%s: %+v", row.Variant, c)
		}
	}
	var text bytes.Buffer
	if err := r.publish(o, &text); err != nil {
		t.Fatal(err)
	}
	t.Log(text.String())
	b, err := os.ReadFile(o.json)
	if err != nil || !json.Valid(b) {
		t.Errorf("the JSON is not valid: %v", err)
	}
	checkXML(t, filepath.Join(o.plots, "limits.svg"))
}

// checkXML fails the test if a picture is no XML.
func checkXML(t *testing.T, file string) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for d := xml.NewDecoder(f); err == nil; {
		_, err = d.Token()
	}
	if !errors.Is(err, io.EOF) {
		t.Errorf("%s: %v", file, err)
	}
}

// TestGrowth: the relay's drain is measured in tenths, and again with rows kept.
func TestGrowth(t *testing.T) {
	s := newTestSite(t, startTestLab(t), durable)
	for before := 0; before < 10_000; before += 5000 {
		d, err := s.drainMore(t.Context(), before, 5000)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.IsSorted(d.passed[:]) || d.rate() <= 0 {
			t.Errorf("the tenths end after %v", d.passed)
		}
		for _, v := range d.cost[:3] {
			if v.v <= 0 {
				t.Errorf("%s is %s", v.name, v)
			}
		}
	}
	var n, bytes int
	err := s.db.QueryRow(t.Context(), `select count(*), min(octet_length(data::text)) from pgjet.outbox`).Scan(&n, &bytes)
	if err != nil || n != 10_000 || bytes != payloadBytes {
		t.Errorf("%d payloads of %d bytes, %v; want 10000 of %d", n, bytes, err, payloadBytes)
	}
	if stored, err := s.stored(t.Context()); err != nil || stored != n {
		t.Errorf("the stream holds %d messages, %v; want %d", stored, err, n)
	}
}

// TestInterrupt: an interrupted run ends soon, reports its results, and leaves nothing
// behind.
func TestInterrupt(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	wait := func(ctx context.Context, l *lab) (result, error) {
		s, err := l.site(ctx, lazy)
		if err != nil {
			return result{}, err
		}
		defer s.close()
		cancel()
		_, err = s.drained(ctx, 1, nil)
		return result{}, err
	}
	begun := scenario{name: "begun", variants: []variant{
		{name: "ends", run: func(context.Context, *lab) (result, error) { return result{values: []value{{"a", "ms", 1}}}, nil }},
		{name: "waits", run: wait},
	}}
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // for PostgreSQL
		t.Fatal(err)
	}
	began := time.Now()
	t.Setenv("TMPDIR", dir)
	r, err := measure(ctx, options{rounds: 1}, []scenario{begun, {name: "later", variants: begun.variants}}, io.Discard)
	if err != nil || !r.Interrupted {
		t.Errorf("interrupted: %t, %v", r.Interrupted, err)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it ended after %s", took)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	var text bytes.Buffer
	if err := r.print(&text); err != nil || !regexp.MustCompile(`(?s)INTERRUPTED.*BEGUN`).Match(text.Bytes()) || bytes.Contains(text.Bytes(), []byte("LATER")) {
		t.Errorf("%v, %s", err, &text)
	}
}
