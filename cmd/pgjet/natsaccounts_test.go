package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers/directory"
	"github.com/pgjet/pgjet/consumers/mailer"
	"github.com/pgjet/pgjet/consumers/onboarding"
	"github.com/pgjet/pgjet/internal/registry"
	"github.com/pgjet/pgjet/internal/testenv"
)

// startAccounts starts a server with the accounts that pgjet nats accounts prints.
func startAccounts(t *testing.T) *guarded {
	t.Helper()
	return guard(t, accountsConfig(t))
}

// accountsConfig returns the output of pgjet nats accounts, and all passwords. It adds the user
// test of the stream's account for the test itself.
func accountsConfig(t testing.TB) string {
	t.Helper()
	var passwords strings.Builder
	for _, a := range printedAccounts(t) {
		if a.User != "" {
			fmt.Fprintf(&passwords, "%s: %s\n", a.variable(), secret)
		}
	}
	own := "jetstream: enabled\nusers: [ { user: test, password: " + secret + " } ]"
	return passwords.String() + strings.Replace(must(t, exitOK, "nats", "accounts"), "jetstream: enabled", own, 1)
}

func printedAccounts(t testing.TB) (all []natsAccount) {
	t.Helper()
	if err := json.Unmarshal([]byte(must(t, exitOK, "nats", "accounts", "-o", "json")), &all); err != nil {
		t.Fatal(err)
	}
	return all
}

// as returns the environment of a process that connects as that user of an account.
func (g *guarded) as(user string) env {
	return env{"PGJET_NATS_URL": g.url(user), "PGJET_NATS_DOMAIN": accountsDomain}
}

func (g *guarded) service(user string, args ...string) *service {
	g.t.Helper()
	s := &service{Process: start(g.t, g.as(user), append(args, "--admin-addr", anyPort)...)}
	s.Admin = s.Logged("starting", "admin")
	return s
}

// operates runs a command as the operator, which must end well.
func (g *guarded) operates(args ...string) string {
	g.t.Helper()
	code, p := runProcess(g.t, g.as("operator"), args...)
	if code != exitOK {
		g.t.Fatalf("exit code %d of %s", code, p)
	}
	return p.Stdout.String()
}

// test returns JetStream for the test itself, in the account of the stream.
func (g *guarded) test() jetstream.JetStream {
	g.t.Helper()
	return testenv.Connect(g.t, g.url("test"))
}

