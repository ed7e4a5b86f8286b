package main

import (
	"strings"
	"testing"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/internal/testenv"
)

// TestConsumerOfACopy: the consumer of a copy of a database is refused beside that of the original, and everything that
// shows a consumer says why.
func TestConsumerOfACopy(t *testing.T) {
	t.Parallel()
	p := newTwoServices(t)
	identity := query[string](t, openDB(t, p.orders), `select format('(%L, %L, %L, %L)', id, created_at, system_identifier, database) from pgjet.identity`)
	testenv.Exec(t, openDB(t, p.billing), `update pgjet.identity set (id, created_at, system_identifier, database) = `+identity) // as in a copy
	d := startService(t, append(p.args("consume directory", p.orders), "--addr", anyPort)...)
	d.Ready(d.Admin)
	copied := startService(t, append(p.args("consume directory", p.billing), "--addr", anyPort)...)
	const reason = "outbox_copied: a copy of this database handles events of stream ORDERS by process "
	copied.NotReady(copied.Admin, reason)
	if says := copied.Logged("no progress, will keep trying", "err"); !strings.HasPrefix(says, reason) || !strings.Contains(says, "select pgjet.new_identity()") {
		t.Errorf("it logs %q", says)
	}
	// Usually the consumer has run before the database is copied.
	testenv.Exec(t, openDB(t, p.billing), `
		with c as (insert into pgjet.consumer (name, stream, stream_created, ordered, effects, slices) select 'directory', 'ORDERS', $1, true, false, 8 returning name, epoch)
		insert into pgjet.slice (consumer, slice, epoch) select name, n, epoch from c, generate_series(0, 7) n`, streamCreated(t, p.js, "ORDERS"))
	for _, command := range []string{"consumer ls", "consumer get directory"} {
		says(t, exitFindings, command+" --nats-url "+p.nats, p.billing, "outbox_copied")
	}
	says(t, exitFindings, "status --nats-url "+p.nats, p.billing, "outbox_copied", "pgjet explain outbox_copied")
	says(t, exitOK, "consumer ls --nats-url "+p.nats, p.orders, "idle")
	d.Ready(d.Admin)
	d.Stop()
	copied.Ready(copied.Admin)
}

// TestDeafConsumer: a consumer with the permissions of an older pgjet works, and warns that it
// would not notice a copy.
func TestDeafConsumer(t *testing.T) {
	t.Parallel()
	const subject = "pgjet.handle.EVENTS.directory"
	printed := must(t, exitOK, "nats", "permissions", "consumer", "--consumer", "directory")
	old := strings.ReplaceAll(printed, `    "`+subject+`"`+"\n", "")
	if strings.Count(printed, "\n")-strings.Count(old, "\n") != 2 {
		t.Fatalf("the permissions are not what they were:\n%s", printed)
	}
	g := guard(t, "authorization: { users: [\n{ user: reader, password: "+secret+"\n"+old+"}\n{ user: operator, password: "+secret+" }\n] }\n")
	database := testenv.DatabaseURL(t)
	must(t, exitOK, "stream", "ensure", "--nats-url", g.url("operator"), "--database-url", database)
	d := startService(t, "consume", "directory", "--database-url", database, "--nats-url", g.url("reader"), "--addr", anyPort)
	d.Ready(d.Admin)
	const warning = "NATS does not let the consumer use a subject, so a copy of the database may handle events unnoticed; compare its permissions with those that the command prints"
	if says := d.Logged(warning, "subject"); says != subject {
		t.Errorf("it warns of %q", says)
	}
	refusals := func() int {
		g.log.mu.Lock()
		defer g.log.mu.Unlock()
		return len(g.log.all)
	}
	if n := refusals(); n != 2 {
		t.Errorf("NATS refused the consumer %d times, want 2: to subscribe and to publish", n)
	}
	if err := inbox.Interrupt(t.Context(), openDB(t, database), "directory"); err != nil {
		t.Fatal(err)
	}
	d.Eventually(patience, "another session asks NATS", func() bool { return refusals() == 4 })
	d.Ready(d.Admin)
	warnings := 0
	for _, line := range d.Log("") {
		if line["msg"] == warning {
			warnings++
		}
	}
	if warnings != 1 {
		t.Errorf("it warns %d times, want once", warnings)
	}
}
