package operate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/saga"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

// An Event is everything known about one event, without its payload.
type Event struct {
	ID         uuid.UUID     `json:"id"`
	Type       string        `json:"type"` // "" if unknown by now; so is Key
	Key        string        `json:"key"`
	TraceID    string        `json:"trace_id"`   // "" if it is not traced
	RequestID  string        `json:"request_id"` // of the request that caused it; "" if there is none
	Outbox     *Row          `json:"outbox"`     // nil if its row is missing, or was not found
	Quarantine *Held         `json:"quarantine"` // nil if it is not in quarantine
	Stored     *Stored       `json:"stored"`     // nil if it is not in the stream, or was not found there
	Consumers  []Handling    `json:"consumers"`  // by name
	Operations []Operation   `json:"operations"` // operators' decisions on it
	Sagas      []saga.Record `json:"sagas"`      // of its key, begun by its consumers
	Unknown    []string      `json:"unknown"`    // what is unknown about it, and why

	absent bool // all streams of this database were asked for it, and none has it
}

// A Row is the event's row in the outbox.
type Row struct {
	Seq       int64      `json:"seq"`
	Time      *time.Time `json:"time"`      // of the append; nil if it is not in the years 1 to 9999
	XID       string     `json:"xid"`       // the transaction that appended it
	Bytes     int64      `json:"bytes"`     // of the payload
	Published bool       `json:"published"` // covered by the newest checkpoint of a stream
}

// A Held is an event in quarantine.
type Held struct {
	Seq    int64     `json:"seq"`
	State  string    `json:"state"` // held, retry or dropped
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`
}

// A Stored is the event's message in a stream.
type Stored struct {
	Stream  string    `json:"stream"`
	Seq     uint64    `json:"seq"`
	Subject string    `json:"subject"`
	Time    time.Time `json:"time"` // by the clock of the NATS server
}

// The states of an event at a consumer, besides those of package inbox: done, dead, discarded.
const (
	Waiting  = "waiting"  // it was not delivered yet, or waits for its first attempt
	Running  = "running"  // an attempt is running
	Retrying = "retrying" // it waits for another attempt
	Ignored  = "ignored"  // the consumer does not handle its type
	Dropped  = "dropped"  // an operator dropped it from quarantine, as [Held] says, so that it is never delivered
	Unknown  = "unknown"
)

// A Handling is the state of an event at one consumer.
type Handling struct {
	Consumer string          `json:"consumer"`
	State    string          `json:"state"`
	Attempts int             `json:"attempts"`
	Began    *time.Time      `json:"began"`     // the attempt that made it done
	At       *time.Time      `json:"at"`        // when it came into this state; nil while it waits for the consumer
	Since    *time.Time      `json:"since"`     // when the consumer wrote the intent
	DueAt    *time.Time      `json:"due_at"`    // when the next attempt is due; nil if there is none, or it waits behind another of its key
	Behind   bool            `json:"behind"`    // it waits behind an earlier event of its key
	TakenBy  string          `json:"taken_by"`  // the process that is making an attempt
	Error    string          `json:"error"`     // of the last attempt
	StreamAt int64           `json:"stream_at"` // the stream sequence; 0 if the inbox does not have it
	Letter   *Letter         `json:"dead_letter"`
	Log      []inbox.Attempt `json:"attempt_log"` // as far as it is kept; not for an event that was done at the first attempt

	stream  string
	own     bool // stream has the events of this database, as far as known
	slices  int
	current bool   // StreamAt is of the present stream
	seq     *int64 // seq in the outbox, this one's if own
}

// A Letter is the dead letter of an event.
type Letter struct {
	ID           int64      `json:"id"`
	State        string     `json:"state"`
	Error        string     `json:"error"`
	Attempts     int        `json:"attempts"`
	At           time.Time  `json:"at"`
	ChangedAt    *time.Time `json:"changed_at"`
	ChangedBy    string     `json:"changed_by"`
	ChangeReason string     `json:"change_reason"`
}

// An Operation is an operator's action.
type Operation struct {
	Kind   string    `json:"kind"`
	Target string    `json:"target"`
	By     string    `json:"by"`
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`
}

// A NotFoundError says that something was not found, and where it was searched. Without What,
// Looked is the whole text.
type NotFoundError struct{ What, Looked string }

