package main

import (
	"log/slog"
	"maps"
	neturl "net/url"
	"slices"

	"github.com/spf13/pflag"

	"github.com/pgjet/pgjet/internal/config"
	"github.com/pgjet/pgjet/internal/health"
	"github.com/pgjet/pgjet/internal/registry"
	remote "github.com/pgjet/pgjet/internal/service"
)

// serviceFlags registers the URL flag of each service that a process calls.
func (s *processSettings) serviceFlags(f *pflag.FlagSet, names ...string) {
	s.serviceURLs = make(map[string]*string)
	for _, name := range names {
		s.serviceURLs[name] = f.String(name+"-url", "", "where "+name+" is while the registry knows no instance of it")
	}
}

// serviceClient returns the client for another service. The registry finds the service, else its
// flag does.
func (s *processSettings) serviceClient(name string, log *slog.Logger) (*remote.Client, error) {
	if c, ok := s.clients[name]; ok {
		return c, nil
	}
	section, url := "services."+name, ""
	if at := s.serviceURLs[name]; at != nil && *at != "" {
		u, err := neturl.Parse(*at)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil {
			return nil, usagef("--%s-url is not of the form http://host:port", name)
		}
		url = *at
	}
	var find remote.Finder
	if s.registryConn != nil {
		find = registry.New(s.registryConn).Addresses
	}
	tuning := func(c *config.Config) remote.Tuning {
		t := config.Get[remote.Tuning](c, section)
		t.URL = url
		return t
	}
	c, err := remote.New(name, find, tuning(s.live.Current()), log)
	if err != nil {
		return nil, err
	}
	s.live.Subscribe(func(_, now *config.Config) { c.Tune(tuning(now)) })
	if s.clients == nil {
		s.clients = make(map[string]*remote.Client)
	}
	s.clients[name] = c
	return c, nil
}

// breakers returns the services with an open breaker.
func (s *processSettings) breakers() (open []health.Breaker) {
	for _, name := range slices.Sorted(maps.Keys(s.clients)) {
		if away, since := s.clients[name].Away(); away {
			open = append(open, health.Breaker{Service: name, Since: since.UTC()})
		}
	}
	return open
}
