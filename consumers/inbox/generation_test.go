package inbox

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/testenv"
)

// register registers the consumer test, with a stream that was created then.
func register(t *testing.T, db *pgxpool.Pool, created time.Time) (is Registered) {
	t.Helper()
	err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) (err error) {
		is, err = Register(t.Context(), tx, Registration{Consumer: "test", Stream: "EVENTS", Created: created, Ordered: true})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return is
}

// version returns the version of the inbox.
func version(t testing.TB, db DB) Version {
	t.Helper()
	v, err := ReadVersion(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestStreamMadeAnewEndsSessions: registering a consumer with a stream that was created again ends
// every session on the old stream, also the one with the newest epoch. None of them takes a slice
// or writes to other slices.
func TestStreamMadeAnewEndsSessions(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	was := register(t, db, time.Unix(1, 0))
	if err := Supersede(t.Context(), db, "test", func(tx pgx.Tx) error { return Divide(t.Context(), tx, "test", 2) }); err != nil {
		t.Fatal(err)
	}
	slice := Slice{Number: 1, Of: 2}
	own := func(generation int32) (SliceState, error) {
		s := Tenure{Consumer: "test", Ordered: true, Slice: slice, Version: version(t, db), Generation: generation, Process: "host:1", DB: postgres.DB{Pool: db}}
		return s.Own(t.Context())
	}
	at, err := own(was.Generation)
	if err != nil {
		t.Fatal(err)
	}
	is := register(t, db, time.Unix(2, 0))
	if is.Generation == was.Generation {
		t.Fatalf("the generation is %d as before", is.Generation)
	}
	if current, _, err := Current(t.Context(), db, "test", "s", version(t, db), []int64{at.Epoch}); err != nil || current {
		t.Errorf("the session on the stream before is current (%v)", err)
	}
	s := Tenure{Consumer: "test", Slice: slice, Epoch: at.Epoch, Version: version(t, db), Generation: was.Generation}
	if err := s.Save(t.Context(), postgres.DB{Pool: db}, 7, 7, time.Now()); err != nil {
		t.Fatal(err)
	}
	var high int64
	if err := db.QueryRow(t.Context(), `select max(high) from pgjet.slice`).Scan(&high); err != nil || high != 0 {
		t.Errorf("it saved place %d (%v)", high, err)
	}
	if _, err := own(was.Generation); !errors.Is(err, ErrSuperseded) {
		t.Errorf("a session on the stream before took a slice: %v", err)
	}
	if _, err := own(is.Generation); err != nil {
		t.Error(err)
	}
}

// TestForgetsIntentsOfTheStreamBefore: an intent from the old stream is delivered again if the new
// stream has its event in the part that is forgotten. While that is unknown for one intent, nothing
// is forgotten.
func TestForgetsIntentsOfTheStreamBefore(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	moved, other := uuid.Must(uuid.NewV7()), uuid.Must(uuid.NewV7())
	for id, generation := range map[uuid.UUID]int{moved: 2, other: 1} {
		testenv.Exec(t, db, `insert into pgjet.inbox (consumer, event_id, state, attempts, generation, stream_seq) values ('test', $1, 'intent', 0, $2, 5)`, id, generation)
		testenv.Exec(t, db, `insert into pgjet.intent (consumer, event_id, type, key, stream, generation, stream_seq, subject, header, data)
			values ('test', $1, 'a.b', 'k', 'EVENTS', 1, 5, 's', '{}', '')`, id)
	}
	forget := func() error {
		return pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error { return Forget(t.Context(), tx, "test", 2, 4, false) })
	}
	count := func(want int) {
		t.Helper()
		for _, table := range []string{"inbox", "intent"} {
			var n int
			if err := db.QueryRow(t.Context(), `select count(*) from pgjet.`+table).Scan(&n); err != nil || n != want {
				t.Errorf("pgjet.%s has %d rows (%v), want %d", table, n, err, want)
			}
		}
	}
	if err := forget(); err == nil || !strings.Contains(err.Error(), "1 events of the stream as it was") {
		t.Errorf("while one waits that the new stream has not delivered: %v", err)
	}
	count(2)
	testenv.Exec(t, db, `with gone as (delete from pgjet.intent where event_id = $1) delete from pgjet.inbox where event_id = $1`, other)
	if err := forget(); err != nil {
		t.Fatal(err)
	}
	count(0)
}
