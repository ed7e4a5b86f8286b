package relay_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/relay"
)

// A logged keeps the log.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// TestStreamSettings: a stream whose settings break a promise is refused, and the setting
// is named. One that only weakens a promise is used, and the setting is logged.
func TestStreamSettings(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	other := jetstream.StreamConfig{Name: "OTHER", Subjects: []string{"other.>"}}
	if _, err := b.js.CreateStream(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		setting string
		breaks  bool
		set     func(c *jetstream.StreamConfig)
	}{
		{"retention", true, func(c *jetstream.StreamConfig) { c.Retention = jetstream.InterestPolicy }},
		{"retention", true, func(c *jetstream.StreamConfig) { c.Retention = jetstream.WorkQueuePolicy }},
		{"discard", true, func(c *jetstream.StreamConfig) { c.Discard, c.MaxMsgs = jetstream.DiscardOld, 100 }},
		{"discard", true, func(c *jetstream.StreamConfig) { c.Discard, c.MaxBytes = jetstream.DiscardOld, 1<<20 }},
		{"max_msgs_per_subject", true, func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 5 }},
		{"no_ack", true, func(c *jetstream.StreamConfig) { c.NoAck, c.AllowAtomicPublish = true, false }},
		{"mirror", true, func(c *jetstream.StreamConfig) {
			c.Mirror, c.Subjects, c.AllowAtomicPublish, c.Duplicates = &jetstream.StreamSource{Name: "OTHER"}, nil, false, 0
		}},
		{"sources", true, func(c *jetstream.StreamConfig) { c.Sources = []*jetstream.StreamSource{{Name: "OTHER"}} }},
		{"subject_transform", true, func(c *jetstream.StreamConfig) {
			c.SubjectTransform = &jetstream.SubjectTransformConfig{Source: "events.>", Destination: "facts.>"}
		}},
		{"duplicate_window", false, func(c *jetstream.StreamConfig) { c.Duplicates = time.Minute }},
		{"max_age", false, func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour }},
		{"allow_rollup_hdrs", false, func(c *jetstream.StreamConfig) { c.AllowRollup, c.DenyPurge = true, false }},
		{"deny_delete", false, func(c *jetstream.StreamConfig) { c.DenyDelete = false }},
		{"storage", false, func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage }},
		{"inactive_threshold", false, func(c *jetstream.StreamConfig) { c.ConsumerLimits.InactiveThreshold = time.Hour }},
	} {
		t.Run(row.setting, func(t *testing.T) {
			if err := b.js.DeleteStream(t.Context(), "EVENTS"); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
				t.Fatal(err)
			}
			config := relay.StreamConfig("EVENTS", 1)
			row.set(&config)
			var err error
			testenv.Eventually(t, patience, "the stream is made", func() bool { // its files may still be in the way
				_, err = b.js.CreateStream(t.Context(), config)
				return err == nil || errors.Is(err, jetstream.ErrStreamNameAlreadyInUse)
			})
			if err != nil {
				t.Fatal(err)
			}
			log := &logged{}
			r, stop := b.startLogged(slog.New(slog.NewTextHandler(log, nil)))
			defer stop()
			if row.breaks {
				b.blocked(r, "stream_differs: ")
				b.blocked(r, row.setting)
				_, differences, err := relay.EnsureStream(t.Context(), b.js, relay.StreamConfig("EVENTS", 1))
				if err != nil || !strings.Contains(strings.Join(differences, "\n"), row.setting) {
					t.Errorf("EnsureStream() = %q, %v, want that %s differs", differences, err, row.setting)
				}
				return
			}
			b.ready(r)
			// The relay before may hold the lead a moment longer.
			testenv.Eventually(t, patience, row.setting+" is logged", func() bool { return strings.Contains(log.String(), row.setting) })
		})
	}
}

// TestOldServer: the relay refuses it, and so does the function that creates streams.
func TestOldServer(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.url = testenv.OtherVersion(t, b.url, "2.12.15")
	r, _ := b.start()
	b.blocked(r, "nats_outdated: the server runs nats-server 2.12.15, pgjet needs 2.14 or newer")
	_, _, err := relay.EnsureStream(t.Context(), testenv.Connect(t, b.url), relay.StreamConfig("OTHERS", 1))
	if err == nil || !strings.HasPrefix(err.Error(), "nats_outdated: ") {
		t.Errorf("EnsureStream() = %v, want that the server is too old", err)
	}
}

