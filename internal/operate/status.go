package operate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/consumers/saga"
	"github.com/pgjet/pgjet/consumers/status"
	"github.com/pgjet/pgjet/internal/jserror"
	"github.com/pgjet/pgjet/internal/lead"
	"github.com/pgjet/pgjet/internal/natsconn"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/registry"
	"github.com/pgjet/pgjet/internal/sqlstate"
	"github.com/pgjet/pgjet/relay"
)

// A Status says whether anything is wrong.
type Status struct {
	At        time.Time       `json:"at"`       // by the clock of the asking process
	Healthy   bool            `json:"healthy"`  // no action is needed, as far as known
	Findings  []Finding       `json:"findings"` // the worst first
	Missing   []Missing       `json:"missing"`  // what could not be asked
	Relays    []relay.Status  `json:"relays"`   // of each stream that has one, with the pending events of the outbox
	Consumers []status.Status `json:"consumers"`
	Processes []Instance      `json:"processes"` // registered ones that answer
}

// Verdict returns a sentence that says whether anything is wrong.
func (s Status) Verdict() string {
	n := 0
	for _, f := range s.Findings {
		if !f.Healthy {
			n++
		}
	}
	switch n {
	case 0:
		return "nothing needs you"
	case 1:
		return "1 thing needs you"
	}
	return fmt.Sprintf("%d things need you", n)
}

// A Finding is a reason that applies.
type Finding struct {
	What    string `json:"what"`    // such as "consumer welcome-mailer"
	Code    string `json:"code"`    // one of [Reasons]
	Text    string `json:"text"`    // the details, in a sentence
	Next    string `json:"next"`    // the command to type, or what to read
	Runbook string `json:"runbook"` // in docs/runbooks; "" if there is none
	Healthy bool   `json:"healthy"` // no action is needed
	rank    int
}

// pendingTooLong is the age of a pending event from which a relay that reports nothing is suspect.
const pendingTooLong = 30 * time.Second

// Status reads the state of relays, outbox, consumers, sagas and processes. It takes about a
// second, and some more if health pages do not answer. It returns no error: what could not be asked
// is in Missing, and is a finding.
func (s Source) Status(ctx context.Context) Status {
	v := &view{Source: s, Status: Status{
		At: time.Now().UTC(), Findings: []Finding{}, Missing: []Missing{},
		Relays: []relay.Status{}, Consumers: []status.Status{}, Processes: []Instance{},
	}}
	var asked sync.WaitGroup
	asked.Go(func() { v.askProcesses(ctx) })
	v.askDatabase(ctx)
	asked.Wait()
	v.judgeProcesses()
	for _, m := range v.Missing {
		about := ""
		if m.What == server {
			about = Relay
		}
		v.found(m.What, about, m.Code, m.Text+"; not known: "+m.Lack, "")
	}
	slices.SortStableFunc(v.Findings, func(a, b Finding) int { return a.rank - b.rank })
	v.Healthy = !slices.ContainsFunc(v.Findings, func(f Finding) bool { return !f.Healthy })
	return v.Status
}

// A view is a Status that is being filled in.
type view struct {
	Source
	Status
	mu sync.Mutex // protects Missing
}

func (v *view) found(what, about, code, text, next string) {
	rank, r := find(about, code)
	v.Findings = append(v.Findings, Finding{what, code, without(text, code), cmp.Or(next, r.next()), r.Runbook, r.Healthy, rank})
}

// lacks records that a server could not be asked. Only the first reason of each server is kept.
func (v *view) lacks(what string, err error, lack string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !slices.ContainsFunc(v.Missing, func(m Missing) bool { return m.What == what }) {
		v.Missing = append(v.Missing, missing(what, err, lack))
	}
}

const (
	lacksDatabase = "relays, outbox, consumers, dead letters, quarantine and sagas"
	lacksNATS     = "the events that wait in the stream for consumers, and the running processes"
)

func (v *view) askDatabase(ctx context.Context) {
	if v.DB == nil {
		v.lacks(database, v.DBErr, lacksDatabase)
		return
	}
	if err := v.ask(ctx); err != nil {
		v.lacks(database, lead.NameLock(ctx, v.DB, err), lacksDatabase)
	}
}

func (v *view) ask(ctx context.Context) error {
	readOnly := postgres.CheckWritable(ctx, v.DB)
	switch code := sqlstate.ReadOnly; {
	case readOnly == nil:
	case strings.HasPrefix(readOnly.Error(), string(code)+":"):
		v.found(database, "", string(code), readOnly.Error(), "")
	default:
		return readOnly
	}
	streams, err := v.streams(ctx)
	if err != nil {
		return err
	}
	for _, stream := range streams {
		r, err := relay.ReadStatus(ctx, v.DB, stream)
		if err != nil {
			return err
		}
		v.Relays = append(v.Relays, r)
	}
	if err := v.askConsumers(ctx); err != nil {
		return err
	}
	for _, r := range v.Relays {
		if readOnly == nil { // otherwise no relay can work, and a standby does not show which one leads
			v.judgeRelay(ctx, r)
		}
	}
	v.judgeAudits()
	v.judgeQuarantine()
	return nil
}

