package audit

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/natsconn"
	"github.com/pgjet/pgjet/internal/seqset"
	"github.com/pgjet/pgjet/relay/backlog"
)

// The most messages in one batch, and rows in another.
const (
	batchMessages = 2000
	batchBytes    = 4 << 20
	batchRows     = 10_000
)

// listed is the number of differences that are kept; all are counted.
const listed = 1000

// A Walk compares one range of both sides, step by step. Its state is lost with the process.
type Walk struct {
	Sides
	Result      Result
	Differences []Difference    // the first 1000
	Lacks       func(seq int64) // called for each missing event, if it is not nil

	created  time.Time
	stream   jetstream.Stream
	reader   *backlog.Reader
	from, to Checkpoint
	adopted  uint64
	pruned   int64 // number of events ever pruned

	first, next, last uint64 // sequences of messages
	whole             bool   // last was the end of the stream
	after             int64  // rows up to this seq were checked
	late              bool   // rows that committed late were checked, too
	seen              seqset.Set
	earlier           int64 // number of messages of events that from covers
	highest           int64 // the highest seq of a message so far
	order             [1 << 16]latest
	seed              maphash.Seed
}

// A latest is the highest seq of the keys that share a slot, and its key.
type latest struct {
	seq int64
	key uint64
}

func (w *Walk) start(next uint64) {
	w.first, w.next, w.seed = next, next, maphash.MakeSeed()
	w.after = w.from.Position.Floor
}

// Created returns when the stream was created.
func (w *Walk) Created() time.Time { return w.created }

// To returns the checkpoint up to which w compares both sides.
func (w *Walk) To() Checkpoint { return w.to }

// Messages returns how many sequences of the stream were read.
func (w *Walk) Messages() int { return int(w.next - w.first) }

// Progress returns how many messages and rows were read, and about how many there are.
func (w *Walk) Progress() (done, total int64) {
	messages, rows := int64(w.last+1)-int64(w.first), w.to.Position.Floor-w.from.Position.Floor
	return int64(w.next) - int64(w.first) + w.after - w.from.Position.Floor, max(messages, 0) + max(rows, 0)
}

// Run runs all steps. It calls progress, which may be nil, after each.
func (w *Walk) Run(ctx context.Context, progress func(done, total int64)) error {
	for {
		more, err := w.Step(ctx, batchMessages, batchBytes)
		if err != nil || !more {
			return err
		}
		if progress != nil {
			progress(w.Progress())
		}
	}
}

// Step compares some messages or rows, and reports whether there are more. It receives at most that
// many messages and bytes, and the message that exceeds them.
func (w *Walk) Step(ctx context.Context, messages, bytes int) (more bool, err error) {
	switch {
	case w.next <= w.last:
		err = w.readMessages(ctx, messages, bytes)
	case w.after < w.to.Position.Floor || !w.late:
		err = w.readRows(ctx, min(batchRows, 5*messages))
	}
	if err != nil {
		return false, fmt.Errorf("compare the outbox with stream %s: %w", w.Stream, err)
	}
	more = w.next <= w.last || w.after < w.to.Position.Floor || !w.late
	if !more {
		w.Result.Before = max(0, w.from.Events-w.pruned-w.earlier)
	}
	return more, nil
}

// A message is a message of the stream.
type message struct {
	seq     uint64
	subject string
	raw     *nats.Msg
	event   events.Event
	err     error // why it is no event
}

func (w *Walk) readMessages(ctx context.Context, most, bytes int) error {
	var batch []message
	direct := natsconn.Direct{Conn: w.JS.Conn(), API: natsconn.API(w.JS), Stream: w.Stream}
	read, err := uint64(0), error(nil)
	if w.stream.CachedInfo().Config.AllowDirect {
		read, err = direct.Batch(ctx, w.next, w.last, most, bytes, func(seq uint64, subject string, m *nats.Msg) error {
			batch = append(batch, newMessage(seq, subject, m))
			return nil
		})
	} else {
		read, batch, err = w.readSingly(ctx, most/10+1)
	}
	if err == nil && read == 0 {
		read, err = w.last, w.complete(ctx)
	}
	if err == nil {
		err = w.compare(ctx, batch)
	}
	if err != nil {
		return err
	}
	w.next = min(read, w.last) + 1
	return nil
}

