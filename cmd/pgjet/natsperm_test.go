package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers/directory"
	"github.com/pgjet/pgjet/consumers/mailer"
	"github.com/pgjet/pgjet/internal/testenv"
)

// A guarded is a NATS server whose users have only the permissions that pgjet nats permissions or
// pgjet nats accounts prints.
type guarded struct {
	t      *testing.T
	server *server.Server
	log    *violations
}

// roles are the users of a guarded server, with the arguments that print their permissions.
var roles = map[string][]string{
	"relay":    {"relay"},
	"consumer": {"consumer", "--consumer", mailer.Name},
	"reader":   {"consumer", "--consumer", directory.Name},
	"operator": {"operator", "--consumer", mailer.Name, "--consumer", directory.Name, "--consumer", "notes"},
	"writer":   {"writer"},
}

func startGuarded(t *testing.T) *guarded {
	t.Helper()
	var users strings.Builder
	for user, words := range roles {
		printed := must(t, exitOK, append([]string{"nats", "permissions"}, words...)...)
		fmt.Fprintf(&users, "{ user: %s, password: %s\n%s}\n", user, secret, printed)
	}
	return guard(t, "authorization: { users: [\n"+users.String()+"] }\n")
}

// guard starts a server with JetStream and that configuration.
func guard(t *testing.T, text string) *guarded {
	t.Helper()
	config := filepath.Join(t.TempDir(), "nats.conf")
	text = fmt.Sprintf("listen: \"127.0.0.1:-1\"\njetstream: { store_dir: %q, request_queue_limit: 1000000 }\n%s", t.TempDir(), text)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	options, err := server.ProcessConfigFile(config)
	if err != nil {
		t.Fatalf("%v of\n%s", err, text)
	}
	options.NoSigs = true
	s, err := server.NewServer(options)
	if err != nil {
		t.Fatal(err)
	}
	g := &guarded{t: t, server: s, log: &violations{}}
	s.SetLoggerV2(g.log, false, false, false)
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(patience) {
		t.Fatal("NATS did not get ready")
	}
	return g
}

func (g *guarded) url(user string) string {
	return fmt.Sprintf("nats://%s:%s@%s", user, secret, g.server.Addr())
}

// violations are the refusals in the server's log.
type violations struct {
	mu      sync.Mutex
	all     []string
	dropped []string // why it did not look at requests
}

func (v *violations) Errorf(format string, args ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if line := fmt.Sprintf(format, args...); strings.Contains(line, "Violation") {
		v.all = append(v.all, line)
	}
}
func (v *violations) Noticef(string, ...any) {}
func (v *violations) Warnf(format string, args ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if line := fmt.Sprintf(format, args...); strings.Contains(line, "dropping") {
		v.dropped = append(v.dropped, line)
	}
}
func (v *violations) Fatalf(string, ...any) {}
func (v *violations) Debugf(string, ...any) {}
func (v *violations) Tracef(string, ...any) {}

// none checks that the server refused nothing.
func (v *violations) none(t *testing.T) {
	t.Helper()
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, line := range v.all {
		t.Errorf("NATS refused: %s", line)
	}
	v.all = nil
}

