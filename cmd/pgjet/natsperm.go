package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nats.go/micro"
	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/onboarding"
	"github.com/pgjet/pgjet/consumers/replay"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/devservices"
	"github.com/pgjet/pgjet/internal/registry"
)

// inboxPrefix returns the subject prefix of NATS answers to a role. The role of a consumer is its
// name, so no consumer can read what another one gets.
func inboxPrefix(role string) string { return "_INBOX_" + role }

// A grant is all that a user of NATS may publish and subscribe to.
//
// It has neither wildcards in names of consumers, nor a CONSUMER.CREATE without a name: with those
// a user could change the durable consumers of others. It does not allow all responses either,
// because a requester chooses where the response is published.
type grant struct {
	Publish   []string `json:"publish"`
	Subscribe []string `json:"subscribe"`
}

// registered returns g for a process that registers under name. It answers the operator, and
// connections without a role here, such as an administrator's.
func (g grant) registered(name string) grant {
	for _, verb := range []string{"PING", "INFO", "STATS"} {
		all := micro.APIPrefix + "." + verb
		g.Subscribe = append(g.Subscribe, all, all+"."+name, all+"."+name+".*")
	}
	g.Publish = append(g.Publish, registry.InboxFor(inboxPrefix("operator")), nats.InboxPrefix+">")
	return g
}

// finds returns g for a process that looks these services up.
func (g grant) finds(names ...string) grant {
	for _, name := range names {
		g.Publish = append(g.Publish, micro.APIPrefix+".INFO."+name)
	}
	return g
}

// on returns g with these verbs of the JetStream API for one consumer of the stream.
func (g grant) on(stream, consumer string, verbs ...string) grant {
	for _, verb := range verbs {
		g.Publish = append(g.Publish, "$JS.API.CONSUMER."+verb+"."+stream+"."+consumer)
	}
	return g
}

// reads returns g for a process that reads the stream through an ephemeral consumer of that name.
func (g grant) reads(stream, consumer string) grant {
	return g.on(stream, consumer, "CREATE", "INFO", "MSG.NEXT", "DELETE")
}

// in returns g for a stream in that JetStream domain; "" is the servers' own.
func (g grant) in(domain string) grant {
	if domain == "" {
		return g
	}
	for i, subject := range g.Publish {
		if rest, ok := strings.CutPrefix(subject, jetstream.DefaultAPIPrefix); ok {
			g.Publish[i] = "$JS." + domain + ".API." + rest
		}
	}
	return g
}

// grantFor returns the least permissions of a role. The roles consumer and service use the first
// name. TestNATSPermissions runs the real services with them.
func grantFor(role, stream, prefix string, names []string) grant {
	api := func(what string) string { return "$JS.API." + what + "." + stream }
	hints := events.HintSubject(stream)
	switch role {
	case "relay":
		return grant{
			Publish:   []string{events.SubjectsOf(prefix).All(), api("STREAM.INFO"), api("STREAM.MSG.GET"), api("DIRECT.GET"), events.LeadSubject(stream)},
			Subscribe: []string{inboxPrefix("relay") + ".>", hints, events.LeadSubject(stream)},
		}.registered("pgjet-relay")
	case "consumer":
		name, slices := splitSlices(names[0])
		meet := events.HandleSubject(stream, name)
		g := grant{Publish: []string{api("STREAM.INFO"), api("DIRECT.GET"), meet}, Subscribe: []string{inboxPrefix(name) + ".>", meet}}
		for _, durable := range durables(name, slices) {
			// The server has two forms of an ack, the second with domain and account. With a
			// trailing wildcard one form would match other consumers' acks in the other form.
			own := stream + "." + durable
			g.Publish = append(g.Publish, "$JS.ACK."+own+".*.*.*.*.*", "$JS.ACK.*.*."+own+".*.*.*.*.*")
			g = g.on(stream, durable, "INFO", "CREATE", "RESET", "MSG.NEXT")
		}
		g = g.registered("pgjet-" + name)
		if name == onboarding.Name {
			g = g.finds(devservices.Profiles, devservices.Billing)
		}
		return g
	case "operator":
		g := grant{
			Publish: []string{
				"$JS.API.INFO", // pgjet doctor: is the storage of the account used up?
				"$JS.API.STREAM.NAMES",
				api("STREAM.INFO"),
				api("STREAM.CREATE"),
				api("STREAM.MSG.GET"),  // looks at messages for which a relay halted
				api("DIRECT.GET"),      // since when does the oldest event wait?
				micro.APIPrefix + ".>", // pgjet services asks for INFO, other tools for PING and STATS
			},
			Subscribe: []string{inboxPrefix("operator") + ".>"},
		}
		g = g.on(stream, followName, "INFO", "CREATE")
		for _, name := range names {
			name, slices := splitSlices(name)
			for _, durable := range durables(name, slices) {
				g = g.on(stream, durable, "INFO", "CREATE", "RESET")
			}
			plan, run := replay.ReaderNames(name)
			g = g.reads(stream, plan).reads(stream, run)
		}
		return g
	case "service": // the user service and the onboarding look services up
		return grant{Publish: []string{registry.InboxFor(inboxPrefix("writer")), registry.InboxFor(inboxPrefix("onboarding"))}}.registered(names[0])
	default: // writer
		return grant{
			Publish:   []string{hints},
			Subscribe: []string{inboxPrefix("writer") + ".>", events.FollowSubject(stream, followName)},
		}.on(stream, followName, "INFO").registered("pgjet-users").finds(devservices.Profiles)
	}
}

