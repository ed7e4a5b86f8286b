// Package status shows how consumers are doing and why, for operators. It asks the database
// and JetStream, never the processes themselves, so it answers when none runs. Package
// inbox pauses and resumes consumers; [Drain] waits until a paused one is at rest.
package status

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/saga"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

// silence is how long a living process may not be seen. A time as far in the future is not
// believed: no process has written it.
const silence = 15 * time.Second

// A Status is how one consumer is doing. If its stream or durable consumer is missing, or belongs
// to another database, Why says so, and the account is empty except for Retrying.
type Status struct {
	Name string `json:"name"`
	consumers.Account
	DeadLetters   int64          `json:"dead_letters"`    // that wait for a decision
	MaxAckPending int            `json:"max_ack_pending"` // the limit of AckPending
	Rate          float64        `json:"rate"`            // events handled each second, now
	Arrivals      float64        `json:"arrivals"`        // events per second that the stream gets for it, now
	OldestSeconds float64        `json:"oldest_seconds"`  // age of the oldest event that is not handled; 0 if there is none
	Stream        string         `json:"stream"`
	Prefix        string         `json:"prefix"`  // the beginning of the subjects of its events; "" if JetStream does not answer
	Ordered       bool           `json:"ordered"` // one process at a time handles the events of a slice
	Effects       bool           `json:"effects"` // it has effects outside the database
	Slices        []Slice        `json:"slices"`  // of an ordered consumer, with their owners
	Paused        *inbox.Paused  `json:"paused"`  // nil if not
	Processes     []Process      `json:"processes"`
	Last          *Process       `json:"last_process"` // the last one seen, if none is seen now
	Sagas         []saga.Waiting `json:"sagas"`        // that it begins, and that are stuck
	Why           Why            `json:"why"`          // the worst reason
	Also          []Why          `json:"also"`         // other reasons
	Unasked       bool           `json:"unasked"`      // JetStream was not asked: Lag, Rate and the like are unknown

	identity inbox.Identity // of the database
	of       int            // number of slices
	durable  string         // the last one looked at
	lacks    string         // the code for what is missing in JetStream, or belongs to another database
	absent   string         // details: the missing stream and those that exist, or the owner of the durable consumer
	filters  []string       // of the durable consumer
	frozen   bool           // paused in JetStream, not by pgjet
	growth   int64          // of Lag, between two looks
}

// A Slice is a fixed share of the keys of an ordered consumer.
type Slice struct {
	consumers.SliceAccount
	Process string     `json:"process"` // host:pid of the owner; "" if the slice has none
	Since   *time.Time `json:"since"`   // when it took the slice
	Why     Why        `json:"why"`
}

// A Process runs a consumer. Processes that stand by for an ordered one are not included.
type Process struct {
	Process  string    `json:"process"` // host:pid
	Since    time.Time `json:"since"`
	SeenAt   time.Time `json:"seen_at"`
	Workers  int       `json:"workers"`
	Cause    string    `json:"cause"`    // why it handles nothing; "" while it does
	Attempts int       `json:"attempts"` // the number of its last attempts, of some minutes; the following fields describe them
	Failed   int       `json:"failed"`
	Seconds  float64   `json:"seconds"` // the median
	Error    string    `json:"error"`   // the last one
}

// A database is a connection or a pool.
type database interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// List returns the status of every consumer that has ever run, by name. It looks twice, half a
// second apart. It changes nothing and needs SELECT on the tables.
func List(ctx context.Context, db database, js jetstream.JetStream) ([]Status, error) {
	all, err := load(ctx, db)
	if err != nil {
		return nil, sqlstate.Wrap("read the status of consumers", err)
	}
	return all, lookTwice(ctx, db, js, all)
}

// Get is [List] for one consumer. It returns an [inbox.UnknownError] if there is none.
func Get(ctx context.Context, db database, js jetstream.JetStream, name string) (Status, error) {
	all, err := load(ctx, db)
	if err != nil {
		return Status{}, sqlstate.Wrap("read the status of consumer "+name, err)
	}
	i := slices.IndexFunc(all, func(s Status) bool { return s.Name == name })
	if i < 0 {
		return Status{}, unknown(name, all)
	}
	one := all[i : i+1]
	err = lookTwice(ctx, db, js, one)
	return one[0], err
}