// TestNATSPermissions runs everything with the least permissions: an event from the user service to
// a mail, each way in which a relay reads the stream when it begins, and a hint.
func TestNATSPermissions(t *testing.T) {
	t.Parallel()
	g := startGuarded(t)
	database := testenv.DatabaseURL(t)
	db := openDB(t, database)
	must(t, exitOK, "stream", "ensure", "--nats-url", g.url("operator"))
	must(t, exitOK, "stream", "ensure", "--nats-url", g.url("operator"))
	smtp, inbox := startMail(t, anyPort)
	for range 2 {
		must(t, exitOK, "consumer", "ensure", mailer.Name, followName, "--nats-url", g.url("operator"))
	}
	mailer := startMailer(t, database, g.url("consumer"), smtp)
	relay := startRelay(t, database, g.url("relay"))
	users := startService(t, "users", "--database-url", database, "--addr", anyPort, "--nats-url", g.url("writer"))
	users.Addr = users.Logged("serving the API", "addr")
	for i, forget := range []string{
		`select`, // it finds the message that the checkpoint names
		`delete from pgjet.checkpoint where id = (select max(id) from pgjet.checkpoint)`, // it reads what follows
		`delete from pgjet.checkpoint`, // it reads everything
	} {
		relay.Ready(relay.Admin)
		for n := range 3 {
			email := fmt.Sprintf("ann%d.%d@example.com", i, n)
			signUp(t, users.Addr, email)
			oneMail(t, inbox, email)
		}
		testenv.Eventually(t, patience, "a checkpoint", func() bool {
			return query[int64](t, db, `select coalesce(max(stream_seq), 0) from pgjet.checkpoint`) == int64(3*(i+1))
		})
		g.hears(relay)
		relay.Stop()
		if _, err := db.Exec(t.Context(), forget); err != nil {
			t.Fatal(err)
		}
		relay = startRelay(t, database, g.url("relay"))
	}
	relay.Ready(relay.Admin)
	mailer.Ready(mailer.Admin)
	for _, name := range []string{"pgjet-relay", "pgjet-users", "pgjet-welcome-mailer"} {
		if i := listed(t, g.url("operator"))[name]; i.Health != "ready" {
			t.Errorf("%s is registered as %+v, want it to be ready", name, i)
		}
	}
	mailer.Stop() // gives back what it has fetched
	signUp(t, users.Addr, "last@example.com")
	// The stream has the time since when the event waits.
	ends(t, exitFindings, asked("consumer ls", g.url("operator")), database, "no_process   1     0          0      0/s    ", "s ago")
	finds(t, exitFindings, database, g.url("operator"), "consumer welcome-mailer no_process -> pgjet consume welcome-mailer")
	last := query[string](t, db, `select id::text from pgjet.outbox order by seq desc limit 1`)
	if s := timelineOf(t, last, database, g.url("operator")); !s.inOrder("outbox: appended user.created", "stream: stored as EVENTS", "welcome-mailer: waits to be delivered") {
		t.Errorf("an operator is told %+v, not known %q", s.Timeline, s.Events[0].Unknown)
	}
	if _, p := runProcess(t, nil, words(asked("doctor --all", g.url("operator")), database)...); !strings.Contains(p.Stdout.String(), "bytes used") {
		t.Errorf("an operator does not see the storage of the account: %s", p)
	}
	relay.Stop()
	g.addsTypes(database)
	g.log.none(t)
}

// addsTypes checks that an operator may add types to a durable consumer.
func (g *guarded) addsTypes(database string) {
	g.t.Helper()
	nc, err := nats.Connect(g.url("operator"), nats.CustomInboxPrefix(inboxPrefix("operator")))
	if err != nil {
		g.t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		g.t.Fatal(err)
	}
	makeOlder(g.t, js, mailer.Name)
	out := must(g.t, exitOK, words(asked("consumer ensure welcome-mailer --apply", g.url("operator")), database)...)
	if !strings.Contains(out, "added user.rejected") {
		g.t.Errorf("--apply says %q", out)
	}
}

// hears checks that hints reach the relay.
func (g *guarded) hears(relay *service) {
	g.t.Helper()
	connz, err := g.server.Connz(&server.ConnzOptions{Subscriptions: true, Username: true})
	if err != nil {
		g.t.Fatal(err)
	}
	for _, c := range connz.Conns {
		if c.AuthorizedUser == "relay" && slices.Contains(c.Subs, "pgjet.hint.EVENTS") {
			return
		}
	}
	g.t.Errorf("nobody listens for hints, of %s", relay)
}

