package pgjettest

import (
	"maps"
	"testing"
)

// As returns p with another test, which may fail.
func (p *Path) As(t testing.TB) *Path {
	p.mu.Lock()
	defer p.mu.Unlock()
	return &Path{DB: p.DB, DatabaseURL: p.DatabaseURL, JS: p.JS, NATSURL: p.NATSURL, t: t, service: p.service, relay: p.relay, runners: maps.Clone(p.runners)}
}
