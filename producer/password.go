package producer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/alexedwards/argon2id"
	"golang.org/x/sync/semaphore"
)

// hashParams are OWASP's minimum for argon2id: 19 MiB, two passes, one lane.
var hashParams = argon2id.Params{
	Memory:      19 * 1024,
	Iterations:  2,
	Parallelism: 1,
	SaltLength:  16,
	KeyLength:   32,
}

// errBusy says that all hashing slots stayed taken.
var errBusy = errors.New("no turn to hash a password")

// A hasher hashes passwords, as many at a time as it has slots. Each hash keeps a
// processor and 19 MiB busy: without a bound, sign-ups would push out all else.
type hasher struct {
	slots *semaphore.Weighted
	wait  time.Duration // for a slot
}

// hash returns the argon2id hash of password in PHC form. It returns [errBusy] if
// there is no slot within h.wait, and ctx's error if ctx ends while it waits.
func (h *hasher) hash(ctx context.Context, password string) (string, error) {
	if err := h.turn(ctx); err != nil {
		return "", err
	}
	defer h.slots.Release(1)
	return argon2id.CreateHash(password, &hashParams)
}

// matches reports whether hash is one of password. It costs as much as hash does, and
// waits like it.
func (h *hasher) matches(ctx context.Context, password, hash string) (bool, error) {
	if err := h.turn(ctx); err != nil {
		return false, err
	}
	defer h.slots.Release(1)
	return argon2id.ComparePasswordAndHash(password, hash)
}

// turn takes a slot.
func (h *hasher) turn(ctx context.Context) error {
	waiting, cancel := context.WithTimeout(ctx, h.wait)
	defer cancel()
	if err := h.slots.Acquire(waiting, 1); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("wait for a turn to hash: %w", ctx.Err())
		}
		return errBusy
	}
	return nil
}
