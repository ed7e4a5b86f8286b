package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go/micro"
	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/internal/devservices"
	"github.com/pgjet/pgjet/relay"
)

// inboxPrefix returns where NATS answers whoever connects in this role. A consumer's
// role is its name, so that none can listen to what another is given.
func inboxPrefix(role string) string { return "_INBOX_" + role }

// A grant is what a user of NATS may publish and subscribe to, and nothing else. Who
// may respond may publish one answer to each request.
type grant struct {
	Publish   []string `json:"publish"`
	Subscribe []string `json:"subscribe"`
	Respond   bool     `json:"respond"`
}

// registered returns g for a process that registers under that name.
func (g grant) registered(name string) grant {
	g.Respond = true
	for _, verb := range []string{"PING", "INFO", "STATS"} {
		all := micro.APIPrefix + "." + verb
		g.Subscribe = append(g.Subscribe, all, all+"."+name, all+"."+name+".*")
	}
	return g
}

// finds returns g for a process that looks for these services.
func (g grant) finds(names ...string) grant {
	for _, name := range names {
		g.Publish = append(g.Publish, micro.APIPrefix+".INFO."+name)
	}
	return g
}

// grantFor returns the least that a role needs. TestNATSPermissions runs the real
// services with them.
func grantFor(role, stream, consumer string) grant {
	api := func(what string) string { return "$JS.API." + strings.ReplaceAll(what, "STREAM_NAME", stream) }
	hints := "pgjet.hint." + stream
	switch role {
	case "relay":
		return grant{
			Publish: append(relay.StreamConfig(stream, 1).Subjects,
				api("STREAM.INFO.STREAM_NAME"),
				api("STREAM.MSG.GET.STREAM_NAME"),
				// To resync it reads the stream by a short-lived consumer, whose name nobody knows before.
				api("CONSUMER.CREATE.STREAM_NAME.*"),
				api("CONSUMER.INFO.STREAM_NAME.*"),
				api("CONSUMER.MSG.NEXT.STREAM_NAME.*"),
			),
			Subscribe: []string{inboxPrefix("relay") + ".>", hints},
		}.registered("pgjet-relay")
	case "consumer":
		own := stream + "." + consumer
		g := grant{
			Publish: []string{
				api("STREAM.INFO.STREAM_NAME"),
				api("CONSUMER.INFO." + own),
				api("CONSUMER.CREATE." + own),
				api("CONSUMER.RESET." + own),
				api("CONSUMER.MSG.NEXT." + own),
				"$JS.ACK." + own + ".>",
				"$JS.ACK.*.*." + own + ".>", // with domain and account, as servers may come to ask
			},
			Subscribe: []string{inboxPrefix(consumer) + ".>"},
		}.registered("pgjet-" + consumer)
		if consumer == "onboarding" {
			g = g.finds(devservices.Profiles, devservices.Billing)
		}
		return g
	case "operator":
		return grant{
			Publish: []string{
				api("STREAM.INFO.STREAM_NAME"),
				api("STREAM.CREATE.STREAM_NAME"),
				api("STREAM.MSG.GET.STREAM_NAME"), // looks at messages for which a relay halted
				api("DIRECT.GET.STREAM_NAME"),     // since when does the oldest event wait?
				// A replay reads the stream by a short-lived consumer, and sets that of whom it is for back.
				api("CONSUMER.CREATE.STREAM_NAME.*"),
				api("CONSUMER.INFO.STREAM_NAME.*"),
				api("CONSUMER.MSG.NEXT.STREAM_NAME.*"),
				api("CONSUMER.RESET.STREAM_NAME.*"),
				micro.APIPrefix + ".>", // pgjet services asks for INFO, other tools for PING and STATS
			},
			Subscribe: []string{inboxPrefix("operator") + ".>"},
		}
	default: // writer
		return grant{
			// To know what other processes change, it has events pushed by a short-lived
			// consumer, whose name nobody knows before.
			Publish:   []string{hints, api("CONSUMER.CREATE.STREAM_NAME.*")},
			Subscribe: []string{inboxPrefix("writer") + ".>"},
		}.registered("pgjet-users").finds(devservices.Profiles)
	}
}

func natsCommand() *cobra.Command {
	var s settings
	var consumer, output string
	permissions := &cobra.Command{
		Use:   "permissions relay|consumer|operator|writer",
		Short: "Print the least NATS permissions that a role needs",
		Long: `Print the least NATS permissions that a role needs, as configuration of nats-server
for the entry of its user:

  relay      publishes to the stream
  consumer   handles events, with the name that --consumer says
  operator   pgjet stream ensure, consumer, replay and services, and looking at single messages
  writer     the user service, which tells the relay of its commits and follows events for its cache`,
		ValidArgs: []string{"relay", "consumer", "operator", "writer"},
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			if (args[0] == "consumer") != (consumer != "") {
				return usagef("--consumer names the consumer of the role consumer, such as welcome-mailer")
			}
			for flag, value := range map[string]string{"--stream": s.stream, "--consumer": consumer} {
				if strings.ContainsAny(value, ".*> \t\r\n\"") {
					return usagef("%s is %q, which NATS takes for no name", flag, value)
				}
			}
			g := grantFor(args[0], s.stream, consumer)
			return show(cmd.OutOrStdout(), output, g, func(w io.Writer) { g.write(w) })
		},
	}
	f := permissions.Flags()
	s.streamFlag(f)
	outputFlag(f, &output)
	f.StringVar(&consumer, "consumer", "", "name of the consumer")
	return group(&cobra.Command{Use: "nats", Short: "Set up NATS"}, permissions)
}

// write writes the grant as nats-server reads it. Without any list it would allow
// everything.
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
	if g.Respond {
		fmt.Fprintln(w, "  allow_responses: true")
	}
	fmt.Fprintln(w, "}")
}