// splitSlices splits an argument such as orders or orders/16 into a consumer's name and its number
// of slices; 0 if none is given.
func splitSlices(consumer string) (name string, slices int) {
	name, text, _ := strings.Cut(consumer, "/")
	slices, _ = strconv.Atoi(text) // a bad number is refused with the name
	return name, slices
}

// durables returns the durable consumers of a consumer. If neither pgjet nor the caller knows the
// number of slices, they are those of both defaults: ordered and not.
func durables(name string, slices int) []string {
	own := ownConsumers[name]
	switch {
	case slices > 0:
		return inbox.Durables(name, slices)
	case own == nil:
		return append(inbox.Durables(name, 1), inbox.Durables(name, consumers.DefaultSlices)...)
	}
	configs, _ := own().Configs("") // they list all types: TestAsyncAPISaysWhichTypes
	var names []string
	for _, c := range configs {
		names = append(names, c.Durable)
	}
	return names
}

func natsCommand() *cobra.Command {
	var s settings
	var names []string
	var service string
	permissions := &cobra.Command{
		Use:   "permissions relay|consumer|operator|writer|service",
		Short: "Print the least NATS permissions that a role needs",
		Long: `Print the least NATS permissions that a role needs, as configuration of nats-server
for the entry of its user:

  relay      publishes to the stream
  consumer   handles events, with the name that --consumer gives
  operator   pgjet status, event, stream ensure, consumer, replay and services;
             for the consumers that --consumer lists, without it those of pgjet itself
  writer     the user service, which hints its commits to the relay and follows events for its cache
  service    registers under the name of --service, so that others find it, and nothing else

No role may ask to create, change, reset or delete a consumer of another role, and none may
publish what belongs to another. That protects against mistakes. A hostile process in the
roles relay, consumer and operator can get around it, see
https://github.com/pgjet/pgjet/blob/main/docs/nats.md; pgjet nats accounts prints accounts
that protect against it, too.

The writer may create no consumer; an operator does: pgjet consumer ensure ` + followName + `.`,
		ValidArgs: []string{"relay", "consumer", "operator", "writer", "service"},
		Args:      oneOfThem,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case args[0] == "consumer" && len(names) != 1:
				return usagef("--consumer names the one consumer of the role consumer, such as welcome-mailer")
			case args[0] == "operator" && len(names) == 0:
				names = slices.Sorted(maps.Keys(ownConsumers))
			case args[0] != "consumer" && args[0] != "operator" && len(names) > 0:
				return usagef("--consumer is for the roles consumer and operator, not for %s", args[0])
			case (args[0] == "service") != (service != ""):
				return usagef("--service names the service of the role service, such as billing")
			case service != "":
				names = []string{service}
			}
			for _, name := range names {
				if name, slices := splitSlices(name); !validToken(name) || slices < 0 || slices > inbox.Tokens {
					return usagef("--consumer or --service is %q, which NATS takes for no name", name)
				}
			}
			consumers, services := names, []string(nil)
			if service != "" {
				consumers, services = nil, names
			}
			if err := checkOwnNames(consumers, services); err != nil {
				return err
			}
			if err := s.access.check(); err != nil {
				return err
			}
			g := grantFor(args[0], s.stream, s.prefix, names).in(s.access.domain)
			return show(cmd, g, func(w io.Writer) { g.write(w) })
		},
	}
	f := permissions.Flags()
	s.streamFlag(f)
	s.prefixFlag(f)
	s.access.domainFlag(f)
	outputFlag(f)
	f.StringSliceVar(&names, "consumer", nil, "name of the consumer, or NAME/16 for 16 slices; for the operator of each consumer to manage")
	f.StringVar(&service, "service", "", "name of the service")
	var other settings
	return group(&cobra.Command{Use: "nats", Short: "Set up NATS"}, other.natsAccountsCommand(), permissions)
}

// checkOwnNames refuses a consumer or service with a name that pgjet itself uses. It would get
// pgjet's inbox, durable consumer, or name in the registry.
func checkOwnNames(consumers, services []string) error {
	const what = "%s is %q, a name of pgjet itself, of which the role would get what belongs to that; give it another"
	for _, name := range consumers {
		if strings.HasPrefix(name, "pgjet-") || slices.Contains([]string{"operator", "relay", "writer", "users"}, name) {
			return usagef(what, "--consumer", name)
		}
	}
	for _, name := range services {
		if strings.HasPrefix(name, "pgjet-") {
			return usagef(what, "--service", name)
		}
	}
	return nil
}

// validToken reports whether NATS accepts s as the name of a stream or consumer.
func validToken(s string) bool {
	return s != "" && len(s) <= 255 && utf8.ValidString(s) && !strings.ContainsAny(s, ".*>\"\\/") &&
		!strings.ContainsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) })
}

// write writes the grant in the syntax of nats-server. An empty list denies all: without any list
// nats-server allows all.
func (g grant) write(w io.Writer) {
	list := func(name string, subjects []string) {
		if len(subjects) == 0 {
			fmt.Fprintf(w, "  %s: { deny: \">\" }\n", name)
			return
		}
		fmt.Fprintf(w, "  %s: { allow: [\n", name)
		for _, s := range subjects {
			fmt.Fprintf(w, "    %s\n", strconv.Quote(s))
		}
		fmt.Fprintln(w, "  ] }")
	}
	fmt.Fprintln(w, "permissions: {")
	list("publish", g.Publish)
	list("subscribe", g.Subscribe)
	fmt.Fprintln(w, "}")
}
