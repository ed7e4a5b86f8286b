package relay_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/devserver"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/migrations"
	"github.com/pgjet/pgjet/relay"
)

// adopt accepts the messages that the relay has reported.
func (b *bench) adopt() {
	b.Helper()
	_, err := b.db.Exec(b.Context(), `
		insert into pgjet.adoption (stream, stream_created, stream_seq, by, reason)
		select stream, stream_created, max(stream_seq), 'test', 'test' from pgjet.unknown_message group by 1, 2`)
	if err != nil {
		b.Fatal(err)
	}
}

// unknown returns the sequences of messages that the relay has reported.
func (b *bench) unknown() (seqs []int64) {
	b.Helper()
	err := b.db.QueryRow(b.Context(), `select array_agg(stream_seq order by stream_seq) from pgjet.unknown_message`).Scan(&seqs)
	if err != nil {
		b.Fatal(err)
	}
	return seqs
}

// known returns the ids in the stream that the outbox holds too.
func (b *bench) known() []string {
	b.Helper()
	committed := b.committed()
	return slices.DeleteFunc(b.stored(), func(id string) bool { return !slices.Contains(committed, id) })
}

// TestForeignWriterIsNoticed: a foreign message moves the stream's last sequence, so the
// next append is refused. The relay halts and lists the message. Once an operator has
// accepted it, the relay continues where it was.
func TestForeignWriterIsNoticed(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r, _ := b.start()
	b.append(10)
	b.settled()
	for range 2 {
		if _, err := b.js.Publish(t.Context(), "events.00.alien", []byte("{}")); err != nil {
			t.Fatal(err)
		}
	}
	b.appendAtOnce(100, "")
	b.blocked(r, "halted: foreign_writer")
	if got := b.unknown(); !slices.Equal(got, []int64{11, 12}) {
		t.Errorf("reported %v, want 11 and 12", got)
	}
	if got := len(b.stored()); got != 12 {
		t.Errorf("the stream holds %d messages, want 12: a halted relay publishes nothing", got)
	}
	b.adopt()
	testenv.Eventually(t, patience, "all events are in the stream", func() bool { return len(b.stored()) == 112 })
	if !slices.Equal(b.known(), b.committed()) {
		t.Error("events are missing, doubled or out of order")
	}
	b.ready(r)
	if got := b.unknown(); got != nil {
		t.Errorf("reported %v, want nothing any more", got)
	}
}

// newMovable returns a bench on a PostgreSQL server that the test may stop.
func newMovable(t *testing.T) (*bench, *devserver.Postgres) {
	t.Helper()
	b, server := &bench{T: t}, testenv.PostgresServer(t)
	b.open(server.URL())
	if _, err := migrations.Up(t.Context(), b.db); err != nil {
		t.Fatal(err)
	}
	b.js, b.url = testenv.JetStream(t)
	b.createStream()
	return b, server
}

// open connects the bench to a database.
func (b *bench) open(url string) {
	b.Helper()
	if b.db != nil {
		b.db.Close()
	}
	var err error
	if b.db, err = pgxpool.New(b.Context(), url); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(b.db.Close)
}

func restart(t *testing.T, p *devserver.Postgres) *devserver.Postgres {
	t.Helper()
	again, err := devserver.StartPostgres(t.Context(), p.Options())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = again.Stop() })
	return again
}