// TestNATSAccounts runs everything with the printed accounts. Events reach all consumers in each
// way in which a relay begins. A saga finds other services, hints and events for caches arrive, and
// an operator can do what the runbooks say.
func TestNATSAccounts(t *testing.T) {
	t.Parallel()
	g := startAccounts(t)
	database := testenv.DatabaseURL(t)
	db := openDB(t, database)
	for range 2 {
		g.operates("stream", "ensure")
	}
	code, p := runProcess(t, env{"PGJET_NATS_URL": g.url("operator")}, "stream", "ensure")
	if said := p.Stderr.String(); code == exitOK || !strings.Contains(said, "jetstream_disabled") || !strings.Contains(said, "--nats-domain") {
		t.Errorf("without the domain: exit code %d of %s", code, p)
	}
	smtp, inbox := startMail(t, anyPort)
	mails := g.service(mailer.Name, "consume", mailer.Name, "--database-url", database, "--smtp-url", "smtp://"+smtp+"?tls=off")
	users := g.service("writer", "users", "--database-url", database, "--addr", anyPort, "--token-key-file", keyFile(t))
	users.Addr = users.Logged("serving the API", "addr")
	mails.Eventually(patience, "it says that it needs a durable consumer", func() bool {
		return strings.Contains(mails.Stderr.String(), "consumer_missing") && strings.Contains(mails.Stderr.String(), "pgjet consumer ensure")
	})
	users.Eventually(patience, "it says that it needs a consumer to follow", func() bool {
		return strings.Contains(users.Stderr.String(), "consumer_missing")
	})
	for range 2 {
		g.operates("consumer", "ensure", mailer.Name, directory.Name, onboarding.Name, followName)
	}
	all := map[string]*service{
		"pgjet-" + mailer.Name: mails, "pgjet-users": users,
		"pgjet-directory":  g.service(directory.Name, "consume", directory.Name, "--database-url", database, "--addr", anyPort),
		"pgjet-onboarding": g.service(onboarding.Name, "consume", onboarding.Name, "--database-url", database),
		"profiles":         g.service("profiles", "standin", "profiles", "--addr", anyPort),
		"billing":          g.service("billing", "standin", "billing", "--addr", anyPort),
		"pgjet-relay":      g.service("relay", "relay", "--database-url", database),
	}
	published := 0
	for i, forget := range []string{
		`select`, // it finds the message that the checkpoint names
		`delete from pgjet.checkpoint where id = (select max(id) from pgjet.checkpoint)`, // it reads what follows
		`delete from pgjet.checkpoint`, // it reads everything
	} {
		relay := all["pgjet-relay"]
		relay.Ready(relay.Admin)
		for n := range 3 {
			email := fmt.Sprintf("ann%d.%d@example.com", i, n)
			signUp(t, users.Addr, email)
			oneMail(t, inbox, email)
		}
		published += 3
		testenv.Eventually(t, patience, "all sagas are over", func() bool {
			return query[int](t, db, `select count(*) from users.users where state = 'active'`) == published
		})
		testenv.Eventually(t, patience, "a checkpoint of everything", func() bool {
			return query[bool](t, db, `select coalesce(max(stream_seq), 0) >= $1 from pgjet.checkpoint`, published)
		})
		relay.Stop()
		if _, err := db.Exec(t.Context(), forget); err != nil {
			t.Fatal(err)
		}
		all["pgjet-relay"] = g.service("relay", "relay", "--database-url", database)
	}
	for name, s := range all {
		s.Eventually(patience, name+" is ready and listed", func() bool {
			var found []instance
			if err := json.Unmarshal([]byte(g.operates("services", "ls", "-o", "json")), &found); err != nil {
				t.Fatal(err)
			}
			return slices.ContainsFunc(found, func(i instance) bool { return i.Name == name && i.Health == "ready" })
		})
	}
	for _, name := range []string{"pgjet-users", "profiles"} {
		if out := g.operates("services", "get", name); !strings.Contains(out, name) {
			t.Errorf("services get %s says %s", name, out)
		}
	}
	js := g.test()
	follow, err := js.PushConsumer(t.Context(), "EVENTS", followName)
	if err != nil {
		t.Fatal(err)
	}
	if info := follow.CachedInfo(); !info.PushBound || info.Delivered.Stream < uint64(published) {
		t.Errorf("the user service follows up to %d (%t), want %d", info.Delivered.Stream, info.PushBound, published)
	}
	g.hints()
	for _, words := range [][]string{
		{"consumer", "ls"}, {"consumer", "get", mailer.Name}, {"relay", "status"}, {"outbox", "status"}, {"saga", "ls"},
		{"replay", directory.Name, "--all", "--dry-run"}, {"replay", directory.Name, "--all", "--yes"},
	} {
		g.operates(append(words, "--database-url", database)...)
	}
	if _, p := runProcess(t, g.as("operator"), "doctor", "--all", "--database-url", database); !strings.Contains(p.Stdout.String(), "bytes used") {
		t.Errorf("an operator does not see the storage of the account: %s", p)
	}
	if err := js.DeleteStream(t.Context(), "EVENTS"); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, patience, "the relay says that the stream is missing", func() bool {
		_, p := runProcess(t, g.as("operator"), "relay", "status", "--database-url", database)
		return strings.Contains(p.Stdout.String(), "stream_missing")
	})
	g.operates("stream", "ensure")
	g.operates("consumer", "ensure", mailer.Name, directory.Name, onboarding.Name, followName)
	signUp(t, users.Addr, "healed@example.com")
	oneMail(t, inbox, "healed@example.com")
	for i := range 3 {
		for n := range 3 {
			oneMail(t, inbox, fmt.Sprintf("ann%d.%d@example.com", i, n))
		}
	}
	mails.Stop()
	makeOlder(t, js, mailer.Name)
	if out := g.operates("consumer", "ensure", mailer.Name, "--apply", "--database-url", database); !strings.Contains(out, "added user.rejected") {
		t.Errorf("--apply says %q", out)
	}
	g.log.none(t)
}