// readSingly reads messages one by one from the leader.
func (w *Walk) readSingly(ctx context.Context, most int) (read uint64, batch []message, err error) {
	for read = w.next; read <= w.last && len(batch) < most; read++ {
		raw, err := w.stream.GetMsg(ctx, read)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			return 0, nil, err
		}
		batch = append(batch, newMessage(read, raw.Subject, &nats.Msg{Header: raw.Header, Data: raw.Data}))
	}
	return read - 1, batch, nil
}

// complete returns an error if the replica that was read lacks messages.
func (w *Walk) complete(ctx context.Context) error {
	_, err := w.stream.GetMsg(ctx, w.last)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return nil
	case err == nil:
		return fmt.Errorf("a replica lags: it has nothing from sequence %d on, and the stream ends with %d; try again", w.next, w.last)
	}
	return err
}

func newMessage(seq uint64, subject string, raw *nats.Msg) message {
	m := message{seq: seq, subject: subject, raw: raw}
	m.event, m.err = events.FromMessage(raw.Header, raw.Data)
	return m
}

// differs counts a difference, and lists it.
func (w *Walk) differs(kind string, seq int64, streamSeq uint64, id uuid.UUID, text string) {
	w.Result.add(kind)
	if len(w.Differences) < listed {
		w.Differences = append(w.Differences, Difference{kind, seq, streamSeq, id, text})
	}
}

// compare looks up the rows of these messages, and compares them.
func (w *Walk) compare(ctx context.Context, batch []message) error {
	rows, err := w.rows(ctx, batch)
	if err != nil {
		return err
	}
	var unknown []message
	for _, m := range batch {
		r, known := rows[m.event.Seq]
		if !known || r.Event.ID != m.event.ID {
			unknown = append(unknown, m)
			continue
		}
		if err := w.compareOne(ctx, m, r); err != nil {
			return err
		}
	}
	return w.judgeUnknown(ctx, unknown)
}

// rows returns the rows of these messages by seq.
func (w *Walk) rows(ctx context.Context, batch []message) (map[int64]backlog.Record, error) {
	seqs := make([]int64, 0, len(batch))
	for _, m := range batch {
		if m.event.Seq > 0 {
			seqs = append(seqs, m.event.Seq)
		}
	}
	slices.Sort(seqs)
	rows := make(map[int64]backlog.Record, len(seqs))
	for len(seqs) > 0 {
		page, err := w.reader.Records(ctx, seqs)
		if err != nil {
			return nil, err
		}
		if len(page) == 0 {
			break
		}
		for _, r := range page {
			rows[r.Event.Seq] = r
		}
		last := page[len(page)-1].Event.Seq
		seqs = slices.DeleteFunc(seqs, func(seq int64) bool { return seq <= last })
	}
	return rows, nil
}

// judgeUnknown counts messages without a row in the outbox.
func (w *Walk) judgeUnknown(ctx context.Context, unknown []message) error {
	if len(unknown) == 0 {
		return nil
	}
	seqs := make([]int64, len(unknown))
	for i, m := range unknown {
		seqs[i] = m.event.Seq
	}
	gone := make(map[int64]bool)
	// Queried after the rows: a partition that is pruned meanwhile is gone now.
	rows, err := w.DB.Query(ctx, `
		select s from unnest($1::bigint[]) s
		 where s <= (select seq from pgjet.pruned) and not exists (select from pgjet.outbox_partition p where s >= p.low and s < p.high)`, seqs)
	if err != nil {
		return fmt.Errorf("look up what was pruned: %w", err)
	}
	var seq int64
	if _, err := pgx.ForEachRow(rows, []any{&seq}, func() error { gone[seq] = true; return nil }); err != nil {
		return fmt.Errorf("look up what was pruned: %w", err)
	}
	for _, m := range unknown {
		switch {
		case m.seq <= w.adopted:
			w.Result.Adopted++
		case m.err != nil && m.event.Seq == 0:
			w.differs(Extra, 0, m.seq, m.event.ID, "the message is no event of pgjet")
		case gone[m.event.Seq]:
			w.Result.Pruned++
		default:
			w.differs(Extra, m.event.Seq, m.seq, m.event.ID, "the outbox has no such event")
		}
	}
	return nil
}

