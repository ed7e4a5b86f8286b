package main

import (
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/mattn/go-isatty"
	"github.com/spf13/pflag"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/postgres"
)

// settings are what commands work on: the servers, the outbox and the stream. A command registers
// the flags of those that it uses.
type settings struct {
	databaseURL string
	directURL   string
	natsURL     string
	access      natsAccess
	stream      string
	prefix      string // of the subjects
	source      string // of the events
	relay       string // one of those that the configuration lists
	conns       conns  // to PostgreSQL, unless a process uses several databases
}

func (s *settings) databaseFlag(f *pflag.FlagSet) {
	f.StringVar(&s.databaseURL, "database-url", "", "PostgreSQL, such as postgres://user@host:5432/name")
}

// directFlag registers --direct-database-url, for commands that need database sessions of their own.
func (s *settings) directFlag(f *pflag.FlagSet) {
	f.StringVar(&s.directURL, "direct-database-url", "", "PostgreSQL itself, for sessions of their own, if --database-url leads to a connection pooler")
}

func (s *settings) natsFlags(f *pflag.FlagSet) {
	s.natsURLFlag(f)
	s.access.flags(f)
	s.streamFlag(f)
}

func (s *settings) natsURLFlag(f *pflag.FlagSet) {
	f.StringVar(&s.natsURL, "nats-url", "nats://127.0.0.1:4222", "NATS servers, joined by commas")
}

func (s *settings) streamFlag(f *pflag.FlagSet) {
	s.stream = events.DefaultStream
	f.Var(&checkedText{&s.stream, checkStream, "a name that NATS takes for a stream"}, "stream", "name of the JetStream stream")
}

func (s *settings) prefixFlag(f *pflag.FlagSet) {
	s.prefix = events.Prefix
	f.Var(&checkedText{&s.prefix, events.CheckPrefix, wantPrefix}, "prefix",
		"beginning of the subjects of the events: each service that publishes into an account has its own, and its own stream")
}

const wantPrefix = "letters, digits, _ and - in parts joined by dots, not pgjet"

func (s *settings) sourceFlag(f *pflag.FlagSet) {
	s.source = "pgjet"
	f.Var(&checkedText{&s.source, events.CheckSource, "the name of a service"}, "source",
		"name of the service that appends the events: their ce-source")
}

// A checkedText is a flag with a value that check accepts.
type checkedText struct {
	text  *string
	check func(string) error
	want  string // describes valid values
}

func (c *checkedText) Set(text string) error {
	if err := c.check(text); err != nil {
		return err
	}
	*c.text = text
	return nil
}

func (c *checkedText) String() string {
	if c.text == nil { // pflag calls it on a zero value
		return ""
	}
	return *c.text
}
func (*checkedText) Type() string { return "string" }

func checkStream(name string) error {
	if !validToken(name) {
		return fmt.Errorf("%q is no name that NATS takes for a stream", name)
	}
	return nil
}

func terminal(v any) bool {
	f, ok := v.(*os.File)
	return ok && isatty.IsTerminal(f.Fd())
}

// databaseConfig parses the database URL. Its errors contain no password.
func (s *settings) databaseConfig() (*pgxpool.Config, error) {
	if s.databaseURL == "" {
		return nil, usagef("no database: set --database-url or PGJET_DATABASE_URL, such as postgres://user@host:5432/name, or type this in a folder in which pgjet dev runs")
	}
	return s.parseDatabase("--database-url", s.databaseURL)
}

// directConfig is databaseConfig for database sessions of their own.
func (s *settings) directConfig() (*pgxpool.Config, error) {
	if s.directURL == "" {
		return s.databaseConfig()
	}
	return s.parseDatabase("--direct-database-url", s.directURL)
}

func (s *settings) parseDatabase(flag, url string) (*pgxpool.Config, error) {
	return s.conns.parse(flag, url)
}

// parse returns a configuration whose connections c tracks. flag is the flag or key that url comes from.
func (c *conns) parse(flag, url string) (*pgxpool.Config, error) {
	config, err := postgres.ParseConfig(url)
	if err != nil {
		return nil, usagef("%s: %w", flag, err)
	}
	config.ConnConfig.ConnectTimeout = 5 * time.Second
	c.track(config)
	if config.ConnConfig.RuntimeParams["application_name"] == "" {
		config.ConnConfig.RuntimeParams["application_name"] = "pgjet"
	}
	return config, nil
}

// checkNATS returns what is wrong with the flags for NATS. A connection that retries for ever would
// not report it. Its errors contain no password.
func (s *settings) checkNATS() error {
	for address := range strings.SplitSeq(s.natsURL, ",") {
		if address = strings.TrimSpace(address); !strings.Contains(address, "://") {
			address = "nats://" + address
		}
		u, err := url.Parse(address)
		if err != nil || u.Hostname() == "" || !slices.Contains([]string{"nats", "tls", "ws", "wss"}, u.Scheme) {
			return usagef("--nats-url or PGJET_NATS_URL is not of the form nats://host:4222,nats://host2:4222")
		}
		if u.RawQuery != "" && u.RawQuery != trusted {
			return usagef("--nats-url or PGJET_NATS_URL has parameters of which only ?tls=off has a meaning")
		}
	}
	return s.access.check()
}
