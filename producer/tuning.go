package producer

import (
	"runtime"
	"runtime/debug"
	"time"
)

// Tuning is what may change while the service runs. The tags name the keys in the
// section users of the configuration, and the limits of their values.
type Tuning struct {
	// Requests is how many requests of one operation are worked on at a time, at most.
	// How many they really are, the service finds out: fewer when answers get slower.
	Requests int `koanf:"requests" validate:"min=1,max=100000"`
	// Hashes is how many passwords are hashed at a time. Each takes a processor and
	// 19 MiB. For each, up to 32 requests more wait for their turn. By default there is one for
	// each processor, but no more than fit into half of Go's memory limit.
	Hashes int `koanf:"hashes" validate:"min=1,max=1024"`
	// HashWait is how long a request waits for its turn to hash, at most; 0 is not at all. In an
	// overload none waits for longer than a hash takes.
	HashWait time.Duration `koanf:"hash_wait" validate:"min=0,max=10s"`
	// PerAddress is how many sign-ups a minute one network address may
	// try, an IPv4 address or the /64 of an IPv6 address; 0 is no limit.
	PerAddress int `koanf:"per_address" validate:"min=0,max=1000000"`
	// PerAccount is how many sign-ups a minute may be tried with one mail
	// address, in whatever case its letters are, from one network address; 0 is no limit.
	PerAccount int `koanf:"per_account" validate:"min=0,max=1000000"`
	// LogInFailures is how many log-ins in a row may fail with one mail address from one network
	// address. After that each has to wait for twice as long as the one before, for
	// five seconds first and for a quarter of an hour at most; 0 is no limit.
	LogInFailures int `koanf:"log_in_failures" validate:"min=0,max=1000000"`
	// NetworkFailures is how many log-ins a minute may fail from one network address; 0 is no limit.
	NetworkFailures int `koanf:"network_failures" validate:"min=0,max=1000000"`
	// TokenLifetime is how long the token from a log-in is valid.
	TokenLifetime time.Duration `koanf:"token_lifetime" validate:"min=1m,max=1h"`
	// RemindAfter is for how long somebody may be pending before they get a mail about it; 0 is for ever. It holds for those
	// who sign up from then on.
	RemindAfter time.Duration `koanf:"remind_after" validate:"min=0,max=8760h"`
	// Cache is for the answers to reads.
	Cache Cache `koanf:"cache"`
}

// Cache says for how long answers to reads are kept in this process.
type Cache struct {
	// Enabled says whether answers are kept at all.
	Enabled bool `koanf:"enabled"`
	// TTL is how long an answer is kept: so old may what a client reads be.
	TTL time.Duration `koanf:"ttl" validate:"min=1ms,max=1h"`
	// Size is how many users the kept answers may tell of, all together: a page of 200
	// counts as 200. What tells of more by itself is not kept.
	Size int `koanf:"size" validate:"min=1"`
}

// DefaultTuning returns the values of a service that nobody has tuned.
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

// hashesFor returns how many passwords are hashed at a time with so many processors and so
// many bytes of memory. Half of the memory is left for garbage and for all else.
func hashesFor(processors int, memory int64) int {
	fit := memory / 2 / (int64(hashParams.Memory) << 10)
	return int(max(1, min(int64(processors), fit)))
}

// Tune makes t hold from the next request on. It may be called at any time. Requests in
// hand end under the limits under which they began: for a moment, the old and the new
// ones may add up.
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
