package relay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/outbox"
)

// checkpointsKept is how many checkpoints of a stream are kept.
const checkpointsKept = 32

var errFenced = errors.New("fenced: another relay took the lead")

// lead connects to the database and waits until this is the only relay of the
// stream. The lock lives and dies with the connection, so a crash hands over at
// once.
func (s *term) lead(ctx context.Context) error {
	if err := s.openDatabase(ctx); err != nil {
		return fmt.Errorf("database_unreachable: %w", err)
	}
	const key = `hashtextextended('pgjet.relay.' || $1, 0)`
	locked := false
	if err := s.db.QueryRow(ctx, `select pg_try_advisory_lock(`+key+`)`, s.Stream).Scan(&locked); err != nil {
		return fmt.Errorf("take the lead: %w", err)
	}
	if !locked {
		if s.keeper.Waiting(errStandby) {
			s.Log.InfoContext(ctx, "another relay leads, standing by")
		}
		if _, err := s.db.Exec(ctx, `select pg_advisory_lock(`+key+`)`, s.Stream); err != nil {
			return fmt.Errorf("take the lead: %w", err)
		}
	}
	err := s.db.QueryRow(ctx, `
		insert into pgjet.leader as l (stream, epoch) values ($1, 1)
		on conflict (stream) do update set epoch = l.epoch + 1
		returning epoch`, s.Stream).Scan(&s.epoch)
	if err != nil {
		return fmt.Errorf("take the lead: %w", err)
	}
	// From here on a lost write costs a longer resync, nothing else.
	_, err = s.db.Exec(ctx, `set synchronous_commit = off`)
	return err
}

func (s *term) openDatabase(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	config := s.Database.Copy()
	config.RuntimeParams["application_name"] = "pgjet-relay"
	var err error
	if s.db, err = pgx.ConnectConfig(ctx, config); err != nil {
		return err
	}
	// A standby blocks in the lock: let the server notice by itself when it died.
	// Not every system that PostgreSQL runs on can; there, TCP has to.
	_, err = s.db.Exec(ctx, `set client_connection_check_interval = '5s'`)
	if _, refused := errors.AsType[*pgconn.PgError](err); refused {
		return nil
	}
	return err
}

// A checkpoint is a proven pair: the stream, at or before seq, holds every event
// up to position.
type checkpoint struct {
	seq      uint64
	id       *uuid.UUID // the event stored at seq; nil if there was none
	position outbox.Position
}

// resync finds out what the stream holds: the newest checkpoint that it confirms,
// and the ids behind it. Without any the whole outbox is compared by id.
func (s *term) resync(ctx context.Context) error {
	info := s.stream.CachedInfo()
	// PostgreSQL keeps microseconds.
	s.created, s.last = info.Created.Truncate(time.Microsecond), info.State.LastSeq
	from, err := s.confirmed(ctx, info.State)
	if err != nil {
		return fmt.Errorf("resync: %w", err)
	}
	s.position = from.position
	if from.id != nil {
		s.lastID = *from.id
	}
	if err := s.readStored(ctx, from.seq+1, info.State); err != nil {
		return fmt.Errorf("resync: %w", err)
	}
	return nil
}

// confirmed returns the newest checkpoint that agrees with the stream: written for
// this incarnation of it, not past its end, and the message there is the one that
// the checkpoint names, or has aged out.
func (s *term) confirmed(ctx context.Context, state jetstream.StreamState) (checkpoint, error) {
	rows, err := s.db.Query(ctx, `
		select stream_seq, event_id, snapshot::text, floor
		  from pgjet.checkpoint
		 where stream = $1 and stream_created = $2 and stream_seq <= $3
		 order by id desc`, s.Stream, s.created, int64(state.LastSeq))
	if err != nil {
		return checkpoint{}, err
	}
	all, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (c checkpoint, err error) {
		var seq int64
		var snapshot string
		if err = r.Scan(&seq, &c.id, &snapshot, &c.position.Floor); err != nil {
			return c, err
		}
		c.seq = uint64(seq)
		c.position.Snapshot, err = outbox.ParseSnapshot(snapshot)
		return c, err
	})
	if err != nil {
		return checkpoint{}, err
	}
	for _, c := range all {
		ok, err := s.confirms(ctx, state, c)
		if err != nil || ok {
			return c, err
		}
	}
	return checkpoint{}, nil
}

