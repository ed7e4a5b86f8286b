package operate

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/saga"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

// A Key is everything known about the events of one aggregate.
type Key struct {
	Key       string        `json:"key"`
	Token     string        `json:"slice_token"` // in the subjects of its events
	Events    []Item        `json:"events"`      // of the newest rows of the outbox, the newest first
	Scheduled []Later       `json:"scheduled"`   // in the order in which they are due
	Consumers []KeyAt       `json:"consumers"`   // where some of its events wait or are dead, by name
	Sagas     []saga.Record `json:"sagas"`
	Held      []string      `json:"held"`    // what blocks it, in one sentence each, with the command to type
	Unknown   []string      `json:"unknown"` // what is unknown about it, and why

	dropped []int64 // seqs of Events that an operator dropped from quarantine
}

// A Later is a scheduled event.
type Later struct {
	ID   uuid.UUID `json:"id"`
	Type string    `json:"type"`
	Due  time.Time `json:"due"`
}

// A KeyAt is the state of a key's events at one consumer.
type KeyAt struct {
	Consumer string `json:"consumer"`
	Ordered  bool   `json:"ordered"` // one after the other
	Paused   bool   `json:"paused"`
	Waiting  []Item `json:"waiting"` // in the order of the stream, at most 100: each waits behind the earlier ones, if the consumer is ordered
	Dead     []Item `json:"dead"`    // in the order of the stream, at most 100
	More     bool   `json:"more"`    // others wait, or are dead
}

// mostOfKey is the most events of a key that are shown of each kind.
const mostOfKey = 100

// OfKey returns what blocks the events of a key, and what waits behind it. If nothing is known
// about the key, the error is a [*NotFoundError].
func (s Source) OfKey(ctx context.Context, key string) (Key, error) {
	if s.DB == nil {
		return Key{}, s.DBErr
	}
	k := &Key{Key: key, Token: token(key), Events: []Item{}, Scheduled: []Later{}, Consumers: []KeyAt{}, Sagas: []saga.Record{}, Held: []string{}, Unknown: []string{}}
	for _, ask := range []func(context.Context, Source) error{k.askOutbox, k.askScheduled, k.askConsumers, k.askSagas} {
		if err := ask(ctx, s); err != nil {
			return Key{}, sqlstate.Wrap("look for the events of a key", err)
		}
	}
	if len(k.Events)+len(k.Scheduled)+len(k.Consumers)+len(k.Sagas) == 0 {
		return Key{}, &NotFoundError{fmt.Sprintf("the key %q", Plain(key)),
			fmt.Sprintf("nothing of it is scheduled, waits for a consumer or is dead, nor is it in the newest %d rows of the outbox", s.looks())}
	}
	k.judge()
	return *k, nil
}

func (k *Key) askOutbox(ctx context.Context, s Source) error {
	p, err := s.List(ctx, Filter{Key: k.Key, Limit: mostOfKey})
	if err != nil {
		return err
	}
	k.Events = p.Events
	if p.Next != "" {
		k.Unknown = append(k.Unknown, fmt.Sprintf("older events of the key: see pgjet event ls --key %s --after %s", Word(k.Key), p.Next))
	}
	seqs := []int64{}
	for _, e := range k.Events {
		if e.State == Quarantined {
			seqs = append(seqs, e.Seq)
		}
	}
	k.dropped, err = collect(ctx, s.DB, pgx.RowTo[int64], `select seq from pgjet.quarantine where seq = any($1) and state = 'dropped'`, seqs)
	return err
}

func (k *Key) askScheduled(ctx context.Context, s Source) error {
	all, err := collect(ctx, s.DB, pgx.RowToStructByPos[Later], `select id, left(type, 200), due from pgjet.scheduled where key = $1 order by due, n limit $2`, k.Key, mostOfKey)
	for _, l := range all {
		l.Due = l.Due.UTC()
		k.Scheduled = append(k.Scheduled, l)
	}
	return err
}

