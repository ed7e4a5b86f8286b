package producer

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// clientNetwork returns the network of the client that sent r, by which limits distinguish
// clients: an IPv4 address, or the /64 of an IPv6 address, which one person commonly has as
// a whole.
func clientNetwork(r *http.Request, proxies []netip.Prefix) netip.Prefix {
	addr := clientAddr(r, proxies)
	bits := min(64, addr.BitLen())
	network, err := addr.Prefix(bits)
	if err != nil {
		return netip.Prefix{} // unknown: not a TCP connection
	}
	return network
}

// clientAddr returns the address of the client that sent r. If a proxy sent r, clientAddr
// believes that proxy about the sender before it, and so on: it returns the last entry of
// X-Forwarded-For that is none of proxies. Entries before that may be invented.
func clientAddr(r *http.Request, proxies []netip.Prefix) netip.Addr {
	addr, _ := parseAddr(r.RemoteAddr)
	entries := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for _, entry := range slices.Backward(entries) {
		if !contain(proxies, addr) {
			break
		}
		before, ok := parseAddr(strings.TrimSpace(entry))
		if !ok {
			break
		}
		addr = before
	}
	return addr
}

// proxied reports whether r comes from one of the proxies.
func (s *Server) proxied(r *http.Request) bool {
	addr, _ := parseAddr(r.RemoteAddr)
	return contain(s.Proxies, addr)
}

// parseAddr parses an address with or without a port.
func parseAddr(s string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(strings.Trim(s, "[]"))
	if err != nil {
		withPort, err := netip.ParseAddrPort(s)
		if err != nil {
			return netip.Addr{}, false
		}
		addr = withPort.Addr()
	}
	return addr.Unmap().WithZone(""), true
}

func contain(networks []netip.Prefix, addr netip.Addr) bool {
	return slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(addr) })
}
