package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/internal/testenv"
)

// The canaries are parts of what the test sends. No log line, span, metric, refusal or recorded
// error may contain one, in upper or lower case.
const (
	canaryEmail    = "Canary.Address@tell-tale.example.com"
	canaryName     = "Canary Nameson"
	canaryPassword = "canary horse battery"
	canaryToken    = "eyJhbGciOiJFZERTQSJ9.Y2FuYXJ5dG9rZW4.canarysignature"
	canaryKey      = "canary-idempotency-key"
)

var canaries = []string{"canary.address", "tell-tale", "nameson", "canary horse", "canarysignature", "y2fuyxj5dg9rzw4", canaryKey, secret}

// A mine searches texts for canaries.
type mine struct {
	t      *testing.T
	users  string
	token  string
	issued []string // tokens that the service issued, which are canaries, too
}

// search fails the test if text holds a canary.
func (m *mine) search(where, text string) {
	m.t.Helper()
	lower := strings.ToLower(text)
	for _, c := range slices.Concat(canaries, m.issued) {
		if i := strings.Index(lower, c); i >= 0 {
			m.t.Errorf("%s has %q: …%q…", where, c, text[max(0, i-200):min(len(text), i+200)])
		}
	}
}

// send makes a request with secrets in all its headers. It searches the answer unless it is a
// success.
func (m *mine) send(method, path, body string) int {
	m.t.Helper()
	header := map[string]string{"Authorization": "Bearer " + m.token, "Idempotency-Key": canaryKey, "If-Match": `"` + canaryKey + `"`}
	if body != "" {
		header["Content-Type"] = "application/json"
	}
	status, head, text := request(m.t, method, m.users+path, body, header)
	if status >= 400 {
		m.search("the answer to "+method, fmt.Sprint(head)+text)
	}
	var session struct{ Token string }
	if json.Unmarshal([]byte(text), &session) == nil && session.Token != "" {
		m.token = session.Token
		m.issued = append(m.issued, strings.ToLower(session.Token[strings.LastIndexByte(session.Token, '.')+1:]))
	}
	return status
}

// requests sends valid and invalid requests, and requests that conflict with earlier ones.
func (m *mine) requests() {
	m.t.Helper()
	right := canarySignUp(canaryEmail, canaryPassword)
	for _, r := range []struct{ method, path, body string }{
		{"POST", "/users", right},
		{"POST", "/users", right},
		{"POST", "/users", canarySignUp("other."+canaryEmail, canaryPassword)}, // with the key of the previous request
		{"POST", "/users", canarySignUp(canaryEmail+" ", canaryPassword)},
		{"POST", "/users", canarySignUp(canaryEmail, canaryEmail)},
		{"POST", "/users", strings.Replace(right, `"email"`, `"mail"`, 1)},
		{"POST", "/users", strings.Replace(right, `"`+canaryName+`"`, `["`+canaryName+`"]`, 1)},
		{"POST", "/users", strings.TrimSuffix(right, "}")},
		{"POST", "/users", right + right},
		{"POST", "/users", `"` + canaryPassword + `"`},
		{"POST", "/sessions", `{"email":"` + canaryEmail + `","password":"` + canaryPassword + `"}`},
		{"POST", "/sessions", `{"email":"` + canaryEmail + `","password":"not the ` + canaryPassword + `"}`},
		{"POST", "/sessions", `{"email":"nobody.` + canaryEmail + `","password":"` + canaryPassword + `"}`},
		{"GET", "/users", ""},
		{"GET", "/users?after=" + canaryKey + "&limit=" + canaryKey, ""},
		{"GET", "/users/" + canaryEmail, ""},
		{"PATCH", "/users/" + canaryEmail, `{"name":"` + canaryName + `"}`},
		{"DELETE", "/users/" + canaryEmail, ""},
		{"GET", "/users/" + canaryEmail + "/profile?token=" + canaryToken, ""},
		{"POST", "/" + canaryEmail, right},
	} {
		if status := m.send(r.method, r.path, r.body); status == 0 || status == 500 {
			m.t.Errorf("%s %s = %d", r.method, r.path, status)
		}
	}
}

