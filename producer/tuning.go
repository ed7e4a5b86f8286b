package producer

import (
	"runtime"
	"time"
)

// Tuning is what may change while the service runs. The tags name the keys in the
// section users of the configuration, and the limits of their values.
type Tuning struct {
	Requests      int           `koanf:"requests" validate:"min=1,max=100000"`
	Hashes        int           `koanf:"hashes" validate:"min=1,max=1024"`
	HashWait      time.Duration `koanf:"hash_wait" validate:"min=0,max=10s"`
	PerAddress    int           `koanf:"per_address" validate:"min=0"`
	PerAccount    int           `koanf:"per_account" validate:"min=0"`
	TokenLifetime time.Duration `koanf:"token_lifetime" validate:"min=1m,max=1h"`
	Cache         Cache         `koanf:"cache"`
}

// Cache says for how long answers to reads are kept in this process.
type Cache struct {
	Enabled bool          `koanf:"enabled"`
	TTL     time.Duration `koanf:"ttl" validate:"min=1ms,max=1h"`
	Size    int           `koanf:"size" validate:"min=1"`
}

// DefaultTuning returns the values of a service that nobody has tuned.
func DefaultTuning() Tuning {
	return Tuning{
		Requests:      1000,
		Hashes:        runtime.GOMAXPROCS(0),
		HashWait:      2 * time.Second,
		PerAddress:    60,
		PerAccount:    10,
		TokenLifetime: 15 * time.Minute,
		Cache:         Cache{Enabled: true, TTL: 10 * time.Second, Size: 10_000},
	}
}

// Tune makes t hold from the next request on. It may be called at any time.
func (s *Server) Tune(t Tuning) {
	if old := s.tuning.Swap(&t); old == nil || old.Cache != t.Cache {
		s.cache.tune(t.Cache)
	}
}
