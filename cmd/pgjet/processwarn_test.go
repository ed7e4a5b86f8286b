package main

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

func TestWarnPlaintext(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		database, nats string
		hosts          string // warned of
	}{
		{"postgres://ann:" + secret + "@db.example/x?sslmode=disable", "nats://ann:" + secret + "@nats.example:4222", "db.example nats.example"},
		{"postgres://db.example/x?sslmode=require", "tls://nats.example:4222, nats://10.0.0.1", "10.0.0.1"},
		{"postgres://127.0.0.1/x?sslmode=disable", "nats://localhost:4222,nats://[::1]:4222", ""},
		{"", "nats://nats:4222?tls=off,nats://nats.example:4222", "nats.example"},
		{"host=/var/run/postgresql sslmode=disable", "ws://nats.example", "nats.example"},
		{"", "", ""},
		{"postgres://%", "nats://%", ""},
	} {
		for _, access := range []natsAccess{{ca: "ca.pem"}, {cert: "cert.pem"}} {
			var log bytes.Buffer
			s := processSettings{settings: settings{natsURL: row.nats, access: access}}
			if s.warnPlaintext(t.Context(), slog.New(slog.NewTextHandler(&log, nil))); log.Len() > 0 {
				t.Errorf("%s: warns although TLS is required: %s", row.nats, &log)
			}
		}
		var log bytes.Buffer
		s := processSettings{settings: settings{databaseURL: row.database, natsURL: row.nats}}
		s.warnPlaintext(t.Context(), slog.New(slog.NewTextHandler(&log, nil)))
		var hosts []string
		for line := range strings.Lines(log.String()) {
			_, host, _ := strings.Cut(line, "host=")
			hosts = append(hosts, strings.TrimSpace(host))
		}
		if got := strings.Join(hosts, " "); got != row.hosts || strings.Contains(log.String(), secret) {
			t.Errorf("%s and %s: warns of %q, want %q; %s", row.database, row.nats, got, row.hosts, &log)
		}
	}
}
