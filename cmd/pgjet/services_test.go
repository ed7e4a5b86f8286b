package main

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pgjet/pgjet/internal/auth"
	"github.com/pgjet/pgjet/internal/devservices"
	"github.com/pgjet/pgjet/internal/registry"
	"github.com/pgjet/pgjet/internal/supervisor"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/producer"
)

// listed returns the output of pgjet services ls, by name.
func listed(t *testing.T, url string, args ...string) map[string]instance {
	t.Helper()
	var all []instance
	out := must(t, exitOK, append([]string{"services", "ls", "-o", "json", "--nats-url", url}, args...)...)
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	found := make(map[string]instance)
	for _, i := range all {
		found[i.Name] = i
	}
	return found
}

// TestServicesAreListed: every process registers with its address and health. It leaves the list
// when it stops, and is missing after a kill.
func TestServicesAreListed(t *testing.T) {
	t.Parallel()
	_, url := testenv.JetStream(t)
	database := testenv.DatabaseURL(t)
	if out := must(t, exitOK, "services", "ls", "--nats-url", url); strings.Count(out, "\n") != 1 {
		t.Errorf("services ls without any: %s", out)
	}
	must(t, exitOK, "stream", "ensure", "--nats-url", url)
	users := startService(t, "users", "--database-url", database, "--addr", anyPort, "--nats-url", url)
	users.Addr = users.Logged("serving the API", "addr")
	relay := startRelay(t, database, url)
	directory := startService(t, "consume", "directory", "--database-url", database, "--nats-url", url, "--addr", anyPort)
	profiles := startService(t, "standin", "profiles", "--nats-url", url, "--addr", "0.0.0.0:0", "--advertise", "localhost")
	lost := startMailer(t, "postgres://ann:"+secret+"@"+nowhere+"/x", url, nowhere)
	lost.NotReady(lost.Admin, "database_unreachable")
	for _, p := range []*service{users, relay, directory, profiles} {
		p.Ready(p.Admin)
	}
	all := listed(t, url)
	for name, p := range map[string]*service{"pgjet-users": users, "pgjet-relay": relay, "pgjet-directory": directory, "profiles": profiles} {
		i := all[name]
		if i.Health != "ready" || i.ID == "" || i.Version == "" || time.Since(i.Started) > 5*time.Minute ||
			i.HealthURL != p.Admin+"/readyz" && name != "profiles" {
			t.Errorf("%s is %+v; %s", name, i, p)
		}
	}
	if i := all["pgjet-users"]; i.Address != users.Addr {
		t.Errorf("users are at %s, want %s", i.Address, users.Addr)
	}
	if i := all["pgjet-relay"]; i.Address != "" {
		t.Errorf("the relay is at %s", i.Address)
	}
	if i := all["profiles"]; !strings.HasPrefix(i.Address, "http://localhost:") {
		t.Errorf("profiles are advertised at %s", i.Address)
	}
	if i := all["pgjet-welcome-mailer"]; i.Health != "not_ready" || !strings.Contains(i.Cause, "database_unreachable") || strings.Contains(i.Cause, secret) {
		t.Errorf("the mailer is %+v", i)
	}
	out := must(t, exitOK, "services", "get", "pgjet-users", "--nats-url", url)
	for _, want := range []string{"name", "pgjet-users", "address", users.Addr, "ready", "up "} {
		if !strings.Contains(out, want) {
			t.Errorf("services get does not say %q: %s", want, out)
		}
	}
	refused(t, exitNotFound, []string{"services", "get", "orders", "--nats-url", url}, "orders", "pgjet services ls")

	directory.Stop()
	if _, ok := listed(t, url)["pgjet-directory"]; ok {
		t.Error("a process that stopped is listed")
	}
	users.Kill()
	begun := time.Now()
	testenv.Eventually(t, patience, "a killed process is gone", func() bool { _, ok := listed(t, url)["pgjet-users"]; return !ok })
	t.Logf("gone after %s", time.Since(begun))

}

// TestLeavesBeforeItStops: a process that gets a signal is found by no new client, and works on for
// those that found it before.
func TestLeavesBeforeItStops(t *testing.T) {
	t.Parallel()
	_, url := testenv.JetStream(t)
	s := startService(t, "standin", "profiles", "--nats-url", url, "--addr", anyPort, "--stop-delay", "1m")
	addr := s.Logged("serving the API", "addr")
	s.Eventually(patience, "it is listed", func() bool { return listed(t, url)["profiles"].Address == addr })
	s.Signal(syscall.SIGTERM)
	s.Eventually(patience, "it has left", func() bool { _, ok := listed(t, url)["profiles"]; return !ok })
	if status, _ := get(t, addr+"/livez"); status != http.StatusOK {
		t.Errorf("GET /livez = %d after it left, want 200", status)
	}
	s.Signal(syscall.SIGTERM)
	s.Wait(patience)
	s.Killed = true // expected
}