func (k *Key) askConsumers(ctx context.Context, s Source) error {
	all, err := collect(ctx, s.DB, func(row pgx.CollectableRow) (c KeyAt, err error) {
		return c, row.Scan(&c.Consumer, &c.Ordered, &c.Paused)
	}, `select name, ordered, paused_at is not null from pgjet.consumer order by name`)
	if err != nil {
		return err
	}
	for _, c := range all {
		if c.Waiting, err = collect(ctx, s.DB, scanIntent, `
			select `+intentColumns+` from pgjet.intent where consumer = $1 and key = $2 order by generation, stream_seq limit $3`, c.Consumer, k.Key, mostOfKey+1); err != nil {
			return err
		}
		if c.Dead, err = collect(ctx, s.DB, scanLetter, `
			select `+letterColumns+` from pgjet.dead_letter where consumer = $1 and state = 'dead' and key = $2 order by generation, stream_seq limit $3`, c.Consumer, k.Key, mostOfKey+1); err != nil {
			return err
		}
		c.More = len(c.Waiting) > mostOfKey || len(c.Dead) > mostOfKey
		c.Waiting, c.Dead = append([]Item{}, c.Waiting[:min(len(c.Waiting), mostOfKey)]...), append([]Item{}, c.Dead[:min(len(c.Dead), mostOfKey)]...)
		if len(c.Waiting)+len(c.Dead) > 0 {
			k.Consumers = append(k.Consumers, c)
		}
	}
	return nil
}

func (k *Key) askSagas(ctx context.Context, s Source) error {
	names, err := collect(ctx, s.DB, pgx.RowTo[string], `select name from pgjet.consumer`)
	if err != nil || len(names) == 0 {
		return err
	}
	all, err := saga.Of(ctx, s.DB, names, k.Key)
	k.Sagas = append(k.Sagas, all...)
	return err
}

// judge sets what blocks the key.
func (k *Key) judge() {
	held := func(format string, args ...any) { k.Held = append(k.Held, Plain(fmt.Sprintf(format, args...))) }
	pending := 0
	for _, e := range k.Events {
		switch {
		case e.State == Pending:
			pending++
		case e.State == Quarantined && !slices.Contains(k.dropped, e.Seq):
			held("event %s is in quarantine -> pgjet relay quarantine ls", e.ID)
		}
	}
	switch {
	case pending == 1:
		held("one of its events is not published yet -> pgjet relay status")
	case pending > 1:
		held("%d of its events are not published yet -> pgjet relay status", pending)
	}
	for _, c := range k.Consumers {
		if text := c.held(); text != "" {
			held("%s", text)
		}
	}
	for _, x := range k.Sagas {
		if x.EndedAt == nil && x.Error != "" {
			held("saga %s waits: %s -> pgjet saga get %s", x.Name, inbox.Mask(x.Error), x.ID)
		}
	}
}

// held returns a text about what blocks the key at a consumer.
func (c KeyAt) held() string {
	at := c.Consumer + ": "
	if c.Paused {
		at += "it is paused; "
	}
	if len(c.Waiting) == 0 {
		return at + fmt.Sprintf("dead letter %d waits for a decision; later events may wait behind it -> pgjet dead get %d", c.Dead[0].Letter, c.Dead[0].Letter)
	}
	first := c.Waiting[0]
	behind := ""
	if n := len(c.Waiting) - 1; n > 0 && c.Ordered {
		behind = fmt.Sprintf("; %d wait behind it", n)
		if c.More {
			behind = fmt.Sprintf("; %d or more wait behind it", n)
		}
	}
	i := slices.IndexFunc(c.Dead, func(d Item) bool { return d.StreamAt < first.StreamAt })
	switch {
	case first.Behind && i >= 0:
		return at + fmt.Sprintf("dead letter %d, and %d wait behind it -> pgjet dead get %d", c.Dead[i].Letter, len(c.Waiting), c.Dead[i].Letter)
	case first.TakenBy != "":
		return at + fmt.Sprintf("an attempt at event %s is being made by %s%s -> pgjet event timeline %s", first.ID, first.TakenBy, behind, first.ID)
	}
	due := "soon"
	if first.DueAt != nil {
		due = "due at " + first.DueAt.Format(time.RFC3339)
	}
	return at + fmt.Sprintf("event %s waits for attempt %d, %s; the last error: %s%s -> pgjet retry %s", first.ID, first.Attempts+1, due,
		cmp.Or(first.Error, "none"), behind, first.ID)
}

// token returns the slice token in the subjects of the events of a key.
func token(key string) string {
	return fmt.Sprintf("%02x", events.Partition(events.Subject("any", key)))
}