// mostStreams is the most streams in a Status.
const mostStreams = 20

// streams returns the streams that a relay has led, without mistyped names: those never published
// to that do not exist. If there is none, it returns the stream of the Source.
func (v *view) streams(ctx context.Context) ([]string, error) {
	all, err := collect(ctx, v.DB, pgx.RowTo[string], `
		select l.stream from pgjet.leader l
		 where (l.epoch > 0 or l.paused_at is not null)
		   and (coalesce(l.cause, '') not like 'stream\_missing:%' or l.stream = $1
		        or exists (select from pgjet.checkpoint c where c.stream = l.stream))
		 order by l.stream limit $2`, v.Stream, mostStreams)
	if len(all) == 0 {
		all = []string{v.Stream}
	}
	return all, sqlstate.Wrap("look up the streams of relays", err)
}

// askConsumers reads the consumers from the database and, if possible, JetStream.
func (v *view) askConsumers(ctx context.Context) (err error) {
	known := false
	if v.JS == nil {
		v.lacks(server, v.NATSErr, lacksNATS)
	} else if v.Consumers, err = status.List(ctx, v.DB, v.JS); err != nil && natsconn.Of(err) == "" {
		return err
	} else if known = err == nil; !known {
		v.lacks(server, err, lacksNATS)
	}
	if !known {
		if v.Consumers, err = status.Known(ctx, v.DB); err != nil {
			return err
		}
	}
	sagas, err := saga.FindWaiting(ctx, v.DB)
	if err != nil {
		return err
	}
	for _, c := range v.Consumers {
		v.judgeConsumer(c)
		sagas = slices.DeleteFunc(sagas, func(w saga.Waiting) bool { return w.Name == c.Name })
	}
	for _, w := range sagas { // that no consumer begins
		code := "saga_waiting"
		if w.NeedsOperator {
			code = "saga_needs_operator"
		}
		v.found("saga "+w.Name, Consumer, code, w.String(), "pgjet saga ls --state "+w.State)
	}
	return nil
}

// judgeConsumer adds the problems of a consumer. Its health is in its own line.
func (v *view) judgeConsumer(c status.Status) {
	for _, w := range c.Reasons() {
		if !w.Healthy() || w.Code == "retrying" {
			own := v.Own != nil && v.Own(c.Name)
			v.found("consumer "+c.Name, Consumer, w.Code, w.Text, NextForConsumer(c, w.Code, own))
		}
	}
}

func (v *view) judgeRelay(ctx context.Context, r relay.Status) {
	what, troubles := "relay of "+r.Stream, RelayTroubles(r)
	for _, t := range troubles {
		v.found(what, Relay, t.Cause, t.Why, t.Next)
	}
	if len(troubles) > 0 && (r.Leader == nil || r.Leader.Epoch == 0) {
		v.judgeStream(ctx, what, r.Stream)
	}
	if len(troubles) == 0 && r.Scheduled.Reason == "due_held" {
		v.found(what, Relay, "due_held", fmt.Sprintf("%s due, the first for %s: transactions hold them, or earlier ones of their keys",
			AtMost(r.Scheduled.Due, "scheduled event is", "scheduled events are"), seconds(r.Scheduled.OverdueSeconds).Round(time.Second)), "")
	}
	if len(troubles) > 0 || !stalled(r) {
		return
	}
	if again, err := relay.ReadStatus(ctx, v.DB, r.Stream); err == nil && stalled(again) { // otherwise the event was being published
		v.found(what, Relay, "stalled", fmt.Sprintf("%s leads and reports nothing, and the oldest of %d pending events is %s old",
			r.Leader.Process, again.Pending.Events, seconds(again.Pending.OldestSeconds).Round(time.Second)), "")
	}
}

// stalled reports whether the leading relay publishes nothing, for longer than publishing can take.
func stalled(r relay.Status) bool {
	return r.Leads && r.Leader != nil && r.Pending.Events > 0 && seconds(r.Pending.OldestSeconds) > pendingTooLong &&
		(r.Checkpoint == nil || r.At.Sub(r.Checkpoint.At) > pendingTooLong)
}

// judgeStream adds that the stream of a relay that has never run does not exist.
func (v *view) judgeStream(ctx context.Context, what, stream string) {
	if v.JS == nil {
		return
	}
	if _, err := v.JS.Stream(ctx, stream); natsconn.Of(err) == jserror.StreamMissing {
		v.found(what, Relay, string(jserror.StreamMissing), natsconn.NoStream(ctx, v.JS, stream), Typed(nextForRelay(string(jserror.StreamMissing)), stream))
	}
}

