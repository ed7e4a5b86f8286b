package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

// A running is the JSON line of a pgjet dev that is ready.
type running struct {
	*process
	Console   string `json:"console"`
	Users     string `json:"users"`
	Inbox     string `json:"inbox"`
	Directory string `json:"directory"`
	Profiles  string `json:"profiles"`
	Billing   string `json:"billing"`
	NATS      string `json:"nats"`
	Database  string `json:"database"`
	Admin     string `json:"admin"`
	SMTP      string `json:"smtp"`
	Config    string `json:"config"`

	dir  string
	port int
}

// stateDir returns a directory that does not exist yet, which every user may enter.
func stateDir(t testing.TB) string {
	t.Helper()
	return filepath.Join(testenv.Dir(t), "state")
}

// startDev starts a pgjet dev and waits until it says that it is ready.
func startDev(t testing.TB, dir string, port int, args ...string) *running {
	t.Helper()
	return waitDev(start(t, nil, devArgs(dir, port, args...)...), dir, port)
}

func devArgs(dir string, port int, args ...string) []string {
	return append([]string{"dev", "--json", "--dir", dir, "--port", strconv.Itoa(port)}, args...)
}

func waitDev(p *process, dir string, port int) *running {
	p.T.Helper()
	begun := time.Now()
	p.Eventually(time.Minute, "it says that it is ready", func() bool { return strings.HasSuffix(p.Stdout.String(), "\n") })
	p.T.Logf("ready after %s", time.Since(begun).Round(10*time.Millisecond))
	r := &running{process: p, dir: dir, port: port}
	r.checkAnnouncement()
	return r
}

// checkAnnouncement reads the one line on stdout.
func (r *running) checkAnnouncement() {
	r.T.Helper()
	text := r.Stdout.String()
	keys := make(map[string]string)
	if err := json.Unmarshal([]byte(text), &keys); err != nil || strings.Count(text, "\n") != 1 {
		r.T.Fatalf("stdout is %q (%v), want one line of JSON", text, err)
	}
	if err := json.Unmarshal([]byte(text), r); err != nil {
		r.T.Fatal(err)
	}
	for _, key := range []string{"console", "users", "inbox", "directory", "profiles", "billing", "nats", "database", "admin", "smtp", "config"} {
		if keys[key] == "" {
			r.T.Errorf("stdout has no %q: %s", key, text)
		}
	}
	if len(keys) != 11 {
		r.T.Errorf("stdout has %d keys, want 11: %s", len(keys), text)
	}
}

// postgresPID returns the id of the PostgreSQL process that this run started.
func (r *running) postgresPID() int {
	r.T.Helper()
	b, err := os.ReadFile(filepath.Join(r.dir, "postgres", "postmaster.pid"))
	if err != nil {
		r.T.Fatal(err)
	}
	line, _, _ := strings.Cut(string(b), "\n")
	pid, err := strconv.Atoi(line)
	if err != nil {
		r.T.Fatal(err)
	}
	return pid
}

func TestDevDoesItAll(t *testing.T) {
	t.Parallel()
	dir, port := stateDir(t), freePorts(t)
	r := startDev(t, dir, port)
	checkPages(t, r.Admin)
	id := checkOneTrace(t, r)
	token := logIn(t, r.Users, "ann@example.com")

	pid := r.postgresPID()
	r.Signal(os.Interrupt)
	if code := r.Wait(patience); code != exitOK {
		t.Fatalf("exit code %d after an interrupt, want 0, of %s", code, r)
	}
	if alive(pid) {
		t.Errorf("PostgreSQL (pid %d) still runs", pid)
	}
	if busy := busyPorts(t, port); busy != nil {
		t.Errorf("ports %v are still in use", busy)
	}
	if text := r.Stdout.String(); strings.Count(text, "\n") != 1 {
		t.Errorf("stdout is %q, want one line", text)
	}

	r = startDev(t, dir, port)
	// The key is kept, so the earlier token is still valid.
	if status, body := getAs(t, token, r.Users+"/users/"+id); status != http.StatusOK || !strings.Contains(body, "ann@example.com") {
		t.Errorf("GET /users/%s after a restart = %d %s, want 200 and the user", id, status, body)
	}
	signUp(t, r.Users, "bob@example.com")
	oneMail(t, r.Inbox, "bob@example.com") // all earlier mails have arrived by now
	oneMail(t, r.Inbox, "ann@example.com")
	findsPeople(t, r.Directory, "", "Ann", "Ann")
	findsPeople(t, r.Directory, "BOB@", "Ann")
	created := 0
	for _, m := range stored(t, testenv.Connect(t, r.NATS)) {
		if m.Header.Get("ce-type") == "user.created" {
			created++
		}
	}
	if created != 2 {
		t.Errorf("the stream holds %d sign-ups, want 2", created)
	}
}

