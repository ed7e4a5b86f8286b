package relay

import (
	"context"
	"testing"

	"github.com/pgjet/pgjet/internal/testenv"
)

// TestRoleWhileStarting: probes may ask from the beginning. The race detector finds whether
// that is safe.
func TestRoleWhileStarting(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	r := &Relay{Database: testenv.Postgres(t).Config().ConnConfig, NATSURL: "nats://127.0.0.1:1"}
	ended := make(chan error)
	go func() { ended <- r.Run(ctx) }()
	for range 1000 {
		if role, _ := r.Role(); role == "leader" {
			break
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
