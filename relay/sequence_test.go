package relay_test

import (
	"slices"
	"testing"
	"time"

	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/relay"
)

// TestSequenceIsChanged: whatever an operator does to the sequence, or writes by hand, a
// running relay publishes every event once.
func TestSequenceIsChanged(t *testing.T) {
	relay.SetControlEvery(t, 10*time.Millisecond)
	for _, row := range []struct{ name, change string }{
		{"set back", `select setval('pgjet.outbox_seq_seq', 10)`},
		{"set back and forth", `do $$ begin
			perform setval('pgjet.outbox_seq_seq', 20);
			insert into pgjet.outbox (id, type, key, data) values (gen_random_uuid(), 'note.made', 'low', '{}');
			perform setval('pgjet.outbox_seq_seq', 2000); end $$`},
		{"counts down", `alter sequence pgjet.outbox_seq_seq increment -1 minvalue 1; select setval('pgjet.outbox_seq_seq', 400)`},
		{"begins again", `alter sequence pgjet.outbox_seq_seq restart 30`},
		{"cycles", `alter sequence pgjet.outbox_seq_seq maxvalue 1000 cycle; select setval('pgjet.outbox_seq_seq', 999)`},
		{"in steps, in advance", `alter sequence pgjet.outbox_seq_seq increment 7 cache 5`},
		{"by hand, below", `insert into pgjet.outbox (seq, id, type, key, data) overriding system value values (77, gen_random_uuid(), 'note.made', 'low', '{}')`},
		{"by hand, far ahead", `insert into pgjet.outbox (seq, id, type, key, data) overriding system value values (9223372036854775807, gen_random_uuid(), 'note.made', 'low', '{}')`},
		{"at the end", `select setval('pgjet.outbox_seq_seq', 9223372036854775800)`},
		{"up to the last seq", `select setval('pgjet.outbox_seq_seq', 9223372036854775803)`},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.exec(`select setval('pgjet.outbox_seq_seq', 500)`)
			_, stop := b.start()
			for range 8 { // until the relay looks for no late events among the first
				b.append(1)
				b.settled()
			}
			b.exec(row.change)
			b.append(3)
			b.exec(`insert into pgjet.outbox (id, type, key, data) values (gen_random_uuid(), 'note.made', 'k', '{}')`)
			want := b.committed()
			slices.Sort(want)
			testenv.Eventually(t, patience, "all events are in the stream, once", func() bool {
				got := b.stored()
				if len(got) > len(want) {
					t.Fatalf("%d messages of %d events", len(got), len(want))
				}
				slices.Sort(got)
				return slices.Equal(got, want)
			})
			stop()
			r, _ := b.start() // what it finds in the stream and in the outbox agrees
			b.ready(r)
			if s := b.status(); s.Pending.Events != 0 || s.Unknown != 0 || len(b.stored()) != len(want) {
				t.Errorf("status is %+v after a restart, with %d messages of %d events", s, len(b.stored()), len(want))
			}
		})
	}
}
