package relay_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
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

// relayOf returns the relay of a database that no other relay has.
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
	t.Parallel()
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
	t.Parallel()
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
	t.Parallel()
	b := newBench(t)
	for _, row := range []struct{ prefix, source, says string }{
		{"pgjet", "", "prefix"}, {"a.*", "", "prefix"}, {"", "a\nb", "source"}, {"", strings.Repeat("a", events.MaxSource+1), "source"},
	} {
		if err := b.relayOf(b.db, "", row.prefix, row.source).Run(t.Context()); err == nil || !strings.Contains(err.Error(), row.says) {
			t.Errorf("Run() with prefix %q and source %q = %v, want an error about the %s", row.prefix, row.source, err, row.says)
		}
	}
}

// owned makes the stream name the outbox of db.
func (b *bench) owned(name, prefix string, db *pgxpool.Pool, source string) relay.Outbox {
	b.Helper()
	o, err := relay.ReadOutbox(b.Context(), db, source)
	if err != nil {
		b.Fatal(err)
	}
	config := relay.StreamConfig(name, 1)
	config.Subjects = []string{events.SubjectsOf(prefix).All()}
	o.Own(&config)
	if _, _, err := relay.EnsureStream(b.Context(), b.js, config); err != nil {
		b.Fatal(err)
	}
	return o
}

// undisturbed makes sure that a relay goes on as if it were alone.
func (b *bench) undisturbed(r *relay.Relay, epoch int64) {
	b.Helper()
	b.append(5)
	b.settled()
	b.ready(r)
	if got := b.epoch(); got != epoch {
		b.Errorf("the relay took the lead %d times, want %d", got, epoch)
	}
}

// TestOverlappingPrefix: a stream whose subjects another one takes is refused, with what to do.
func TestOverlappingPrefix(t *testing.T) {
	b := newBench(t)
	config := relay.StreamConfig("MORE", 1)
	config.Subjects = []string{"events.00.>"}
	_, _, err := relay.EnsureStream(t.Context(), b.js, config)
	if err == nil || !strings.HasPrefix(err.Error(), "stream_differs: ") || !strings.Contains(err.Error(), "another stream of this account takes some of events.00.>; set --prefix") {
		t.Errorf("EnsureStream() = %v", err)
	}
}

// TestForeignOutbox: a relay that is pointed to another outbox's stream reports that, names
// both, and leaves nothing to adopt. The other relay is not disturbed.
func TestForeignOutbox(t *testing.T) {
	t.Parallel()
	for name, owned := range map[string]bool{"the stream names its outbox": true, "it names none": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, url := testenv.JetStream(t)
			b := &bench{T: t, db: testenv.Postgres(t), js: testenv.Connect(t, url), url: url}
			var owner relay.Outbox
			if owned {
				owner = b.owned("EVENTS", "events", b.db, "/test")
			} else {
				b.createStream()
			}
			r, _ := b.start()
			b.append(20)
			b.settled()
			epoch := b.epoch()

			billing := testenv.Postgres(t)
			own, err := relay.ReadOutbox(t.Context(), billing, "billing")
			if err != nil {
				t.Fatal(err)
			}
			b.note(billing, 3)
			stranger := b.relayOf(billing, "EVENTS", "", "billing")
			testenv.Run(t, stranger.Run)
			b.blocked(stranger, relay.ForeignOutbox+": stream EVENTS belongs to ")
			says := stranger.Ready(t.Context()).Error()
			for _, part := range []string{owner.ID.String(), `"/test"`, own.String(), "pgjet stream ensure --stream NAME --prefix NAME"} {
				if part != owner.ID.String() && !strings.Contains(says, part) || owned && !strings.Contains(says, part) {
					t.Errorf("it says %q, want %q in it", says, part)
				}
			}
			if strings.Contains(says, "adopt") {
				t.Errorf("it says %q, which would halt the other relay", says)
			}
			if listed, err := relay.UnknownMessages(t.Context(), billing, "EVENTS"); err != nil || len(listed) != 0 {
				t.Errorf("%d messages can be adopted, %v", len(listed), err)
			}
			b.undisturbed(r, epoch)
			if got := relay.Halted(stranger); got != relay.ForeignOutbox {
				t.Errorf("the reason of the metric is %q", got)
			}
		})
	}
}

// TestClaim: an outbox can claim a stream if nothing in it is another's, or if the operator
// names the outbox that it had.
func TestClaim(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	o, err := relay.ReadOutbox(t.Context(), b.db, "/test")
	if err != nil {
		t.Fatal(err)
	}
	other := testenv.Postgres(t)
	stranger, err := relay.ReadOutbox(t.Context(), other, "billing")
	if err != nil {
		t.Fatal(err)
	}
	claim := func(by relay.Outbox, db *pgxpool.Pool, from *uuid.UUID, wantNews bool, refusal string) {
		t.Helper()
		news, err := relay.Claim(t.Context(), db, b.js, "EVENTS", by, from)
		if refusal == "" && (err != nil || news != wantNews) {
			t.Errorf("Claim() = %t, %v, want %t", news, err, wantNews)
		}
		if _, foreign := errors.AsType[*relay.ForeignOutboxError](err); refusal != "" && (!foreign || !strings.Contains(err.Error(), refusal)) {
			t.Errorf("Claim() = %v, want a refusal with %q", err, refusal)
		}
	}
	_, stop := b.start()
	b.append(3)
	b.settled()
	claim(stranger, other, nil, false, `its last message, at sequence 3, is an event of "/test"`)
	claim(o, b.db, nil, true, "")
	claim(o, b.db, nil, false, "")
	b.append(3) // a stream keeps what it has
	b.settled()
	stop()
	claim(stranger, other, nil, false, "belongs to "+o.String())
	claim(stranger, other, new(stranger.ID), false, "belongs to "+o.String())
	claim(stranger, other, new(o.ID), true, "")
	r, _ := b.start()
	b.blocked(r, relay.ForeignOutbox+": stream EVENTS belongs to "+stranger.String())
	if got := len(b.stored()); got != 6 {
		t.Errorf("the stream holds %d messages, want 6", got)
	}
	if err := b.js.DeleteStream(t.Context(), "EVENTS"); err != nil {
		t.Fatal(err)
	}
	b.createStream()
	claim(o, b.db, nil, true, "") // an empty one
}

// TestOwnerIsLookedAt: a relay leaves a stream alone that another outbox has claimed
// meanwhile.
func TestOwnerIsLookedAt(t *testing.T) {
	relay.SetLookEvery(t, 50*time.Millisecond)
	b := newBench(t)
	r, _ := b.start()
	b.append(3)
	b.settled()
	b.ready(r)
	other := testenv.Postgres(t)
	stranger, err := relay.ReadOutbox(t.Context(), other, "billing")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := relay.Claim(t.Context(), other, b.js, "EVENTS", stranger, new(uuid.Nil)); err != nil {
		t.Fatal(err)
	}
	b.blocked(r, relay.ForeignOutbox+": stream EVENTS belongs to "+stranger.String())
}
