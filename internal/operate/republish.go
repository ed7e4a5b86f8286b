package operate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/operation"
	"github.com/pgjet/pgjet/internal/sqlstate"
	"github.com/pgjet/pgjet/relay"
	"github.com/pgjet/pgjet/relay/audit"
)

// republishKind is the kind of operations that republish events.
const republishKind = "republish"

// MostRepublished is the most events that one operation republishes.
const MostRepublished = 10_000

// A Lacking selects events of the outbox that match all of these conditions.
type Lacking struct {
	IDs    []uuid.UUID `json:"ids,omitempty"`   // none: any
	From   int64       `json:"from,omitempty"`  // seq in the outbox
	To     int64       `json:"to,omitempty"`    // 0: no end
	Since  *time.Time  `json:"since,omitempty"` // published since then
	By     string      `json:"-"`               // who plans
	Reason string      `json:"-"`
}

// A Republication is a plan to republish events that the stream lacks. Its selection is frozen.
type Republication struct {
	Operation   int64      `json:"operation"` // id of the operation to run; 0 if the stream lacks none of the selected events
	Stream      string     `json:"stream"`
	Epoch       int64      `json:"epoch"` // of the relay that led
	Seqs        []int64    `json:"seqs"`  // of the lacking events in the outbox, in the order of their publication
	More        int64      `json:"more"`  // lacking events that need another plan
	Held        int64      `json:"held"`  // named events that are not lacking: they are in the stream, pending, or in quarantine
	Unknown     int        `json:"unknown"`
	Behind      int        `json:"behind"` // number of Seqs after which a later event of their key was published: they will follow it
	Keys        int        `json:"keys"`   // of those
	Consumers   []Forecast `json:"consumers"`
	Quarantined int64      `json:"quarantined"`
}

// A Forecast says how many of some events a consumer has handled, and will skip.
type Forecast struct {
	Consumer string `json:"consumer"`
	Done     int    `json:"done"`
}

// PlanRepublish finds the selected events that the Source's stream lacks, as [Source.Audit] does,
// and records a plan that can be run until another relay takes the lead. If there are none, it
// records nothing.
func (s Source) PlanRepublish(ctx context.Context, which Lacking, progress func(done, total int64)) (Republication, error) {
	p := Republication{Stream: s.Stream, Seqs: []int64{}, Consumers: []Forecast{}}
	if err := errors.Join(s.DBErr, s.NATSErr); err != nil {
		return p, err
	}
	err := s.DB.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		named, err := p.named(ctx, conn.Conn(), which)
		if err == nil {
			err = p.find(ctx, conn.Conn(), s, which, named, progress)
		}
		if err == nil && len(p.Seqs) > 0 {
			err = p.forecast(ctx, conn.Conn())
		}
		if err == nil && len(p.Seqs) > 0 {
			p.Operation, err = operation.Begin(ctx, conn, operation.Operation{Kind: republishKind, Target: s.Stream, By: which.By, Reason: which.Reason,
				Detail: map[string]any{"selection": which, "epoch": p.Epoch, "seqs": p.Seqs}}, operation.Planned, int64(len(p.Seqs)))
		}
		return err
	})
	if err != nil {
		return p, s.auditError(ctx, err)
	}
	return p, nil
}

// named returns the seqs of the named events, nil if none is named.
func (p *Republication) named(ctx context.Context, db *pgx.Conn, which Lacking) ([]int64, error) {
	if len(which.IDs) == 0 {
		return nil, nil
	}
	rows, err := db.Query(ctx, `select seq from pgjet.outbox where id = any($1) order by seq`, which.IDs)
	if err != nil {
		return nil, err
	}
	seqs, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	p.Unknown = len(which.IDs) - len(seqs)
	return append([]int64{}, seqs...), err
}

