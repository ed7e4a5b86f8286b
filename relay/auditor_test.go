package relay_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/relay"
	"github.com/pgjet/pgjet/relay/audit"
)

// deletable makes the stream again, so that messages can be deleted.
func (b *bench) deletable() jetstream.Stream {
	b.Helper()
	config := relay.StreamConfig("EVENTS", 1)
	config.DenyDelete = false
	if err := b.js.DeleteStream(b.Context(), "EVENTS"); err != nil {
		b.Fatal(err)
	}
	stream, err := b.js.CreateStream(b.Context(), config)
	if err != nil {
		b.Fatal(err)
	}
	return stream
}

// startAuditing runs a relay with that audit rate.
func (b *bench) startAuditing(rate int) (stop func()) {
	b.Helper()
	config := b.db.Config().ConnConfig.Copy()
	config.RuntimeParams["role"] = "pgjet_relay"
	r := &relay.Relay{Database: config, NATSURL: b.url, Source: "/test", AuditRate: rate, Log: testenv.Logger(b)}
	return testenv.Run(b, r.Run)
}

// audited waits for a whole pass of the background audit after the last one, and returns
// it.
func (b *bench) audited(last *relay.Audited) (found *relay.Audited) {
	b.Helper()
	testenv.Eventually(b, patience, "a whole pass of the audit", func() bool {
		found = b.status().Audit
		return found != nil && (last == nil || found.ID > last.ID)
	})
	return found
}

// TestBackgroundAudit: the leading relay compares everything that it published, and finds a
// message that is gone and a row that is gone. The next leader continues an unfinished
// pass.
func TestBackgroundAudit(t *testing.T) {
	relay.SetAuditRest(t, time.Second)
	b := newBench(t)
	stream := b.deletable()
	stop := b.startAuditing(0)
	b.append(50)
	b.settled()
	first := b.audited(nil)
	for first.Compared < 50 { // it began before all was published
		first = b.audited(first)
	}
	if first.Compared != 50 || first.Differences() != 0 {
		t.Fatalf("of a whole stream the audit says %+v", first)
	}
	stop()
	if err := stream.DeleteMsg(t.Context(), 20); err != nil {
		t.Fatal(err)
	}
	b.exec(`delete from pgjet.outbox where seq = 30`)
	// A planned republish has not happened yet.
	b.exec(`insert into pgjet.operation (kind, target, by, reason, state, detail) values ('republish', 'EVENTS', 'me', 'test', 'planned', '{"seqs": [20]}')`)
	// An unfinished pass: the first ten are compared.
	b.exec(`delete from pgjet.audit`)
	b.exec(`insert into pgjet.audit (stream, stream_created, system_identifier, stream_seq, event_id, snapshot, floor, events, compared, missing, extra, twice, out_of_order, changed)
		select stream, stream_created, system_identifier, 10, null, snapshot, 10, 10, 1000, 0, 0, 0, 0, 0 from pgjet.checkpoint order by id desc limit 1`)
	b.startAuditing(0)
	found := b.audited(nil)
	if found.Compared != 1000+38 || found.Missing != 1 || found.Extra != 1 || found.Differences() != 2 || found.StreamSeq != 50 {
		t.Errorf("the audit says %+v", found)
	}
	named, err := relay.AuditDifferences(t.Context(), b.db, found.ID)
	slices.SortFunc(named, func(a, b audit.Difference) int { return strings.Compare(a.Kind, b.Kind) })
	if err != nil || len(named) != 2 || named[0].StreamSeq != 30 || named[0].Kind != "extra" || named[1].Seq != 20 || named[1].Kind != "missing" {
		t.Errorf("the differences are %+v, %v", named, err)
	}
	if again := b.audited(found); again.Compared != 48 || again.Differences() != 2 {
		t.Errorf("the next pass says %+v", again)
	}
}

// TestBackgroundAuditIsSlow: it compares no more events a second than its rate.
func TestBackgroundAuditIsSlow(t *testing.T) {
	relay.SetAuditRest(t, time.Second)
	b := newBench(t)
	b.append(200)
	begun := time.Now()
	b.startAuditing(40)
	for a := b.audited(nil); a.Compared < 200; a = b.audited(a) {
	}
	if took := time.Since(begun); took < 4*time.Second {
		t.Errorf("200 events were compared in %s, at 40 a second", took)
	}
}