func (e *NotFoundError) Error() string {
	if e.What == "" {
		return e.Looked
	}
	return fmt.Sprintf("nothing is known of %s: %s", e.What, e.Looked)
}

// Event returns everything known about the event with this id, or a [*NotFoundError]. It needs the
// database. If NATS does not answer, Unknown says what is missing.
func (s Source) Event(ctx context.Context, id uuid.UUID) (Event, error) {
	return s.event(ctx, id, nil, false)
}

// EventAt is [Source.Event] for an event with a known seq in the outbox, which need not be
// searched.
func (s Source) EventAt(ctx context.Context, id uuid.UUID, seq int64) (Event, error) {
	return s.event(ctx, id, []int64{seq}, false)
}

// event is [Source.Event] for an event with possible seqs in the outbox; if scanned, it has no
// other.
func (s Source) event(ctx context.Context, id uuid.UUID, seqs []int64, scanned bool) (Event, error) {
	if s.DB == nil {
		return Event{}, s.DBErr
	}
	q := &question{Source: s, seqs: seqs, scanned: scanned, Event: Event{
		ID: id, Consumers: []Handling{}, Operations: []Operation{}, Sagas: []saga.Record{}, Unknown: []string{},
	}}
	err := q.ask(ctx)
	if _, absent := errors.AsType[*NotFoundError](err); absent {
		return Event{}, err
	}
	return q.Event, sqlstate.Wrap("look for event "+id.String(), err)
}

// A question is an Event that is being filled in.
type question struct {
	Source
	Event
	seqs     []int64  // possible seqs in the outbox
	scanned  bool     // no other row has it
	pruned   int64    // the highest seq that was pruned
	prefixes []string // possible prefixes of its subject; none if unknown
	unasked  bool     // a stream did not answer
}

func (q *question) ask(ctx context.Context) error {
	for _, step := range []func(context.Context) error{q.askConsumers, q.askAttempts, q.askQuarantine, q.askKnownPlaces, q.askOutbox} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	q.askStream(ctx)
	if q.Type == "" && q.Stored == nil && q.Quarantine == nil && !slices.ContainsFunc(q.Consumers, func(h Handling) bool { return h.State != "" }) {
		return &NotFoundError{"event " + q.ID.String(), q.looked(q.ID)}
	}
	q.judgeConsumers(ctx)
	if err := q.askSagas(ctx); err != nil {
		return err
	}
	if err := q.askOperations(ctx); err != nil {
		return err
	}
	q.say()
	return nil
}

// askConsumers reads each consumer's row of the event, by primary key.
func (q *question) askConsumers(ctx context.Context) (err error) {
	q.Consumers, err = collect(ctx, q.DB, scanHandling, `
		select c.name, c.stream, c.stream in (select stream from pgjet.leader where epoch > 0) or not exists (select from pgjet.leader where epoch > 0), c.slices, coalesce(i.state, ''), coalesce(n.attempts, d.attempts, i.attempts, 0), i.began, i.at, n.since,
		       case when n.due_at between '0001-01-01' and '9999-12-31' then n.due_at end, coalesce(n.due_at = 'infinity', false), coalesce(n.taken_by, ''),
		       coalesce(n.error, ''), coalesce(i.stream_seq, 0), coalesce(i.generation = c.generation, false),
		       case when coalesce(n.header, d.header) -> 'Pgjet-Seq' ->> 0 ~ '^[0-9]{1,18}$' then (coalesce(n.header, d.header) -> 'Pgjet-Seq' ->> 0)::bigint end,
		       d.id, d.state, d.error, d.attempts, d.at, d.changed_at, coalesce(d.changed_by, ''), coalesce(d.change_reason, '')
		  from pgjet.consumer c
		  left join lateral (select * from pgjet.inbox where consumer = c.name and event_id = $1 limit 1) i on true -- joined only by its key
		  left join lateral (select * from pgjet.intent where consumer = c.name and event_id = $1 limit 1) n on true
		  left join lateral (select * from pgjet.dead_letter where consumer = c.name and event_id = $1 limit 1) d on true
		 order by c.name`, q.ID)
	for _, h := range q.Consumers {
		if h.seq != nil && h.own {
			q.seqs = append(q.seqs, *h.seq)
		}
	}
	return err
}

