package producer

import (
	"context"
	"crypto/rand"
	"encoding/base64"
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

// nobodysHash is compared if there is no user, so that this takes as long as a wrong
// password. It is random, and the hash of no password.
var nobodysHash = func() string {
	b := make([]byte, hashParams.SaltLength+hashParams.KeyLength)
	rand.Read(b)
	salt, key := b[:hashParams.SaltLength], b[hashParams.SaltLength:]
	return fmt.Sprintf("$argon2id$v=19$m=%d,t=%d,p=%d$%s$%s", hashParams.Memory, hashParams.Iterations, hashParams.Parallelism,
		base64.RawStdEncoding.EncodeToString(salt), base64.RawStdEncoding.EncodeToString(key))
}()

// hashLine is how many requests may wait in line for each slot: about as many as are served
// before they give up.
const hashLine = 32

// errBusy says that all slots for hashing stayed in use.
var errBusy = errors.New("no turn to hash a password")

// A hasher hashes passwords, as many at a time as it has slots. Each hash uses a processor
// and 19 MiB: without a bound, sign-ups would displace all other work.
type hasher struct{ turns atomic.Pointer[hashTurns] }

type hashTurns struct {
	*gate
	slots int
	wait  time.Duration // for a slot
}

// tune changes how many hashes run at a time. A request that has a turn keeps it.
func (h *hasher) tune(slots int, wait time.Duration) {
	now := hashTurns{slots: slots, wait: wait}
	if old := h.turns.Load(); old != nil && old.slots == slots {
		now.gate = old.gate
	} else {
		now.gate = newGate(slots, slots*hashLine)
	}
	h.turns.Store(&now)
}

// turn waits for a turn to hash, which ends with leave. It returns [errBusy] if there is
// none in time or too many wait, and ctx's error if ctx is cancelled.
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

// verify reports whether hash is one of password, and whether it was made with
// other parameters than hash would use. It waits for a slot as hash does.
func (h *hasher) verify(ctx context.Context, password, hash string) (match, outdated bool, err error) {
	leave, err := h.turn(ctx)
	if err != nil {
		return false, false, err
	}
	defer leave()
	usable := affordable(hash)
	if !usable {
		hash = nobodysHash // as much work as a wrong password
	}
	match, params, err := argon2id.CheckHash(password, hash)
	if err != nil {
		return false, false, fmt.Errorf("compare a password: %w", err)
	}
	return match && usable, *params != hashParams, nil
}

// The largest memory, in KiB, and passes of a hash that is compared: eight times ours.
const (
	mostMemory = 8 * 19 * 1024
	mostPasses = 8 * 2
)

// affordable reports whether hash can be compared at a bounded cost and without a panic of
// argon2.
func affordable(hash string) bool {
	p, _, _, err := argon2id.DecodeHash(hash)
	return err == nil && p.Memory <= mostMemory && p.Iterations >= 1 && p.Iterations <= mostPasses &&
		p.Memory*p.Iterations <= 2*mostMemory && p.Parallelism >= 1 && p.Parallelism <= 16 &&
		p.SaltLength <= 64 && p.KeyLength >= 16 && p.KeyLength <= 64
}