// TestNATSPermissionsAreTheLeast: what a role does not need is refused.
func TestNATSPermissionsAreTheLeast(t *testing.T) {
	t.Parallel()
	g := startGuarded(t)
	must(t, exitOK, "stream", "ensure", "--nats-url", g.url("operator"))
	for _, row := range []struct{ user, subject string }{
		{"relay", "$JS.API.STREAM.DELETE.EVENTS"},
		{"relay", "$JS.API.STREAM.PURGE.EVENTS"},
		{"relay", "$JS.API.STREAM.MSG.DELETE.EVENTS"},
		{"relay", "$JS.API.STREAM.UPDATE.EVENTS"},
		{"relay", "$JS.API.STREAM.INFO.OTHERS"},
		{"relay", "$JS.API.CONSUMER.DELETE.EVENTS." + mailer.Name},
		{"relay", "$JS.ACK.EVENTS." + mailer.Name + ".1.1.1.1.1"},
		{"relay", "orders.created"},
		{"relay", "$SRV.INFO.profiles"},
		{"relay", "_INBOX_operator.x"}, // unless it was asked
		{"consumer", "$SRV.INFO.profiles"},
		{"writer", "$SRV.INFO"},
		{"writer", "_INBOX_relay.x"},
		{"consumer", "events.00.user.created"},
		{"consumer", "$JS.API.STREAM.PURGE.EVENTS"},
		{"consumer", "$JS.API.STREAM.MSG.GET.EVENTS"},
		{"consumer", "$JS.API.DIRECT.GET.OTHERS"},
		{"consumer", "$JS.API.CONSUMER.CREATE.EVENTS.other"},
		{"consumer", "$JS.API.CONSUMER.MSG.NEXT.EVENTS.other"},
		{"consumer", "$JS.API.CONSUMER.DELETE.EVENTS." + mailer.Name},
		{"consumer", "$JS.API.CONSUMER.RESET.EVENTS.other"},
		{"consumer", "$JS.API.CONSUMER.PAUSE.EVENTS." + mailer.Name},
		{"consumer", "$JS.API.CONSUMER.PAUSE.EVENTS.other"},
		{"consumer", "$JS.API.CONSUMER.INFO.EVENTS.other"},
		{"consumer", "$JS.ACK.EVENTS.other.1.1.1.1.1"},
		{"consumer", "pgjet.hint.EVENTS"},
		{"operator", "events.00.user.created"},
		{"operator", "$JS.API.STREAM.DELETE.EVENTS"},
		{"operator", "$JS.API.STREAM.PURGE.EVENTS"},
		{"operator", "$JS.API.CONSUMER.DELETE.EVENTS." + mailer.Name},
		{"operator", "$JS.API.CONSUMER.RESET.OTHERS." + mailer.Name},
		{"operator", "$JS.ACK.EVENTS." + mailer.Name + ".1.1.1.1.1"},
		{"writer", "events.00.user.created"},
		{"writer", "$JS.API.STREAM.INFO.EVENTS"},
		{"writer", "pgjet.hint.OTHERS"},
		{"writer", "$JS.API.CONSUMER.CREATE.OTHERS.any"},
		{"writer", "$JS.API.CONSUMER.CREATE.EVENTS." + followName},
		{"writer", "$JS.API.CONSUMER.DURABLE.CREATE.EVENTS.any"},
		{"writer", "$JS.API.CONSUMER.MSG.NEXT.EVENTS." + mailer.Name},
		{"writer", "$JS.API.CONSUMER.DELETE.EVENTS." + mailer.Name},
		{"writer", "$JS.API.CONSUMER.INFO.EVENTS." + mailer.Name},
		{"writer", "$JS.API.STREAM.MSG.GET.EVENTS"},
		{"writer", "$JS.ACK.EVENTS." + mailer.Name + ".1.1.1.1.1"},
	} {
		if !g.refuses(row.user, func(nc *nats.Conn) error { return nc.Publish(row.subject, nil) }) {
			t.Errorf("%s may publish to %s", row.user, row.subject)
		}
	}
	for _, row := range []struct{ user, subject string }{
		{"relay", "_INBOX." + mailer.Name + ".>"}, {"relay", "events.>"}, {"consumer", "events.>"}, {"consumer", "_INBOX_relay.>"},
		{"consumer", "_INBOX.>"}, {"operator", "events.>"}, {"writer", "pgjet.hint.EVENTS"}, {"writer", "_INBOX.>"}, {"writer", "events.>"}, {"writer", "_INBOX_relay.>"},
		{"relay", "$SRV.>"}, {"relay", "$SRV.INFO.profiles"}, {"relay", "$SRV.*.pgjet-users"}, {"writer", "$SRV.INFO.pgjet-relay"},
		{"consumer", "$SRV.INFO.profiles"}, {"consumer", "$SRV.INFO.pgjet-directory.*"}, {"operator", "$SRV.>"},
	} {
		if !g.refuses(row.user, func(nc *nats.Conn) error { _, err := nc.SubscribeSync(row.subject); return err }) {
			t.Errorf("%s may subscribe to %s", row.user, row.subject)
		}
	}
}

