package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers/directory"
	"github.com/pgjet/pgjet/consumers/mailer"
	"github.com/pgjet/pgjet/consumers/replay"
)

// owned are the consumers that each user of a guarded server may use, with the API verbs.
func owned() map[string]map[string][]string {
	reader := []string{"CREATE", "INFO", "MSG.NEXT", "DELETE"}
	all := map[string]map[string][]string{
		"relay":    {},
		"consumer": {mailer.Name: {"CREATE", "INFO", "MSG.NEXT", "RESET", "ACK"}},
		"reader":   {ofDirectory: {"CREATE", "INFO", "MSG.NEXT", "RESET", "ACK"}},
		"writer":   {followName: {"INFO"}},
		"operator": {followName: {"CREATE", "INFO"}},
	}
	for _, name := range []string{mailer.Name, directory.Name, "notes"} {
		plan, run := replay.ReaderNames(name)
		durable := durables(name, 0)[0]
		if name == directory.Name {
			durable = ofDirectory
		}
		maps.Copy(all["operator"], map[string][]string{durable: {"CREATE", "INFO", "RESET"}, plan: reader, run: reader})
	}
	return all
}

// consumerVerbs are the subjects by which a consumer is reached, with %s for it, and
// streamVerbs those of a stream: all that the server has.
var (
	consumerVerbs = map[string][]string{
		"CREATE":         {"$JS.API.CONSUMER.CREATE.EVENTS.%s"},
		"OTHER CREATE":   {"$JS.API.CONSUMER.CREATE.EVENTS.%s.events.*.nothing", "$JS.API.CONSUMER.DURABLE.CREATE.EVENTS.%s"},
		"INFO":           {"$JS.API.CONSUMER.INFO.EVENTS.%s"},
		"MSG.NEXT":       {"$JS.API.CONSUMER.MSG.NEXT.EVENTS.%s"},
		"DELETE":         {"$JS.API.CONSUMER.DELETE.EVENTS.%s"},
		"RESET":          {"$JS.API.CONSUMER.RESET.EVENTS.%s"},
		"PAUSE":          {"$JS.API.CONSUMER.PAUSE.EVENTS.%s"},
		"UNPIN":          {"$JS.API.CONSUMER.UNPIN.EVENTS.%s"},
		"STEPDOWN":       {"$JS.API.CONSUMER.LEADER.STEPDOWN.EVENTS.%s"},
		"ACK":            {"$JS.ACK.EVENTS.%s.1.1.1.1.0", "$JS.ACK._.account.EVENTS.%s.1.1.1.1.0"},
		"FLOW CONTROL":   {"$JS.FC.EVENTS.%s.x"},
		"FOLLOW":         {"pgjet.follow.EVENTS.%s"},
		"NAMELESS":       {"$JS.API.CONSUMER.CREATE.EVENTS"}, // takes a name in its body
		"NAMES AND LIST": {"$JS.API.CONSUMER.NAMES.EVENTS", "$JS.API.CONSUMER.LIST.EVENTS"},
	}
	streamVerbs = []string{
		"STREAM.UPDATE.EVENTS", "STREAM.DELETE.EVENTS", "STREAM.PURGE.EVENTS", "STREAM.MSG.DELETE.EVENTS", "STREAM.SNAPSHOT.EVENTS",
		"STREAM.RESTORE.EVENTS", "STREAM.PEER.REMOVE.EVENTS", "STREAM.LEADER.STEPDOWN.EVENTS", "STREAM.CREATE.OTHERS", "STREAM.LIST",
		"STREAM.TEMPLATE.CREATE.x", "META.LEADER.STEPDOWN", "SERVER.REMOVE", "ACCOUNT.PURGE.x", "DIRECT.GET.OTHERS", "STREAM.INFO.OTHERS",
	}
)

