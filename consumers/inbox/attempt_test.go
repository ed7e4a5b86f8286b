package inbox

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// TestClaimOnceMore: if the schema changed under prepared statements, everything runs once more.
func TestClaimOnceMore(t *testing.T) {
	h := newFixture(t)
	calls := 0
	err := h.tenure.Claim(t.Context(), []*Message{h.message("k", 1)}, func(_ pgx.Tx, fresh []bool) error {
		if calls++; calls == 1 {
			return &pgconn.PgError{Code: "0A000", Message: "cached plan must not change result type", Routine: "RevalidateCachedQuery"}
		}
		if !fresh[0] {
			t.Error("the event is not fresh in the second transaction")
		}
		return nil
	})
	if err != nil || calls != 2 {
		t.Errorf("Claim() = %v after %d calls, want nil after 2", err, calls)
	}
	h.is("the inbox", "done", `select state from pgjet.inbox`)
}

// TestClaimInAnotherTransaction: what a handler writes after it ended the transaction of its attempt
// is not committed, since the inbox row is gone.
func TestClaimInAnotherTransaction(t *testing.T) {
	h := newFixture(t)
	h.exec(`create table effect (n int)`)
	err := h.tenure.Claim(t.Context(), []*Message{h.message("k", 1)}, func(tx pgx.Tx, _ []bool) error {
		_, err := tx.Exec(t.Context(), `rollback and chain; insert into effect values (1)`)
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "ended its transaction") {
		t.Errorf("Claim() = %v", err)
	}
	h.is("effects and inbox rows", "0", `select (select count(*) from effect) + (select count(*) from pgjet.inbox)`)
}
