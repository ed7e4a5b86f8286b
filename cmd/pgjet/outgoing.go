package main

import (
	"log/slog"
	"net/url"

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

// serviceClient returns this process's client for another service, which it finds in the
// registry or by its flag.
func (s *settings) serviceClient(name string, log *slog.Logger) (*remote.Client, error) {
	if c, ok := s.clients[name]; ok {
		return c, nil
	}
	t := remote.DefaultTuning()
	if at := s.serviceURLs[name]; at != nil && *at != "" {
		u, err := url.Parse(*at)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil {
			return nil, usagef("--%s-url is not of the form http://host:port", name)
		}
		t.URL = *at
	}
	var find remote.Finder
	if s.registryConn != nil {
		find = registry.New(s.registryConn).Addresses
	}
	c, err := remote.New(name, find, t, log)
	if err != nil {
		return nil, err
	}
	if s.clients == nil {
		s.clients = make(map[string]*remote.Client)
	}
	s.clients[name] = c
	return c, nil
}
