package registry_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nats.go/micro"

	"github.com/pgjet/pgjet/internal/registry"
	"github.com/pgjet/pgjet/internal/testenv"
)

const patience = 20 * time.Second

// childVariable makes this binary a process that only registers.
const childVariable = "PGJET_TEST_REGISTER_AT"

func TestMain(m *testing.M) {
	if url := os.Getenv(childVariable); url != "" {
		child(url)
	}
	testenv.Main(m)
}

func child(url string) {
	nc, err := nats.Connect(url)
	if err == nil {
		_, err = registry.Register(nc, registry.Instance{Name: "profiles", Address: "http://127.0.0.1:1"})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	select {}
}

func connect(t *testing.T, url string) *nats.Conn {
	t.Helper()
	return testenv.Connect(t, url).Conn()
}

func register(t *testing.T, nc *nats.Conn, i registry.Instance) *registry.Registration {
	t.Helper()
	r, err := registry.Register(nc, i)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Stop() }) // the server may be gone
	if nc.IsConnected() {
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// discover asks again, and fails the test if that fails.
func discover(t *testing.T, nc *nats.Conn, name string) []registry.Instance {
	t.Helper()
	all, err := registry.New(nc).Discover(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestRegisterAndLeave(t *testing.T) {
	t.Parallel()
	_, url := testenv.JetStream(t)
	nc, other := connect(t, url), connect(t, url)
	if all := discover(t, other, "profiles"); len(all) != 0 {
		t.Errorf("found %v before anybody registered", all)
	}
	r := register(t, nc, registry.Instance{
		Name: "profiles", Version: "v1.2.3", Address: "http://127.0.0.1:7407",
		HealthURL: "http://127.0.0.1:7404/readyz", Metadata: map[string]string{"config": "abc"},
	})
	register(t, nc, registry.Instance{Name: "billing"}) // the two are not confused
	all := discover(t, other, "profiles")
	if len(all) != 1 {
		t.Fatalf("found %v, want one instance", all)
	}
	i := all[0]
	if i.Name != "profiles" || i.Version != "1.2.3" || i.Address != "http://127.0.0.1:7407" || i.ID == "" ||
		i.HealthURL != "http://127.0.0.1:7404/readyz" || len(i.Metadata) != 1 || i.Metadata["config"] != "abc" || time.Since(i.Started) > time.Minute {
		t.Errorf("found %+v", i)
	}
	r.Set("config", "def")
	all = discover(t, other, "profiles")
	if len(all) != 1 || all[0].Metadata["config"] != "def" || !all[0].Started.Equal(i.Started) {
		t.Errorf("found %+v after a change, want the same with the new hash", all)
	}
	if names, err := registry.Ask(t.Context(), other, ""); err != nil || len(names) != 2 || names[0].Name != "billing" {
		t.Errorf("all are %v, %v", names, err)
	}
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	if all := discover(t, other, "profiles"); len(all) != 0 {
		t.Errorf("found %v after it left", all)
	}
	r.Set("config", "ghi")
	if err := r.Stop(); err != nil {
		t.Error(err)
	}
}

// TestMicroToolsSeeIt: it answers as the tools of NATS expect.
func TestMicroToolsSeeIt(t *testing.T) {
	t.Parallel()
	_, url := testenv.JetStream(t)
	nc := connect(t, url)
	register(t, nc, registry.Instance{Name: "pgjet-users", Version: "devel"})
	for verb, kind := range map[string]string{"PING": micro.PingResponseType, "INFO": micro.InfoResponseType, "STATS": micro.StatsResponseType} {
		msg, err := nc.Request("$SRV."+verb, nil, patience)
		var answer struct{ Name, Type, Version string }
		if err != nil || json.Unmarshal(msg.Data, &answer) != nil || answer.Name != "pgjet-users" || answer.Type != kind || answer.Version != "0.0.0-devel" {
			t.Errorf("$SRV.%s is answered by %v (%v)", verb, msg, err)
		}
	}
	all, err := registry.Ask(t.Context(), nc, "pgjet-users")
	if err != nil || len(all) != 1 || all[0].Version != "devel" {
		t.Errorf("the registry lists %+v (%v), want the version that the process says", all, err)
	}
}

// TestAnswersInboxesOnly: a question names the subject of its answer. No question makes an
// instance write into a stream, or send a request or an ack.
func TestAnswersInboxesOnly(t *testing.T) {
	t.Parallel()
	js, url := testenv.JetStream(t)
	nc := connect(t, url)
	register(t, nc, registry.Instance{Name: "profiles"})
	info, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"events.*.>"}})
	if err != nil {
		t.Fatal(err)
	}
	asker := connect(t, url)
	seen, err := asker.SubscribeSync(">")
	if err != nil {
		t.Fatal(err)
	}
	subjects := []string{"$SRV.PING", "$SRV.INFO", "$SRV.STATS", "$SRV.PING.profiles", "$SRV.INFO.profiles", "$SRV.STATS.profiles"}
	asked := 0
	for _, reply := range []string{ // the server itself refuses $JS.ACK and _R_
		"events.1.pwn", "events.00.user.created", "$JS.API.STREAM.PURGE.EVENTS", "pgjet.hint.EVENTS",
		"$SRV.PING", "$SRV.INFO.profiles", "_INBOX", "_INBOX_relay.x", "_INBOX_relay.x.y", "_INBOX_relay.srv", "_INBOXES.x.y",
		"INBOX.x", "$SYS.x", "x", "_inbox.x", "x._INBOX.y",
	} {
		for _, subject := range subjects {
			if err := asker.PublishRequest(subject, reply, nil); err != nil {
				t.Fatal(err)
			}
			asked++
		}
	}
	// Answers to inboxes come, and come after all those that must not.
	for _, inbox := range []string{"_INBOX.x", "_INBOX.x.y", "_INBOX_operator.srv.x"} {
		for _, subject := range subjects {
			if err := asker.PublishRequest(subject, inbox, nil); err != nil {
				t.Fatal(err)
			}
			asked++
		}
	}
	answers := 0
	for n := range asked + 3*len(subjects) {
		msg, err := seen.NextMsg(patience)
		if err != nil {
			t.Fatalf("after %d messages: %v", n, err)
		}
		if msg.Reply == "" {
			answers++
			if !strings.HasPrefix(msg.Subject, "_INBOX.x") && msg.Subject != "_INBOX_operator.srv.x" {
				t.Errorf("an answer was published to %s", msg.Subject)
			}
		}
	}
	now, err := info.Info(t.Context())
	if err != nil || now.State.Msgs != 0 || answers != 3*len(subjects) {
		t.Errorf("the stream holds %d messages (%v), and %d answers came, want 0 and %d", now.State.Msgs, err, answers, 3*len(subjects))
	}
}