// compareOne compares a message with its row.
func (w *Walk) compareOne(ctx context.Context, m message, r backlog.Record) error {
	w.Result.Compared++
	seq := r.Event.Seq
	if what := changes(m, r.Event); len(what) > 0 {
		w.differs(Changed, seq, m.seq, r.Event.ID, "not as in the outbox: "+strings.Join(what, ", "))
	}
	before := w.from.Position.Covers(r)
	if before {
		w.earlier++
	}
	switch {
	case w.seen.Has(seq):
		w.differs(Twice, seq, m.seq, r.Event.ID, "it stands in the stream before, too")
		return nil
	case before && m.seq > w.from.Seq:
		moved, err := w.moved(ctx, []int64{seq})
		if err != nil {
			return err
		}
		if len(moved) == 0 {
			w.differs(Twice, seq, m.seq, r.Event.ID, "it was published before, too")
			return nil
		}
	}
	w.seen.Add(seq)
	return w.checkOrder(ctx, m, r)
}

// changes returns which parts of a message differ from its row. Additional headers do not count,
// nor does the source, which is not in the row.
func changes(m message, row events.Event) (what []string) {
	if !strings.HasSuffix(m.subject, strings.TrimPrefix(events.Subject(row.Type, row.Key), events.Prefix)) {
		what = append(what, "subject")
	}
	expected := map[string]bool{"ce-source": true}
	for name, value := range row.Headers() {
		expected[name] = true
		have := m.raw.Header[name]
		missing := len(have) == 0 && name == "ce-datacontenttype" && row.ContentType == "" // older relays omitted it
		if name != "ce-source" && !missing && (len(have) != 1 || have[0] != value) {
			what = append(what, "header "+name)
		}
	}
	for name := range m.raw.Header {
		if own := strings.HasPrefix(name, "ce-") || strings.HasPrefix(name, "Pgjet-") || name == "traceparent"; own && !expected[name] {
			what = append(what, "header "+name)
		}
	}
	if string(m.raw.Data) != string(row.Data) {
		what = append(what, fmt.Sprintf("data of %d bytes, not %d", len(m.raw.Data), len(row.Data)))
	}
	slices.Sort(what)
	return what
}

// checkOrder records the position of an event among those of its key, and compares it.
func (w *Walk) checkOrder(ctx context.Context, m message, r backlog.Record) error {
	seq, key := r.Event.Seq, maphash.String(w.seed, r.Event.Key)
	slot := &w.order[key%uint64(len(w.order))]
	defer func() {
		if w.highest = max(w.highest, seq); seq >= slot.seq {
			*slot = latest{seq, key}
		}
	}()
	if seq > slot.seq {
		return nil
	}
	before := slot.seq
	if slot.key != key { // a later event of another key has the slot
		var err error
		if before, err = w.laterOfKey(ctx, r); err != nil || before == 0 {
			return err
		}
	}
	moved, err := w.moved(ctx, []int64{seq})
	if err != nil {
		return err
	}
	if len(moved) > 0 {
		w.Result.Moved++
		return nil
	}
	in, err := w.inOrder(ctx, r, before)
	switch {
	case err != nil:
		return err
	case in:
		w.differs(OutOfOrder, seq, m.seq, r.Event.ID, fmt.Sprintf("it stands behind seq %d of its key, which is later", before))
	default:
		w.Result.Overlapping++
	}
	return nil
}

// laterOfKey returns the seq of a later event of the same key that was read before r; 0 if there is
// none.
func (w *Walk) laterOfKey(ctx context.Context, r backlog.Record) (later int64, err error) {
	rows, err := w.DB.Query(ctx, `
		select seq from (select seq, key from pgjet.outbox where seq > $1 and seq <= $2 order by seq limit 100000) o where key = $3 order by seq limit 100`,
		r.Event.Seq, w.highest, r.Event.Key)
	if err != nil {
		return 0, err
	}
	var seq int64
	_, err = pgx.ForEachRow(rows, []any{&seq}, func() error {
		if later == 0 && w.seen.Has(seq) {
			later = seq
		}
		return nil
	})
	return later, err
}

// inOrder reports whether the event of r was certainly committed before that with the seq later.
func (w *Walk) inOrder(ctx context.Context, r backlog.Record, later int64) (yes bool, err error) {
	var other backlog.Record
	if err := w.reader.Find(ctx, []int64{later}, func(r backlog.Record) { other = r }); err != nil || other.Event.Seq == 0 {
		return false, err
	}
	if other.XID == r.XID {
		return true, nil
	}
	err = w.DB.QueryRow(ctx, `
		select exists (select from pgjet.checkpoint
		                where system_identifier = (select system_identifier from pg_control_system())
		                  and pg_visible_in_snapshot($1::xid8, snapshot) and not pg_visible_in_snapshot($2::xid8, snapshot))`, r.XID, other.XID).Scan(&yes)
	if err != nil {
		return false, fmt.Errorf("look up which of two events was committed first: %w", err)
	}
	return yes, nil
}

