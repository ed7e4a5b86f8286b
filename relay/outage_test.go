package relay_test

import (
	"context"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/devserver"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/migrations"
	"github.com/pgjet/pgjet/relay"
)

func TestSurvivesNATSOutage(t *testing.T) {
	t.Parallel()
	b, server := newOutage(t)
	r, _ := b.start()
	b.append(10)
	b.settled()
	server.Stop()
	b.append(10)
	b.blocked(r, "nats_unreachable")
	testenv.RestartNATS(t, server)
	b.settled()
}

// TestServerTakesNoWrites: a relay does not lead on a server that is set to accept no
// writes, and reports why; it goes on by itself.
func TestServerTakesNoWrites(t *testing.T) {
	t.Parallel()
	pg := testenv.PostgresServer(t)
	db, err := pgxpool.New(t.Context(), pg.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	if _, err := migrations.Up(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	js, url := testenv.JetStream(t)
	b := &bench{T: t, db: db, js: js, url: url}
	b.createStream()
	b.append(1)
	set := func(sql, want string) {
		t.Helper()
		testenv.Exec(t, db, sql)
		testenv.Exec(t, db, `select pg_reload_conf()`)
		testenv.Eventually(t, patience, "new sessions begin with it "+want, func() bool {
			conn, err := pgx.Connect(t.Context(), pg.URL())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close(t.Context())
			var is string
			err = conn.QueryRow(t.Context(), `show default_transaction_read_only`).Scan(&is)
			return err == nil && is == want
		})
	}
	set(`alter system set default_transaction_read_only = on`, "on")
	r, _ := b.start()
	b.blocked(r, "database_read_only")
	var epochs int
	if err := db.QueryRow(t.Context(), `select count(*) from pgjet.leader`).Scan(&epochs); err != nil || epochs != 0 {
		t.Errorf("the relay led (%v)", err)
	}
	set(`alter system reset default_transaction_read_only`, "off")
	b.settled()
}

// newOutage returns a bench on a server that the test may stop.
func newOutage(t *testing.T) (*bench, *devserver.NATS) {
	t.Helper()
	b, server := &bench{T: t, db: testenv.Postgres(t)}, testenv.NATS(t)
	b.url = server.URL()
	b.js = testenv.Connect(t, b.url)
	b.createStream()
	return b, server
}

// TestHealsALostTail puts an older copy of the stream's files back, as after a power cut or
// from a backup.
func TestHealsALostTail(t *testing.T) {
	t.Parallel()
	b, server := newOutage(t)
	r, _ := b.start()
	b.append(20)
	b.settled()

	server.Stop()
	dir, backup := server.Options().Dir, t.TempDir()
	if err := os.CopyFS(backup, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	server = testenv.RestartNATS(t, server)
	b.append(300)
	b.settled()
	b.ready(r)

	server.Stop()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(dir, os.DirFS(backup)); err != nil {
		t.Fatal(err)
	}
	testenv.RestartNATS(t, server)
	b.append(5)
	b.settled()
}

// TestSilenceInATransactionLosesTheLead: a relay that hangs in the middle of a transaction
// is as silent as one that hangs between two.
func TestSilenceInATransactionLosesTheLead(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	hung, err := relay.Connect(t.Context(), db.Config().ConnConfig)
	if err != nil {
		t.Fatal(err)
	}
	defer hung.Close(context.Background())
	if _, err := hung.Exec(t.Context(), `begin; select pg_advisory_lock(1)`); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := db.Exec(ctx, `select pg_advisory_lock(1)`); err != nil {
		t.Errorf("its lock is not free after %s: %v", patience, err)
	}
}

// TestTendsWhileNATSIsAway: services go on writing, and must find a partition.
func TestTendsWhileNATSIsAway(t *testing.T) {
	t.Parallel()
	b, server := newOutage(t)
	r, _ := b.start()
	server.Stop()
	b.blocked(r, "nats_unreachable")
	partitions := func() (n int) {
		if err := b.db.QueryRow(t.Context(), `select count(*) from pgjet.outbox_partition`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := partitions()
	if _, err := b.db.Exec(t.Context(), `select setval('pgjet.outbox_seq_seq', 100001)`); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, patience, "partitions are made ahead", func() bool { return partitions() > before })
}