// TestServicesOfStrangers: an instance with false data does no harm to the reader.
func TestServicesOfStrangers(t *testing.T) {
	t.Parallel()
	js, url := testenv.JetStream(t)
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("it was followed") }))
	defer elsewhere.Close()
	bad := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, elsewhere.URL, http.StatusFound)
	}))
	defer bad.Close()
	hangs, err := net.Listen("tcp", anyPort)
	if err != nil {
		t.Fatal(err)
	}
	defer hangs.Close()
	for name, at := range map[string]string{"redirects": bad.URL, "hangs": "http://" + hangs.Addr().String(), "dead": "http://" + nowhere, "none": ""} {
		r, err := registry.Register(js.Conn(), registry.Instance{
			Name: name, HealthURL: at, Metadata: map[string]string{"config": "\x1b[2Jred\nline"},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Stop()
	}
	want := map[string]string{"redirects": "not_ready", "hangs": "no_answer", "dead": "no_answer", "none": "unknown"}
	for name, i := range listed(t, url) {
		if i.Health != want[name] {
			t.Errorf("%s is %s, want %s", name, i.Health, want[name])
		}
	}
	if out := must(t, exitOK, "services", "ls", "--nats-url", url); strings.Contains(out, "\x1b") || strings.Count(out, "\n") != 5 {
		t.Errorf("services ls = %q", out)
	}
}

// TestConfigHashIsAnnounced: the hash is that of the configuration in force, also after a change.
func TestConfigHashIsAnnounced(t *testing.T) {
	t.Parallel()
	js, url := testenv.JetStream(t)
	s := followed(t, "", testenv.Logger(t))
	s.registryConn = js.Conn()
	r := s.register(testenv.Logger(t))
	r.Set("config", "before")
	l, err := net.Listen("tcp", anyPort)
	if err != nil {
		t.Fatal(err)
	}
	p := supervisor.Process{Registrar: r, Instances: []registry.Instance{{Name: "one"}, {Name: "two"}}, Admin: l, Metrics: http.NotFoundHandler(), Log: testenv.Logger(t)}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- p.Run(ctx) }()
	announced := func(hash string) {
		t.Helper()
		testenv.Eventually(t, patience, "the hash is "+hash, func() bool {
			all := listed(t, url)
			return len(all) == 2 && all["one"].Metadata["config"] == hash && all["two"].Metadata["config"] == hash
		})
	}
	announced("before")
	r.Set("config", "after")
	announced("after")
	cancel()
	if err := <-ended; err != nil || len(listed(t, url)) != 0 {
		t.Errorf("Run() = %v, and it has not left", err)
	}
}

func TestServicesWrongUse(t *testing.T) {
	t.Parallel()
	refused(t, exitUsage, []string{"services", "ls", "-o", "xml"}, "--output")
	refused(t, exitUsage, []string{"services", "get"}, "name of one service")
	refused(t, exitUsage, []string{"services", "get", "a.b", "--nats-url", testenv.NATS(t).URL()}, "no name of a service")
	refused(t, exitUnreachable, []string{"services", "ls", "--nats-url", "nats://" + nowhere}, "NATS")
	refused(t, exitUsage, []string{"standin", "shipping"}, "shipping")
	refused(t, exitUsage, []string{"users", "--profiles-url", "profiles:80", "--addr", anyPort, "--database-url", "postgres://" + nowhere + "/x"}, "--profiles-url")
}

// A journey is a user service of the test's own process, which finds the stand-in for
// profiles in the registry.
type journey struct {
	t            *testing.T
	users, other string
	id, token    string
}

