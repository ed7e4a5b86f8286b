package main

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/relay"
)

// TestStreamEnsureNamesTheOutbox: a new stream, an old one of the same outbox, and another's.
func TestStreamEnsureNamesTheOutbox(t *testing.T) {
	t.Parallel()
	js, url := testenv.JetStream(t)
	orders, billing := testenv.DatabaseURL(t), testenv.DatabaseURL(t)
	ensure := func(database string, more ...string) []string {
		return append([]string{"stream", "ensure", "--nats-url", url, "--database-url", database, "--stream", "ORDERS", "--prefix", "acme.orders"}, more...)
	}
	own, err := relay.ReadOutbox(t.Context(), openDB(t, orders), "orders")
	if err != nil {
		t.Fatal(err)
	}
	if out := must(t, exitOK, ensure(orders, "--source", "orders")...); out != "created stream ORDERS for "+own.String()+"\n" {
		t.Errorf("it says %q", out)
	}
	if out := must(t, exitOK, ensure(orders)...); out != "stream ORDERS is as it should be\n" {
		t.Errorf("the second time it says %q", out)
	}
	refused(t, exitRefused, ensure(billing, "--source", "billing"), "foreign_outbox: stream ORDERS belongs to "+own.String(), `of "billing"`, "--prefix NAME")
	config := func() jetstream.StreamConfig {
		stream, err := js.Stream(t.Context(), "ORDERS")
		if err != nil {
			t.Fatal(err)
		}
		return stream.CachedInfo().Config
	}
	if c := config(); relay.Owner(c) != own || !cmp.Equal(c.Subjects, []string{"acme.orders.>"}) {
		t.Errorf("the stream takes %v and belongs to %v", c.Subjects, relay.Owner(c))
	}
	refused(t, exitRefused, ensure(billing, "--take-from", "none"), "foreign_outbox: ")
	if out := must(t, exitOK, ensure(billing, "--take-from", own.ID.String())...); !strings.HasPrefix(out, "stream ORDERS now belongs to outbox ") {
		t.Errorf("when it is taken over it says %q", out)
	}
	refused(t, exitRefused, ensure(orders), "foreign_outbox: ")

	// A stream that was created without a database names no outbox.
	must(t, exitOK, "stream", "ensure", "--nats-url", url, "--stream", "OTHER", "--prefix", "other")
	if out := must(t, exitOK, "stream", "ensure", "--nats-url", url, "--stream", "OTHER", "--prefix", "other", "--database-url", orders); !strings.HasPrefix(out, "stream OTHER now belongs to "+"outbox "+own.ID.String()) {
		t.Errorf("of a stream without an outbox it says %q", out)
	}
	refused(t, exitUsage, ensure(orders, "--take-from", "x"), "--take-from")
	refused(t, exitUsage, []string{"stream", "ensure", "--nats-url", url, "--take-from", "none"}, "--take-from needs --database-url")
}

// TestStreamLimits: limits that are set are applied and compared; others may have any value.
func TestStreamLimits(t *testing.T) {
	t.Parallel()
	js, url := testenv.JetStream(t)
	ensure := func(more ...string) []string { return append([]string{"stream", "ensure", "--nats-url", url}, more...) }
	t.Run("made", func(t *testing.T) {
		must(t, exitOK, ensure("--max-bytes", "10MiB", "--max-age", "240h", "--compress")...)
		stream, err := js.Stream(t.Context(), "EVENTS")
		if err != nil {
			t.Fatal(err)
		}
		c := stream.CachedInfo().Config
		if c.MaxBytes != 10<<20 || c.MaxAge != 240*time.Hour || c.Compression != jetstream.S2Compression || c.Discard != jetstream.DiscardNew {
			t.Errorf("the stream is made with %d bytes, %s, %s, discard %s", c.MaxBytes, c.MaxAge, c.Compression, c.Discard)
		}
	})
	must(t, exitOK, ensure()...)
	must(t, exitOK, ensure("--max-bytes", "10485760", "--compress")...)
	refused(t, exitFindings, ensure("--max-bytes", "11MiB", "--max-age", "1h", "--placement-cluster", "west", "--placement-tags", "b,a"),
		"max_bytes is 10485760, should be 11534336", "max_age is 240h0m0s, should be 1h0m0s", "placement is , should be west a,b")
	for _, bad := range [][]string{{"--max-bytes", "-1"}, {"--max-bytes", "10 PB"}, {"--max-age", "1ms"}, {"--max-age", "-1s"}, {"--replicas", "0"}, {"--replicas", "6"}} {
		refused(t, exitUsage, ensure(bad...), bad[0])
	}
}

