package main

import (
	"context"
	"log/slog"
	"net"
	"net/url"
	"strings"

	"github.com/jackc/pgx/v5"
)

// warnPlaintext says which connections to other machines go over the network as they
// are: passwords, names and addresses could be read on the way.
func (s *settings) warnPlaintext(ctx context.Context, log *slog.Logger) {
	if config, err := pgx.ParseConfig(s.databaseURL); s.databaseURL != "" && err == nil && config.TLSConfig == nil && remoteHost(config.Host) {
		log.WarnContext(ctx, "the connection to PostgreSQL is not encrypted: use sslmode=verify-full, or a network that encrypts", "host", config.Host)
	}
	for address := range strings.SplitSeq(s.natsURL, ",") {
		u, err := url.Parse(strings.TrimSpace(address))
		if err == nil && (u.Scheme == "nats" || u.Scheme == "ws") && remoteHost(u.Hostname()) {
			log.WarnContext(ctx, "the connection to NATS need not be encrypted: use tls:// or wss://, or a network that encrypts", "host", u.Hostname())
		}
	}
}

// remoteHost reports whether host is neither this machine nor a socket's directory.
func remoteHost(host string) bool {
	if host == "" || host == "localhost" || strings.HasPrefix(host, "/") {
		return false
	}
	ip := net.ParseIP(host)
	return ip == nil || !ip.IsLoopback()
}
