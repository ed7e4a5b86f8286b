package main

import (
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/nats-io/nats.go/micro"
	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/devservices"
)

// accountsDomain is the JetStream domain through which processes reach a stream in another account.
// Imports need a prefix of their own: a server answers requests to its own JetStream in each
// account.
const accountsDomain = "pgjet"

// accountName matches names that can be those of an account, its user, and the variable of its
// password.
var accountName = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// manyAnswers matches the subjects of requests that get more than one answer.
var manyAnswers = regexp.MustCompile(`^\$JS\.API\.(CONSUMER\.MSG\.NEXT|DIRECT\.GET)\.|^\$SRV\.`)

// A natsAccount is an account of NATS: the user that connects to it, and what other accounts may
// use of it. A client chooses where the answer to its request is published, but only in its own
// account.
type natsAccount struct {
	Name      string     `json:"name"`
	Purpose   string     `json:"purpose"`
	User      string     `json:"user,omitempty"`
	JetStream bool       `json:"jetstream"`
	Exports   []exported `json:"exports"`
	Imports   []imported `json:"imports"`
}

// An exported is a subject that the listed accounts may import. Into a service they send requests;
// from a stream they receive messages.
type exported struct {
	Kind     string   `json:"kind"`
	Subject  string   `json:"subject"`
	Answers  string   `json:"response_type,omitempty"` // "stream": a request gets more than one answer
	Accounts []string `json:"accounts"`
}

type imported struct {
	Kind    string `json:"kind"`
	Account string `json:"account"`
	Subject string `json:"subject"`
	To      string `json:"to,omitempty"` // the subject in the importing account
}

// offers exports a subject of a to another account. If as is not empty, it is the subject's name
// there.
func (a *natsAccount) offers(kind, subject string, to *natsAccount, as string) {
	i := slices.IndexFunc(a.Exports, func(e exported) bool { return e.Kind == kind && e.Subject == subject })
	if i < 0 {
		i = len(a.Exports)
		e := exported{Kind: kind, Subject: subject}
		if manyAnswers.MatchString(subject) {
			e.Answers = "stream"
		}
		a.Exports = append(a.Exports, e)
	}
	a.Exports[i].Accounts = append(a.Exports[i].Accounts, to.Name)
	to.Imports = append(to.Imports, imported{kind, a.Name, subject, as})
}

// A member is an account for the processes of one role, with their permissions.
type member struct {
	natsAccount
	grant grant
}

// accountsFor returns the accounts of one stream: its own, and one for each role. They allow what
// the roles are granted, but only the operator may create a consumer. Whoever creates a consumer
// chooses where the server publishes in the account of the stream.
func accountsFor(stream, prefix string, consumers, services []string) []natsAccount {
	owner := &natsAccount{Name: stream, Purpose: "JetStream and the stream; no process connects here", JetStream: true}
	var members []*member
	add := func(role, user, purpose string, names ...string) *member {
		m := &member{natsAccount{Name: stream + "-" + user, User: user, Purpose: purpose}, grantFor(role, stream, prefix, names)}
		members = append(members, m)
		return m
	}
	operator := add("operator", "operator", "pgjet stream, consumer, replay, services", consumers...)
	relay := add("relay", "relay", "pgjet relay")
	writer := add("writer", "writer", "pgjet users")
	for _, said := range consumers {
		name, _ := splitSlices(said)
		add("consumer", name, "pgjet consume "+name, said)
	}
	for _, name := range services {
		add("service", name, "the service "+name, name)
	}
	for _, m := range members {
		for _, subject := range m.grant.Publish {
			switch {
			case strings.HasPrefix(subject, "$JS.API.CONSUMER.CREATE.") && m != operator:
			case strings.HasPrefix(subject, "$JS.API."):
				owner.offers("service", subject, &m.natsAccount, "$JS."+accountsDomain+strings.TrimPrefix(subject, "$JS"))
			case strings.HasPrefix(subject, "$JS.ACK."), subject == events.SubjectsOf(prefix).All():
				owner.offers("service", subject, &m.natsAccount, "")
			case strings.HasPrefix(subject, micro.APIPrefix):
				m.asks(subject, members)
			}
		}
	}
	writer.offers("stream", events.HintSubject(stream), &relay.natsAccount, "")
	owner.offers("stream", events.FollowSubject(stream, followName), &writer.natsAccount, "")
	all := []natsAccount{*owner}
	for _, m := range members {
		all = append(all, m.natsAccount)
	}
	for i := range all { // JSON shows empty lists, not null
		all[i].Exports, all[i].Imports = append([]exported{}, all[i].Exports...), append([]imported{}, all[i].Imports...)
	}
	return all
}

