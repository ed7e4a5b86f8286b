package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"github.com/nats-io/nuid"
)

// A Registration is an instance that answers questions of the registry.
type Registration struct {
	nc *nats.Conn

	mu       sync.Mutex
	instance Instance
	subs     []*nats.Subscription // nil once it has left
}

// Register makes i known on nc until the Registration is stopped or nc is closed. It needs
// no connection at that moment, and outlives the loss of any. It sets the id of i, and its
// start unless that is given.
//
// Answers go only to inboxes: the asking client chooses where an answer is published, and
// could otherwise have this process write into a stream.
func Register(nc *nats.Conn, i Instance) (*Registration, error) {
	if err := CheckName(i.Name); err != nil {
		return nil, fmt.Errorf("register: %w", err)
	}
	switch {
	case i.Address != "" && !validAddress(i.Address):
		return nil, fmt.Errorf("register %s: the address %q is not of the form http://host:port", i.Name, i.Address)
	case i.HealthURL != "" && !validURL(i.HealthURL):
		return nil, fmt.Errorf("register %s: the health URL %q is not of the form http://host:port/path", i.Name, i.HealthURL)
	}
	if i.Started.IsZero() {
		i.Started = time.Now()
	}
	i.ID, i.Version, i.Metadata = nuid.Next(), semver(i.Version), maps.Clone(i.Metadata)
	r := &Registration{nc: nc, instance: i}
	if err := r.subscribe(); err != nil {
		return nil, errors.Join(fmt.Errorf("register %s: %w", i.Name, err), r.Stop())
	}
	return r, nil
}

// subscribe subscribes to the questions of the NATS service API (ADR-32): PING, INFO and
// STATS to all services, to those of this name, and to this one.
func (r *Registration) subscribe() error {
	for _, verb := range []micro.Verb{micro.PingVerb, micro.InfoVerb, micro.StatsVerb} {
		for _, to := range [][2]string{{}, {r.instance.Name}, {r.instance.Name, r.instance.ID}} {
			subject, err := micro.ControlSubject(verb, to[0], to[1])
			if err != nil {
				return err
			}
			sub, err := r.nc.Subscribe(subject, func(m *nats.Msg) { r.answer(verb, m.Reply) })
			if err != nil {
				return err
			}
			r.subs = append(r.subs, sub)
		}
	}
	return nil
}

// answer publishes the answer to a question from an inbox.
func (r *Registration) answer(verb micro.Verb, reply string) {
	if !isInbox(reply) {
		return
	}
	data, err := json.Marshal(r.says(verb))
	if err == nil {
		_ = r.nc.Publish(reply, data) // else the connection is gone; its handlers log that
	}
}

// isInbox reports whether answers may go to a subject: to the inbox of a connection without
// a prefix, to the part of an inbox that [Ask] uses, or to a subject that a server made for
// a question from another account. Servers do not let clients name such a subject.
func isInbox(subject string) bool {
	tokens := strings.Split(subject, ".")
	switch {
	case len(tokens) < 2 || strings.ContainsAny(subject, "*> \t\r\n") || slices.Contains(tokens, ""):
		return false
	case tokens[0] == "_INBOX", tokens[0] == "_R_":
		return true
	}
	return strings.HasPrefix(tokens[0], "_INBOX_") && tokens[1] == askToken && len(tokens) > 2
}

// says returns the answer to a question.
func (r *Registration) says(verb micro.Verb) any {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := r.instance
	all := make(map[string]string, len(i.Metadata)+3)
	maps.Copy(all, i.Metadata)
	all[keyStarted] = i.Started.UTC().Format(time.RFC3339)
	for key, value := range map[string]string{keyAddress: i.Address, keyHealth: i.HealthURL} {
		if value != "" {
			all[key] = value
		}
	}
	identity := micro.ServiceIdentity{Name: i.Name, ID: i.ID, Version: i.Version, Metadata: all}
	switch verb {
	case micro.PingVerb:
		return micro.Ping{ServiceIdentity: identity, Type: micro.PingResponseType}
	case micro.StatsVerb:
		return micro.Stats{ServiceIdentity: identity, Type: micro.StatsResponseType, Started: i.Started.UTC(), Endpoints: []*micro.EndpointStats{}}
	}
	return micro.Info{ServiceIdentity: identity, Type: micro.InfoResponseType, Endpoints: []micro.EndpointInfo{}}
}

// Set changes one entry of the metadata, such as the hash of the configuration.
func (r *Registration) Set(key, value string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	changed := maps.Clone(r.instance.Metadata)
	if changed == nil {
		changed = make(map[string]string)
	}
	changed[key] = value
	r.instance.Metadata = changed
}

// Stop makes the instance leave: when it returns, the instance is not found any more, if
// NATS can be reached.
func (r *Registration) Stop() error {
	r.mu.Lock()
	subs := r.subs
	r.subs = nil
	r.mu.Unlock()
	for _, sub := range subs {
		if err := sub.Unsubscribe(); err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
			return fmt.Errorf("leave the registry: %w", err)
		}
	}
	if len(subs) == 0 || !r.nc.IsConnected() {
		return nil
	}
	return r.nc.FlushTimeout(time.Second)
}

// CheckName returns why name cannot be the name of a service, or nil.
func CheckName(name string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("%q is no name of a service, which has letters, digits, - and _ only", name)
	}
	return nil
}

var validName = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

var validVersion = regexp.MustCompile(`^\d+\.\d+\.\d+([-+][0-9A-Za-z.+-]+)?$`)

// devel is the version of a build that has none, in the form of the NATS service API.
const devel = "0.0.0-devel"

// semver returns the version in the form of the NATS service API.
func semver(version string) string {
	if v := strings.TrimPrefix(version, "v"); validVersion.MatchString(v) {
		return v
	}
	return devel
}