func TestByteSize(t *testing.T) {
	for text, want := range map[string]string{"0": "0", "1": "1", "1024": "1KiB", "10GiB": "10GiB", "1536 MiB": "1536MiB", "7B": "7", "2TiB": "2TiB"} {
		var b byteSize
		if err := b.Set(text); err != nil || b.String() != want {
			t.Errorf("%q is %s, %v, want %s", text, &b, err, want)
		}
	}
	for _, bad := range []string{"", "x", "1.5GiB", "9999999999TiB", "-1", "1 PiB"} {
		var b byteSize
		if b.Set(bad) == nil {
			t.Errorf("%q is %s", bad, &b)
		}
	}
}

// TestConfigShowsStream: the settings of the stream are shown, and where they come from.
func TestConfigShowsStream(t *testing.T) {
	t.Parallel()
	file := configFileOf(t, "a.yaml", "prefix: acme.orders\nsource: orders\nmax_bytes: 10GiB\nmax_age: 240h\nreplicas: 3\nplacement_tags: ssd,west\nnats_domain: hub\nnats_ca: /ca.pem\n")
	out := must(t, exitOK, "config", "show", "--origin", "--config", file)
	for _, want := range []string{"prefix acme.orders " + file + ":1", "source orders", "max_bytes 10GiB", "max_age 240h0m0s", "replicas 3", "placement_tags ssd,west", "nats_domain hub", "nats_ca /ca.pem"} {
		if !strings.Contains(strings.Join(strings.Fields(out), " "), want) {
			t.Errorf("config show lacks %q:\n%s", want, out)
		}
	}
	bad := configFileOf(t, "a.yaml", "prefix: pgjet.x\nsource: \"a\\tb\"\nmax_bytes: many\n")
	refused(t, exitUsage, []string{"config", "validate", bad}, "prefix is", "source is", "max_bytes is \"many\", want a size such as 10GiB")
}

// TestStatusOfAForeignStream: an operator sees the relay's error, with commands for this stream.
func TestStatusOfAForeignStream(t *testing.T) {
	t.Parallel()
	_, url := testenv.JetStream(t)
	orders, billing := testenv.DatabaseURL(t), testenv.DatabaseURL(t)
	must(t, exitOK, "stream", "ensure", "--nats-url", url, "--database-url", orders, "--source", "orders", "--stream", "ORDERS", "--prefix", "orders")
	r := startService(t, "relay", "--nats-url", url, "--database-url", billing, "--source", "billing", "--stream", "ORDERS", "--prefix", "orders")
	r.NotReady(r.Admin, "foreign_outbox: stream ORDERS belongs to ")
	code, p := runProcess(t, nil, "relay", "status", "--database-url", billing, "--stream", "ORDERS", "--prefix", "orders")
	out := p.Stdout.String()
	if code != exitFindings || strings.Contains(out, "adopt") {
		t.Errorf("exit code %d, of %s", code, p)
	}
	for _, want := range []string{`of "orders"`, `of "billing"`, "next         pgjet stream ensure --stream NAME --prefix NAME"} {
		if !strings.Contains(out, want) {
			t.Errorf("relay status lacks %q, of %s", want, p)
		}
	}
	refused(t, exitFailed, []string{"relay", "adopt", "--dry-run", "--database-url", billing, "--stream", "ORDERS"}, "nothing to adopt")
}

