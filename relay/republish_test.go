package relay_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/relay"
)

// republish has events published again for a new operation, as if the stream lacked them.
func (b *bench) republish(epoch int64, seqs ...int64) (taken []int64, err error) {
	b.Helper()
	var id int64
	if err := b.db.QueryRow(b.Context(), `insert into pgjet.operation (kind, target, by, reason) values ('republish', 'EVENTS', 'me', 'test') returning id`).Scan(&id); err != nil {
		b.Fatal(err)
	}
	return relay.Republish(b.Context(), b.db, id, "EVENTS", epoch, seqs)
}

// TestRepublishForOneStream: events that one stream lacks are published there again. The
// relay of another stream with the same outbox is not disturbed.
func TestRepublishForOneStream(t *testing.T) {
	relay.SetControlEvery(t, 10*time.Millisecond)
	b := newBench(t)
	_, stop := b.start()
	b.append(5)
	b.settled()
	stop()
	if taken, err := b.republish(b.epoch(), 2); err != nil || !slices.Equal(taken, []int64{2}) {
		t.Fatalf("taken are %d, %v", taken, err)
	}
	config := relay.StreamConfig("OTHER", 1)
	config.Subjects = []string{"other.>"}
	other, err := b.js.CreateStream(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	database := b.db.Config().ConnConfig.Copy()
	database.RuntimeParams["role"] = "pgjet_relay"
	r := &relay.Relay{Database: database, NATSURL: b.url, Stream: "OTHER", Prefix: "other", Log: testenv.Logger(t)}
	stop = testenv.Run(t, r.Run)
	ends := func() bool { // with the newest event
		ids := b.committed()
		m, err := other.GetLastMsgForSubject(t.Context(), "other.>")
		return err == nil && m.Header.Get("ce-id") == ids[len(ids)-1]
	}
	testenv.Eventually(t, patience, "the other stream has all", ends)
	// The relay reads the operators' control again and again; in the first tenth of a
	// second the server refuses an id that it knows.
	for begun := time.Now(); time.Since(begun) < time.Second; {
		b.append(1)
		testenv.Eventually(t, patience, "and the next one", ends)
	}
	stop()
	if info, err := other.Info(t.Context()); err != nil || int(info.State.Msgs) != len(b.committed()) {
		t.Errorf("the other stream has %+v, %v; want each of %d events once", info.State, err, len(b.committed()))
	}
	b.start()
	testenv.Eventually(t, patience, "the stream that lacked it has it again", func() bool {
		s := b.status()
		return len(b.stored()) == len(b.committed())+1 && s.Quarantined == (relay.Quarantines{}) && s.Pending.Events == 0
	})
	if ids := b.committed(); !slices.Contains(b.stored()[5:], ids[1]) {
		t.Errorf("the stream ends with %q, want %s among it", b.stored()[5:], ids[1])
	}
}

// TestRepublishTakesWhatIsPublished: an event that no checkpoint covers is not selected, or
// it would be held back. In another epoch none is selected.
func TestRepublishTakesWhatIsPublished(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	_, stop := b.start()
	b.append(3)
	b.settled()
	stop()
	b.append(1)
	if taken, err := b.republish(b.epoch(), 3, 4, 5); err != nil || !slices.Equal(taken, []int64{3}) {
		t.Errorf("taken are %d, %v; want the one that is published", taken, err)
	}
	if taken, err := b.republish(b.epoch(), 3); err != nil || len(taken) != 0 {
		t.Errorf("taken are %d, %v; want none twice", taken, err)
	}
	if _, err := b.republish(b.epoch()-1, 1); !errors.Is(err, relay.ErrLeadChanged) {
		t.Errorf("in another epoch the error is %v", err)
	}
}