func TestRegisterRefuses(t *testing.T) {
	t.Parallel()
	_, url := testenv.JetStream(t)
	nc := connect(t, url)
	for _, i := range []registry.Instance{
		{},
		{Name: "two words"},
		{Name: "a.b"},
		{Name: "a", Address: "127.0.0.1:1"},
		{Name: "a", Address: "http://ann:pw@host"},
		{Name: "a", Address: "http://host/path"},
		{Name: "a", Address: "file:///etc"},
		{Name: "a", HealthURL: "host"},
	} {
		if _, err := registry.Register(nc, i); err == nil {
			t.Errorf("Register(%+v) = nil", i)
		}
	}
	for _, name := range []string{"*", ">", "a.b", "a b"} {
		if _, err := registry.New(nc).Discover(t.Context(), name); err == nil {
			t.Errorf("Discover(%q) = nil", name)
		}
	}
}

// TestOutlivesNATS: instances that registered before or during an outage of NATS are there
// again; meanwhile the earlier ones are returned.
func TestOutlivesNATS(t *testing.T) {
	t.Parallel()
	server := testenv.NATS(t)
	nc, other := connect(t, server.URL()), connect(t, server.URL())
	register(t, nc, registry.Instance{Name: "profiles", Address: "http://127.0.0.1:1"})
	r := registry.New(other)
	if all, err := r.Discover(t.Context(), "profiles"); err != nil || len(all) != 1 {
		t.Fatalf("Discover() = %v, %v", all, err)
	}
	server.Stop()
	testenv.Eventually(t, patience, "the registry says that NATS is away", func() bool {
		all, err := r.Discover(t.Context(), "profiles")
		if len(all) != 1 {
			t.Fatalf("Discover() = %v, %v while NATS is away, want the earlier instances", all, err)
		}
		return errors.Is(err, registry.ErrAway)
	})
	register(t, nc, registry.Instance{Name: "profiles", Address: "http://127.0.0.1:2"})
	testenv.RestartNATS(t, server)
	testenv.Eventually(t, patience, "both are there", func() bool {
		all, err := r.Discover(t.Context(), "profiles")
		return err == nil && len(all) == 2
	})
}