func canarySignUp(email, password string) string {
	b, err := json.Marshal(map[string]string{"email": email, "name": canaryName, "password": password})
	if err != nil {
		panic(err)
	}
	return string(b)
}

// TestCanary: addresses, names, passwords, tokens and keys of users stay out of everything that
// others read, whatever fails: requests and mails are refused, another service repeats what it was
// sent, an account is declined, the configuration has a mistake beside a password, the stream
// refuses events, and PostgreSQL is away.
func TestCanary(t *testing.T) {
	t.Parallel()
	spans := &output{}
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(spans, r.Body) // missing spans fail below
	}))
	t.Cleanup(collector.Close)
	vars := env{"OTEL_EXPORTER_OTLP_ENDPOINT": collector.URL, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_BSP_SCHEDULE_DELAY": "100"}
	server, n := testenv.PostgresServer(t), testenv.NATS(t)
	database, nats := withPassword(server.URL()), withPassword(n.URL())
	must(t, exitOK, "migrate", "up", "--demo", "--database-url", database)
	js := ensureStream(t, n.URL())
	run := func(args ...string) *service {
		args = append(args, "--database-url", database, "--nats-url", nats, "--admin-addr", anyPort, "--log-level", "debug")
		s := &service{Process: start(t, vars, args...)}
		s.Admin = s.Logged("starting", "admin")
		return s
	}
	profiles, config := repeat(t), configFileOf(t, "a.yaml", "mail_rate: 1\n")
	users := run("users", "--addr", anyPort, "--profiles-url", profiles, "--config", config)
	users.Addr = users.Logged("serving the API", "addr")
	smtp := "smtp://" + refuseMail(t) + "?tls=off"
	all := []*service{users, run("relay"), run("consume", "welcome-mailer", "--smtp-url", smtp), run("consume", "directory", "--addr", anyPort)}
	for _, s := range all {
		s.Ready(s.Admin)
	}
	m := &mine{t: t, users: users.Addr, token: canaryToken}
	m.requests()
	db := openDB(t, server.URL())
	billing := startService(t, "standin", "billing", "--nats-url", nats, "--addr", anyPort, "--log-level", "debug")
	decline(t, billing.Logged("serving the API", "addr"))
	all = append(all, billing, run("consume", "onboarding", "--profiles-url", profiles))
	all[len(all)-1].Eventually(patience, "the account is declined", func() bool {
		return query[int](t, db, `select count(*) from pgjet.saga where state = 'undone'`) > 0
	})
	m.misconfigure(users, config)
	for _, words := range [][]string{{"services", "ls", "-o", "json", "--nats-url", nats}, {"saga", "ls", "-o", "json", "--database-url", database}} {
		if out := must(t, exitOK, words...); len(out) < 100 {
			t.Errorf("%v says only %s", words, out)
		} else {
			m.search(fmt.Sprint(words[:2]), out)
		}
	}
	all[2].Eventually(patience, "the mail is refused for good", func() bool {
		return query[int](t, db, `select count(*) from pgjet.dead_letter`) > 0
	})
	refuseEvents(t, js)
	if status, _, body := request(t, "POST", users.Addr+"/users", canarySignUp("late."+canaryEmail, canaryPassword), map[string]string{"Content-Type": "application/json"}); status != 201 {
		t.Errorf("POST /users = %d %s, want 201", status, body)
	}
	all[1].Eventually(patience, "the event is refused", func() bool {
		return query[int](t, db, `select count(*) from pgjet.quarantine`) > 0
	})
	for _, sql := range []string{
		`select coalesce(string_agg(row_to_json(a)::text, ''), '') from pgjet.attempt a`,
		`select coalesce(string_agg(row_to_json(p)::text, ''), '') from pgjet.process p`,
		`select coalesce(string_agg(row_to_json(s)::text, ''), '') from pgjet.saga s`,
		`select coalesce(string_agg(row_to_json(q)::text, ''), '') from pgjet.quarantine q`,
		`select string_agg(concat(error, stack, trace_id), '') from pgjet.dead_letter`,
	} {
		text := query[string](t, db, sql)
		m.search(sql, text)
		t.Logf("%.200s", text)
	}
	db.Close()
	metrics := ""
	for _, s := range all {
		_, page := get(t, s.Admin+"/metrics")
		metrics += page
	}
	stopPostgres(t, server)
	for _, s := range all[:2] {
		s.NotReady(s.Admin, "database_unreachable")
	}
	if status := m.send("POST", "/users", canarySignUp("third."+canaryEmail, canaryPassword)); status != 503 {
		t.Errorf("POST /users = %d without PostgreSQL, want 503", status)
	}
	for _, s := range all {
		_, page := get(t, s.Admin+"/metrics")
		_, ready := get(t, s.Admin+"/readyz")
		metrics += page + ready
	}
	stopAll(all...)
	m.search("metrics", metrics)
	for _, s := range all {
		m.search("the output of "+s.Name[:20], s.Stdout.String()+s.Stderr.String())
	}
	m.search("the traces", spans.String())
	if !strings.Contains(spans.String(), "/users/{id}") || !strings.Contains(spans.String(), "user.created") {
		t.Errorf("the collector got %d bytes without the spans", len(spans.String()))
	}
	if !strings.Contains(metrics, "http_server_request_duration") {
		t.Error("the metrics are not there")
	}
}

