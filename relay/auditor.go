package relay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/relay/audit"
	"github.com/pgjet/pgjet/relay/backlog"
	"github.com/pgjet/pgjet/relay/protocol"
)

// DefaultAuditRate is how many events a second the background audit compares with the
// stream.
const DefaultAuditRate = 500

const (
	// auditBytes is how much of the stream the background audit receives at a time: appends
	// use the same connection.
	auditBytes = 1 << 20
	// auditMost is how many messages it compares between two other looks at the outbox on its
	// connection, and auditSlice how long that takes at most.
	auditMost, auditSlice = 2000, 500 * time.Millisecond
	// auditStep is how many messages it compares at a time. After each step it pauses for
	// auditPause times as long: with more at once, or without a pause, events would wait.
	auditStep, auditPause = 100, 2
	// auditTime bounds one round of steps.
	auditTime = 5 * time.Second
	// auditLook is how often the audit checks whether the next pass is due.
	auditLook = 10 * time.Second
	// auditPasses is how many passes are kept.
	auditPasses = 10
	// auditListed is how many differences of a pass are kept.
	auditListed = 100
)

// auditRest is the pause between two passes.
var auditRest = time.Hour

// An Audited is a pass of the background audit.
type Audited struct {
	ID         int64      `json:"id"`
	BeganAt    time.Time  `json:"began_at"`
	EndedAt    *time.Time `json:"ended_at"`   // nil if it is under way
	StreamSeq  int64      `json:"stream_seq"` // the sequence up to which it has compared
	Compared   int64      `json:"compared"`
	Missing    int64      `json:"missing"`
	Extra      int64      `json:"extra"`
	Twice      int64      `json:"twice"`
	OutOfOrder int64      `json:"out_of_order"`
	Changed    int64      `json:"changed"`
}

// Differences returns how many differences a pass has found; 0 for a nil one.
func (a *Audited) Differences() (n int64) {
	for _, count := range a.kinds() {
		n += count
	}
	return n
}

// kinds returns the number of differences of each kind.
func (a *Audited) kinds() map[string]int64 {
	if a == nil {
		return nil
	}
	return map[string]int64{audit.Missing: a.Missing, audit.Extra: a.Extra, audit.Twice: a.Twice, audit.OutOfOrder: a.OutOfOrder, audit.Changed: a.Changed}
}

const auditedColumns = `id, began_at, ended_at, stream_seq, compared, missing, extra, twice, out_of_order, changed from pgjet.audit`

func (a *Audited) fields() []any {
	return []any{&a.ID, &a.BeganAt, &a.EndedAt, &a.StreamSeq, &a.Compared, &a.Missing, &a.Extra, &a.Twice, &a.OutOfOrder, &a.Changed}
}

// queueAudited queues the statements that fill in Audit and Auditing.
func (s *Status) queueAudited(b *pgx.Batch) {
	b.Queue(`select `+auditedColumns+` where stream = $1 and ended_at is not null order by id desc limit 1`, s.Stream).Query(optional(&s.Audit, (*Audited).fields))
	b.Queue(`select * from (select `+auditedColumns+` where stream = $1 order by id desc limit 1) a where ended_at is null`, s.Stream).Query(optional(&s.Auditing, (*Audited).fields))
}

// AuditDifferences returns the first differences that a pass found, at most a hundred.
func AuditDifferences(ctx context.Context, db beginner, id int64) ([]audit.Difference, error) {
	all, err := collect(ctx, db, pgx.RowTo[[]byte], `select differences from pgjet.audit where id = $1`, id)
	if err != nil || len(all) == 0 {
		return []audit.Difference{}, err
	}
	found := []audit.Difference{}
	if json.Unmarshal(all[0], &found) != nil || found == nil {
		found = []audit.Difference{} // written by another version
	}
	return found, nil
}

// An auditor compares outbox and stream while its relay publishes, a little at a time, and
// keeps its place in the database.
type auditor struct {
	epoch  int64 // of the session in which the fields below were read
	known  bool  // whether pass is the one to continue
	pass   Audited
	place  audit.Checkpoint
	made   time.Time // when the stream was made
	until  int64     // where the pass ends: what was published when it began
	walk   *audit.Walk
	found  []audit.Difference // in this walk
	after  time.Time          // when the next step may be taken
	last   time.Time          // when the last step was taken
	logged string             // what was last logged
}

