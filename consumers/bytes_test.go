package consumers_test

import (
	"bytes"
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/replay"
	"github.com/pgjet/pgjet/events"
)

// A blob is a payload in a form of its own.
type blob []byte

func (blob) EventType() string        { return "blob.made" }
func (blob) EventKey() string         { return "k" }
func (blob) EventContentType() string { return "application/x-blob" }

func (b blob) MarshalBinary() ([]byte, error) { return b, nil }

func (b *blob) UnmarshalBinary(data []byte) error {
	if bytes.Equal(data, []byte{0xff}) {
		return errors.New("no blob")
	}
	*b = bytes.Clone(data)
	return nil
}

// TestBytes: a payload that is not JSON is decoded by its own method, becomes a dead letter, is
// shown as bytes or masked, and is unchanged by a redrive.
func TestBytes(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	sent := blob("\x00\x01{\xfe")
	for i, p := range []blob{sent, {0xff}, {}} {
		e, err := events.New(p)
		if err != nil {
			t.Fatal(err)
		}
		e.Source, e.Seq, e.Time = "/test", int64(i+1), time.Now()
		b.publish(e)
	}
	var mended atomic.Bool
	b.startOn(b.js, consumers.Consumer{Handler: consumers.Handle(consumers.On(func(ctx context.Context, tx pgx.Tx, e events.Event, p blob) error {
		if !mended.Load() {
			return errors.New("not yet")
		}
		if !bytes.Equal(p, e.Data) || e.ContentType != "application/x-blob" {
			t.Errorf("the payload is %q of %s, and the event has %q", p, e.ContentType, e.Data)
		}
		_, err := tx.Exec(ctx, `insert into effect (n) values ($1)`, e.Seq)
		return err
	})), MaxAttempts: 1})
	b.settled()
	var letters []inbox.DeadMessage
	err := inbox.Export(t.Context(), b.db, inbox.Filter{Consumer: "test"}, func(m inbox.DeadMessage) error {
		letters = append(letters, m)
		return nil
	})
	if err != nil || len(letters) != 3 {
		t.Fatalf("%d dead letters, %v, want 3", len(letters), err)
	}
	for i, want := range []blob{sent, {0xff}, {}} {
		if m := letters[i]; m.Data != nil || !bytes.Equal(m.DataBase64, want) || m.Bytes != len(want) {
			t.Errorf("dead letter %d shows %q and %q of %d bytes, want the bytes %q", i, m.Data, m.DataBase64, m.Bytes, want)
		}
		if letters[i].Mask(); letters[i].DataBase64 != nil || letters[i].Header["ce-datacontenttype"][0] != "application/x-blob" {
			t.Errorf("dead letter %d is masked as %q of %q", i, letters[i].DataBase64, letters[i].Header["ce-datacontenttype"])
		}
	}
	mended.Store(true)
	if _, err := replay.Redrive(t.Context(), b.db, inbox.Filter{Consumer: "test"}, replay.Decision{By: "ann@host", Reason: "mended"}); err != nil {
		t.Fatal(err)
	}
	b.settled()
	if done, dead := b.count(`select count(*) from effect`), b.count(`select count(*) from pgjet.dead_letter where state = 'dead'`); done != 2 || dead != 1 {
		t.Errorf("%d events are done and %d dead, want 2 and the one that is no blob", done, dead)
	}
}