// TestMistypedStream: a relay that was started for a mistyped stream leaves a row behind.
// Package upkeep must see that this stream holds nothing back.
func TestMistypedStream(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r := &relay.Relay{Database: b.db.Config().ConnConfig, NATSURL: b.url, Stream: "EVENT", Log: testenv.Logger(t)}
	stop := testenv.Run(t, r.Run)
	b.blocked(r, "stream_missing: ")
	stop()
	var found bool
	if err := b.db.QueryRow(t.Context(), `select cause like 'stream\_missing:%' from pgjet.leader where stream = 'EVENT'`).Scan(&found); err != nil || !found {
		t.Errorf("the relay leaves another cause than that the stream is missing, %v", err)
	}
}

// TestStandbyOnOldServer: it could not take over, and reports why.
func TestStandbyOnOldServer(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	leader, _ := b.start()
	b.ready(leader)
	b.url = testenv.OtherVersion(t, b.url, "2.12.15")
	standby, _ := b.start()
	testenv.Eventually(t, patience, "it stands by", func() bool { role, _ := standby.Role(); return role == "standby" })
	b.blocked(standby, "nats_outdated: the server runs nats-server 2.12.15, pgjet needs 2.14 or newer")
}

// TestStandbyOnLeafNode: it looks for the stream in its domain, not in that of the server
// to which it is connected.
func TestStandbyOnLeafNode(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	leafs := l.Addr().String()
	l.Close()
	hub := testenv.NATSWith(t, fmt.Sprintf("server_name: hub\njetstream { domain: hub }\nleafnodes { listen: %q }", leafs))
	leaf := testenv.NATSWith(t, fmt.Sprintf("server_name: leaf\njetstream { domain: leaf }\nleafnodes { remotes: [ { url: \"nats://%s\" } ], reconnect: 1s }", leafs))
	b := newBenchOn(t, hub.URL())
	leader, _ := b.start()
	b.ready(leader)
	standby := &relay.Relay{Database: b.db.Config().ConnConfig, NATSURL: leaf.URL(), Domain: "hub", Log: testenv.Logger(t)}
	testenv.Run(t, standby.Run)
	testenv.Eventually(t, patience, "it stands by", func() bool { role, _ := standby.Role(); return role == "standby" })
	b.ready(standby)
}

// TestStorageLimits: the reason is the limit, from the first refusal on, and is named once,
// whoever set it and in whichever form events are sent.
func TestStorageLimits(t *testing.T) {
	t.Parallel()
	for name, config := range map[string]string{
		"account":         `accounts { SMALL { jetstream: { max_store: 1MB }, users: [ { user: u, password: x } ] } }`,
		"account, synced": `jetstream { sync_interval: always }, accounts { SMALL { jetstream: { max_store: 1MB }, users: [ { user: u, password: x } ] } }`,
		"server":          `jetstream { max_file_store: 1MB, max_memory_store: 1MB }, accounts { A { jetstream: enabled, users: [ { user: u, password: x } ] } }`,
		"server, synced":  `jetstream { max_file_store: 1MB, max_memory_store: 1MB, sync_interval: always }, accounts { A { jetstream: enabled, users: [ { user: u, password: x } ] } }`,
	} {
		t.Run(name, func(t *testing.T) {
			n := testenv.NATSWith(t, "no_auth_user: u\n"+config)
			b := newBenchOn(t, n.URL())
			log := &logged{}
			b.appendAtOnce(6000, strings.Repeat("x", 200))
			r, _ := b.startLogged(slog.New(slog.NewTextHandler(log, nil)))
			cause := ""
			testenv.Eventually(t, patience, "the status names the limit", func() bool {
				if l := b.status().Leader; l != nil { // it says so while a session begins
					cause = l.Cause
				}
				return strings.HasPrefix(cause, "stream_full: ")
			})
			b.blocked(r, "stream_full: ")
			ready := r.Ready(t.Context())
			if strings.Count(cause, "stream_full") != 1 || ready == nil || strings.Count(ready.Error(), "stream_full") != 1 {
				t.Errorf("the reason is said more than once: %s; %v", cause, ready)
			}
			if strings.Contains(log.String(), "stream_write_error") {
				t.Errorf("another reason came first: %s", log)
			}
		})
	}
}