func stop(t *testing.T, p *devserver.Postgres) {
	t.Helper()
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// TestHaltsWhenTheDatabaseIsBehind puts an older copy of the database's files back: the
// stream holds committed events that the database has lost.
func TestHaltsWhenTheDatabaseIsBehind(t *testing.T) {
	t.Parallel()
	b, server := newMovable(t)
	r, _ := b.start()
	b.append(20)
	b.settled()
	stop(t, server)
	dir := server.Options().Dir
	run(t, "cp", "-a", dir, dir+".backup")
	server = restart(t, server)
	b.db.Reset()
	b.append(15)
	b.settled()
	stop(t, server)
	run(t, "rm", "-rf", dir)
	run(t, "mv", dir+".backup", dir)
	restart(t, server)
	b.db.Reset()
	b.blocked(r, "halted: database_behind")
	if got := b.unknown(); len(got) != 15 || got[0] != 21 {
		t.Errorf("reported %v, want 21 to 35", got)
	}
	b.append(7) // with the seqs of the lost ones
	b.adopt()
	testenv.Eventually(t, patience, "the new events are in the stream", func() bool { return len(b.stored()) == 42 })
	if !slices.Equal(b.known(), b.committed()) {
		t.Error("events are missing, doubled or out of order")
	}
	b.ready(r)
}

// TestDumpAndRestore moves the database to another cluster with pg_dump. There the
// transactions of snapshots and rows mean nothing.
func TestDumpAndRestore(t *testing.T) {
	t.Parallel()
	dump := tool(t, "pg_dump")
	psql := tool(t, "psql")
	b, old := newMovable(t)
	_, stopRelay := b.start()
	// The old cluster has counted further than the new one will for a while.
	if _, err := b.db.Exec(t.Context(), `do $$ begin for i in 1..3000 loop perform pg_current_xact_id(); commit; end loop; end $$`); err != nil {
		t.Fatal(err)
	}
	b.append(30)
	b.settled()
	stopRelay()
	b.append(5)

	fresh := testenv.PostgresServer(t)
	for _, role := range []string{"writer", "relay", "consumer", "operator"} { // as pg_dumpall --roles-only does
		run(t, psql, "--quiet", "--command", "create role pgjet_"+role, fresh.URL())
	}
	file := filepath.Join(t.TempDir(), "dump.sql")
	run(t, dump, "--no-owner", "--file", file, old.URL())
	run(t, psql, "--quiet", "--set", "ON_ERROR_STOP=1", "--file", file, fresh.URL())
	b.open(fresh.URL())
	b.append(5)
	late, err := b.db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer late.Rollback(context.Background())
	if _, err := late.Exec(t.Context(), `insert into pgjet.outbox (id, type, key, data) values (gen_random_uuid(), 'note.made', 'late', '{}')`); err != nil {
		t.Fatal(err)
	}
	b.append(5)
	r, _ := b.start()
	testenv.Eventually(t, patience, "what is committed is in the stream", func() bool { return len(b.stored()) == 45 })
	if err := late.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 4 { // the new cluster reaches transactions that the old rows name
		b.append(300)
	}
	testenv.Eventually(t, patience, "all events are in the stream", func() bool { return len(b.stored()) >= 46+1200 })
	stored, committed := b.stored(), b.committed()
	slices.Sort(stored)
	slices.Sort(committed)
	if !slices.Equal(stored, committed) {
		t.Errorf("the stream holds %d events, the outbox %d, or they differ", len(stored), len(committed))
	}
	b.ready(r)
}

// tool returns the path of a program of PostgreSQL.
func tool(t *testing.T, name string) string {
	t.Helper()
	all, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	if bin := os.Getenv("PGJET_PG_BIN"); bin != "" {
		all = []string{filepath.Join(bin, name)}
	}
	if path, err := exec.LookPath(name); err == nil && len(all) == 0 {
		all = []string{path}
	}
	if len(all) == 0 {
		t.Skip(name + " is not installed")
	}
	slices.SortFunc(all, strings.Compare)
	return all[len(all)-1]
}

// TestKeepsGoingAfterAPurge: messages that an operator purges on purpose are not lost.
func TestKeepsGoingAfterAPurge(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	config := relay.StreamConfig("EVENTS", 1)
	config.DenyPurge = false
	if err := b.js.DeleteStream(t.Context(), "EVENTS"); err != nil {
		t.Fatal(err)
	}
	stream, err := b.js.CreateStream(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	_, stopRelay := b.start()
	b.append(30)
	b.settled()
	stopRelay()
	if err := stream.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	r, _ := b.start()
	b.append(10)
	b.ready(r)
	testenv.Eventually(t, patience, "the new events are in the stream", func() bool { return len(b.stored()) == 10 })
	if want := b.committed()[30:]; !slices.Equal(b.stored(), want) {
		t.Errorf("the stream holds %v, want %v", b.stored(), want)
	}
}

// TestReplacesADeletedMessage: a relay does not wait for a message that was deleted at the
// end of the stream. It notices the loss, and publishes the event again.
func TestReplacesADeletedMessage(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	config := relay.StreamConfig("EVENTS", 1)
	config.DenyDelete = false
	if err := b.js.DeleteStream(t.Context(), "EVENTS"); err != nil {
		t.Fatal(err)
	}
	stream, err := b.js.CreateStream(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	_, stopRelay := b.start()
	b.append(5)
	b.settled()
	stopRelay()
	if err := stream.DeleteMsg(t.Context(), 5); err != nil {
		t.Fatal(err)
	}
	b.exec(`delete from pgjet.checkpoint`)
	r, _ := b.start()
	b.ready(r)
	testenv.Eventually(t, patience, "the last event is back", func() bool {
		msg, err := stream.GetMsg(t.Context(), 6)
		return err == nil && msg.Header.Get("ce-id") == b.committed()[4]
	})
}

// TestPausedFromTheBeginning: a relay that takes the lead during a pause publishes nothing.
func TestPausedFromTheBeginning(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	if _, _, err := relay.Pause(t.Context(), b.db, "EVENTS", "test", "test"); err != nil {
		t.Fatal(err)
	}
	b.append(5)
	r, _ := b.start()
	b.blocked(r, "paused")
	if got := len(b.stored()); got != 0 {
		t.Errorf("the stream holds %d events in a pause", got)
	}
	if _, err := relay.Resume(t.Context(), b.db, "EVENTS", "test", "test"); err != nil {
		t.Fatal(err)
	}
	b.settled()
}
