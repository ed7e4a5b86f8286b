package producer

import (
	"context"
	"crypto/rand"
	"encoding/base64"
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

// nobodysHash is compared where there is no user, so that this takes as long as a
// wrong password. It is of no password: it is random.
var nobodysHash = func() string {
	b := make([]byte, hashParams.SaltLength+hashParams.KeyLength)
	rand.Read(b)
	salt, key := b[:hashParams.SaltLength], b[hashParams.SaltLength:]
	return fmt.Sprintf("$argon2id$v=19$m=%d,t=%d,p=%d$%s$%s", hashParams.Memory, hashParams.Iterations, hashParams.Parallelism,
		base64.RawStdEncoding.EncodeToString(salt), base64.RawStdEncoding.EncodeToString(key))
}()

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
	if err := h.acquire(ctx); err != nil {
		return "", err
	}
	defer h.slots.Release(1)
	return argon2id.CreateHash(password, &hashParams)
}

// verify reports whether hash is one of password, and whether it was made with
// other parameters than hash would use. It waits for a slot as hash does.
func (h *hasher) verify(ctx context.Context, password, hash string) (match, outdated bool, err error) {
	if err := h.acquire(ctx); err != nil {
		return false, false, err
	}
	defer h.slots.Release(1)
	match, params, err := argon2id.CheckHash(password, hash)
	if err != nil {
		return false, false, fmt.Errorf("compare a password: %w", err)
	}
	return match, *params != hashParams, nil
}

func (h *hasher) acquire(ctx context.Context) error {
	waiting, cancel := context.WithTimeout(ctx, h.wait)
	defer cancel()
	if h.slots.Acquire(waiting, 1) == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("wait for a turn to hash: %w", ctx.Err())
	}
	return errBusy
}