// moved returns those of these seqs whose events were published later than others of their time: an
// operator ended their quarantine, or had them published again.
func (w *Walk) moved(ctx context.Context, seqs []int64) ([]int64, error) {
	rows, err := w.DB.Query(ctx, `
		select s from unnest($1::bigint[]) s
		 where exists (select from pgjet.operation where (kind = 'quarantine.retry' or kind = 'republish' and state <> 'planned') and jsonb_typeof(detail -> 'seqs') = 'array' and detail -> 'seqs' @> to_jsonb(s))`, seqs)
	if err != nil {
		return nil, fmt.Errorf("look up what was published again: %w", err)
	}
	return pgx.CollectRows(rows, pgx.RowTo[int64])
}

// readRows checks which rows that must be in the stream were not read there.
func (w *Walk) readRows(ctx context.Context, most int) error {
	var absent []int64
	note := func(r backlog.Record) {
		if w.to.Position.Covers(r) && !w.from.Position.Covers(r) && !w.seen.Has(r.Event.Seq) {
			absent = append(absent, r.Event.Seq)
		}
	}
	if !w.late {
		if err := w.readLate(ctx, note); err != nil {
			return err
		}
		w.late = true
		return w.judgeAbsent(ctx, absent)
	}
	after, n := w.after, 0
	err := w.reader.Range(ctx, w.after, w.to.Position.Floor, most, func(r backlog.Record) {
		n++
		after = r.Event.Seq
		note(r)
	})
	if err != nil {
		return err
	}
	if n < most {
		after = w.to.Position.Floor
	}
	w.after = after
	return w.judgeAbsent(ctx, absent)
}

// readLate calls fn for the rows below the floor of from that committed after its snapshot.
func (w *Walk) readLate(ctx context.Context, fn func(backlog.Record)) error {
	from, to := w.from.Position, w.to.Position
	if from.Floor == 0 {
		return nil
	}
	var ended []uint64
	for _, xid := range from.Snapshot.Running {
		if to.Snapshot.Sees(xid) {
			ended = append(ended, xid)
		}
	}
	for after := int64(0); ; {
		page, err := w.reader.Late(ctx, ended, from.Snapshot.Xmax, max(from.Snapshot.Xmax, to.Snapshot.Xmax), after, from.Floor)
		if err != nil || len(page) == 0 {
			return err
		}
		for _, r := range page {
			fn(r)
		}
		after = page[len(page)-1].Event.Seq
	}
}

// judgeAbsent counts rows without a message.
func (w *Walk) judgeAbsent(ctx context.Context, seqs []int64) error {
	if len(seqs) == 0 {
		return nil
	}
	moved, err := w.moved(ctx, seqs)
	if err != nil {
		return err
	}
	if w.whole && len(moved) > 0 { // it is further on, perhaps beyond the former end of the stream
		if err := w.readOn(ctx); err != nil {
			return err
		}
		seqs = slices.DeleteFunc(seqs, w.seen.Has)
		moved = nil
	}
	rows, err := w.DB.Query(ctx, `
		select o.seq, o.id, q.seq is not null from pgjet.outbox o left join pgjet.quarantine q on q.seq = o.seq
		 where o.seq = any($1) order by o.seq`, seqs)
	if err != nil {
		return fmt.Errorf("look up what is in quarantine: %w", err)
	}
	var seq int64
	var id uuid.UUID
	var aside bool
	_, err = pgx.ForEachRow(rows, []any{&seq, &id, &aside}, func() error {
		switch {
		case aside:
			w.Result.Quarantined++
		case slices.Contains(moved, seq):
			w.Result.Moved++
		default:
			w.differs(Missing, seq, 0, id, "it was published, and the stream has it no more")
			if w.Lacks != nil {
				w.Lacks(seq)
			}
		}
		return nil
	})
	return err
}

// readOn compares messages that were stored since w began.
func (w *Walk) readOn(ctx context.Context) error {
	info, err := w.stream.Info(ctx)
	if err != nil {
		return err
	}
	for w.last = info.State.LastSeq; w.next <= w.last; {
		if err := w.readMessages(ctx, batchMessages, batchBytes); err != nil {
			return err
		}
	}
	return nil
}