// checkOneTrace signs ann@example.com up, and finds the trace of that request everywhere. It
// returns the user's id.
func checkOneTrace(t *testing.T, r *running) string {
	t.Helper()
	const trace = "4bf92f3577b34da6a3ce929d0e0e4736"
	status, header, body := request(t, http.MethodPost, r.Users+"/users", signUpBody("ann@example.com"), map[string]string{
		"Content-Type": "application/json", "traceparent": "00-" + trace + "-00f067aa0ba902b7-01",
	})
	var user struct{ ID string }
	if err := json.Unmarshal([]byte(body), &user); status != http.StatusCreated || err != nil {
		t.Fatalf("POST /users = %d %s, want 201", status, body)
	}
	mail := oneMail(t, r.Inbox, "ann@example.com")

	db := openDB(t, r.Database)
	row := query[string](t, db, `select id || ' ' || traceparent || ' ' || seq from pgjet.outbox`)
	eventID, seq, traceparent := "", "", ""
	if _, err := fmt.Sscan(row, &eventID, &traceparent, &seq); err != nil {
		t.Fatal(err)
	}
	all := stored(t, testenv.Connect(t, r.NATS))
	if len(all) != 1 {
		t.Fatalf("the stream holds %d events, want 1", len(all))
	}
	msg := all[0]
	if want := events.Subject("user.created", user.ID); msg.Subject != want {
		t.Errorf("subject = %s, want %s", msg.Subject, want)
	}
	for name, want := range map[string]string{
		"ce-specversion": "1.0", "ce-id": eventID, "ce-source": "/users", "ce-type": "user.created",
		"ce-subject": user.ID, "ce-datacontenttype": "application/json", "Pgjet-Seq": seq, "traceparent": traceparent,
	} {
		if got := msg.Header.Get(name); got != want {
			t.Errorf("header %s of the message = %q, want %q", name, got, want)
		}
	}
	if _, err := time.Parse(time.RFC3339Nano, msg.Header.Get("ce-time")); err != nil {
		t.Errorf("header ce-time of the message: %v", err)
	}
	if ids := mail.Headers["Message-Id"]; len(ids) != 1 || !strings.HasPrefix(ids[0], "<"+eventID+".") {
		t.Errorf("Message-ID of the mail = %q, want one made of the event's id, %s", ids, eventID)
	}
	for station, got := range map[string]string{
		"the answer": header.Get("Traceparent"), "the outbox": traceparent,
		"the message": msg.Header.Get("traceparent"), "the mail": strings.Join(mail.Headers["Traceparent"], " "),
	} {
		if !strings.HasPrefix(got, "00-"+trace+"-") {
			t.Errorf("traceparent of %s = %q, want one of trace %s", station, got, trace)
		}
	}
	handled := regexp.MustCompile(`handled consumer=welcome-mailer .*trace_id=` + trace)
	r.Eventually(patience, "the log of the consumer names the trace", func() bool { return handled.MatchString(r.Stderr.String()) })
	return user.ID
}

func TestDevKilledLeavesNothingBehind(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells a child that its parent died")
	}
	t.Parallel()
	dir, port := stateDir(t), freePorts(t)
	r := startDev(t, dir, port)
	id := signUp(t, r.Users, "ann@example.com")
	pid := r.postgresPID()
	r.Kill()

	r = startDev(t, dir, port) // at once: PostgreSQL may still be ending
	if alive(pid) {
		t.Errorf("PostgreSQL (pid %d) of the killed process still runs", pid)
	}
	if status, body := getAs(t, logIn(t, r.Users, "ann@example.com"), r.Users+"/users/"+id); status != http.StatusOK {
		t.Errorf("GET /users/%s = %d %s, want 200", id, status, body)
	}
	// If the kill came between the mail server's answer and our commit, a second mail with the same
	// id is correct. Events that were delivered but not recorded come again after AckWait.
	testenv.Eventually(t, 30*time.Second+patience, "a mail arrives", func() bool { return len(mails(t, r.Inbox, "ann@example.com")) > 0 })
	ids := make(map[string]bool)
	for _, m := range mails(t, r.Inbox, "ann@example.com") {
		ids[strings.Join(m.Headers["Message-Id"], " ")] = true
	}
	if len(ids) != 1 {
		t.Errorf("mails of one event have the ids %v, want one id", ids)
	}

	pid = r.postgresPID()
	r.Kill()
	testenv.Eventually(t, patience, "PostgreSQL of the killed process ends", func() bool { return !alive(pid) })
}

// TestDevEndsWithPostgreSQL: without its database the process ends, and reports why.
func TestDevEndsWithPostgreSQL(t *testing.T) {
	t.Parallel()
	r := startDev(t, stateDir(t), freePorts(t))
	r.Killed = true // it has to fail
	if err := syscall.Kill(r.postgresPID(), syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	if code := r.Wait(patience); code != exitFailed || !strings.Contains(r.Stderr.String(), "PostgreSQL ended") {
		t.Errorf("exit code %d, want 1 and the reason, of %s", code, r)
	}
}

// TestDevUsesRunningServers: with addresses it starts no servers, and shows no
// password. On a signal it logs that it stops.
func TestDevUsesRunningServers(t *testing.T) {
	t.Parallel()
	n := testenv.NATS(t)
	database := withPassword(testenv.EmptyDatabaseURL(t))
	r := startDev(t, stateDir(t), freePorts(t), "--database-url", database, "--nats-url", withPassword(n.URL()))
	signUp(t, r.Users, "ann@example.com")
	oneMail(t, r.Inbox, "ann@example.com")
	for _, name := range []string{"postgres", "nats"} {
		if _, err := os.Stat(filepath.Join(r.dir, name)); err == nil {
			t.Errorf("there is a directory %s for a server that it does not need", name)
		}
	}
	half, err := net.Dial("tcp", strings.TrimPrefix(r.Users, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer half.Close()
	fmt.Fprint(half, "POST /users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
	r.Signal(os.Interrupt)
	r.NotReady(r.Admin, `"status":"stopping"`)
	half.Close()
	if code := r.Wait(patience); code != exitOK {
		t.Errorf("exit code %d, want 0, of %s", code, r)
	}
}

// withPassword puts the secret into an address. The servers of tests ignore it.
func withPassword(address string) string {
	scheme, rest, _ := strings.Cut(address, "://")
	user := "pgjet"
	if name, after, found := strings.Cut(rest, "@"); found {
		user, rest = name, after
	}
	return scheme + "://" + user + ":" + secret + "@" + rest
}
