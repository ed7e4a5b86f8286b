package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/internal/config"
)

// A devAddresses holds the addresses of a pgjet dev that is ready. It is the output of pgjet dev
// --json.
type devAddresses struct {
	Console   string `json:"console"`
	Users     string `json:"users"`
	Inbox     string `json:"inbox"`
	Directory string `json:"directory"`
	Profiles  string `json:"profiles"`
	Billing   string `json:"billing"`
	NATS      string `json:"nats"`
	Database  string `json:"database"`
	Admin     string `json:"admin"`
	SMTP      string `json:"smtp"`
	Config    string `json:"config"`
}

// save writes p for pgjet dev env. The file is valid only while the state is locked.
func (p devAddresses) save(dir string) error {
	text, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return os.WriteFile(readyFile(dir), append(text, '\n'), 0o600)
}

func readyFile(dir string) string { return filepath.Join(dir, "ready.json") }

// shownDatabase returns the URL of the database. It contains a password only if the server is this
// run's own.
func (d *dev) shownDatabase() string {
	if d.postgres != nil {
		return d.postgres.URL()
	}
	c := d.db.Config().ConnConfig
	u := url.URL{Scheme: "postgres", User: url.User(c.User), Host: host(c), Path: "/" + c.Database}
	return u.String()
}

// shownNATS returns the URL of NATS. It contains a password only if the server is this run's own.
func (d *dev) shownNATS() string {
	if d.nats != nil {
		return d.nats.URL()
	}
	return "nats://" + d.nc.ConnectedAddr()
}

// envCommand returns the command that prints the environment of this run.
func (d *dev) envCommand() string {
	if d.dir == ".pgjet" {
		return calledAs() + " dev env"
	}
	return calledAs() + " dev env --dir " + shellQuote(d.dir)
}

// calledAs returns how this program was called, for commands to copy: one in a folder of its own is
// in no PATH.
func calledAs() string {
	if strings.ContainsRune(os.Args[0], filepath.Separator) {
		return word(os.Args[0])
	}
	return "pgjet"
}

// withoutPassword returns an address without its password.
func withoutPassword(address string) string {
	u, err := url.Parse(address)
	if err != nil || u.User == nil {
		return address
	}
	u.User = url.User(u.User.Username())
	return u.String()
}

// announce prints the addresses, and saves them for pgjet dev env.
func (d *dev) announce() {
	at := devAddresses{
		consoleURL(d.addr(consolePort)), "http://" + d.addr(usersPort), "http://" + d.addr(inboxPort), "http://" + d.addr(directoryPort),
		"http://" + d.addr(profilesPort), "http://" + d.addr(billingPort), d.shownNATS(), d.shownDatabase(),
		"http://" + d.addr(adminPort), d.addr(smtpPort), d.conf.file,
	}
	if err := at.save(d.dir); err != nil {
		d.log.Warn("pgjet dev env will not find this run", "err", err)
	}
	if d.json {
		_ = json.NewEncoder(d.out).Encode(at) // stdout is closed: nothing is left to do
		return
	}
	fmt.Fprintf(d.out, `
pgjet dev is ready after %.1f s                      for development only

  Console      %s   (begin here: sign somebody up, break something, see why)
  Users API    %s   (described at /docs)
  Inbox        %s
  Directory    %s/directory?q=ada
  Stand-ins    profiles %s   billing %s
  Health       %s/readyz   (/metrics)
  PostgreSQL   %s
  NATS         %s   stream %s
  SMTP         %s
  Config       %s   (save it, and it takes effect)
  State        %s   (kept; 'pgjet dev reset' removes it)

Try it, then look at the inbox:

  curl -sS %s/users -H 'Content-Type: application/json' \
       -d '{"email":"ada@example.com","name":"Ada","password":"correct horse battery"}'

Then see whether all is well, and what became of it, in this folder:

  %s status
  %s event timeline ada@example.com

PostgreSQL and NATS require a password, which only you can read. For commands elsewhere:

  eval "$(%s)"

Stop with Ctrl-C.

`, time.Since(d.began).Seconds(), at.Console, at.Users, at.Inbox, at.Directory, at.Profiles, at.Billing, at.Admin, withoutPassword(at.Database), withoutPassword(at.NATS), d.stream, at.SMTP, at.Config, d.dir, at.Users, calledAs(), calledAs(), d.envCommand())
}

func devEnvCommand(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "env",
		Short: "Print the environment through which the other commands find a running pgjet dev",
		Long: `Print the environment through which the other commands find a running pgjet dev, for a shell:

  eval "$(pgjet dev env)"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return printEnv(*dir, cmd.OutOrStdout())
		},
	}
}

// readAddresses returns the addresses of the pgjet dev that runs in dir. If none is ready, the
// error has exit code 4.
func readAddresses(dir string) (p devAddresses, err error) {
	notReady := &exitError{exitNotFound, fmt.Errorf("no pgjet dev runs in %s, or it is not ready yet; start it with: pgjet dev --dir %s", dir, word(dir))}
	text, err := os.ReadFile(readyFile(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return p, notReady
	}
	if lock, err := lockState(dir); err == nil { // it was killed
		lock.unlock()
		return p, notReady
	}
	if err := errors.Join(err, json.Unmarshal(text, &p)); err != nil {
		return p, fmt.Errorf("read where pgjet dev runs: %w", err)
	}
	return p, nil
}

func printEnv(dir string, out io.Writer) error {
	p, err := readAddresses(dir)
	if err != nil {
		return err
	}
	config, err := filepath.Abs(p.Config)
	if err != nil {
		return err
	}
	for _, v := range [][2]string{{"DATABASE_URL", p.Database}, {"NATS_URL", p.NATS}, {"CONFIG", config}} {
		fmt.Fprintf(out, "export PGJET_%s=%s\n", v[0], shellQuote(v[1]))
	}
	return nil
}

// dropOwnAddresses clears addresses from the environment that are those of servers which this run
// starts. They come from a shell that evaluated pgjet dev env for an earlier run.
func (d *dev) dropOwnAddresses() {
	for _, own := range []struct {
		flag    string
		address *string
		port    int
	}{{"database-url", &d.databaseURL, postgresPort}, {"nats-url", &d.natsURL, natsPort}} {
		u, err := url.Parse(*own.address)
		named := slices.ContainsFunc(d.conf.given, func(v config.Value) bool { return v.Origin == "--"+own.flag })
		if err == nil && u.Host == d.addr(own.port) && !named {
			*own.address = ""
		}
	}
}
