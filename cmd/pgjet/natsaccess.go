package main

import (
	"os"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/pflag"
)

// A natsAccess holds what a process needs to use NATS: files that prove its identity and that of the
// server, and the JetStream domain of the stream.
type natsAccess struct {
	creds     string
	nkey      string
	ca        string
	cert, key string
	domain    string
}

func (a *natsAccess) flags(f *pflag.FlagSet) {
	f.StringVar(&a.creds, "nats-creds", "", "credentials file for NATS: a user's JWT and its seed")
	f.StringVar(&a.nkey, "nats-nkey", "", "file with the seed of an NKey, which is this process's user of NATS")
	f.StringVar(&a.ca, "nats-ca", "", "file with the certificates that NATS servers are verified with, instead of the system's; TLS is then required")
	f.StringVar(&a.cert, "nats-cert", "", "file with the client certificate for NATS; needs --nats-key")
	f.StringVar(&a.key, "nats-key", "", "file with the key of --nats-cert")
	a.domainFlag(f)
}

func (a *natsAccess) domainFlag(f *pflag.FlagSet) {
	f.StringVar(&a.domain, "nats-domain", "", "JetStream domain of the stream, if it is not that of the servers in --nats-url")
}

// encrypted reports whether connections require TLS.
func (a *natsAccess) encrypted() bool { return a.ca != "" || a.cert != "" }

// A natsOption is the connection option of a flag that names a file. The file is read again at each
// connect, so it may be renewed.
type natsOption struct {
	flag   string
	option nats.Option
}

func (a *natsAccess) files() []natsOption {
	var all []natsOption
	if a.creds != "" {
		all = append(all, natsOption{"--nats-creds", nats.UserCredentials(a.creds)})
	}
	if a.nkey != "" {
		all = append(all, natsOption{"--nats-nkey", nkeyOption(a.nkey)})
	}
	if a.ca != "" {
		all = append(all, natsOption{"--nats-ca", nats.RootCAs(a.ca)})
	}
	if a.cert != "" {
		all = append(all, natsOption{"--nats-cert", nats.ClientCert(a.cert, a.key)})
	}
	return all
}

// nkeyOption returns an option that reads the seed when it is applied.
func nkeyOption(seed string) nats.Option {
	return func(o *nats.Options) error {
		option, err := nats.NkeyOptionFromSeed(seed)
		if err != nil {
			return err
		}
		return option(o)
	}
}

func (a *natsAccess) options() []nats.Option {
	var all []nats.Option
	for _, f := range a.files() {
		all = append(all, f.option)
	}
	return all
}

// check returns what is wrong with the flags and their files. A connection that retries for ever
// would not report it.
func (a *natsAccess) check() error {
	switch {
	case a.creds != "" && a.nkey != "":
		return usagef("--nats-creds and --nats-nkey are both set, and each names a user: leave one out")
	case (a.cert == "") != (a.key == ""):
		return usagef("--nats-cert and --nats-key belong together: set both or none")
	case strings.ContainsAny(a.domain, ".*> \t\r\n"):
		return usagef("--nats-domain is %q, which NATS takes for no name", a.domain)
	}
	for _, f := range a.files() {
		if err := f.option(&nats.Options{}); err != nil {
			return usagef("%s: %w", f.flag, err)
		}
	}
	if a.creds != "" { // its option reads the file later
		if _, err := os.Stat(a.creds); err != nil {
			return usagef("--nats-creds: %w", err)
		}
	}
	return nil
}

// jetStream returns the JetStream of the domain.
func (a *natsAccess) jetStream(nc *nats.Conn) (jetstream.JetStream, error) {
	if a.domain == "" {
		return jetstream.New(nc)
	}
	return jetstream.NewWithDomain(nc, a.domain)
}