func scanHandling(row pgx.CollectableRow) (h Handling, err error) {
	var id *int64
	var state, text *string
	var n *int
	var at *time.Time
	var l Letter
	err = row.Scan(&h.Consumer, &h.stream, &h.own, &h.slices, &h.State, &h.Attempts, &h.Began, &h.At, &h.Since, &h.DueAt, &h.Behind, &h.TakenBy,
		&h.Error, &h.StreamAt, &h.current, &h.seq, &id, &state, &text, &n, &at, &l.ChangedAt, &l.ChangedBy, &l.ChangeReason)
	h.Began, h.At, h.Since, h.DueAt, h.Error = utc(h.Began), utc(h.At), utc(h.Since), utc(h.DueAt), inbox.Mask(h.Error)
	if err == nil && id != nil {
		l.ID, l.State, l.Error, l.Attempts, l.At, l.ChangedAt, l.ChangeReason = *id, *state, inbox.Mask(*text), *n, at.UTC(), utc(l.ChangedAt), inbox.Mask(l.ChangeReason)
		h.Letter = &l
		h.Error = cmp.Or(h.Error, l.Error)
	}
	h.Log = []inbox.Attempt{}
	return h, err
}

// mostAttempts is the most attempts that are shown, the last ones.
const mostAttempts = 200

func (q *question) askAttempts(ctx context.Context) error {
	names := make([]string, 0, len(q.Consumers))
	for _, h := range q.Consumers {
		names = append(names, h.Consumer)
	}
	rows, err := q.DB.Query(ctx, `
		select consumer, attempt, began, extract(epoch from took)::float8, process, outcome, coalesce(error, '') from (
			select * from pgjet.attempt where consumer = any($1) and event_id = $2 order by began desc limit $3) a
		 order by began, attempt`, names, q.ID, mostAttempts)
	if err != nil {
		return err
	}
	var name string
	var a inbox.Attempt
	n := 0
	_, err = pgx.ForEachRow(rows, []any{&name, &a.Attempt, &a.Began, &a.Seconds, &a.Process, &a.Outcome, &a.Error}, func() error {
		a.Began, a.Error = a.Began.UTC(), inbox.Mask(a.Error)
		for i := range q.Consumers {
			if q.Consumers[i].Consumer == name {
				q.Consumers[i].Log = append(q.Consumers[i].Log, a)
			}
		}
		n++
		return nil
	})
	if n == mostAttempts {
		q.Unknown = append(q.Unknown, fmt.Sprintf("attempts before the last %d are not shown", mostAttempts))
	}
	return err
}

func (q *question) askQuarantine(ctx context.Context) error {
	all, err := collect(ctx, q.DB, pgx.RowToStructByPos[Held], `select seq, state, reason, at from pgjet.quarantine where event_id = $1 order by seq limit 1`, q.ID)
	if len(all) > 0 {
		q.Quarantine = &all[0]
		q.Quarantine.At = q.Quarantine.At.UTC()
		q.seqs = append(q.seqs, q.Quarantine.Seq)
	}
	return err
}

// askKnownPlaces reads the stream sequences in the inboxes.
func (q *question) askKnownPlaces(ctx context.Context) error {
	if q.JS == nil {
		return nil
	}
	for _, h := range q.Consumers {
		if q.Stored == nil && h.current && h.StreamAt > 0 {
			q.look(ctx, h.stream, h.own, uint64(h.StreamAt)) //nolint:gosec // positive
		}
	}
	return nil
}

// look reads a message of a stream, whose outbox is this database's if own. If it is the event, it
// sets Stored.
func (q *question) look(ctx context.Context, stream string, own bool, seq uint64, options ...jetstream.GetMsgOpt) (next uint64) {
	s, err := q.JS.Stream(ctx, stream)
	if err != nil {
		return 0
	}
	msg, err := s.GetMsg(ctx, seq, options...)
	if err != nil {
		q.unasked = q.unasked || !errors.Is(err, jetstream.ErrMsgNotFound)
		return 0
	}
	e, err := events.FromMessage(msg.Header, msg.Data)
	if err != nil || e.ID != q.ID {
		return msg.Sequence + 1
	}
	q.Stored = &Stored{stream, msg.Sequence, msg.Subject, msg.Time.UTC()}
	q.Type, q.Key, q.TraceID, q.RequestID = e.Type, e.Key, traceOf(e.Traceparent), e.Header[RequestHeader]
	q.prefixes = []string{events.PrefixOf(msg.Subject)}
	if own {
		q.seqs = append(q.seqs, e.Seq)
	}
	return 0
}