// judgeAudits adds that outbox and stream differ.
func (v *view) judgeAudits() {
	for _, r := range v.Relays {
		if found := AuditFound(r); found != nil {
			v.found("outbox", Outbox, "audit_differs", "with stream "+r.Stream+": "+DescribeAudit(*found), Typed("pgjet audit show", r.Stream))
		}
	}
}

// judgeQuarantine adds that events are in quarantine. Their number is the same for all streams.
func (v *view) judgeQuarantine() {
	if len(v.Relays) == 0 || v.Relays[0].Quarantined.Held == 0 {
		return
	}
	n, verb := v.Relays[0].Quarantined.Held, "events are held"
	if n == 1 {
		verb = "event is held"
	}
	v.found("outbox", Outbox, "quarantined", fmt.Sprintf("%d %s in quarantine: the stream refuses them, or their rows have an invalid form", n, verb), "")
}

func (v *view) askProcesses(ctx context.Context) {
	if v.NATS == nil {
		v.lacks(server, v.NATSErr, lacksNATS)
		return
	}
	all, err := Instances(ctx, v.NATS, "")
	if err != nil {
		v.lacks(server, err, lacksNATS)
		return
	}
	v.Processes = append(v.Processes, all...)
}

// ours reports whether a process may belong to this database: not if all its streams are those of
// other databases.
func (v *view) ours(i Instance) bool {
	streams := i.Metadata[registry.StreamKey]
	if streams == "" || v.DB == nil || len(v.Relays) == 0 {
		return true
	}
	for stream := range strings.SplitSeq(streams, ",") {
		if stream == v.Stream ||
			slices.ContainsFunc(v.Relays, func(r relay.Status) bool { return r.Stream == stream }) ||
			slices.ContainsFunc(v.Consumers, func(c status.Status) bool { return c.Stream == stream }) {
			return true
		}
	}
	return false
}

// judgeProcesses adds the processes of this service that are not ready, each once. An unreachable
// health page counts only if that of another process can be reached.
func (v *view) judgeProcesses() {
	reached := slices.ContainsFunc(v.Processes, func(i Instance) bool { return i.Health != "no_answer" && i.Health != "unknown" })
	v.judgeBreakers()
	reported := make(map[string]bool) // by health page: a process may register as several services
	for _, i := range v.Processes {
		if !v.ours(i) {
			continue
		}
		switch i.Health {
		case "not_ready", "degraded":
		case "no_answer":
			if !reached {
				continue
			}
		default:
			continue
		}
		if reported[i.HealthURL] {
			continue
		}
		reported[i.HealthURL] = true
		if n := slices.IndexFunc(i.causes, func(cause string) bool { return !v.known(cause) }); n >= 0 {
			i.Cause = i.causes[n]
		} else if len(i.causes) > 0 {
			continue
		}
		i = v.named(i)
		what := "process " + i.Name
		if !strings.HasSuffix(i.Name, i.ID) {
			what += " " + i.ID
		}
		v.found(what, Process, i.Health, i.Cause, "")
	}
}

// known reports whether the cause that a part of a process names is a finding already, for example
// that its consumer is paused.
func (v *view) known(cause string) bool {
	part, reason, _ := strings.Cut(cause, ": ")
	return slices.ContainsFunc(v.Findings, func(f Finding) bool {
		rest, is := strings.CutPrefix(reason, f.Code)
		return is && (rest == "" || rest[0] == ':' || rest[0] == ' ') &&
			(f.What == "consumer "+part || part == "relay" && strings.HasPrefix(f.What, "relay of "))
	})
}

// named returns the service of i's process that the cause is about, or i.
func (v *view) named(i Instance) Instance {
	part, _, _ := strings.Cut(i.Cause, ":")
	for _, other := range v.Processes {
		if other.HealthURL == i.HealthURL && other.Name == "pgjet-"+part {
			return other
		}
	}
	return i
}

// judgeBreakers adds the services that processes find unavailable, each once.
func (v *view) judgeBreakers() {
	reported := make(map[string]bool)
	for _, i := range v.Processes {
		if !v.ours(i) {
			continue
		}
		for _, b := range i.Breakers {
			if !reported[b.Service] {
				reported[b.Service] = true
				v.found("service "+b.Service, Process, "breaker_open", fmt.Sprintf("%s found it unavailable at %s, and calls it only for probes", i.Name, b.Since.UTC().Format(time.RFC3339)), "")
			}
		}
	}
}

// Err returns an error if neither server could be asked.
func (s Source) Err() error {
	if s.DB != nil || s.NATS != nil {
		return nil
	}
	return errors.Join(s.DBErr, s.NATSErr)
}
