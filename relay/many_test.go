package relay_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/outbox"
	"github.com/pgjet/pgjet/relay"
)

// ownStream makes a stream for the subjects of a prefix.
func (b *bench) ownStream(name, prefix string) {
	b.Helper()
	config := relay.StreamConfig(name, 1)
	config.Subjects = []string{events.SubjectsOf(prefix).All()}
	if _, _, err := relay.EnsureStream(b.Context(), b.js, config); err != nil {
		b.Fatal(err)
	}
}

// relayOf returns a relay of a database that no other one has.
func (b *bench) relayOf(db *pgxpool.Pool, stream, prefix, source string) *relay.Relay {
	config := db.Config().ConnConfig.Copy()
	config.RuntimeParams["role"] = "pgjet_relay"
	return &relay.Relay{Database: config, NATSURL: b.url, Stream: stream, Prefix: prefix, Source: source, Log: testenv.Logger(b)}
}

// note commits count events in db.
func (b *bench) note(db *pgxpool.Pool, count int) {
	b.Helper()
	for n := range count {
		err := pgx.BeginFunc(b.Context(), db, func(tx pgx.Tx) error {
			return outbox.Append(b.Context(), tx, noted{fmt.Sprint("k", n), n})
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}

// holds waits until a stream holds count messages, and returns the first one's subject and source.
func (b *bench) holds(name string, count uint64) (subject, source string) {
	b.Helper()
	stream, err := b.js.Stream(b.Context(), name)
	if err != nil {
		b.Fatal(err)
	}
	testenv.Eventually(b, patience, fmt.Sprintf("%s holds %d messages", name, count), func() bool {
		info, err := stream.Info(b.Context())
		return err == nil && info.State.Msgs == count
	})
	msg, err := stream.GetMsg(b.Context(), 1)
	if err != nil {
		b.Fatal(err)
	}
	return msg.Subject, msg.Header.Get("ce-source")
}

// TestServicesShareAnAccount: each with its own database, stream and prefix.
func TestServicesShareAnAccount(t *testing.T) {
	b := newBench(t)
	orders := testenv.Postgres(t)
	b.ownStream("ORDERS", "acme.orders")
	theirs := b.relayOf(orders, "ORDERS", "acme.orders", "orders")
	testenv.Run(t, theirs.Run)
	ours, _ := b.start()
	b.append(20)
	b.note(orders, 30)
	if subject, source := b.holds("EVENTS", 20); subject != events.Subject("note.made", "k1") || source != "/test" {
		t.Errorf("EVENTS begins with subject %s from %s", subject, source)
	}
	want := events.SubjectsOf("acme.orders").Of("note.made", "k0")
	if subject, source := b.holds("ORDERS", 30); subject != want || source != "orders" {
		t.Errorf("ORDERS begins with subject %s from %s, want %s from orders", subject, source, want)
	}
	b.ready(ours)
	b.ready(theirs)
}

// TestOtherPrefix: a stream that takes none of the subjects is refused, and no event is set aside for it.
func TestOtherPrefix(t *testing.T) {
	b := newBench(t)
	b.append(3)
	r := b.relayOf(b.db, "EVENTS", "orders", "orders")
	testenv.Run(t, r.Run)
	b.blocked(r, "stream_differs: stream EVENTS takes events.>, and the subjects of this outbox begin with orders; set --prefix, or --stream")
	aside := 0
	if err := b.db.QueryRow(t.Context(), `select count(*) from pgjet.quarantine`).Scan(&aside); err != nil || aside != 0 {
		t.Errorf("%d events were set aside, %v", aside, err)
	}
}

func TestRunRefusesPrefixAndSource(t *testing.T) {
	b := newBench(t)
	for _, row := range []struct{ prefix, source, says string }{
		{"pgjet", "", "prefix"}, {"a.*", "", "prefix"}, {"", "a\nb", "source"}, {"", strings.Repeat("a", events.MaxSource+1), "source"},
	} {
		if err := b.relayOf(b.db, "", row.prefix, row.source).Run(t.Context()); err == nil || !strings.Contains(err.Error(), row.says) {
			t.Errorf("Run() with prefix %q and source %q = %v, want an error about the %s", row.prefix, row.source, err, row.says)
		}
	}
}