// TestNATSPermissionsForOthers: permissions that our code does not use. Runbooks ask an operator to
// use some, and servers with the newer form of acks need others.
func TestNATSPermissionsForOthers(t *testing.T) {
	t.Parallel()
	g := startGuarded(t)
	must(t, exitOK, "stream", "ensure", "--nats-url", g.url("operator"))
	nc, err := nats.Connect(g.url("operator"), nats.CustomInboxPrefix(inboxPrefix("operator")))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	answer, err := nc.Request("$JS.API.STREAM.MSG.GET.EVENTS", []byte(`{"seq":1}`), patience)
	if err != nil || !strings.Contains(string(answer.Data), "no message found") {
		t.Errorf("an operator gets a message of an empty stream: %v, %v", answer, err)
	}
	ack := "$JS.ACK._.account.EVENTS." + mailer.Name + ".1.1.1.1.1"
	if g.refuses("consumer", func(nc *nats.Conn) error { return nc.Publish(ack, nil) }) {
		t.Errorf("a consumer may not publish to %s", ack)
	}
	g.log.none(t)
}

// refuses reports whether the server refuses do.
func (g *guarded) refuses(user string, do func(nc *nats.Conn) error) bool {
	g.t.Helper()
	ignore := func(*nats.Conn, *nats.Subscription, error) {} // the default prints to stderr
	nc, err := nats.Connect(g.url(user), nats.ErrorHandler(ignore))
	if err != nil {
		g.t.Fatal(err)
	}
	defer nc.Close()
	if err := errors.Join(do(nc), nc.Flush()); err != nil {
		g.t.Fatal(err)
	}
	// A refusal comes before the answer to the flush.
	return errors.Is(nc.LastError(), nats.ErrPermissionViolation)
}

func TestNATSPermissionsPrinted(t *testing.T) {
	t.Parallel()
	var g grant
	out := must(t, exitOK, "nats", "permissions", "writer", "--stream", "ORDERS", "-o", "json")
	if err := json.Unmarshal([]byte(out), &g); err != nil || !slices.Equal(g.Publish, []string{"pgjet.hint.ORDERS", "$JS.API.CONSUMER.INFO.ORDERS.pgjet-users", "_INBOX_operator.srv.>", "_INBOX.>", "$SRV.INFO.profiles"}) {
		t.Errorf("writer: %s (%v)", out, err)
	}
	out = must(t, exitOK, "nats", "permissions", "consumer", "--consumer", "c", "--stream", "ORDERS")
	for _, want := range []string{`"$JS.API.CONSUMER.MSG.NEXT.ORDERS.c"`, `"_INBOX_c.>"`} {
		if !strings.Contains(out, want) || strings.Contains(out, "EVENTS") {
			t.Errorf("consumer: %s, want %s", out, want)
		}
	}
	out = must(t, exitOK, "nats", "permissions", "operator", "--consumer", "a", "--consumer", "b")
	for _, want := range []string{"CONSUMER.RESET.EVENTS.a", "CONSUMER.CREATE.EVENTS.b", "CONSUMER.DELETE.EVENTS.pgjet-replay-b"} {
		if !strings.Contains(out, want) || strings.Contains(out, mailer.Name) {
			t.Errorf("operator: %s, want %s", out, want)
		}
	}
	refused(t, exitUsage, []string{"nats", "permissions", "operator", "--consumer", "a.b"}, "--consumer")
	refused(t, exitUsage, []string{"nats", "permissions", "consumer"}, "--consumer")
	refused(t, exitUsage, []string{"nats", "permissions", "consumer", "--consumer", "a", "--consumer", "b"}, "--consumer")
	refused(t, exitUsage, []string{"nats", "permissions", "relay", "--consumer", "c"}, "--consumer")
	refused(t, exitUsage, []string{"nats", "permissions", "king"}, "king")
	refused(t, exitUsage, []string{"nats", "permissions", "relay", "--stream", "A.>"}, "--stream")
	refused(t, exitUsage, []string{"nats", "permissions", "relay", "-o", "yaml"}, "--output")
}
