package relay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/rivals"
	"github.com/pgjet/pgjet/relay/backlog"
	"github.com/pgjet/pgjet/relay/protocol"
)

// checkpointsKept is how many of a stream's newest checkpoints are kept, besides one a
// minute.
const checkpointsKept = 32

// A database is one connection to PostgreSQL, which holds the lead: the
// [protocol.Database] of a session.
type database struct {
	*backlog.Reader
	conn   *pgx.Conn
	stream string
	epoch  int64
	here   rivals.Presence
	listen bool // before publishing: this may be a copy
}

// bounded returns ctx with a deadline for one query: a server that hangs ends the session.
func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, stepTime)
}

// Next implements [protocol.Database].
func (d *database) Next(ctx context.Context, from backlog.Position) (backlog.Window, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	w, err := d.Reader.Next(ctx, from)
	return w, blockedByDatabase(err)
}

// Late implements [protocol.Database].
func (d *database) Late(ctx context.Context, xids []uint64, low, high uint64, after, floor int64) ([]backlog.Record, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	page, err := d.Reader.Late(ctx, xids, low, high, after, floor)
	return page, blockedByDatabase(err)
}

// Find implements [protocol.Database].
func (d *database) Find(ctx context.Context, seqs []int64, fn func(backlog.Record)) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	return blockedByDatabase(d.Reader.Find(ctx, seqs, fn))
}

// Recall implements [protocol.Database].
func (d *database) Recall(ctx context.Context, created time.Time) (m protocol.Memory, err error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	b := &pgx.Batch{}
	b.Queue(`
		select id, stream_created, stream_seq, coalesce(event_id, $2), snapshot::text, floor, events
		  from pgjet.checkpoint
		 where stream = $1 and system_identifier = (select system_identifier from pg_control_system())
		 order by id desc`, d.stream, uuid.Nil).Query(func(rows pgx.Rows) error {
		m.Checkpoints, err = pgx.CollectRows(rows, scanCheckpoint)
		return err
	})
	b.Queue(`select heal_snapshot::text, heal_floor from pgjet.leader where stream = $1 and heal_floor is not null`, d.stream).
		Query(func(rows pgx.Rows) error {
			heal, err := pgx.CollectRows(rows, scanPosition)
			if len(heal) > 0 {
				m.Heal = &heal[0]
			}
			return err
		})
	b.Queue(`select seq from pgjet.quarantine where stream is null or stream = $1`, d.stream).Query(func(rows pgx.Rows) error {
		m.Quarantined, err = pgx.CollectRows(rows, pgx.RowTo[int64])
		return err
	})
	b.Queue(`select coalesce(max(stream_seq), 0) from pgjet.adoption where stream = $1 and stream_created = $2`, d.stream, created).
		QueryRow(func(row pgx.Row) error { return row.Scan(&m.Adopted) })
	b.Queue(`select seq, events from pgjet.pruned`).
		QueryRow(func(row pgx.Row) error { return row.Scan(&m.Pruned, &m.PrunedCount) })
	if err := d.conn.SendBatch(ctx, b).Close(); err != nil {
		return m, blockedByDatabase(fmt.Errorf("read checkpoints: %w", err))
	}
	return m, nil
}

func scanCheckpoint(row pgx.CollectableRow) (c protocol.Checkpoint, err error) {
	var seq int64
	var snapshot string
	if err = row.Scan(&c.Number, &c.Created, &seq, &c.ID, &snapshot, &c.Position.Floor, &c.Events); err != nil {
		return c, err
	}
	c.Seq = uint64(seq)
	c.Position.Snapshot, err = backlog.ParseSnapshot(snapshot)
	return c, err
}

func scanPosition(row pgx.CollectableRow) (p backlog.Position, err error) {
	var snapshot string
	if err = row.Scan(&snapshot, &p.Floor); err != nil {
		return p, err
	}
	p.Snapshot, err = backlog.ParseSnapshot(snapshot)
	return p, err
}

// leading is a part of a statement that has a row only while this session leads. Until the
// statement has ended, no other session can take the lead.
const leading = `lead as (select epoch from pgjet.leader where stream = @stream and epoch = @epoch for share)`

// guarded runs a statement that returns a row if this session leads.
func (d *database) guarded(ctx context.Context, tx interface {
	QueryRow(context.Context, string, ...any) pgx.Row
}, what, sql string, args pgx.NamedArgs) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	args["stream"], args["epoch"] = d.stream, d.epoch
	err := tx.QueryRow(ctx, `with `+leading+sql, args).Scan(new(int64))
	if errors.Is(err, pgx.ErrNoRows) {
		return protocol.ErrFenced
	}
	if err != nil {
		return blockedByDatabase(fmt.Errorf("%s: %w", what, err))
	}
	return nil
}

// Forget implements [protocol.Database]. It waits for the disk: a checkpoint that
// came back after a crash might seem confirmed.
func (d *database) Forget(ctx context.Context, number int64, heal *backlog.Position) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	var snapshot *string
	var floor *int64
	if heal != nil {
		snapshot, floor = new(heal.Snapshot.String()), &heal.Floor
	}
	tx, err := d.conn.BeginTx(ctx, waited)
	if err != nil {
		return blockedByDatabase(err)
	}
	defer tx.Rollback(ctx)
	err = d.guarded(ctx, tx, "forget checkpoints", `,
		forgotten as (
			delete from pgjet.checkpoint using lead
			 where stream = @stream and id > @id and system_identifier = (select system_identifier from pg_control_system())
		)
		update pgjet.leader l set heal_snapshot = @snapshot::pg_snapshot, heal_floor = @floor from lead where l.stream = @stream returning l.epoch`,
		pgx.NamedArgs{"id": number, "snapshot": snapshot, "floor": floor})
	if err != nil {
		return err
	}
	return blockedByDatabase(tx.Commit(ctx))
}

