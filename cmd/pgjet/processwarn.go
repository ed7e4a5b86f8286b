package main

import (
	"context"
	"log/slog"
	"net"
	"net/url"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/web"
)

// trusted is the parameter of a NATS URL that allows plain text.
const trusted = "tls=off"

// warnPlaintext logs which connections to other machines are not encrypted. It skips NATS URLs that
// allow plain text.
func (s *processSettings) warnPlaintext(ctx context.Context, log *slog.Logger) {
	addresses := []string{s.databaseURL, s.directURL}
	for _, d := range s.databases {
		addresses = append(addresses, d.url)
	}
	for _, address := range addresses {
		config, err := pgx.ParseConfig(address)
		if address == "" || err != nil || config.TLSConfig != nil || !remoteHost(config.Host) {
			continue
		}
		log.WarnContext(ctx, "the connection to PostgreSQL is not encrypted: use sslmode=verify-full, or a network that encrypts", "host", config.Host)
	}
	for address := range strings.SplitSeq(s.natsURL, ",") {
		u, err := url.Parse(strings.TrimSpace(address))
		if err == nil && !s.access.encrypted() && (u.Scheme == "nats" || u.Scheme == "ws") && remoteHost(u.Hostname()) && u.RawQuery != trusted {
			log.WarnContext(ctx, "the connection to NATS need not be encrypted: use tls:// or wss://, or --nats-ca; on a network that is safe, append ?tls=off to the URL", "host", u.Hostname())
		}
	}
}

// warnPublic logs that other machines can reach pages without authentication.
func warnPublic(ctx context.Context, log *slog.Logger, what, flag string, addr net.Addr) {
	if web.Public(addr) {
		log.WarnContext(ctx, "these pages have no authentication, and other machines can reach them: restrict access by the network, or serve them on 127.0.0.1",
			"pages", what, "addr", addr.String(), "flag", flag)
	}
}

// hosts returns the further host names under which pages on a loopback address may be requested:
// that of --advertise.
func (s *processSettings) hosts() []string {
	if s.advertise == "" {
		return nil
	}
	return []string{strings.ToLower(s.advertise)}
}

// remoteHost reports whether host is another machine. It is not if it is the directory of a socket.
func remoteHost(host string) bool {
	if host == "" || host == "localhost" || strings.HasPrefix(host, "/") {
		return false
	}
	ip := net.ParseIP(host)
	return ip == nil || !ip.IsLoopback()
}