// compare takes some steps of the background audit, if this relay publishes, and returns
// how long they took.
func (w *watch) compare(parent context.Context, conn *pgx.Conn) time.Duration {
	a, l, now := &w.audit, w.link.Load(), time.Now()
	if epoch := w.epoch.Load(); l == nil || epoch != a.epoch {
		*a = auditor{epoch: epoch, last: now, logged: a.logged}
	}
	if l == nil || w.AuditRate < 0 || now.Before(a.after) {
		return 0
	}
	ctx, cancel := context.WithTimeout(parent, auditTime)
	defer cancel()
	most := min(auditMost, max(1, int(float64(w.AuditRate)*now.Sub(a.last).Seconds())))
	a.last = now
	err := a.steps(ctx, audit.Sides{DB: conn, JS: l.js, Stream: w.Stream}, most)
	if errors.Is(err, audit.ErrChanged) || err != nil && (w.link.Load() != l || parent.Err() != nil) { // the session is over, or about to be
		*a, err = auditor{epoch: a.epoch, last: now, logged: a.logged}, nil
	}
	said := ""
	if err != nil {
		said = err.Error()
		*a = auditor{epoch: a.epoch, last: now, logged: a.logged, after: now.Add(time.Minute)}
	}
	if said != a.logged && said != "" {
		w.Log.WarnContext(ctx, "cannot compare outbox and stream in the background, will keep trying", "err", err)
	}
	a.logged = said
	return time.Since(now)
}

// steps takes steps until most messages were compared, or auditSlice is over.
func (a *auditor) steps(ctx context.Context, sides audit.Sides, most int) error {
	for begun := time.Now(); most > 0 && time.Since(begun) < auditSlice; {
		step := time.Now()
		n, err := a.step(ctx, sides, most)
		if err != nil || !a.known {
			return err
		}
		most -= n
		sleep(ctx, auditPause*time.Since(step))
	}
	return nil
}

// step continues the pass, or begins one if it is time, and returns how many messages it
// compared.
func (a *auditor) step(ctx context.Context, sides audit.Sides, most int) (n int, err error) {
	if !a.known {
		if err := a.load(ctx, sides); err != nil || !a.known {
			return 0, err
		}
	}
	if a.walk == nil {
		if a.place.Seq < uint64(a.until) {
			a.walk, err = sides.Next(ctx, a.made, a.place, most)
			if errors.Is(err, audit.ErrChanged) { // its findings are about another stream
				_, failed := sides.DB.Exec(ctx, `with `+leading+` delete from pgjet.audit a using lead where a.id = @id`,
					pgx.NamedArgs{"stream": sides.Stream, "epoch": a.epoch, "id": a.pass.ID})
				return 0, errors.Join(failed, err)
			}
		}
		if err != nil {
			return 0, err
		}
		if a.walk == nil {
			a.known = false
			return 0, a.save(ctx, sides, true)
		}
	}
	before := a.walk.Messages()
	more, err := a.walk.Step(ctx, min(most, auditStep), auditBytes)
	n = a.walk.Messages() - before
	if err != nil || more {
		return n, err
	}
	a.add(a.walk)
	a.walk = nil
	return n, a.save(ctx, sides, false)
}