func startJourney(t *testing.T) (j *journey, url string) {
	t.Helper()
	js, url := testenv.JetStream(t)
	j = &journey{t: t, other: startStandin(t, js.Conn())}
	log := testenv.Logger(t)
	issuer, err := auth.Generate()
	if err != nil {
		t.Fatal(err)
	}
	s := followed(t, "", log)
	s.registryConn = testenv.Connect(t, url).Conn()
	client, err := s.serviceClient(devservices.Profiles, log)
	if err != nil {
		t.Fatal(err)
	}
	api := producer.New(openDB(t, testenv.DatabaseURL(t)), issuer, log)
	tuning := producer.DefaultTuning()
	tuning.Cache.Enabled = false // the cache would answer while profiles fails
	api.Tune(tuning)
	api.Profiles = client.HTTP()
	server := httptest.NewServer(api)
	t.Cleanup(server.Close)
	j.users = server.URL
	j.id = signUp(t, j.users, "ann@example.com")
	if j.token, _, err = issuer.Issue(auth.Identity{Subject: j.id, Roles: []string{"user"}}, time.Hour); err != nil {
		t.Fatal(err)
	}
	return j, url
}

// startStandin starts one for profiles, registered on nc.
func startStandin(t *testing.T, nc *nats.Conn) string {
	t.Helper()
	handler, err := devservices.New(devservices.Profiles, t.TempDir(), testenv.Logger(t))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	r, err := registry.Register(nc, registry.Instance{Name: devservices.Profiles, Address: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Stop() })
	return server.URL
}

// profile asks for the user's profile, and returns status and body of the answer.
func (j *journey) profile() (int, string) {
	j.t.Helper()
	status, header, body := request(j.t, "GET", j.users+"/users/"+j.id+"/profile", "", map[string]string{"Authorization": "Bearer " + j.token})
	if (status == http.StatusServiceUnavailable) != (header.Get("Retry-After") != "") {
		j.t.Errorf("%d with Retry-After %q", status, header.Get("Retry-After"))
	}
	return status, body
}

// set changes the stand-in.
func (j *journey) set(method, path, body string) {
	j.t.Helper()
	if status, _, answer := request(j.t, method, j.other+path, body, nil); status >= 300 {
		j.t.Fatalf("%s %s = %d %s", method, path, status, answer)
	}
}

// TestProfilesBreak uses the fault switch of another service. The service is found, fails, is left
// alone, and is used again.
func TestProfilesBreak(t *testing.T) {
	t.Parallel()
	j, _ := startJourney(t)
	if status, body := j.profile(); status != http.StatusNotFound || !strings.Contains(body, "profile_not_found") {
		t.Errorf("without a profile: %d %s", status, body)
	}
	j.set("PUT", "/profiles/"+j.id, `{"name":"Ann"}`)
	if status, body := j.profile(); status != http.StatusOK || !strings.Contains(body, "Ann") {
		t.Errorf("with a profile: %d %s", status, body)
	}
	j.set("PUT", "/fault", `{"status":503,"count":1}`)
	if status, body := j.profile(); status != http.StatusOK {
		t.Errorf("one failure is noticed: %d %s", status, body)
	}
	const many = 100_000
	j.set("PUT", "/fault", `{"status":503,"count":100000}`)
	for range 20 {
		if status, body := j.profile(); status != http.StatusServiceUnavailable || !strings.Contains(body, "profiles_unavailable") {
			t.Errorf("while it fails: %d %s", status, body)
		}
	}
	var fault struct{ Count int }
	_, body := get(t, j.other+"/fault")
	if err := json.Unmarshal([]byte(body), &fault); err != nil || many-fault.Count != 5 {
		t.Errorf("it was asked %d times (%v), want 5: then it is left alone", many-fault.Count, err)
	}
	j.set("DELETE", "/fault", "")
	begun := time.Now()
	testenv.Eventually(t, patience, "it is used again", func() bool { status, _ := j.profile(); return status == http.StatusOK })
	t.Logf("used again after %s", time.Since(begun))
	j.set("PUT", "/fault", `{"delay":"5s","count":3}`) // longer than three attempts may take
	begun = time.Now()
	if status, body := j.profile(); status != http.StatusServiceUnavailable || time.Since(begun) > 6*time.Second {
		t.Errorf("while it hangs: %d %s after %s", status, body, time.Since(begun))
	}
}

// TestProfilesMove: another instance replaces one that has vanished.
func TestProfilesMove(t *testing.T) {
	t.Parallel()
	j, url := startJourney(t)
	j.set("PUT", "/profiles/"+j.id, `{"name":"Ann"}`)
	second := startStandin(t, testenv.Connect(t, url).Conn())
	j.other = second
	j.set("PUT", "/profiles/"+j.id, `{"name":"Second"}`)
	testenv.Eventually(t, patience, "the second is used as well", func() bool {
		status, body := j.profile()
		if status != http.StatusOK {
			t.Fatalf("meanwhile: %d %s", status, body)
		}
		return strings.Contains(body, "Second")
	})
}
