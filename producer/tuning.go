package producer

import (
	"runtime"
	"runtime/debug"
	"time"
)

// A Tuning holds the settings that may change while the service runs. The tags name the
// keys in the section users of the configuration, and the limits of their values.
type Tuning struct {
	// Requests is how many requests of one operation may run at a time. The service finds
	// the actual number: fewer when answers become slower.
	Requests int `koanf:"requests" validate:"min=1,max=100000"`
	// Hashes is how many passwords are hashed at a time. Each takes a processor and 19 MiB.
	// For each, up to 32 further requests wait for their turn. The default is one for each
	// processor, but no more than fit into half of Go's memory limit.
	Hashes int `koanf:"hashes" validate:"min=1,max=1024"`
	// HashWait is how long a request waits for its turn to hash; 0 is not at all. In an
	// overload none waits longer than a hash takes.
	HashWait time.Duration `koanf:"hash_wait" validate:"min=0,max=10s"`
	// PerAddress is how many sign-ups a minute one network address may try, an IPv4 address
	// or the /64 of an IPv6 address; 0 is no limit.
	PerAddress int `koanf:"per_address" validate:"min=0,max=1000000"`
	// PerAccount is how many sign-ups a minute may be tried with one mail address, in any
	// case of letters, from one network address; 0 is no limit.
	PerAccount int `koanf:"per_account" validate:"min=0,max=1000000"`
	// LogInFailures is how many log-ins in a row may fail with one mail address from one network
	// address. After that each has to wait for twice as long as the one before, for
	// five seconds first and for a quarter of an hour at most; 0 is no limit.
	LogInFailures int `koanf:"log_in_failures" validate:"min=0,max=1000000"`
	// NetworkFailures is how many log-ins a minute may fail from one network address; 0 is no limit.
	NetworkFailures int `koanf:"network_failures" validate:"min=0,max=1000000"`
	// TokenLifetime is how long the token from a log-in is valid.
	TokenLifetime time.Duration `koanf:"token_lifetime" validate:"min=1m,max=1h"`
	// RemindAfter is how long a user may be pending before they get a mail about it; 0 is
	// for ever. A change holds for users who sign up from then on.
	RemindAfter time.Duration `koanf:"remind_after" validate:"min=0,max=8760h"`
	// Cache configures the answers to reads.
	Cache Cache `koanf:"cache"`
}

// A Cache says how long this process keeps answers to reads.
type Cache struct {
	// Enabled says whether answers are kept at all.
	Enabled bool `koanf:"enabled"`
	// TTL is how long an answer is kept, and so the largest age of what a client reads.
	TTL time.Duration `koanf:"ttl" validate:"min=1ms,max=1h"`
	// Size is how many users all kept answers may show together: a page of 200 counts as
	// 200. An answer that exceeds it by itself is not kept.
	Size int `koanf:"size" validate:"min=1"`
}

// DefaultTuning returns the default settings.
func DefaultTuning() Tuning {
	return Tuning{
		Requests:   1000,
		Hashes:     hashesFor(runtime.GOMAXPROCS(0), debug.SetMemoryLimit(-1)),
		HashWait:   500 * time.Millisecond,
		PerAddress: 60,
		PerAccount: 10,

		LogInFailures:   5,
		NetworkFailures: 60,
		TokenLifetime:   15 * time.Minute,
		RemindAfter:     24 * time.Hour,
		Cache:           Cache{Enabled: true, TTL: 10 * time.Second, Size: 10_000},
	}
}

// hashesFor returns how many passwords are hashed at a time with that many processors and
// bytes of memory. Half of the memory is left for garbage and everything else.
func hashesFor(processors int, memory int64) int {
	fit := memory / 2 / (int64(hashParams.Memory) << 10)
	return int(max(1, min(int64(processors), fit)))
}

// Tune applies t from the next request on. It may be called at any time. Running requests
// end under the limits under which they began: for a moment, the old and the new ones may
// add up.
func (s *Server) Tune(t Tuning) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.tuning.Swap(&t); old == nil || old.Cache != t.Cache {
		s.cache.tune(t.Cache)
	}
	s.hasher.tune(t.Hashes, t.HashWait)
	for _, a := range s.admissions {
		a.tune(t.Requests)
	}
}
