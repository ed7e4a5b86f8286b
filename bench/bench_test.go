package main

import (
	"os"
	"testing"
)

// TestMain lets the test binary be the parts that the lab starts.
func TestMain(m *testing.M) {
	if kind := os.Getenv(childVariable); kind != "" {
		os.Exit(runChild(kind))
	}
	os.Exit(m.Run())
}

func TestDrain(t *testing.T) {
	l, err := startLab(t.Context(), options{quick: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.stop(); err != nil {
			t.Error(err)
		}
	})
	t.Log(l.machine(t.Context()))
	for _, on := range []server{lazy, durable} {
		s, err := l.site(t.Context(), on)
		if err != nil {
			t.Fatal(err)
		}
		defer s.close()
		const n = 50_000
		if err := s.fill(t.Context(), n); err != nil {
			t.Fatal(err)
		}
		c, err := s.start(t.Context(), "pgjet", pgjetConfig{DSN: s.dsn, NATSURL: s.natsURL, Stream: stream})
		if err != nil {
			t.Fatal(err)
		}
		m := s.meter(c)
		took, err := s.drained(t.Context(), n, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Log(on, took, m.values(n))
		var bytes int
		err = s.db.QueryRow(t.Context(), `select octet_length(data::text) from pgjet.outbox where seq = 12345`).Scan(&bytes)
		if err != nil || bytes != payloadBytes {
			t.Errorf("a payload has %d bytes, %v; want %d", bytes, err, payloadBytes)
		}
	}
}