// find compares outbox and stream.
func (p *Republication) find(ctx context.Context, db *pgx.Conn, s Source, which Lacking, named []int64, progress func(done, total int64)) error {
	// First of all: events that are lacking while this relay leads will not be published by it any more.
	err := db.QueryRow(ctx, `select coalesce(max(epoch), 0) from pgjet.leader where stream = $1`, s.Stream).Scan(&p.Epoch)
	if err != nil {
		return err
	}
	since := time.Time{}
	if which.Since != nil {
		since = *which.Since
	}
	w, err := audit.Sides{DB: db, JS: s.JS, Stream: s.Stream}.Begin(ctx, since)
	if err != nil {
		return err
	}
	found := int64(0)
	w.Lacks = func(seq int64) {
		if seq < which.From || which.To > 0 && seq > which.To || named != nil && !slices.Contains(named, seq) {
			return
		}
		if found++; len(p.Seqs) < MostRepublished {
			p.Seqs = append(p.Seqs, seq)
		} else {
			p.More++
		}
	}
	if err := w.Run(ctx, progress); err != nil {
		return err
	}
	slices.Sort(p.Seqs)
	p.Held, p.Quarantined = max(0, int64(len(named))-found), w.Result.Quarantined
	return nil
}

// forecast sets the consequences of the plan.
func (p *Republication) forecast(ctx context.Context, db *pgx.Conn) error {
	err := db.QueryRow(ctx, `
		with m as materialized (select seq, key from pgjet.outbox where seq = any($1))
		select count(*), count(distinct key) from m where exists (select from pgjet.outbox o where o.key = m.key and o.seq > m.seq)`, p.Seqs).Scan(&p.Behind, &p.Keys)
	if err != nil {
		return fmt.Errorf("look for later events of their keys: %w", err)
	}
	rows, err := db.Query(ctx, `
		select c.name, count(i.event_id) from pgjet.consumer c
		  left join pgjet.inbox i on i.consumer = c.name and i.state = 'done' and i.event_id = any (array(select id from pgjet.outbox where seq = any($1)))
		 where c.stream = $2 group by c.name order by c.name limit 200`, p.Seqs, p.Stream)
	if err != nil {
		return err
	}
	p.Consumers, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Forecast])
	return err
}

// A StateError says that an operation is in the wrong state.
type StateError struct {
	ID    int64
	State string
	Want  string // which states would be right
}

func (e *StateError) Error() string {
	return fmt.Sprintf("operation %d is %s; %s", e.ID, e.State, e.Want)
}

// RunRepublish queues the events of a plan for the leading relay, in one transaction, and returns
// how many the outbox still has. A plan can be run once; otherwise the error is a [*StateError], or
// [relay.ErrLeadChanged] if another relay leads by now.
func RunRepublish(ctx context.Context, db *pgxpool.Pool, id int64, by, reason string) (n int, err error) {
	err = change(ctx, db, id, func(tx pgx.Tx, r operation.Record) error {
		if r.Kind != republishKind || r.State != operation.Planned {
			return &StateError{id, r.Kind + " " + r.State, "only a plan of pgjet republish plan can be run, and only once"}
		}
		var plan struct {
			Epoch int64   `json:"epoch"`
			Seqs  []int64 `json:"seqs"`
		}
		if err := json.Unmarshal(r.Detail, &plan); err != nil {
			return fmt.Errorf("read the plan: %w", err)
		}
		taken, err := relay.Republish(ctx, tx, id, r.Target, plan.Epoch, plan.Seqs)
		if err != nil {
			return err
		}
		n = len(taken)
		err = operation.Amend(ctx, tx, id, map[string]any{"seqs": append([]int64{}, taken...), "run_by": by, "run_reason": reason})
		if err == nil {
			err = operation.Advance(ctx, tx, id, operation.Running, 0, new(int64(n)))
		}
		return err
	})
	return n, err
}

// change calls fn with an operation, which it locks.
func change(ctx context.Context, db *pgxpool.Pool, id int64, fn func(tx pgx.Tx, r operation.Record) error) error {
	err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `select pg_advisory_xact_lock(hashtextextended('pgjet.operation.' || $1::bigint, 0))`, id); err != nil {
			return err
		}
		all, err := operation.List(ctx, tx, operation.Filter{ID: id, Most: 1})
		if err == nil && len(all) == 0 {
			err = &NotFoundError{fmt.Sprint("operation ", id), "see: pgjet op ls"}
		}
		if err != nil {
			return err
		}
		return fn(tx, all[0])
	})
	return sqlstate.Wrap(fmt.Sprint("change operation ", id), err)
}
