package natsconn_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/internal/jserror"
	"github.com/pgjet/pgjet/internal/natsconn"
	"github.com/pgjet/pgjet/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestCheckVersion: an older server is refused, with both versions.
func TestCheckVersion(t *testing.T) {
	t.Parallel()
	_, url := testenv.JetStream(t)
	for version, refused := range map[string]bool{
		server.VERSION: false, "2.14.0": false, "2.14.0-RC.1": false, "3.0.0": false, "v2.15.1": false, "dev": false,
		"2.12.15": true, "2.9.25": true, "1.4.1": true, "2.13.9-beta": true,
	} {
		nc := testenv.Connect(t, testenv.OtherVersion(t, url, version)).Conn()
		err := natsconn.CheckVersion(nc)
		if refused != (natsconn.Of(err) == jserror.Outdated) || refused && (!strings.Contains(err.Error(), version) || !strings.Contains(err.Error(), natsconn.Needed)) {
			t.Errorf("CheckVersion() of %s = %v, want it refused: %t", version, err, refused)
		}
	}
}

func TestOf(t *testing.T) {
	t.Parallel()
	api := func(code jetstream.ErrorCode) error {
		return fmt.Errorf("wrapped: %w", &jetstream.APIError{ErrorCode: code, Description: "x"})
	}
	for want, all := range map[jserror.Class][]error{
		"":                      {nil, errors.New("x"), context.Canceled},
		jserror.Fenced:          {api(10071), api(10164), api(10070)},
		jserror.Full:            {api(10077), api(10047), api(10002)},
		jserror.Limit:           {api(10026), jetstream.ErrMaximumConsumersLimit},
		jserror.StreamMissing:   {api(10059), jetstream.ErrStreamNotFound},
		jserror.ConsumerMissing: {api(10014), jetstream.ErrConsumerNotFound},
		jserror.Permission:      {nats.ErrPermissionViolation, nats.ErrAuthorization},
		jserror.Busy:            {api(10008), nats.ErrTimeout, context.DeadlineExceeded},
		jserror.Unreachable:     {nats.ErrConnectionClosed, nats.ErrNoServers},
		jserror.Failed:          {api(19999)},
	} {
		for _, err := range all {
			if got := natsconn.Of(err); got != want {
				t.Errorf("Of(%v) = %q, want %q", err, got, want)
			}
		}
	}
}

// TestReaders: of two readers with one name, each gets only its own messages, or detects
// that it did not.
func TestReaders(t *testing.T) {
	t.Parallel()
	js, _ := testenv.JetStream(t)
	ctx := t.Context()
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"events.>"}}); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if _, err := js.Publish(ctx, "events.x", nil); err != nil {
			t.Fatal(err)
		}
	}
	first := read(t, js)
	if err := first.Confirm(ctx); err != nil {
		t.Errorf("Confirm() = %v of the only reader", err)
	}
	second := read(t, js)
	if err := first.Confirm(ctx); !errors.Is(err, natsconn.ErrReplaced) {
		t.Errorf("Confirm() = %v of a reader that was replaced", err)
	}
	first.Close()
	if err := second.Confirm(ctx); err != nil {
		t.Errorf("Confirm() = %v after the reader before was closed", err)
	}
	batch, err := second.FetchNoWait(10)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for range batch.Messages() {
		n++
	}
	second.Close()
	if err := second.Confirm(ctx); n != 10 || !errors.Is(err, natsconn.ErrReplaced) {
		t.Errorf("%d messages came, and the closed reader says %v", n, err)
	}
}

func read(t *testing.T, js jetstream.JetStream) *natsconn.Reader {
	t.Helper()
	r, err := natsconn.NewReader(t.Context(), js, "EVENTS", "reader", jetstream.ConsumerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestDenied: the denied permission is named, though the request only times out.
func TestDenied(t *testing.T) {
	t.Parallel()
	n := testenv.NATSWith(t, `no_auth_user: admin
authorization { users: [
		{ user: admin, password: x },
		{ user: mute, password: x, permissions: { publish: { deny: "$JS.API.STREAM.INFO.>" } } } ] }`)
	nc, err := nats.Connect(n.URL(), nats.UserInfo("mute", "x"), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(300*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	_, err = js.Stream(t.Context(), "EVENTS")
	err = natsconn.Explain(nc, err, "operator")
	for _, want := range []string{"permission_denied: ", "$JS.API.STREAM.INFO.EVENTS", "pgjet nats permissions operator"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Explain() = %v, want %s", err, want)
		}
	}
}
