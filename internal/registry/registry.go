// Package registry finds running processes. A process registers with [Register]; it then
// answers the questions of the NATS service API (ADR-32), so that `nats micro ls` shows it.
// A client that looks for a service asks: only processes that answer are there. There is no
// list that could be wrong.
//
// An instance that is killed, cut off or paused is gone from [Registry.Discover] [MaxStale]
// later at most. One that stops leaves before it does. After an outage of NATS, instances
// have [Return] to come back; until then the earlier ones are returned.
//
// Anyone who may answer on NATS can register. Discover checks the form of answers and
// bounds their number and size, and its result is only a hint where to send requests.
package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"golang.org/x/sync/singleflight"
)

const (
	// Fresh is how long an answer is used unchecked. Up to MaxStale it is still returned,
	// while the instances are asked again.
	Fresh = 2 * time.Second
	// MaxStale is how long after its end an instance may still be returned while NATS can
	// be reached.
	MaxStale = 2 * Fresh
	// Return is how long after an outage of NATS the earlier instances are still returned
	// though they do not answer: they may be about to come back.
	Return = 5 * time.Second

	maxInstances = 1024    // of one name that are read
	maxAnswer    = 8 << 10 // bytes of one
	firstAnswer  = time.Second
	nextAnswer   = 200 * time.Millisecond // after the last
)

// StreamKey is the entry of the metadata with the streams that a process publishes to or reads, separated by
// commas. By it the processes of several services in one account are distinguished.
const StreamKey = "stream"

// ErrAway says that NATS cannot be reached, so the live instances are unknown.
var ErrAway = errors.New("the registry cannot be asked, NATS is away")

// An Instance is one process, or one part of it, that offers a service.
type Instance struct {
	Name      string            `json:"name"`    // of the service: letters, digits, - and _
	ID        string            `json:"id"`      // made by Register
	Version   string            `json:"version"` // of the code
	Address   string            `json:"address,omitempty"`
	HealthURL string            `json:"health_url,omitempty"`
	Started   time.Time         `json:"started,omitzero"`
	Metadata  map[string]string `json:"metadata,omitempty"` // further information, such as config
}

// Keys of the metadata that stand for fields.
const (
	keyAddress = "address"
	keyHealth  = "health"
	keyStarted = "started"
)

// A Registry asks for live instances, and remembers the answers for a short time. It may be
// used by many goroutines at once.
type Registry struct {
	nc     *nats.Conn
	asking singleflight.Group

	mu         sync.Mutex
	known      map[string]answer // by name
	reconnects uint64            // of nc, as last noticed
	back       time.Time         // when the last was noticed
}

type answer struct {
	instances []Instance
	at        time.Time // when they were asked
}

// New returns a Registry that asks on nc, which may have to reconnect.
func New(nc *nats.Conn) *Registry {
	return &Registry{nc: nc, known: make(map[string]answer), reconnects: nc.Stats().Reconnects}
}

// Discover returns the live instances of the service of that name, ordered by id; none if
// none answers. If NATS is away, the error is [ErrAway], and the instances are those that
// answered last.
func (r *Registry) Discover(ctx context.Context, name string) ([]Instance, error) {
	r.mu.Lock()
	last, ok := r.known[name]
	r.mu.Unlock()
	age := time.Since(last.at)
	if ok && age < Fresh {
		return slices.Clone(last.instances), nil
	}
	result := r.asking.DoChan(name, func() (any, error) { return r.refresh(name) })
	if ok && age < MaxStale && r.nc.IsConnected() {
		return slices.Clone(last.instances), nil
	}
	select {
	case res := <-result:
		if res.Err != nil {
			return slices.Clone(last.instances), res.Err
		}
		return slices.Clone(res.Val.([]Instance)), nil
	case <-ctx.Done():
		return slices.Clone(last.instances), fmt.Errorf("look for %s: %w", name, ctx.Err())
	}
}

// Addresses returns the addresses of the live instances, as [Registry.Discover] does.
func (r *Registry) Addresses(ctx context.Context, name string) ([]string, error) {
	instances, err := r.Discover(ctx, name)
	var all []string
	for _, i := range instances {
		if i.Address != "" {
			all = append(all, i.Address)
		}
	}
	return all, err
}