// mostLooks is the most messages of the event's subject that are read, after a checkpoint before
// it.
const mostLooks = 300

// askStream looks for an event that no inbox has.
func (q *question) askStream(ctx context.Context) {
	switch {
	case q.JS == nil:
		q.Unknown = append(q.Unknown, "NATS does not answer: its stream sequence, and which consumers it waits for")
		return
	case q.Stored != nil || q.Outbox == nil:
		return
	}
	streams, err := collect(ctx, q.DB, func(row pgx.CollectableRow) (s Stored, err error) {
		err = row.Scan(&s.Stream, &s.Seq)
		return s, err
	}, `
		select l.stream, coalesce((select c.stream_seq from pgjet.checkpoint c where c.stream = l.stream and c.floor < $1 order by c.id desc limit 1), 0)
		  from pgjet.leader l where l.epoch > 0 order by l.stream limit $2`, q.Outbox.Seq, mostStreams)
	if err != nil {
		return
	}
	everywhere := true
	for _, s := range streams {
		stream, err := q.JS.Stream(ctx, s.Stream)
		if err != nil || len(stream.CachedInfo().Config.Subjects) == 0 {
			q.Unknown = append(q.Unknown, "its sequence in stream "+s.Stream+", which does not answer")
			everywhere = false
			continue
		}
		prefix := events.PrefixOf(stream.CachedInfo().Config.Subjects...)
		if prefix != "" {
			q.prefixes = append(q.prefixes, prefix)
		}
		subject := events.SubjectsOf(prefix).Of(q.Type, q.Key)
		q.unasked = false
		next, looks := s.Seq+1, 0
		for ; looks < mostLooks && next > 0 && q.Stored == nil && ctx.Err() == nil; looks++ {
			next = q.look(ctx, s.Stream, true, next, jetstream.WithGetMsgSubject(subject))
		}
		switch {
		case q.Stored != nil:
			return
		case q.unasked || ctx.Err() != nil:
			q.Unknown = append(q.Unknown, "its sequence in stream "+s.Stream+", which does not answer")
			everywhere = false
		case looks == mostLooks:
			q.Unknown = append(q.Unknown, fmt.Sprintf("its sequence in stream %s: it is not among the %d messages of its subject after the checkpoint before it", s.Stream, mostLooks))
			everywhere = false
		}
	}
	q.absent = everywhere
}

// judgeConsumers sets its state at each consumer.
func (q *question) judgeConsumers(ctx context.Context) {
	for i := range q.Consumers {
		h := &q.Consumers[i]
		switch {
		case h.State == "intent" && h.TakenBy != "":
			h.State = Running
		case h.State == "intent" && h.Attempts > 0:
			h.State = Retrying
		case h.State == "intent":
			h.State = Waiting
		case h.State == "":
			h.State = q.expected(ctx, h)
		}
	}
	slices.SortStableFunc(q.Consumers, func(a, b Handling) int { // consumers that ignore it come last
		return cmp.Compare(map[bool]int{true: 1}[a.State == Ignored], map[bool]int{true: 1}[b.State == Ignored])
	})
}

// expected returns the state of an event that a consumer's inbox does not have.
func (q *question) expected(ctx context.Context, h *Handling) string {
	if q.JS == nil || q.Type == "" {
		return Unknown
	}
	c, err := q.JS.Consumer(ctx, h.stream, inbox.Durables(h.Consumer, h.slices)[0])
	if err != nil {
		q.Unknown = append(q.Unknown, h.Consumer+": its durable consumer cannot be looked up: "+err.Error())
		return Unknown
	}
	config := c.CachedInfo().Config
	filters := append(config.FilterSubjects, config.FilterSubject)
	if !slices.ContainsFunc(filters, func(f string) bool {
		return f != "" && covers(events.FilteredType(f), q.Type) && q.mayBegin(events.PrefixOf(f))
	}) {
		return Ignored
	}
	if q.Stored == nil && q.Quarantine != nil && q.Quarantine.State == Dropped {
		return Dropped
	}
	if q.absent && q.Outbox != nil && q.Outbox.Published {
		q.Unknown = append(q.Unknown, h.Consumer+": its inbox has no row of the event, and the stream has it no more: it was not handled before the stream deleted it, or the row was pruned")
		return Unknown
	}
	if info := c.CachedInfo(); q.Stored != nil && h.slices <= 1 && info.AckFloor.Stream >= q.Stored.Seq {
		q.Unknown = append(q.Unknown, h.Consumer+": its inbox has no row of the event, and JetStream counts it as handled: the row was pruned, or the inbox was lost")
		return Unknown
	}
	return Waiting
}

