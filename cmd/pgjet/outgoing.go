package main

import (
	"log/slog"
	"net/url"

	"github.com/nats-io/nats.go"
	"github.com/spf13/pflag"

	"github.com/pgjet/pgjet/internal/registry"
	remote "github.com/pgjet/pgjet/internal/service"
)

// serviceFlags registers a flag for each of the other services that a process calls.
func (s *settings) serviceFlags(f *pflag.FlagSet, names ...string) {
	s.serviceURLs = make(map[string]*string)
	for _, name := range names {
		s.serviceURLs[name] = f.String(name+"-url", "", "where "+name+" is while the registry knows no instance of it")
	}
}

// serviceClient returns a client for another service, found on nc or by its flag.
func (s *settings) serviceClient(name string, nc *nats.Conn, log *slog.Logger) (*remote.Client, error) {
	t := remote.DefaultTuning()
	if at := s.serviceURLs[name]; at != nil && *at != "" {
		u, err := url.Parse(*at)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil {
			return nil, usagef("--%s-url is not of the form http://host:port", name)
		}
		t.URL = *at
	}
	var find remote.Finder
	if nc != nil {
		find = registry.New(nc).Addresses
	}
	return remote.New(name, find, t, log)
}