// TestClaimNeedsARight: the role operator may not change a stream. A stream without an outbox stays
// so, which is reported; a new stream names the outbox.
func TestClaimNeedsARight(t *testing.T) {
	t.Parallel()
	g := startGuarded(t)
	database := testenv.DatabaseURL(t)
	must(t, exitOK, "stream", "ensure", "--nats-url", g.url("operator"))
	with := []string{"stream", "ensure", "--nats-url", g.url("operator"), "--database-url", database}
	if out := must(t, exitOK, with...); !strings.Contains(out, "stream EVENTS names no outbox, and NATS does not let this user change the stream; ") {
		t.Errorf("it says %q", out)
	}
	refused(t, exitFailed, append(with, "--take-from", "none"), "NATS does not let this user change the stream")
	other := startGuarded(t)
	with[3] = other.url("operator")
	if out := must(t, exitOK, with...); !strings.HasPrefix(out, "created stream EVENTS for outbox ") {
		t.Errorf("it says %q", out)
	}
	if out := must(t, exitOK, with...); out != "stream EVENTS is as it should be\n" {
		t.Errorf("it says %q", out)
	}
}

// TestClaimInAccounts: a request to change the stream gets no answer there.
func TestClaimInAccounts(t *testing.T) {
	t.Parallel()
	g := startAccounts(t)
	database := testenv.DatabaseURL(t)
	if out := g.operates("stream", "ensure"); !strings.HasPrefix(out, "created stream EVENTS") {
		t.Fatalf("it says %q", out)
	}
	if out := g.operates("stream", "ensure", "--database-url", database); !strings.Contains(out, "names no outbox, and NATS does not let this user change the stream; ") {
		t.Errorf("it says %q", out)
	}
}

// TestPermissionsOfAPrefix: a relay with its own stream and prefix gets the least permissions for
// them, also in accounts.
func TestPermissionsOfAPrefix(t *testing.T) {
	t.Parallel()
	own := []string{"--stream", "ORDERS", "--prefix", "acme.orders"}
	printed := must(t, exitOK, append([]string{"nats", "permissions", "relay"}, own...)...)
	operator := must(t, exitOK, append([]string{"nats", "permissions", "operator"}, own...)...)
	g := guard(t, "authorization: { users: [\n"+
		"{ user: relay, password: "+secret+"\n"+printed+"}\n{ user: operator, password: "+secret+"\n"+operator+"}\n] }\n")
	database := testenv.DatabaseURL(t)
	must(t, exitOK, append([]string{"stream", "ensure", "--nats-url", g.url("operator"), "--database-url", database}, own...)...)
	r := startService(t, append([]string{"relay", "--nats-url", g.url("relay"), "--database-url", database}, own...)...)
	r.Ready(r.Admin)
	if _, err := openDB(t, database).Exec(t.Context(), `insert into pgjet.outbox (id, type, key, data) values (gen_random_uuid(), 'note.made', 'k', '{}')`); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, patience, "the event is published", func() bool {
		return strings.Contains(must(t, exitOK, append([]string{"relay", "status", "--database-url", database}, own...)...), "stream sequence 1,")
	})
	g.log.none(t)
	if strings.Contains(printed, `"events.>"`) || !strings.Contains(printed, `"acme.orders.>"`) {
		t.Errorf("the relay may publish what it need not, or less:\n%s", printed)
	}
	if accounts := must(t, exitOK, append([]string{"nats", "accounts"}, own...)...); strings.Contains(accounts, `"events.>"`) || strings.Count(accounts, `"acme.orders.>"`) != 2 {
		t.Errorf("the accounts do not let the relay publish, or more:\n%s", accounts)
	}
}

// TestDeafRelay: a relay with the permissions of an older pgjet works, and warns that it would not
// notice a copy.
func TestDeafRelay(t *testing.T) {
	t.Parallel()
	printed := must(t, exitOK, "nats", "permissions", "relay")
	old := strings.ReplaceAll(printed, `    "pgjet.lead.EVENTS"`+"\n", "")
	if strings.Count(printed, "\n")-strings.Count(old, "\n") != 2 {
		t.Fatalf("the permissions are not what they were:\n%s", printed)
	}
	g := guard(t, "authorization: { users: [\n{ user: relay, password: "+secret+"\n"+old+"}\n{ user: operator, password: "+secret+" }\n] }\n")
	database := testenv.DatabaseURL(t)
	must(t, exitOK, "stream", "ensure", "--nats-url", g.url("operator"), "--database-url", database)
	r := startRelay(t, database, g.url("relay"))
	r.Ready(r.Admin)
	if says := r.Logged("the stream works, but its settings weaken what pgjet promises", "setting"); !strings.Contains(says, "pgjet.lead.EVENTS") {
		t.Errorf("it warns of %q", says)
	}
	r.Ready(r.Admin)
}
