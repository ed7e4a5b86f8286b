package saga

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/testenv"
)

// TestFrozenStepsEnd: a process that freezes in a local step does not keep its row locks from the process
// that takes its saga over when the lease ends.
func TestFrozenStepsEnd(t *testing.T) {
	t.Parallel()
	r := &Runner{Saga: Definition{Timeout: 3 * time.Second}, DB: testenv.Postgres(t)}
	var limit string
	err := r.transact(t.Context(), func(tx pgx.Tx) error {
		return tx.QueryRow(t.Context(), `show idle_in_transaction_session_timeout`).Scan(&limit)
	})
	ends, parseErr := time.ParseDuration(limit)
	if err != nil || parseErr != nil || ends <= 0 || ends > r.lease() {
		t.Errorf("a frozen process is waited for for %q (%v), want less than the lease of %s", limit, err, r.lease())
	}
}