// TestNobodyIsMissedAfterAnOutage: before all are back, the earlier instances are returned,
// for a while.
func TestNobodyIsMissedAfterAnOutage(t *testing.T) {
	t.Parallel()
	server := testenv.NATS(t)
	slow, err := nats.Connect(server.URL(), nats.MaxReconnects(-1), nats.ReconnectWait(2*time.Second), nats.ReconnectJitter(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	dead := connect(t, server.URL())
	register(t, slow, registry.Instance{Name: "profiles"})
	register(t, dead, registry.Instance{Name: "profiles"})
	other := connect(t, server.URL())
	r := registry.New(other)
	count := func() int {
		all, err := r.Discover(t.Context(), "profiles")
		if err != nil && !errors.Is(err, registry.ErrAway) {
			t.Fatal(err)
		}
		return len(all)
	}
	testenv.Eventually(t, patience, "both are found", func() bool { return count() == 2 })
	dead.Close()
	server.Stop()
	testenv.Eventually(t, patience, "NATS is lost", func() bool { return !slow.IsConnected() && !other.IsConnected() })
	testenv.RestartNATS(t, server)
	testenv.Eventually(t, patience, "all are back", func() bool {
		if n := count(); n != 2 {
			t.Fatalf("%d are found, want both until they had time", n)
		}
		return other.IsConnected() && slow.IsConnected()
	})
	testenv.Eventually(t, patience, "the dead one is gone", func() bool {
		n := count()
		if n == 0 {
			t.Fatal("one that is back is missed")
		}
		return n == 1
	})
}

// TestGoneInTime: a killed process and a paused one are no longer found after the stated
// time; until then answers come at once.
func TestGoneInTime(t *testing.T) {
	t.Parallel()
	_, url := testenv.JetStream(t)
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSTOP} {
		r := registry.New(connect(t, url))
		count := func() int {
			all, err := r.Discover(t.Context(), "profiles")
			if err != nil {
				t.Fatal(err)
			}
			return len(all)
		}
		cmd := exec.Command(os.Args[0])
		cmd.Env, cmd.Stderr = append(os.Environ(), childVariable+"="+url), os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := func() { _ = cmd.Process.Kill(); _ = cmd.Wait() } // it may have ended
		defer ended()
		testenv.Eventually(t, patience, "the process is found", func() bool { return count() == 1 })
		if err := cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		testenv.Eventually(t, patience, "it is gone", func() bool { return count() == 0 })
		gone := time.Since(begun)
		t.Logf("%s: gone after %s", signal, gone.Round(time.Millisecond))
		if gone > registry.MaxStale+time.Second {
			t.Errorf("found for %s after %s", gone, signal)
		}
		ended()
	}
}

// TestAsksOnce: many callers at once share one question.
func TestAsksOnce(t *testing.T) {
	t.Parallel()
	_, url := testenv.JetStream(t)
	nc := connect(t, url)
	var asked atomic.Int32
	if _, err := nc.Subscribe("$SRV.INFO.profiles", func(*nats.Msg) { asked.Add(1) }); err != nil {
		t.Fatal(err)
	}
	register(t, nc, registry.Instance{Name: "profiles"})
	r := registry.New(connect(t, url))
	var group sync.WaitGroup
	for range 100 {
		group.Go(func() {
			if all, err := r.Discover(t.Context(), "profiles"); err != nil || len(all) != 1 {
				t.Errorf("Discover() = %v, %v", all, err)
			}
		})
	}
	group.Wait()
	if n := asked.Load(); n != 1 {
		t.Errorf("100 callers asked %d times, want once", n)
	}
}

// TestStrangers: false answers do no harm.
func TestStrangers(t *testing.T) {
	t.Parallel()
	_, url := testenv.JetStream(t)
	nc := connect(t, url)
	info := func(name, id string, metadata map[string]string) string {
		b, err := json.Marshal(micro.Info{ServiceIdentity: micro.ServiceIdentity{Name: name, ID: id, Metadata: metadata}})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	answers := []string{
		"", "null", "[]", "{", `{"name":7}`, strings.Repeat("x", 100<<10),
		info("profiles", "", nil), info("other", "1", nil),
		info("profiles", "large", map[string]string{"x": strings.Repeat("x", 64<<10)}),
		info("profiles", "twin", nil), info("profiles", "twin", nil),
		info("profiles", "file", map[string]string{"address": "file:///etc/passwd", "health": "gopher://x", "started": "soon"}),
		info("profiles", "user", map[string]string{"address": "http://ann:pw@127.0.0.1:1"}),
		info("profiles", "path", map[string]string{"address": "http://127.0.0.1:1/admin?x=1"}),
		info("profiles", "good", map[string]string{"address": "http://127.0.0.1:1"}),
	}
	if _, err := nc.Subscribe("$SRV.INFO.profiles", func(m *nats.Msg) {
		for _, a := range answers {
			_ = m.Respond([]byte(a)) // the asking client may be gone
		}
	}); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, i := range discover(t, connect(t, url), "profiles") {
		ids = append(ids, i.ID)
		if i.HealthURL != "" || !i.Started.IsZero() || (i.Address != "") != (i.ID == "good") {
			t.Errorf("found %+v", i)
		}
	}
	if want := []string{"file", "good", "path", "twin", "user"}; !slices.Equal(ids, want) {
		t.Errorf("found %q, want %q", ids, want)
	}
	addresses, err := registry.New(nc).Addresses(t.Context(), "profiles")
	if err != nil || !slices.Equal(addresses, []string{"http://127.0.0.1:1"}) {
		t.Errorf("addresses are %q, %v", addresses, err)
	}
}

func TestManyInstances(t *testing.T) {
	t.Parallel()
	_, url := testenv.JetStream(t)
	nc, other := connect(t, url), connect(t, url)
	for n := range 1000 {
		register(t, nc, registry.Instance{Name: "profiles", Address: fmt.Sprintf("http://127.0.0.1:%d", n+1)})
	}
	begun := time.Now()
	if all := discover(t, other, "profiles"); len(all) != 1000 {
		t.Errorf("found %d of 1000 instances", len(all))
	}
	t.Logf("found 1000 after %s", time.Since(begun))
	if _, err := nc.Subscribe("$SRV.INFO.flood", func(m *nats.Msg) {
		for n := range 20_000 {
			_ = m.Respond([]byte(fmt.Sprintf(`{"name":"flood","id":"%d"}`, n))) // the asking client may be gone
		}
	}); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	if all := discover(t, other, "flood"); len(all) == 0 || len(all) > 1024 {
		t.Errorf("found %d of a flood", len(all))
	}
}

// TestSetWhileAway: an instance whose metadata change while NATS is away is there once
// afterwards, with the new ones.
func TestSetWhileAway(t *testing.T) {
	t.Parallel()
	server := testenv.NATS(t)
	nc, other := connect(t, server.URL()), connect(t, server.URL())
	r := register(t, nc, registry.Instance{Name: "profiles"})
	server.Stop()
	testenv.Eventually(t, patience, "NATS is lost", func() bool { return !nc.IsConnected() && !other.IsConnected() })
	for _, hash := range []string{"a", "b"} {
		r.Set("config", hash)
	}
	testenv.RestartNATS(t, server)
	testenv.Eventually(t, patience, "it is there", func() bool {
		all, err := registry.Ask(t.Context(), other, "profiles")
		if len(all) > 1 || len(all) == 1 && all[0].Metadata["config"] != "b" {
			t.Fatalf("Ask() = %v, want one with b", all)
		}
		return err == nil && len(all) == 1
	})
}
