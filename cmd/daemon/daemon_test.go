package daemon_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/cmd/daemon"
	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/operate"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/outbox"
	"github.com/pgjet/pgjet/relay"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const patience = 30 * time.Second

// TestProcess: a process with a consumer and a relay of its own is found, answers probes and
// Prometheus, and leaves the registry when it stops.
func TestProcess(t *testing.T) {
	db := testenv.Postgres(t)
	js, url := testenv.JetStream(t)
	if _, err := js.CreateStream(t.Context(), relay.StreamConfig(events.DefaultStream, 1)); err != nil {
		t.Fatal(err)
	}
	handled := make(chan events.Event, 1)
	var down atomic.Bool
	runner := &consumers.Runner{DB: db, JS: js, Consumer: consumers.Consumer{Name: "shipping", Slices: 2, Handler: consumers.Handle(
		consumers.OnType("order.>", func(_ context.Context, _ pgx.Tx, e events.Event) error {
			handled <- e
			return nil
		}))}}
	publisher := &relay.Relay{Database: db.Config().ConnConfig, NATSURL: url, Source: "orders"}
	api := daemon.Part{Name: "api", Run: func(ctx context.Context) error { <-ctx.Done(); return nil }, Ready: func(context.Context) error {
		if down.Load() {
			return fmt.Errorf("out of parcels")
		}
		return nil
	}}
	p := daemon.Process{Name: "shipping", Version: "1.2.3", Addr: "127.0.0.1:0", NATS: js.Conn(), Log: testenv.Logger(t)}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx, daemon.Of("relay", publisher), daemon.Of("shipping", runner), api) }()

	services := func() []operate.Instance {
		all, err := operate.Instances(t.Context(), js.Conn(), "shipping")
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	testenv.Eventually(t, patience, "services ls shows it, and that it is ready", func() bool {
		all := services()
		return len(all) == 1 && all[0].Version == "1.2.3" && all[0].Health == "ready"
	})
	health := services()[0].HealthURL
	err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
		return outbox.Append(t.Context(), tx, events.Event{Type: "order.paid", Key: "o-17", Header: map[string]string{"Tenant": "blue"}, Data: []byte(`{}`)})
	})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case e := <-handled:
		if e.Type != "order.paid" || e.Source != "orders" || e.Header["Tenant"] != "blue" {
			t.Errorf("handled %v", e)
		}
	case <-time.After(patience):
		t.Fatal("the event was not handled")
	}
	if _, body := get(t, health); !strings.Contains(body, `"name":"relay","ready":true,"role":"leader"`) || !strings.Contains(body, `"name":"shipping","ready":true,"role":"leader"`) {
		t.Errorf("/readyz says %s", body)
	}
	testenv.Eventually(t, patience, "metrics count the event", func() bool {
		_, body := get(t, strings.Replace(health, "/readyz", "/metrics", 1))
		return strings.Contains(body, `pgjet_consumer_events_total{`) && strings.Contains(body, "pgjet_relay_published_events_total 1")
	})
	down.Store(true)
	testenv.Eventually(t, patience, "services ls shows that a part is not ready", func() bool {
		all := services()
		return len(all) == 1 && all[0].Health == "not_ready" && strings.Contains(all[0].Cause, "out of parcels")
	})
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Run() = %v", err)
	}
	if all := services(); len(all) > 0 {
		t.Errorf("%v is found although it has stopped", all)
	}
}

func TestRunFailsAtOnce(t *testing.T) {
	taken := daemon.Process{Name: "shipping", Addr: "256.0.0.1:1", Metrics: http.NotFoundHandler()}
	fails := daemon.Part{Name: "api", Run: func(context.Context) error { return fmt.Errorf("broken") }}
	for name, tt := range map[string]struct {
		p    daemon.Process
		part daemon.Part
		says string
	}{
		"no name":     {daemon.Process{}, fails, "no name of a service"},
		"no address":  {taken, fails, "start process shipping: serve its pages: "},
		"no part":     {daemon.Process{Name: "shipping"}, daemon.Part{Name: "api"}, "no Run"},
		"part breaks": {daemon.Process{Name: "shipping", Addr: "127.0.0.1:0", Metrics: http.NotFoundHandler()}, fails, "api: broken"},
	} {
		if err := tt.p.Run(t.Context(), tt.part); err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: Run() = %v, want it to say %q", name, err, tt.says)
		}
	}
}

func get(t *testing.T, url string) (status int, body string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}
