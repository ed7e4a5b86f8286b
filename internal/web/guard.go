package web

import (
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// Guard refuses two kinds of requests that a browser sends without its user's intent.
//
// A name that an attacker owns may lead to 127.0.0.1 (DNS rebinding), and then a page of
// the attacker may read and change the data that is served there. So a request that arrives
// on a loopback address is answered with 421 unless its Host is a loopback address,
// localhost, or one of hosts. Requests on other addresses may have any Host.
//
// A request that changes something is answered with 403 if it comes from a page of another
// origin.
func Guard(next http.Handler, hosts ...string) http.Handler {
	origin := http.NewCrossOriginProtection()
	origin.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		refuse(w, http.StatusForbidden, "cross_origin", "This request comes from a page of another origin.")
	}))
	same := origin.Handler(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if onLoopback(r) && !knownHost(r.Host, hosts) {
			refuse(w, http.StatusMisdirectedRequest, "misdirected_request", "This address serves its own machine alone. Ask for it by 127.0.0.1 or localhost.")
			return
		}
		same.ServeHTTP(w, r)
	})
}

// onLoopback reports whether r arrived on a loopback address.
func onLoopback(r *http.Request) bool {
	local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return ok && local.IP.IsLoopback()
}

// knownHost reports whether a Host header is a loopback name of this machine, or one of
// hosts.
func knownHost(header string, hosts []string) bool {
	name := header
	if host, _, err := net.SplitHostPort(header); err == nil {
		name = host
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if addr, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil {
		return addr.Unmap().IsLoopback()
	}
	return name == "localhost" || strings.HasSuffix(name, ".localhost") || name != "" && slices.Contains(hosts, name)
}

// Public reports whether a listener can be reached from other machines.
func Public(l net.Addr) bool {
	addr, ok := l.(*net.TCPAddr)
	return ok && !addr.IP.IsLoopback()
}

// refuse answers with a problem (RFC 9457).
func refuse(w http.ResponseWriter, status int, code, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{ // the client is gone otherwise
		"type": "about:blank", "title": http.StatusText(status), "status": status, "code": code, "detail": detail,
	})
}