// misconfigure writes mistakes into the configuration that a process follows, each beside a
// password.
func (m *mine) misconfigure(users *service, file string) {
	m.t.Helper()
	for text, says := range map[string]string{
		"database_url: postgres://ann:" + secret + "@h/x\nnats_url: [" + secret + "]\n": "want a single value",
		"database_url: postgres://ann:" + secret + "@h/x\n\tnats_url: " + secret + "\n": "not YAML",
		"users:\n  requests: https://ann:" + secret + "@h\n":                            "want a whole number",
	} {
		rewrite(m.t, file, text)
		users.Eventually(patience, "it refuses the configuration: "+says, func() bool { return strings.Contains(users.Stderr.String(), says) })
	}
}

// decline makes a stand-in of billing decline every account.
func decline(t *testing.T, addr string) {
	t.Helper()
	status, _, body := request(t, http.MethodPut, addr+"/fault", `{"status":402}`, map[string]string{"Content-Type": "application/json"})
	if status != http.StatusOK {
		t.Fatalf("PUT /fault = %d %s", status, body)
	}
}

// repeat serves a profiles service that first fails and repeats what it was sent, and then works.
// It returns its address.
func repeat(t *testing.T) string {
	t.Helper()
	var puts atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		w.Header().Set("X-Sent", canaryName+canaryEmail)
		switch {
		case err != nil || r.Method != http.MethodPut:
			w.WriteHeader(http.StatusNoContent)
		case puts.Add(1) < 4:
			http.Error(w, string(body)+"\n"+canaryEmail, http.StatusInternalServerError)
		case puts.Load() == 4:
			fmt.Fprintf(w, `{"user_id":[%q],%s`, canaryName, body)
		default:
			_, _ = w.Write(body)
		}
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// refuseEvents makes the stream refuse all events.
func refuseEvents(t *testing.T, js jetstream.JetStream) {
	t.Helper()
	stream, err := js.Stream(t.Context(), "EVENTS")
	if err != nil {
		t.Fatal(err)
	}
	config := stream.CachedInfo().Config
	config.MaxMsgSize = 10
	if _, err := js.UpdateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
}

// refuseMail serves SMTP that refuses each recipient and repeats its address, as servers do. It
// returns its own address.
func refuseMail(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", anyPort)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				fmt.Fprint(conn, "220 test\r\n")
				for lines := bufio.NewScanner(conn); lines.Scan(); {
					switch verb, rest, _ := strings.Cut(lines.Text(), " "); strings.ToUpper(verb) {
					case "RCPT":
						fmt.Fprintf(conn, "550 5.1.1 %s (%s): no such mailbox\r\n", rest, canaryName)
					default:
						fmt.Fprint(conn, "250 2.0.0 yes\r\n")
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}
