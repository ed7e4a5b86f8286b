package replay

import (
	"testing"

	"github.com/pgjet/pgjet/internal/testenv"
)

// TestEnded: durable consumers that report nothing left are believed once the inbox has what the plan
// selects, or if they report it for long.
func TestEnded(t *testing.T) {
	t.Parallel()
	r := &Replay{db: testenv.Postgres(t), name: "test", generation: 1}
	testenv.Exec(t, r.db, `insert into pgjet.inbox (consumer, event_id, state, attempts, generation, stream_seq)
		select 'test', gen_random_uuid(), 'done', 1, 1, n from generate_series(1, 8) n`)
	for _, row := range []struct {
		way             string
		selected, agree int
		want            bool
	}{
		{ByIntent, 5, 0, false},
		{ByIntent, 5, 1, true},
		{ByReset, 5, looks - 1, false},
		{ByReset, 5, looks, true},
		{ByReset, 6, looks, false}, // a slice that was just set back reports its old state
		{ByReset, 6, moreLooks - 1, false},
		{ByReset, 6, moreLooks, true},
	} {
		p := &Plan{Way: row.way, From: 3, To: 7, Selected: row.selected}
		if got, err := r.ended(t.Context(), p, row.agree); err != nil || got != row.want {
			t.Errorf("%s of %d, after %d looks: %t, %v, want %t", row.way, row.selected, row.agree, got, err, row.want)
		}
	}
}
