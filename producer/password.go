package producer

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/alexedwards/argon2id"
)

// hashParams are OWASP's minimum for argon2id: 19 MiB, two passes, one lane.
var hashParams = argon2id.Params{
	Memory:      19 * 1024,
	Iterations:  2,
	Parallelism: 1,
	SaltLength:  16,
	KeyLength:   32,
}

// hashLine is how many wait in line for each slot: as long as patience lasts, about.
const hashLine = 32

// errBusy says that all hashing slots stayed taken.
var errBusy = errors.New("no turn to hash a password")

// A hasher hashes passwords, as many at a time as it has slots. Each hash keeps a
// processor and 19 MiB busy: without a bound, sign-ups would push out all else.
type hasher struct{ turns atomic.Pointer[hashTurns] }

type hashTurns struct {
	*gate
	slots int
	wait  time.Duration // for a slot
}

// tune changes how many hash at a time. Who has a turn keeps it.
func (h *hasher) tune(slots int, wait time.Duration) {
	now := hashTurns{slots: slots, wait: wait}
	if old := h.turns.Load(); old != nil && old.slots == slots {
		now.gate = old.gate
	} else {
		now.gate = newGate(slots, slots*hashLine)
	}
	h.turns.Store(&now)
}

// turn waits for a turn to hash, which ends with leave. It returns [errBusy] if there is none in
// time or too many wait for one, and ctx's error if ctx is cancelled.
func (h *hasher) turn(ctx context.Context) (leave func(), err error) {
	turns := h.turns.Load()
	leave, err = turns.enter(ctx, turns.wait)
	if errors.Is(err, errFull) {
		return nil, errBusy
	}
	if err != nil {
		return nil, fmt.Errorf("wait for a turn to hash: %w", err)
	}
	return leave, nil
}

// hash returns the argon2id hash of password in PHC form. Its errors are those of turn.
func (h *hasher) hash(ctx context.Context, password string) (string, error) {
	leave, err := h.turn(ctx)
	if err != nil {
		return "", err
	}
	defer leave()
	return argon2id.CreateHash(password, &hashParams)
}