// hints checks that hints of writers reach relays.
func (g *guarded) hints() {
	g.t.Helper()
	relay, writer := g.prober(g.t, "relay").nc, g.prober(g.t, "writer").nc
	heard, err := relay.SubscribeSync("pgjet.hint.EVENTS")
	if err != nil {
		g.t.Fatal(err)
	}
	if err := relay.Flush(); err != nil {
		g.t.Fatal(err)
	}
	if err := writer.Publish("pgjet.hint.EVENTS", nil); err != nil {
		g.t.Fatal(err)
	}
	if _, err := heard.NextMsg(patience); err != nil {
		g.t.Errorf("a hint does not come to the relay: %v", err)
	}
}

// TestAccountsKeepRolesApart: whatever a role requests, and wherever it directs the answer, it
// cannot change the stream, or the durable consumers and services of others.
func TestAccountsKeepRolesApart(t *testing.T) {
	t.Parallel()
	g := startAccounts(t)
	g.operates("stream", "ensure")
	g.operates("consumer", "ensure", mailer.Name, directory.Name, onboarding.Name, followName)
	js := g.test()
	for range 20 {
		if _, err := js.Publish(t.Context(), "events.18.user.created", []byte(`{}`)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{mailer.Name, ofDirectory, onboarding.Name} {
		takeSome(t, js, name)
	}
	accounts := printedAccounts(t)
	listening := make(map[string]int) // instances of services
	for _, a := range accounts {
		for _, e := range a.Exports {
			if name, ok := strings.CutPrefix(e.Subject, "$SRV.*."); ok && !strings.Contains(name, ".") {
				listening[name]++
				if _, err := registry.Register(g.prober(t, a.User).nc, registry.Instance{Name: name}); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for _, a := range accounts {
		if a.User == "" {
			continue
		}
		own := cmp.Or(map[string]string{"writer": followName, "directory": ofDirectory}[a.User], a.User)
		before := look(t, js, own)
		nc := g.prober(t, a.User).nc
		g.attack(nc, a)
		g.settle(js)
		g.replaces(nc, js, own)
		g.settle(js)
		if after := look(t, js, own); after != before {
			t.Errorf("%s: the stream and its consumers are\n%s\nwere\n%s", a.User, after, before)
		}
		found, err := registry.Ask(t.Context(), g.operator(), "")
		if err != nil || len(found) != len(listening) {
			t.Errorf("%s: after it %d services answer, %v, want %d", a.User, len(found), err, len(listening))
		}
	}
	g.log.mu.Lock()
	defer g.log.mu.Unlock()
	for _, line := range g.log.dropped {
		t.Errorf("a part of an attack had no effect: %s", line)
	}
}

func (g *guarded) operator() *nats.Conn {
	g.t.Helper()
	nc, err := nats.Connect(g.url("operator"), nats.CustomInboxPrefix(inboxPrefix("operator")))
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(nc.Close)
	return nc
}

// takeSome gives a durable consumer a position: some events acknowledged, some delivered.
func takeSome(t *testing.T, js jetstream.JetStream, name string) {
	t.Helper()
	c, err := js.Consumer(t.Context(), "EVENTS", name)
	if err != nil {
		t.Fatal(err)
	}
	batch, err := c.Fetch(8)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for msg := range batch.Messages() {
		if n++; n <= 3 {
			if err := msg.DoubleAck(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n != 8 {
		t.Fatalf("%s takes %d events, want 8", name, n)
	}
}

// look describes the stream and its consumers, without one consumer and the other slices of it.
func look(t *testing.T, js jetstream.JetStream, own string) string {
	t.Helper()
	stream, err := js.Stream(t.Context(), "EVENTS")
	if err != nil {
		return err.Error()
	}
	info := stream.CachedInfo()
	lines := []string{fmt.Sprintf("%+v %d %d %d %s", info.Config, info.State.Msgs, info.State.FirstSeq, info.State.LastSeq, info.Created)}
	for c := range stream.ListConsumers(t.Context()).Info() {
		if ofSlice.ReplaceAllString(c.Name, "") != ofSlice.ReplaceAllString(own, "") {
			lines = append(lines, fmt.Sprintf("%s %s %+v %d %d %d %d %d %t", c.Name, c.Created, c.Config,
				c.Delivered.Consumer, c.Delivered.Stream, c.AckFloor.Stream, c.NumAckPending, c.NumPending, c.Paused))
		}
	}
	slices.Sort(lines[1:])
	return strings.Join(lines, "\n")
}

// attack publishes, as the user of an account, all that could harm others.
func (g *guarded) attack(nc *nats.Conn, a natsAccount) {
	g.t.Helper()
	victims := []string{mailer.Name, ofDirectory, onboarding.Name, followName, "pgjet-replay-directory"}
	var harmful []string
	for _, victim := range victims {
		for verb, subjects := range consumerVerbs {
			if verb == "INFO" || victim == a.User || victim == ofDirectory && a.User == directory.Name {
				continue
			}
			for _, subject := range subjects {
				harmful = append(harmful, strings.ReplaceAll(subject, "%s", victim))
			}
		}
		if victim != a.User { // an ack of the victim that looks like one of the attacker's in its newer form
			harmful = append(harmful, "$JS.ACK.EVENTS."+victim+".EVENTS."+a.User+".1.1.1")
		}
	}
	for _, verb := range streamVerbs {
		harmful = append(harmful, "$JS.API."+verb)
	}
	for _, subject := range slices.Clone(harmful) {
		if rest, ok := strings.CutPrefix(subject, "$JS.API."); ok {
			harmful = append(harmful, "$JS."+accountsDomain+".API."+rest)
		}
	}
	if a.User != "relay" { // the relay may publish to the stream
		harmful = append(harmful, "events.1.user.created", "events.1.note.made")
	}
	harmful = append(harmful, "pgjet.hint.EVENTS", "_INBOX_relay.x", "_R_.x.y", "$SRV.INFO.profiles", "$SRV.INFO", "$SYS.REQ.SERVER.PING")
	if a.User == "operator" { // the operator may create and reset
		harmful = slices.DeleteFunc(harmful, func(s string) bool {
			return strings.Contains(s, ".CONSUMER.CREATE.EVENTS.") || strings.Contains(s, ".CONSUMER.RESET.")
		})
	}
	bodies := [][]byte{nil, []byte(`{"batch":1,"no_wait":true}`), []byte(`{"seq":1}`), []byte(`{"seq":1,"batch":2}`), []byte(`{"seq":99}`), []byte(`+NXT {"batch":1,"no_wait":true}`)}
	var asked []string
	for _, i := range a.Imports {
		if subject := strings.NewReplacer(">", "1.1.1.1.0", "*", "x").Replace(cmp.Or(i.To, i.Subject)); i.Kind == "service" {
			asked = append(asked, subject)
		}
	}
	if _, err := nc.Subscribe("_INBOX_x.x", func(*nats.Msg) {}); err != nil { // without an interest the server drops a pull
		g.t.Fatal(err)
	}
	for _, subject := range harmful {
		for _, body := range bodies {
			g.publish(nc, subject, "_INBOX_x.x", body)
		}
	}
	for _, subject := range asked {
		if a.User == "relay" && strings.HasPrefix(subject, "events.") || a.User == "operator" && (strings.Contains(subject, ".RESET.") || strings.Contains(subject, ".CREATE.")) {
			continue
		}
		for _, reply := range harmful {
			for _, body := range bodies {
				g.publish(nc, subject, reply, body)
			}
		}
	}
	if err := nc.FlushTimeout(time.Minute); err != nil {
		g.t.Fatal(err)
	}
}

// replaces acts as a user whose own consumer was deleted. It tries to create one through which the
// server publishes requests that reset the consumers of others.
func (g *guarded) replaces(nc *nats.Conn, js jetstream.JetStream, own string) {
	g.t.Helper()
	if js.DeleteConsumer(g.t.Context(), "EVENTS", own) != nil {
		return // the role has none
	}
	for _, victim := range []string{mailer.Name, ofDirectory} {
		body, err := json.Marshal(map[string]any{"stream_name": "EVENTS", "config": map[string]any{
			"name": own, "durable_name": own, "deliver_subject": "$JS.API.CONSUMER.RESET.EVENTS." + victim, "headers_only": true,
			"ack_policy": "explicit", "deliver_policy": "all", "replay_policy": "instant",
		}})
		if err != nil {
			g.t.Fatal(err)
		}
		if _, err := nc.Request("$JS."+accountsDomain+".API.CONSUMER.CREATE.EVENTS."+own, body, patience); !errors.Is(err, nats.ErrNoResponders) {
			g.t.Errorf("a request to create the consumer %s gets the answer %v", own, err)
		}
	}
	g.operates("consumer", "ensure", ofSlice.ReplaceAllString(own, ""))
}

// ofDirectory is one of the durable consumers of the directory.
const ofDirectory = directory.Name + "-3of8"

// ofSlice matches the end of such a name.
var ofSlice = regexp.MustCompile(`-[0-9]+of[0-9]+$`)

func (g *guarded) publish(nc *nats.Conn, subject, reply string, body []byte) {
	g.t.Helper()
	msg := &nats.Msg{Subject: subject, Reply: reply, Data: body, Header: nats.Header{"Nats-Request-Info": {`{"acc":"EVENTS","svc":"EVENTS"}`}}}
	if err := nc.PublishMsg(msg); err != nil {
		g.t.Fatal(err)
	}
}

// settle waits until the server has carried out earlier requests. It makes the same kind of request
// in the account of the stream, where a pull that finds nothing deletes a consumer.
func (g *guarded) settle(js jetstream.JetStream) {
	g.t.Helper()
	for range 2 {
		c, err := js.CreateConsumer(g.t.Context(), "EVENTS", jetstream.ConsumerConfig{Durable: "sentinel", FilterSubject: "events.nothing"})
		if err != nil {
			g.t.Fatal(err)
		}
		if err := js.Conn().PublishRequest("$JS.API.CONSUMER.MSG.NEXT.EVENTS.sentinel", "$JS.API.CONSUMER.DELETE.EVENTS.sentinel", []byte(`{"batch":1,"no_wait":true}`)); err != nil {
			g.t.Fatal(err)
		}
		testenv.Eventually(g.t, patience, "the server deletes what the answer to a pull asks it to", func() bool {
			_, err := c.Info(g.t.Context())
			return err != nil
		})
	}
}

func TestNATSAccountsPrinted(t *testing.T) {
	t.Parallel()
	out := must(t, exitOK, "nats", "accounts", "--stream", "ORDERS", "--consumer", "a", "--consumer", "b-c", "--service", "d")
	for _, want := range []string{`"ORDERS-b-c": {`, "$B_C_PASSWORD", `"$JS.API.CONSUMER.RESET.ORDERS.a"`, `account: "ORDERS-d", subject: "$SRV.*.d"`, `"events.>", accounts: ["ORDERS-relay"]`} {
		if !strings.Contains(out, want) || strings.Contains(out, "EVENTS") || strings.Contains(out, "billing") {
			t.Errorf("accounts: %s, want %s", out, want)
		}
	}
	for _, words := range []string{"--consumer relay", "--consumer a --service a", "--consumer a.b", "--service x:y", "--stream a:b", "-o yaml"} {
		flag, _, _ := strings.Cut(words, " ")
		refused(t, exitUsage, append([]string{"nats", "accounts"}, strings.Fields(words)...), strings.Replace(flag, "-o", "--output", 1))
	}
}

// TestAccountsIncluded: a server that includes the accounts takes the passwords from its environment, in quotes,
// as docs/nats.md says. It sees neither variables of the file that includes them nor, behind a second block
// of accounts, the first.
func TestAccountsIncluded(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	write("accounts.conf", must(t, exitOK, "nats", "accounts"))
	write("other.conf", must(t, exitOK, "nats", "accounts", "--stream", "OTHER"))
	var variables strings.Builder
	for _, a := range printedAccounts(t) {
		if a.User != "" {
			fmt.Fprintf(&variables, "%s: x\n", a.variable())
		}
	}
	if _, err := server.ProcessConfigFile(write("outer.conf", variables.String()+"include accounts.conf\n")); err == nil {
		t.Error("variables of the including file count: docs/nats.md says that they do not")
	}
	for _, a := range printedAccounts(t) {
		if a.User != "" {
			t.Setenv(a.variable(), `"12345"`)
		}
	}
	for file, stream := range map[string]string{"one.conf": "EVENTS", "two.conf": "OTHER"} {
		text := "include accounts.conf\n"
		if stream == "OTHER" {
			text += "include other.conf\n"
		}
		options, err := server.ProcessConfigFile(write(file, text))
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range options.Users {
			if want := stream + "-" + u.Username; u.Password != "12345" || u.Account.Name != want {
				t.Errorf("%s: user %s of account %s has password %q, want 12345 and account %s", file, u.Username, u.Account.Name, u.Password, want)
			}
		}
		if len(options.Users) == 0 {
			t.Errorf("%s: no users", file)
		}
	}
}

// TestNamesOfRoles: no name of a role gives it what belongs to another role: a password, an inbox,
// durable consumers, or a name in the registry.
func TestNamesOfRoles(t *testing.T) {
	t.Parallel()
	for _, words := range []string{
		"accounts --consumer a-b,a_b", "accounts --consumer a --service A", "accounts --service Relay",
		"accounts --consumer users", "accounts --consumer pgjet-users", "accounts --consumer pgjet-plan-directory", "accounts --service pgjet-relay",
		"permissions consumer --consumer relay", "permissions consumer --consumer users", "permissions consumer --consumer pgjet-users",
		"permissions operator --consumer a,pgjet-replay-a", "permissions service --service pgjet-users",
	} {
		args := append([]string{"nats"}, strings.Fields(words)...)
		refused(t, exitUsage, args, args[len(args)-2])
	}
	for _, words := range []string{"accounts --consumer a-b,ab --service users", "permissions service --service users", "permissions consumer --consumer a_b"} {
		must(t, exitOK, append([]string{"nats"}, strings.Fields(words)...)...)
	}
}

// TestConsumersAreCreatedByTheTrusted shows why only the operator may create a consumer. The server
// delivers to the subject that the creator names, and so sends requests that the creator may not
// send.
func TestConsumersAreCreatedByTheTrusted(t *testing.T) {
	t.Parallel()
	g := startAccounts(t)
	g.operates("stream", "ensure")
	g.operates("consumer", "ensure", mailer.Name)
	js := g.test()
	for range 10 {
		if _, err := js.Publish(t.Context(), "events.18.user.created", []byte(`{}`)); err != nil {
			t.Fatal(err)
		}
	}
	takeSome(t, js, mailer.Name)
	operator, err := jetstream.NewWithDomain(g.operator(), accountsDomain)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := operator.CreatePushConsumer(t.Context(), "EVENTS", jetstream.ConsumerConfig{
		Name: "pgjet-plan-" + directory.Name, DeliverSubject: "$JS.API.CONSUMER.RESET.EVENTS." + mailer.Name, HeadersOnly: true,
		AckPolicy: jetstream.AckExplicitPolicy,
	}); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, patience, "the consumer of another is set back", func() bool {
		c, err := js.Consumer(t.Context(), "EVENTS", mailer.Name)
		return err == nil && c.CachedInfo().Delivered.Stream == 3
	})
}