// Save implements [protocol.Database].
func (d *database) Save(ctx context.Context, c protocol.Checkpoint, healed bool) error {
	if err := d.check(ctx, c.Position.Snapshot); err != nil {
		return err
	}
	var id *uuid.UUID
	if c.ID != uuid.Nil {
		id = &c.ID
	}
	return d.guarded(ctx, d.conn, "save checkpoint", `,
		saved as (
			insert into pgjet.checkpoint (stream, system_identifier, stream_created, stream_seq, event_id, snapshot, floor, events, epoch, kept)
			select @stream, (select system_identifier from pg_control_system()), @created, @seq, @id, @snapshot::pg_snapshot, @floor, @events, epoch,
			       not exists (select from pgjet.checkpoint where stream = @stream and kept and at > clock_timestamp() - interval '1 minute')
			  from lead returning id
		), pruned as (
			delete from pgjet.checkpoint c using saved where c.stream = @stream and not c.kept and c.id <= saved.id - @keep::bigint
		), healed as (
			update pgjet.leader l set heal_snapshot = null, heal_floor = null from lead where @healed and l.stream = @stream
		)
		select id from saved`,
		pgx.NamedArgs{
			"created": c.Created, "seq": int64(c.Seq), "id": id, "snapshot": c.Position.Snapshot.String(), "floor": c.Position.Floor,
			"events": c.Events, "keep": checkpointsKept, "healed": healed,
		})
}

// check returns an error if an event visible in now was not read, because its seq is too
// low. The next session begins at the last checkpoint, which does not cover the event.
func (d *database) check(ctx context.Context, now backlog.Snapshot) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	return blockedByDatabase(d.Check(ctx, now))
}

// prune deletes checkpoints that are older than the retention of the outbox. It keeps the
// newest of them, which covers all events of that age.
func (d *database) prune(ctx context.Context, retention time.Duration) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	_, err := d.conn.Exec(ctx, `
		delete from pgjet.checkpoint where stream = $1 and kept and at < (
			select max(at) from pgjet.checkpoint where stream = $1 and at < clock_timestamp() - $2::interval)`,
		d.stream, retention)
	return blockedByDatabase(err)
}

// Quarantine implements [protocol.Database]. The row stays in the outbox.
func (d *database) Quarantine(ctx context.Context, r backlog.Record, reason error) error {
	return d.guarded(ctx, d.conn, fmt.Sprintf("quarantine event %s", r.Event.ID), `,
		noted as (
			insert into pgjet.quarantine as q (seq, event_id, reason) select @seq, @id, @reason from lead
			on conflict (seq) do update set reason = excluded.reason, at = excluded.at, state = 'held' where q.state = 'retry'
		)
		select epoch from lead`, pgx.NamedArgs{"seq": r.Event.Seq, "id": r.Event.ID, "reason": reason.Error()})
}

// Retries implements [protocol.Database].
func (d *database) Retries(ctx context.Context) ([]backlog.Record, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	rows, err := d.conn.Query(ctx, `
		select q.seq from pgjet.quarantine q
		 where q.state = 'retry' and (q.stream is null or q.stream = $1) and exists (select from pgjet.outbox o where o.seq = q.seq)
		 order by q.seq limit 100`, d.stream)
	if err != nil {
		return nil, blockedByDatabase(err)
	}
	seqs, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil || len(seqs) == 0 {
		return nil, blockedByDatabase(err)
	}
	records, err := d.Records(ctx, seqs)
	return records, blockedByDatabase(err)
}

// Release implements [protocol.Database].
func (d *database) Release(ctx context.Context, seqs []int64) error {
	return d.guarded(ctx, d.conn, "end quarantine", `,
		released as (delete from pgjet.quarantine using lead where seq = any(@seqs))
		select epoch from lead`, pgx.NamedArgs{"seqs": seqs})
}

// Report implements [protocol.Database].
func (d *database) Report(ctx context.Context, created time.Time, unknown []protocol.Message) error {
	seqs, ids, subjects := []int64{}, []*uuid.UUID{}, []string{}
	for _, m := range unknown {
		var id *uuid.UUID
		if m.ID != uuid.Nil {
			id = &m.ID
		}
		seqs, ids, subjects = append(seqs, int64(m.Sequence)), append(ids, id), append(subjects, m.Subject)
	}
	return d.guarded(ctx, d.conn, "report unknown messages", `,
		gone as (
			delete from pgjet.unknown_message using lead where stream = @stream and not (stream_created = @created and stream_seq = any(@seqs))
		), noted as (
			insert into pgjet.unknown_message (stream, stream_created, stream_seq, event_id, subject)
			select @stream, @created, u.seq, u.id, u.subject from lead, unnest(@seqs::bigint[], @ids::uuid[], @subjects::text[]) as u (seq, id, subject)
			on conflict (stream, stream_seq) do update set stream_created = excluded.stream_created, event_id = excluded.event_id, subject = excluded.subject
		)
		select epoch from lead`, pgx.NamedArgs{"created": created, "seqs": seqs, "ids": ids, "subjects": subjects})
}