// TestRolesAreIsolated: whatever a role publishes and subscribes to, it cannot stop, change, write,
// or read through its inbox what belongs to another.
func TestRolesAreIsolated(t *testing.T) {
	t.Parallel()
	g := startGuarded(t)
	must(t, exitOK, "stream", "ensure", "--nats-url", g.url("operator"))
	mine := owned()
	var everything []string
	for _, own := range mine {
		everything = append(everything, slices.Collect(maps.Keys(own))...)
	}
	slices.Sort(everything)
	everything = append(slices.Compact(everything), "shipping")
	inboxes := map[string]string{"relay": "_INBOX_relay", "consumer": "_INBOX_" + mailer.Name, "reader": "_INBOX_" + directory.Name,
		"writer": "_INBOX_writer", "operator": "_INBOX_operator", "anybody": "_INBOX"}
	services := map[string]string{"relay": "pgjet-relay", "consumer": "pgjet-" + mailer.Name, "reader": "pgjet-" + directory.Name, "writer": "pgjet-users", "anybody": "profiles"}
	for user := range roles {
		t.Run(user, func(t *testing.T) {
			t.Parallel()
			p := g.prober(t, user)
			for _, consumer := range everything {
				for verb, subjects := range consumerVerbs {
					for _, subject := range subjects {
						p.publish(strings.ReplaceAll(subject, "%s", consumer), slices.Contains(mine[user][consumer], verb))
					}
				}
			}
			for _, verb := range streamVerbs {
				p.publish("$JS.API."+verb, false)
			}
			for consumer := range mine[user] { // an ack of another that looks like one's own in its newer form
				p.publish("$JS.ACK.EVENTS.shipping.EVENTS."+consumer+".1.1.1", false)
			}
			p.publish("$JS.API.STREAM.CREATE.EVENTS", user == "operator")
			p.publish("events.00.user.created", user == "relay")
			p.publish("pgjet.hint.EVENTS", user == "writer")
			p.subscribe("pgjet.hint.EVENTS", user == "relay")
			p.subscribe("pgjet.follow.EVENTS."+followName, user == "writer")
			for _, subject := range []string{">", "*.>", "events.>", "$JS.>", "$JS.EVENT.>", "$SYS.>", "_INBOX.>", "*.x", "pgjet.>"} {
				p.subscribe(subject, false)
			}
			for owner, inbox := range inboxes {
				p.subscribe(inbox+".x", owner == user)
				p.publish(inbox+".x", owner == "anybody" && user != "operator")
			}
			for owner, name := range services {
				for _, verb := range []string{"PING", "INFO", "STATS"} {
					p.subscribe("$SRV."+verb+"."+name, owner == user)
					p.publish("$SRV."+verb+"."+name, user == "operator" || user == "writer" && verb == "INFO" && name == "profiles")
				}
			}
		})
	}
}

// A prober tries what a user of a guarded server may do.
type prober struct {
	t  *testing.T
	nc *nats.Conn
}

func (g *guarded) prober(t *testing.T, user string) *prober {
	t.Helper()
	ignore := func(*nats.Conn, *nats.Subscription, error) {} // the default prints to stderr
	nc, err := nats.Connect(g.url(user), nats.ErrorHandler(ignore))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return &prober{t, nc}
}

func (p *prober) publish(subject string, allowed bool) {
	p.t.Helper()
	if err := p.nc.Publish(subject, nil); err != nil {
		p.t.Fatal(err)
	}
	p.expect("Publish to", subject, allowed)
}

func (p *prober) subscribe(subject string, allowed bool) {
	p.t.Helper()
	sub, err := p.nc.SubscribeSync(subject)
	if err != nil {
		p.t.Fatal(err)
	}
	p.expect("Subscription to", subject, allowed)
	_ = sub.Unsubscribe() // a refused subscription does not exist
}

// expect checks the last refusal of the server, which comes before the answer to a flush.
func (p *prober) expect(what, subject string, allowed bool) {
	p.t.Helper()
	if err := p.nc.Flush(); err != nil {
		p.t.Fatal(err)
	}
	last := p.nc.LastError()
	refused := last != nil && strings.Contains(last.Error(), fmt.Sprintf("%s %q", what, subject))
	if refused == allowed {
		p.t.Errorf("%s %s is allowed: %t, want %t", what, subject, !refused, allowed)
	}
}

// TestConsumerOfAnotherStays: a durable consumer is what it was after a user who may create
// one of its own has asked for others in each form that the server knows.
func TestConsumerOfAnotherStays(t *testing.T) {
	t.Parallel()
	g := startGuarded(t)
	must(t, exitOK, "stream", "ensure", "--nats-url", g.url("operator"))
	must(t, exitOK, "consumer", "ensure", mailer.Name, "--nats-url", g.url("operator"))
	admin, err := nats.Connect(g.url("operator"), nats.CustomInboxPrefix(inboxPrefix("operator")))
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	js, err := jetstream.New(admin)
	if err != nil {
		t.Fatal(err)
	}
	config := func() string {
		c, err := js.Consumer(t.Context(), "EVENTS", mailer.Name)
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(c.CachedInfo().Config)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	before := config()
	for user, own := range map[string]string{"writer": followName, "relay": "pgjet-relay", "reader": ofDirectory} {
		nc := g.prober(t, user).nc
		for _, subject := range []string{"", "." + own, "." + mailer.Name, "." + mailer.Name + ".events.*.nothing"} {
			for _, body := range []map[string]any{
				{"name": mailer.Name}, {"durable_name": mailer.Name}, {"name": own, "durable_name": mailer.Name}, {"name": mailer.Name, "durable_name": own},
			} {
				maps.Copy(body, map[string]any{"ack_policy": "explicit", "deliver_policy": "all", "replay_policy": "instant",
					"filter_subjects": []string{"events.*.nothing"}, "inactive_threshold": time.Second})
				data, err := json.Marshal(map[string]any{"stream_name": "EVENTS", "config": body})
				if err != nil {
					t.Fatal(err)
				}
				if err := nc.PublishRequest("$JS.API.CONSUMER.CREATE.EVENTS"+subject, "_INBOX_"+user+".x", data); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	// The API answers requests in order.
	if after := config(); after != before {
		t.Errorf("the durable consumer is %s, was %s", after, before)
	}
}