// asks allows m to send requests to the services that listen to subject. With [micro.APIPrefix] and
// a wildcard, each member answers requests to all services and to its own name.
func (m *member) asks(subject string, all []*member) {
	for _, other := range all {
		for _, s := range other.grant.Subscribe {
			if s == subject {
				other.offers("service", s, &m.natsAccount, "")
			}
			if rest, ok := strings.CutPrefix(s, micro.APIPrefix+".PING"); ok && subject == micro.APIPrefix+".>" {
				other.offers("service", micro.APIPrefix+".*"+rest, &m.natsAccount, "")
			}
		}
	}
}

func (s *settings) natsAccountsCommand() *cobra.Command {
	var names, services []string
	cmd := &cobra.Command{
		Use:   "accounts",
		Short: "Print accounts of NATS that keep all roles apart",
		Long: `Print accounts of NATS, as configuration of nats-server: one with JetStream and the stream,
where no process connects, and one for each role, with a user of that name. Each account
imports only what its role needs. No role can then stop, change or write what belongs to
another; for the exact guarantees see https://github.com/pgjet/pgjet/blob/main/docs/nats.md.

nats-server takes the passwords from variables, of the environment or of the same file, and reads
them as configuration: RELAY_PASSWORD='"12345"'. It has one block of accounts: a second one
replaces the first.

All processes need --nats-domain ` + accountsDomain + `. They create no durable consumers; the operator does:

  pgjet stream ensure && pgjet consumer ensure welcome-mailer directory onboarding pgjet-users`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOwnNames(names, services); err != nil {
				return err
			}
			taken := map[string]string{"OPERATOR_PASSWORD": "operator", "RELAY_PASSWORD": "relay", "WRITER_PASSWORD": "writer"}
			for _, name := range slices.Concat(names, services) {
				name, _ = splitSlices(name)
				if !accountName.MatchString(name) {
					return usagef("--consumer or --service is %q: the name of an account has letters, digits, - and _ only", name)
				}
				variable := natsAccount{User: name}.variable()
				if other, is := taken[variable]; is {
					return usagef("--consumer or --service is %q, and another account is called %q: the variable with the password, %s, is to be that of one account", name, other, variable)
				}
				taken[variable] = name
			}
			if !accountName.MatchString(s.stream) {
				return usagef("--stream is %q: the name of an account has letters, digits, - and _ only", s.stream)
			}
			all := accountsFor(s.stream, s.prefix, names, services)
			return show(cmd, all, func(w io.Writer) { writeAccounts(w, all) })
		},
	}
	f := cmd.Flags()
	s.streamFlag(f)
	s.prefixFlag(f)
	outputFlag(f)
	f.StringSliceVar(&names, "consumer", slices.Sorted(maps.Keys(ownConsumers)), "names of all consumers; NAME/16 for 16 slices")
	f.StringSliceVar(&services, "service", []string{devservices.Profiles, devservices.Billing}, "names of all other services that register")
	return cmd
}

// writeAccounts writes accounts in the syntax of nats-server.
func writeAccounts(w io.Writer, all []natsAccount) {
	fmt.Fprintln(w, "accounts: {")
	for _, a := range all {
		fmt.Fprintf(w, "  # %s\n  %q: {\n", a.Purpose, a.Name)
		if a.JetStream {
			fmt.Fprintln(w, "    jetstream: enabled")
		}
		if a.User != "" {
			fmt.Fprintf(w, "    users: [ { user: %q, password: $%s } ]\n", a.User, a.variable())
		}
		if len(a.Exports) > 0 {
			fmt.Fprintln(w, "    exports: [")
			for _, e := range a.Exports {
				more := ""
				if e.Answers == "stream" {
					more = ", response_type: stream"
				}
				fmt.Fprintf(w, "      { %s: %q%s, accounts: [%s] }\n", e.Kind, e.Subject, more, quotedNames(e.Accounts))
			}
			fmt.Fprintln(w, "    ]")
		}
		if len(a.Imports) > 0 {
			fmt.Fprintln(w, "    imports: [")
			for _, i := range a.Imports {
				to := ""
				if i.To != "" {
					to = fmt.Sprintf(", to: %q", i.To)
				}
				fmt.Fprintf(w, "      { %s: { account: %q, subject: %q }%s }\n", i.Kind, i.Account, i.Subject, to)
			}
			fmt.Fprintln(w, "    ]")
		}
		fmt.Fprintln(w, "  }")
	}
	fmt.Fprintln(w, "}")
}

// variable returns the name of the variable that holds the password of the account's user.
func (a natsAccount) variable() string {
	return strings.ToUpper(strings.ReplaceAll(a.User, "-", "_")) + "_PASSWORD"
}

func quotedNames(names []string) string {
	var all []string
	for _, name := range names {
		all = append(all, fmt.Sprintf("%q", name))
	}
	return strings.Join(all, ", ")
}