func (r *Registry) refresh(name string) ([]Instance, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*firstAnswer)
	defer cancel()
	begun := time.Now()
	instances, err := Ask(ctx, r.nc, name)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := r.nc.Stats().Reconnects; n != r.reconnects {
		r.reconnects, r.back = n, begun
	}
	if begun.Sub(r.back) < Return {
		instances = union(instances, r.known[name].instances)
	}
	r.known[name] = answer{instances, begun}
	return instances, nil
}

// union returns a, and those of b that a does not have.
func union(a, b []Instance) []Instance {
	for _, i := range b {
		if !slices.ContainsFunc(a, func(other Instance) bool { return other.ID == i.ID }) {
			a = append(a, i)
		}
	}
	slices.SortFunc(a, byID)
	return a
}

func byID(a, b Instance) int { return strings.Compare(a.Name+" "+a.ID, b.Name+" "+b.ID) }

// Ask returns the instances that answer now, ordered by name and id: of the service of that
// name, or of all services if it is empty.
func Ask(ctx context.Context, nc *nats.Conn, name string) ([]Instance, error) {
	subject, err := micro.ControlSubject(micro.InfoVerb, name, "")
	if err != nil || strings.ContainsAny(name, ".*> \t\r\n") {
		return nil, fmt.Errorf("%q is no name of a service", name)
	}
	if !nc.IsConnected() {
		return nil, ErrAway
	}
	inbox := newInbox(nc)
	answers, err := nc.SubscribeSync(inbox)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrAway, err)
	}
	defer func() { _ = answers.Unsubscribe() }() // fails if the connection is closed
	if err := errors.Join(answers.SetPendingLimits(maxInstances, maxInstances*maxAnswer), nc.PublishRequest(subject, inbox, nil)); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrAway, err)
	}
	found := make(map[string]Instance)
	wait := firstAnswer
	for range maxInstances {
		msg, err := next(ctx, answers, wait)
		if errors.Is(err, nats.ErrSlowConsumer) { // more than are read
			continue
		}
		if err != nil || msg.Header.Get("Status") == "503" { // no process listens
			break
		}
		wait = nextAnswer
		if i, ok := parse(msg.Data); ok && (name == "" || i.Name == name) {
			found[i.ID] = i
		}
	}
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("look for %s: %w", name, ctx.Err())
	case len(found) == 0 && !nc.IsConnected():
		return nil, ErrAway
	}
	return slices.SortedFunc(maps.Values(found), byID), nil
}

// askToken separates the registry's inboxes from everything else that comes to an inbox:
// other processes may be permitted to publish below it without reaching the rest.
const askToken = "srv"

// InboxFor returns the subjects of the answers for a connection with that inbox prefix.
func InboxFor(prefix string) string { return prefix + "." + askToken + ".>" }

// newInbox returns a new inbox for the answers to one question.
func newInbox(nc *nats.Conn) string {
	inbox := nc.NewInbox()
	cut := strings.LastIndexByte(inbox, '.')
	return inbox[:cut] + "." + askToken + inbox[cut:]
}

func next(ctx context.Context, answers *nats.Subscription, wait time.Duration) (*nats.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	return answers.NextMsgWithContext(ctx)
}

// parse reads an answer, which may be from anyone.
func parse(data []byte) (Instance, bool) {
	var info micro.Info
	if len(data) > maxAnswer || json.Unmarshal(data, &info) != nil || info.Name == "" || info.ID == "" {
		return Instance{}, false
	}
	i := Instance{Name: info.Name, ID: info.ID, Version: info.Version, Metadata: info.Metadata}
	if i.Version == devel { // as the process itself says it
		i.Version = "devel"
	}
	if a := i.Metadata[keyAddress]; validAddress(a) {
		i.Address = a
	}
	if h := i.Metadata[keyHealth]; validURL(h) {
		i.HealthURL = h
	}
	i.Started, _ = time.Parse(time.RFC3339, i.Metadata[keyStarted])
	for _, key := range []string{keyAddress, keyHealth, keyStarted} {
		delete(i.Metadata, key)
	}
	return i, true
}

// validURL reports whether s is a plain http or https URL.
func validURL(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Hostname() != "" &&
		u.User == nil && u.RawQuery == "" && u.Fragment == ""
}

// validAddress reports whether s is a valid URL without a path.
func validAddress(s string) bool {
	u, err := url.Parse(s)
	return validURL(s) && err == nil && (u.Path == "" || u.Path == "/")
}
