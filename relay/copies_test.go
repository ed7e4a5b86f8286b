package relay_test

import (
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/devserver"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/relay"
)

// pool opens a pool.
func (b *bench) pool(url string) *pgxpool.Pool {
	b.Helper()
	db, err := pgxpool.New(b.Context(), url)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(db.Close)
	return db
}

// inDatabase returns the address of another database of the server.
func inDatabase(t *testing.T, address, name string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	return u.String()
}

// published runs a relay until the events that the bench appends are published.
func (b *bench) published(count int) {
	b.Helper()
	_, stop := b.start()
	b.append(count)
	b.settled()
	stop()
}

// clones copies the bench's database by template. No client may be connected to it.
func (b *bench) clones(server *devserver.Postgres, count int) (all []*pgxpool.Pool) {
	b.Helper()
	b.db.Close()
	admin, err := pgx.Connect(b.Context(), inDatabase(b.T, server.URL(), "postgres"))
	if err != nil {
		b.Fatal(err)
	}
	defer admin.Close(b.Context())
	for n := range count {
		name := fmt.Sprint("clone", n)
		testenv.Eventually(b, patience, "the database is copied", func() bool {
			_, err := admin.Exec(b.Context(), `create database `+name+` template pgjet`)
			return err == nil
		})
		all = append(all, b.pool(inDatabase(b.T, server.URL(), name)))
	}
	b.open(server.URL())
	return all
}

// refusedBeside makes sure that the relay of a copy is refused beside that of the original,
// which is not disturbed.
func (b *bench) refusedBeside(original *relay.Relay, db *pgxpool.Pool) {
	b.Helper()
	testenv.Eventually(b, patience, "the original is published", func() bool { return original.Ready(b.Context()) == nil })
	epoch := b.epoch()
	b.note(db, 3)
	copied := b.relayOf(db, "EVENTS", "", "/test")
	testenv.Run(b, copied.Run)
	b.blocked(copied, relay.OutboxCopied+": a copy of this outbox is published to stream EVENTS by relay ")
	if says := copied.Ready(b.Context()).Error(); !strings.Contains(says, "select pgjet.new_identity()") || strings.Contains(says, "adopt") {
		b.Errorf("it says %q", says)
	}
	b.undisturbed(original, epoch)
	cause := ""
	if err := db.QueryRow(b.Context(), `select cause from pgjet.leader`).Scan(&cause); err != nil || !strings.HasPrefix(cause, relay.OutboxCopied+": ") {
		b.Errorf("the cause in the copy is %q, %v", cause, err)
	}
}

// TestClonedByTemplate: the copy has the identity of the original, and is another database.
func TestClonedByTemplate(t *testing.T) {
	t.Parallel()
	b, server := newMovable(t)
	b.published(20)
	clone := b.clones(server, 1)[0]
	original, _ := b.start()
	b.refusedBeside(original, clone)
}

// TestClonedFromFiles: only the start time of its server distinguishes the copy from the
// original, as after pg_basebackup.
func TestClonedFromFiles(t *testing.T) {
	t.Parallel()
	b, server := newMovable(t)
	b.published(20)
	stop(t, server)
	dir := filepath.Join(filepath.Dir(server.Options().Dir), "copy")
	run(t, "cp", "-a", server.Options().Dir, dir)
	server = restart(t, server)
	b.open(server.URL())
	original, _ := b.start()
	options := server.Options()
	options.Dir, options.Port = dir, 0
	other, err := devserver.StartPostgres(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Stop() })
	b.refusedBeside(original, b.pool(other.URL()))
}

// TestRestoredBesideTheOriginal: a dump that is restored while the original is published.
func TestRestoredBesideTheOriginal(t *testing.T) {
	t.Parallel()
	dump, psql := tool(t, "pg_dump"), tool(t, "psql")
	b, server := newMovable(t)
	original, _ := b.start()
	b.append(20)
	b.settled()
	var roles []string
	for _, role := range []string{"writer", "relay", "consumer", "operator"} {
		roles = append(roles, "create role pgjet_"+role+";")
	}
	fresh := testenv.PostgresServer(t)
	run(t, psql, "--quiet", "--command", strings.Join(roles, " "), fresh.URL())
	file := filepath.Join(t.TempDir(), "dump.sql")
	run(t, dump, "--no-owner", "--file", file, server.URL())
	run(t, psql, "--quiet", "--set", "ON_ERROR_STOP=1", "--file", file, fresh.URL())
	b.refusedBeside(original, b.pool(fresh.URL()))
}

// TestCopyThatLed: a copy that led while its original was stopped is refused once the original is
// back, and publishes nothing in any later session.
func TestCopyThatLed(t *testing.T) {
	b, server := newMovable(t)
	b.published(20)
	clone := b.clones(server, 1)[0]
	copied := b.relayOf(clone, "EVENTS", "", "/test")
	testenv.Run(t, copied.Run)
	b.ready(copied)
	original, _ := b.start()
	b.blocked(copied, relay.OutboxCopied+": a copy of this outbox is published to stream EVENTS by relay ")
	epoch := b.epoch()
	sessions := func() (n int64) {
		if err := clone.QueryRow(t.Context(), `select epoch from pgjet.leader`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	b.note(clone, 3)
	first := sessions()
	testenv.Eventually(t, patience, "three more sessions in the copy", func() bool { return sessions() >= first+3 })
	b.blocked(copied, relay.OutboxCopied+": ")
	b.undisturbed(original, epoch)
}

// TestTwoCopiesAtOnce: when the original is gone, one of two copies goes on and the other
// one is refused, whichever began.
func TestTwoCopiesAtOnce(t *testing.T) {
	t.Parallel()
	b, server := newMovable(t)
	b.published(20)
	var relays []*relay.Relay
	for _, db := range b.clones(server, 2) {
		r := b.relayOf(db, "EVENTS", "", "/test")
		testenv.Run(t, r.Run)
		relays = append(relays, r)
	}
	testenv.Eventually(t, patience, "one is published, and the other refused", func() bool {
		first, second := relays[0].Ready(t.Context()), relays[1].Ready(t.Context())
		if first == nil {
			first, second = second, first
		}
		return second == nil && first != nil && strings.HasPrefix(first.Error(), relay.OutboxCopied+": ")
	})
}

// TestCopyOfItsOwn: a copy with an identity of its own has its own stream, and the original's is closed to it.
func TestCopyOfItsOwn(t *testing.T) {
	t.Parallel()
	b, server := newMovable(t)
	o := b.owned("EVENTS2", "events2", b.db, "/test")
	b.published(20)
	clone := b.clones(server, 1)[0]
	id := ""
	if err := clone.QueryRow(t.Context(), `select pgjet.new_identity()::text`).Scan(&id); err != nil || id == o.ID.String() {
		t.Fatalf("the identity is %s, %v", id, err)
	}
	r := b.relayOf(clone, "EVENTS2", "events2", "staging")
	testenv.Run(t, r.Run)
	b.blocked(r, relay.ForeignOutbox+": stream EVENTS2 belongs to "+o.String())
	b.ownStream("STAGING", "staging")
	own := b.relayOf(clone, "STAGING", "staging", "staging")
	testenv.Run(t, own.Run)
	b.holds("STAGING", 20)
	b.ready(own)
}