func unknown(name string, all []Status) error {
	e := &inbox.UnknownError{Name: name}
	for _, s := range all {
		e.Known = append(e.Known, s.Name)
	}
	return e
}

// load reads the part of the status that is in the database.
func load(ctx context.Context, db database) ([]Status, error) {
	rows, err := db.Query(ctx, `
		select c.name, c.stream, c.ordered, c.effects, c.slices,
		       `+inbox.PausedColumns+`, clock_timestamp(),
		       (select count(*) from pgjet.dead_letter d where d.consumer = c.name and d.state = 'dead'),
		       i.waiting, i.oldest
		  from pgjet.consumer c, lateral (
			select count(*) as waiting, coalesce(extract(epoch from clock_timestamp() - min(since)), 0)::float8 as oldest
			  from pgjet.intent where consumer = c.name) i
		 order by c.name`)
	if err != nil {
		return nil, err
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (s Status, err error) {
		var at *time.Time
		var by, reason string
		var interrupted bool
		err = row.Scan(&s.Name, &s.Stream, &s.Ordered, &s.Effects, &s.of,
			&at, &by, &reason, &interrupted, &s.At, &s.DeadLetters, &s.Retrying, &s.OldestSeconds)
		s.Paused = inbox.ScanPaused(at, by, reason, interrupted)
		s.At, s.Processes = s.At.UTC(), []Process{}
		return s, err
	})
	if err != nil {
		return nil, err
	}
	sagas, err := saga.FindWaiting(ctx, db)
	if err != nil {
		return nil, err
	}
	for i := range all {
		if err := all[i].loadProcesses(ctx, db); err != nil {
			return nil, err
		}
		if err := all[i].loadSlices(ctx, db); err != nil {
			return nil, err
		}
		all[i].Sagas = slices.DeleteFunc(slices.Clone(sagas), func(w saga.Waiting) bool { return w.Name != all[i].Name })
	}
	return all, nil
}

func (s *Status) loadProcesses(ctx context.Context, db database) error {
	rows, err := db.Query(ctx, `
		select process, since, seen_at, workers, coalesce(cause, ''), attempts, failed, extract(epoch from took)::float8, coalesce(error, '')
		  from pgjet.process where consumer = $1 order by seen_at desc, process`, s.Name)
	if err != nil {
		return err
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Process])
	for _, p := range all {
		p.Since, p.SeenAt = p.Since.UTC(), p.SeenAt.UTC()
		if !strings.HasPrefix(p.Cause, "paused ") { // by user@host: the status names the pause anyway
			p.Cause = inbox.Mask(p.Cause)
		}
		p.Error = inbox.Mask(p.Error)
		switch {
		case p.SeenAt.Sub(s.At) >= silence:
		case s.At.Sub(p.SeenAt) < silence:
			s.Processes = append(s.Processes, p)
		case s.Last == nil && len(s.Processes) == 0:
			s.Last = &p
		}
	}
	return err
}

// loadSlices reads the owners of the slices.
func (s *Status) loadSlices(ctx context.Context, db database) error {
	s.Slices = []Slice{}
	if !s.Ordered {
		return nil
	}
	owners, err := inbox.Owners(ctx, db, s.Name)
	for _, o := range owners {
		s.Slices = append(s.Slices, Slice{SliceAccount: consumers.SliceAccount{Slice: o.Slice}, Process: o.Process, Since: o.Since})
	}
	return err
}

// Known is [List] without JetStream. Waiting events of the stream are unknown, so no status has a
// Lag, a Rate or Unaccounted. Each is Unasked, and the reason of one that seems healthy is unknown.
func Known(ctx context.Context, db database) ([]Status, error) {
	all, err := load(ctx, db)
	if err != nil {
		return nil, sqlstate.Wrap("read the status of consumers", err)
	}
	for i := range all {
		all[i].Unasked = true
		all[i].judge()
	}
	return all, nil
}