// mayBegin reports whether the subject of the event may begin with a prefix: a consumer of another
// service's stream gets no event of this one.
func (q *question) mayBegin(prefix string) bool {
	return prefix == "" || len(q.prefixes) == 0 || slices.Contains(q.prefixes, prefix)
}

// covers reports whether a filter's type, which may have wildcards, matches a type.
func covers(filter, eventType string) bool {
	f, t := strings.Split(filter, "."), strings.Split(eventType, ".")
	for i, token := range f {
		switch {
		case token == ">":
			return len(t) > i
		case i >= len(t), token != "*" && token != t[i]:
			return false
		}
	}
	return len(f) == len(t)
}

// askSagas looks up the sagas of its key that its consumers begin.
func (q *question) askSagas(ctx context.Context) (err error) {
	var names []string
	for _, h := range q.Consumers {
		if h.State != Ignored {
			names = append(names, h.Consumer)
		}
	}
	if q.Key == "" || len(names) == 0 {
		return nil
	}
	q.Sagas, err = saga.Of(ctx, q.DB, names, q.Key)
	return err
}

// askOperations reads operators' decisions on the event, its dead letters and its sagas.
func (q *question) askOperations(ctx context.Context) (err error) {
	letters, sagas := []int64{}, []uuid.UUID{}
	for _, h := range q.Consumers {
		if h.Letter != nil {
			letters = append(letters, h.Letter.ID)
		}
	}
	for _, x := range q.Sagas {
		sagas = append(sagas, x.ID)
	}
	q.Operations, err = collect(ctx, q.DB, func(row pgx.CollectableRow) (o Operation, err error) {
		err = row.Scan(&o.Kind, &o.Target, &o.By, &o.Reason, &o.At)
		o.At, o.Reason = o.At.UTC(), inbox.Mask(o.Reason)
		return o, err
	}, `
		select kind, target, by, reason, at from pgjet.operation o
		 where kind like 'dead.%' and exists (select from unnest($1::bigint[]) id where o.detail -> 'ids' @> to_jsonb(id))
		    or kind like 'quarantine.%' and exists (select from unnest($2::bigint[]) seq where o.detail -> 'seqs' @> to_jsonb(seq))
		    or kind = 'saga.retry' and detail ->> 'id' = any($3::uuid[]::text[])
		 order by id limit 100`, letters, q.seqs, sagas)
	if q.Operations == nil {
		q.Operations = []Operation{}
	}
	return err
}

// say adds what is unknown about every event, and about this one.
func (q *question) say() {
	if q.Outbox == nil {
		q.Unknown = append(q.Unknown, q.rowless())
	}
	if q.Type == "" {
		q.Unknown = append(q.Unknown, "its type and key, and so which consumers handle it: it is in neither outbox nor stream any more")
	}
	if q.TraceID == "" {
		q.Unknown = append(q.Unknown, "its trace: it has none, or is not stored any more")
	}
	q.Unknown = append(q.Unknown, "when its transaction began and committed, what else happened in its request, and the mails that a handler sent: pgjet records none of them; its trace may have them. The Message-ID of a mail begins with the event's id")
	if slices.ContainsFunc(q.Consumers, func(h Handling) bool { return h.State == inbox.Done && len(h.Log) == 0 }) {
		q.Unknown = append(q.Unknown, "which process handled it, where it was done at the first attempt")
	}
	if len(q.Sagas) > 0 {
		q.Unknown = append(q.Unknown, "when each step of the saga ended")
	}
}

// rowless returns why there is no row in the outbox.
func (q *question) rowless() string {
	for _, seq := range q.seqs {
		if seq > 0 && seq <= q.pruned {
			return fmt.Sprintf("its row in the outbox, seq %d: it was pruned", seq)
		}
	}
	return "its row in the outbox: it was pruned, or this database did not write it (" + q.looked(q.ID) + ")"
}

// traceOf returns the trace id of a traceparent; "" if there is none.
func traceOf(traceparent string) string {
	if parts := strings.Split(traceparent, "-"); len(parts) == 4 && len(parts[1]) == 32 {
		return parts[1]
	}
	return ""
}
