package main

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/config"
	"github.com/pgjet/pgjet/internal/supervisor"
)

// A relayEntry is one of several relays of a process.
type relayEntry struct{ name, databaseURL, stream, prefix, source string }

// A database is one of several that a process uses.
type database struct {
	url    string
	stream string // that its relay publishes to
	conns  *conns
}

// relaysGroup describes the relays that the configuration lists.
func relaysGroup(cmd *cobra.Command) config.Group {
	path := cmd.CommandPath() + " "
	used := slices.ContainsFunc([]string{"pgjet relay ", "pgjet stream ", "pgjet config "}, func(p string) bool { return strings.HasPrefix(path, p) })
	return config.Group{Name: "relays", Usage: "relays of one process, each with a database of its own, instead of database_url, stream, prefix and source", Keys: func(entry string) []config.Key {
		return []config.Key{
			{Name: "database_url", Secret: true, Used: used, Usage: "PostgreSQL itself, no connection pooler"},
			{Name: "stream", Default: strings.ToUpper(entry), Used: used, Parse: checked(checkStream), Want: "a name that NATS takes for a stream", Usage: "name of the JetStream stream"},
			{Name: "prefix", Default: entry, Used: used, Parse: checked(events.CheckPrefix), Want: wantPrefix, Usage: "what the subjects of the events begin with"},
			{Name: "source", Default: entry, Used: used, Parse: checked(events.CheckSource), Want: "the name of a service", Usage: "name of the service that appends the events"},
		}
	}}
}

// checked turns a check into the parser of a configuration key.
func checked(check func(string) error) func(string) (string, error) {
	return func(text string) (string, error) { return text, check(text) }
}

// relayFlag registers --relay, for commands about one of several relays.
func (s *settings) relayFlag(f *pflag.FlagSet) {
	f.StringVar(&s.relay, "relay", "", "one of the relays that the configuration lists, by its name")
}

// singleFlags are the flags that describe the only relay of a process.
var singleFlags = []string{"database-url", "direct-database-url", "stream", "prefix", "source"}

// relays returns the relays of cmd: all that the configuration lists, or the one that --relay
// names. It returns none if the configuration lists none, or if flags describe the relay.
func (s *settings) relays(cmd *cobra.Command) ([]relayEntry, error) {
	c := configured(cmd.Context())
	given := slices.IndexFunc(singleFlags, func(name string) bool {
		return slices.ContainsFunc(c.given, func(v config.Value) bool { return v.Origin == "--"+name })
	})
	switch {
	case s.relay != "" && given >= 0:
		return nil, usagef("--relay and --%s are both given: want one of them", singleFlags[given])
	case given >= 0:
		return nil, nil
	}
	if names := c.first.Entries("relays"); s.relay != "" && !slices.Contains(names, s.relay) {
		return nil, usagef("--relay is %q, which the configuration does not list; it lists: %s", s.relay, orNone(names))
	}
	return listedRelays(c.first, s.relay)
}

// listedRelays returns the relays that a configuration lists, or only the one with that name.
func listedRelays(c *config.Config, only string) (all []relayEntry, err error) {
	for _, name := range c.Entries("relays") {
		if only != "" && only != name {
			continue
		}
		get := func(key string) string { v, _ := c.Lookup("relays." + name + "." + key); return v.Text }
		e := relayEntry{name, get("database_url"), get("stream"), get("prefix"), get("source")}
		if e.databaseURL == "" {
			return nil, usagef("relays.%s.database_url is not set, nor relays.%s.database_url_file", name, name)
		}
		if err := events.CheckPrefix(e.prefix); err != nil { // the default is the name of the entry, which may be no prefix
			return nil, usagef("relays.%s.prefix: %w", name, err)
		}
		if err := e.checkBeside(all); err != nil {
			return nil, err
		}
		all = append(all, e)
	}
	return all, nil
}

// checkBeside returns an error if e cannot run beside the others. An outbox is published to one
// stream, and prefixes that overlap belong to one stream.
func (e relayEntry) checkBeside(others []relayEntry) error {
	for _, other := range others {
		switch {
		case other.stream == e.stream:
			return usagef("relays.%s and relays.%s have the same stream, %s: each needs its own", other.name, e.name, e.stream)
		case strings.HasPrefix(e.prefix+".", other.prefix+"."), strings.HasPrefix(other.prefix+".", e.prefix+"."):
			return usagef("relays.%s and relays.%s have prefixes that overlap, %s and %s: give each one that the other does not begin with", other.name, e.name, other.prefix, e.prefix)
		case sameDatabase(other.databaseURL, e.databaseURL):
			return usagef("relays.%s and relays.%s have the same database: its outbox is published to one stream", other.name, e.name)
		}
	}
	return nil
}

// sameDatabase reports whether two URLs name the same database on the same host. URLs that cannot
// be parsed are refused elsewhere.
func sameDatabase(a, b string) bool {
	x, err := pgx.ParseConfig(a)
	y, err2 := pgx.ParseConfig(b)
	return err == nil && err2 == nil && x.Host == y.Host && x.Port == y.Port && x.Database == y.Database
}

func orNone(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// use makes s describe one of several relays.
func (s *settings) use(e relayEntry) {
	s.databaseURL, s.directURL, s.stream, s.prefix, s.source = e.databaseURL, "", e.stream, e.prefix, e.source
}

// forOneRelay makes commands work on the relay that --relay names. The flag is required if the
// configuration lists several.
func (s *settings) forOneRelay(commands ...*cobra.Command) []*cobra.Command {
	for _, c := range commands {
		if c.HasSubCommands() {
			s.forOneRelay(c.Commands()...)
			continue
		}
		run := c.RunE
		c.RunE = func(cmd *cobra.Command, args []string) error {
			all, err := s.relays(cmd)
			switch {
			case err != nil:
				return err
			case len(all) > 1:
				return usagef("the configuration lists several relays: say which with --relay: %s", orNone(configured(cmd.Context()).first.Entries("relays")))
			case len(all) == 1:
				s.use(all[0])
			}
			return run(cmd, args)
		}
	}
	return commands
}

// relayParts returns a part for each relay that the configuration lists, or for the one that flags
// describe.
func (s *processSettings) relayParts(cmd *cobra.Command, log *slog.Logger) ([]part, error) {
	all, err := s.relays(cmd)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		p, err := s.relayPart(log)
		return []part{p}, err
	}
	var parts []part
	for _, e := range all {
		d := database{url: e.databaseURL, stream: e.stream, conns: &conns{}}
		config, err := d.conns.parse(fmt.Sprintf("relays.%s.database_url", e.name), d.url)
		if err != nil {
			return nil, err
		}
		r, err := s.newRelay(config.ConnConfig, log)
		if err != nil {
			return nil, err
		}
		r.Name, r.Stream, r.Prefix, r.Source = e.name, e.stream, e.prefix, e.source
		parts = append(parts, supervisor.Of("relay-"+e.name, r))
		s.databases = append(s.databases, d)
	}
	return parts, nil
}
