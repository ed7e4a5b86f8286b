package producer

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/pgjet/pgjet/internal/auth"
)

// A securityEvent answers the questions of an investigation: who did or tried what, from
// where, and with what outcome.
type securityEvent struct {
	name    string // log_in, password_change, token_refused, forbidden, rate_limited, user_change, user_delete
	outcome string // success, failure (wrong password), refused
	user    string // id of the user who did or tried it, if known
	target  string // id of the user who was changed, if that is another one
	reason  string // a code, or other words of pgjet
}

type networkKey struct{}

// withNetwork returns ctx with the network of the client; see [networkOf].
func withNetwork(ctx context.Context, network netip.Prefix) context.Context {
	return context.WithValue(ctx, networkKey{}, network)
}

// networkOf returns the network of ctx's client; see [clientNetwork].
func networkOf(ctx context.Context) netip.Prefix {
	network, _ := ctx.Value(networkKey{}).(netip.Prefix)
	return network
}

// mask returns the /24 of an IPv4 network and the /64 of an IPv6 network: enough to
// recognise an attack, and not one person. Without a network it is "".
func mask(network netip.Prefix) string {
	addr := network.Addr()
	bits := 64
	if addr.Is4() {
		bits = 24
	}
	masked, err := addr.Prefix(bits)
	if err != nil {
		return ""
	}
	return masked.String()
}

// record logs e in one line. Events that strangers can repeat are logged a few times for
// each network, and then counted.
func (s *Server) record(ctx context.Context, e securityEvent) {
	network := mask(networkOf(ctx))
	if e.outcome != "success" && !s.flood.admit(e.name, network) {
		return
	}
	attrs := []slog.Attr{
		slog.String("event", e.name), slog.String("outcome", e.outcome),
		slog.String("user_id", e.user), slog.String("network", network), slog.String("trace_id", traceID(ctx)),
	}
	if e.target != "" {
		attrs = append(attrs, slog.String("target_id", e.target))
	}
	if e.reason != "" {
		attrs = append(attrs, slog.String("reason", e.reason))
	}
	s.log.LogAttrs(ctx, slog.LevelInfo, "security event", attrs...)
}

// recordRefusal logs that p refused the caller's token or request.
func (s *Server) recordRefusal(ctx context.Context, who auth.Identity, p *Problem) {
	e := securityEvent{name: "forbidden", outcome: "refused", user: userID(who), reason: p.Code}
	if p.Code == "token_invalid" {
		e.name = "token_refused"
	}
	s.record(ctx, e)
}

// userID returns the id in a token if it has the form of one. Another issuer's subject may be anything.
func userID(who auth.Identity) string {
	if id, err := parseUserID(who.Subject); err == nil {
		return id.String()
	}
	return ""
}

const (
	floodWindow   = 10 * time.Second
	floodFirst    = 5  // lines of one kind from one network in a window
	floodNetworks = 32 // kinds and networks in a window that get lines of their own
)

// A flood bounds the log lines of events that strangers can repeat. In each window it logs
// the first few of each kind and network. It counts the others, and logs their number when
// the window ends.
type flood struct {
	log *slog.Logger

	mu    sync.Mutex
	count map[origin]int // in this window, logged or not
	timer *time.Timer    // ends the window; nil if there is none
}

// An origin is a kind of event and a masked network.
type origin struct{ event, network string }

// others collects the events when too many origins are known.
const others = "others"

// admit reports whether to log this event.
func (f *flood) admit(event, network string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.timer == nil {
		f.count = make(map[origin]int)
		f.timer = time.AfterFunc(floodWindow, f.end)
	}
	from := origin{event, network}
	if _, known := f.count[from]; !known && len(f.count) >= floodNetworks {
		from.network = others
	}
	f.count[from]++
	return f.count[from] <= floodFirst && from.network != others
}

// end ends the window and logs the number of events that were only counted.
func (f *flood) end() {
	f.mu.Lock()
	count := f.count
	if f.timer != nil {
		f.timer.Stop()
	}
	f.count, f.timer = nil, nil
	f.mu.Unlock()
	for from, n := range count {
		if from.network != others {
			n -= floodFirst
		}
		if n > 0 {
			f.log.Info("security events, counted", "event", from.event, "outcome", "failure or refused",
				"network", from.network, "count", n, "seconds", int(floodWindow.Seconds()))
		}
	}
}