// load finds the unfinished pass, or begins one if the last one is old enough or events
// were published again since. If there is nothing to do, known stays false.
func (a *auditor) load(ctx context.Context, sides audit.Sides) error {
	var due bool
	var published time.Time // when the stream with the newest checkpoint was made
	var id *uuid.UUID
	var snapshot string
	err := sides.DB.QueryRow(ctx, `
		with last as (select * from pgjet.audit where stream = $1 order by id desc limit 1)
		select coalesce(last.id, 0), last.ended_at is not null and (last.ended_at < clock_timestamp() - $2::interval
		           or exists (select from pgjet.operation where kind = 'republish' and target = $1 and state in ('running', 'done') and at > last.began_at
		                         and not exists (select from pgjet.quarantine where state = 'retry' and stream = $1))) or last.id is null or last.stream_created <> c.stream_created,
		       last.ended_at, coalesce(last.stream_created, c.stream_created), c.stream_created, coalesce(last.stream_seq, 0), last.event_id, coalesce(last.snapshot::text, '1:1:'), coalesce(last.floor, 0), coalesce(last.events, 0),
		       coalesce(last.compared, 0), coalesce(last.missing, 0), coalesce(last.extra, 0), coalesce(last.twice, 0), coalesce(last.out_of_order, 0), coalesce(last.changed, 0), c.stream_seq
		  from (select stream_created, stream_seq from pgjet.checkpoint
		         where stream = $1 and system_identifier = (select system_identifier from pg_control_system()) order by id desc limit 1) c
		  left join last on true`, sides.Stream, auditRest).
		Scan(&a.pass.ID, &due, &a.pass.EndedAt, &a.made, &published, &a.pass.StreamSeq, &id, &snapshot, &a.place.Position.Floor, &a.place.Events,
			&a.pass.Compared, &a.pass.Missing, &a.pass.Extra, &a.pass.Twice, &a.pass.OutOfOrder, &a.pass.Changed, &a.until)
	switch {
	case errors.Is(err, pgx.ErrNoRows): // nothing was published
		return nil
	case err != nil:
		return fmt.Errorf("look up the pass of the audit: %w", err)
	case a.pass.EndedAt == nil && a.pass.ID != 0: // under way
		a.place.Seq = uint64(a.pass.StreamSeq)
		if id != nil {
			a.place.ID = *id
		}
		a.place.Position.Snapshot, err = backlog.ParseSnapshot(snapshot)
		a.known = err == nil
		return err
	case !due:
		a.after = time.Now().Add(min(auditLook, auditRest))
		return nil
	}
	a.pass, a.place = Audited{}, audit.Checkpoint{}
	if a.made, err = sides.Created(ctx); err != nil {
		return err
	}
	a.known = a.made.Equal(published) // else nothing was published there yet
	return nil
}

// add adds the findings of a walk to the pass.
func (a *auditor) add(w *audit.Walk) {
	r, p := w.Result, &a.pass
	p.Compared += r.Compared
	p.Missing += r.Missing
	p.Extra += r.Extra
	p.Twice += r.Twice
	p.OutOfOrder += r.OutOfOrder
	p.Changed += r.Changed
	a.place, a.found = w.To(), w.Differences
	p.StreamSeq = int64(a.place.Seq)
}

// save records the pass, if this relay still leads.
func (a *auditor) save(ctx context.Context, sides audit.Sides, ended bool) error {
	var id *uuid.UUID
	if a.place.ID != uuid.Nil {
		id = &a.place.ID
	}
	found, err := json.Marshal(a.found[:min(len(a.found), auditListed)])
	if err != nil || len(a.found) == 0 {
		found = []byte("[]")
	}
	a.found = nil
	p := a.pass
	err = sides.DB.QueryRow(ctx, `
		with `+leading+`, new as (
			insert into pgjet.audit (stream, stream_created, system_identifier, stream_seq, event_id, snapshot, floor, events,
			       compared, missing, extra, twice, out_of_order, changed, differences, ended_at)
			select @stream, @created, (select system_identifier from pg_control_system()), @seq, @id, @snapshot::pg_snapshot, @floor, @events, @compared, @missing, @extra, @twice, @out_of_order, @changed, @differences::jsonb,
			       case when @ended then clock_timestamp() end
			  from lead where @pass = 0 returning id
		), old as (
			update pgjet.audit a set stream_seq = @seq, event_id = @id, snapshot = @snapshot::pg_snapshot, floor = @floor, events = @events, compared = @compared, missing = @missing,
			       extra = @extra, twice = @twice, out_of_order = @out_of_order, changed = @changed, ended_at = case when @ended then clock_timestamp() end,
			       differences = case when jsonb_array_length(differences) < @most then differences || @differences::jsonb else differences end
			  from lead where a.id = @pass returning a.id
		), gone as (
			delete from pgjet.audit a using lead where a.stream = @stream and a.id <= (
				select id from pgjet.audit where stream = @stream order by id desc offset @keep limit 1)
		)
		select id from new union all select id from old`,
		pgx.NamedArgs{
			"stream": sides.Stream, "epoch": a.epoch, "pass": p.ID, "created": a.made, "seq": p.StreamSeq, "id": id,
			"snapshot": a.place.Position.Snapshot.String(), "floor": a.place.Position.Floor, "events": a.place.Events,
			"compared": p.Compared, "missing": p.Missing, "extra": p.Extra, "twice": p.Twice, "out_of_order": p.OutOfOrder, "changed": p.Changed,
			"differences": string(found), "ended": ended, "most": auditListed, "keep": auditPasses,
		}).Scan(&a.pass.ID)
	if errors.Is(err, pgx.ErrNoRows) {
		return protocol.ErrFenced
	}
	if err != nil {
		return fmt.Errorf("save the pass of the audit: %w", err)
	}
	return nil
}
