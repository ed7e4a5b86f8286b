package relay

import (
	"testing"

	"github.com/pgjet/pgjet/internal/testenv"
)

// TestFoundEndsAMistake: a stream that was recorded as another outbox's, or as missing,
// counts for the partitions of the outbox before anything is published there.
func TestFoundEndsAMistake(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	r := &Relay{Database: db.Config().ConnConfig}
	if err := r.setDefaults(); err != nil {
		t.Fatal(err)
	}
	for cause, want := range map[string]string{
		ForeignOutbox + ": stream EVENTS belongs to another": "starting", "stream_missing: no such stream": "starting", "halted: x": "halted: x",
	} {
		testenv.Exec(t, db, `insert into pgjet.leader as l (stream, epoch, cause, cause_at) values ('EVENTS', 1, $1, clock_timestamp())
			on conflict (stream) do update set cause = excluded.cause, cause_at = excluded.cause_at`, cause)
		d, err := takeLead(t.Context(), r, &r.keeper)
		if err != nil {
			t.Fatal(err)
		}
		err = d.found(t.Context())
		d.close()
		got := ""
		if failed := db.QueryRow(t.Context(), `select cause from pgjet.leader`).Scan(&got); err != nil || failed != nil || got != want {
			t.Errorf("after %q the cause is %q, want %q; %v, %v", cause, got, want, err, failed)
		}
	}
}