func (s *term) confirms(ctx context.Context, state jetstream.StreamState, c checkpoint) (bool, error) {
	if c.id == nil || c.seq < state.FirstSeq {
		return true, nil
	}
	msg, err := s.stream.GetMsg(ctx, c.seq)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return msg.Header.Get("ce-id") == c.id.String(), nil
}

// readStored reads the ids of all messages from seq to the end, headers only.
func (s *term) readStored(ctx context.Context, seq uint64, state jetstream.StreamState) error {
	s.stored = make(map[uuid.UUID]struct{})
	if seq = max(seq, state.FirstSeq); seq > state.LastSeq || state.Msgs == 0 {
		return nil
	}
	consumer, err := s.stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: seq, HeadersOnly: true,
	})
	if err != nil {
		return err
	}
	messages, err := consumer.Messages()
	if err != nil {
		return err
	}
	defer messages.Stop()
	for seq <= state.LastSeq {
		msg, err := messages.Next(jetstream.NextMaxWait(ackTimeout))
		if err != nil {
			return fmt.Errorf("read stream from sequence %d: %w", seq, err)
		}
		meta, err := msg.Metadata()
		if err != nil {
			return err
		}
		e, err := events.FromMessage(msg.Headers(), nil)
		if err != nil {
			s.Log.WarnContext(ctx, "the stream holds a message that is no event of ours", "stream_seq", meta.Sequence.Stream, "err", err)
		} else {
			s.stored[e.ID] = struct{}{}
		}
		s.lastID = e.ID
		seq = meta.Sequence.Stream + 1
	}
	return nil
}

// save writes a checkpoint if the position has moved. It fails if another relay
// leads by now. While the stream is known to hold events beyond the position there
// is none to write: who resumed behind them would publish them again.
func (s *term) save(ctx context.Context) error {
	if !s.dirty || len(s.stored) > 0 {
		return nil
	}
	var id *uuid.UUID
	if s.lastID != uuid.Nil {
		id = &s.lastID
	}
	p := s.position
	tag, err := s.db.Exec(ctx, `
		with saved as (
			insert into pgjet.checkpoint (stream, stream_created, stream_seq, event_id, snapshot, floor, epoch)
			select $1, $2, $3, $4, $5::pg_snapshot, $6, epoch from pgjet.leader where stream = $1 and epoch = $7
			returning id
		), pruned as (
			delete from pgjet.checkpoint c using saved where c.stream = $1 and c.id <= saved.id - $8::bigint
		)
		select from saved`,
		s.Stream, s.created, int64(s.last), id, p.Snapshot.String(), p.Floor, s.epoch, checkpointsKept)
	if err != nil {
		return fmt.Errorf("save checkpoint: %w", err)
	}
	if tag.RowsAffected() == 0 {
		return fmt.Errorf("save checkpoint: %w", errFenced)
	}
	s.saved, s.dirty = time.Now(), false
	return nil
}

// quarantine sets aside an event that no stream would take, so that the others
// flow. The row stays in the outbox.
func (s *term) quarantine(ctx context.Context, e events.Event, reason error) error {
	s.Log.ErrorContext(ctx, "event can never be published, set aside in pgjet.quarantine",
		"event_id", e.ID, "outbox_seq", e.Seq, "err", reason)
	_, err := s.db.Exec(ctx, `
		insert into pgjet.quarantine (seq, event_id, reason) values ($1, $2, $3) on conflict do nothing`,
		e.Seq, e.ID, reason.Error())
	if err != nil {
		return fmt.Errorf("quarantine event %s: %w", e.ID, err)
	}
	return nil
}
