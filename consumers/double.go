package consumers

import (
	"bytes"
	"context"
	"errors"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/events"
)

// errImpostor is why a message is set aside that has the id of another event.
var errImpostor = errors.New("double_id: the stream holds another event with this id at an earlier place, with other content; which of them is right nobody can say here")

// passOver is skip for a worker, which sets aside what skip did not settle.
func (t *term) passOver(ctx context.Context, all []*work) {
	impostors, err := t.skip(ctx, all)
	if err != nil {
		for _, w := range all {
			t.refused(ctx, w, err)
		}
		return
	}
	for _, w := range impostors {
		t.work(ctx, []*work{w})
	}
}

// skip settles messages whose events the inbox knows, and acknowledges them. One that is a
// copy of what stands elsewhere in the stream gets an inbox row of its own, so that every
// message that was delivered has one. skip returns those that only claim the id of an event.
// They have the ids of their places now, and are still to be set aside.
func (t *term) skip(ctx context.Context, all []*work) (impostors []*work, err error) {
	if len(all) == 0 {
		return nil, nil
	}
	elsewhere, err := t.elsewhere(ctx, all)
	if err != nil {
		return nil, err
	}
	var known, copies []*work
	for _, w := range all {
		seq, ok := elsewhere[w]
		switch {
		case !ok:
			known = append(known, w)
		case t.same(ctx, w, seq):
			known, copies = append(known, w), append(copies, w)
		default:
			impostors = append(impostors, w)
		}
	}
	if err := t.noteCopies(ctx, copies); err != nil {
		return nil, err
	}
	for _, w := range known {
		t.ack(w)
		t.metrics.handled(ctx, t.Consumer.Name, "skipped")
	}
	for _, w := range impostors {
		w.id, w.bad = w.delivery.place(t.Stream), errImpostor
		w.event.ID = w.id
	}
	return impostors, nil
}

// elsewhere returns the places in the stream at which the inbox knows the events of messages
// that stand at other ones.
func (t *term) elsewhere(ctx context.Context, all []*work) (map[*work]uint64, error) {
	n, ids, seqs := make([]int, len(all)), make([]uuid.UUID, len(all)), make([]int64, len(all))
	for i, w := range all {
		n[i], ids[i], seqs[i] = i, w.id, int64(w.seq)
	}
	found := make(map[*work]uint64)
	rows, err := t.DB.Query(ctx, `
		select n, i.stream_seq from unnest($3::int[], $4::uuid[], $5::bigint[]) as u (n, id, seq)
		  join pgjet.inbox i on i.consumer = $1 and i.event_id = u.id
		 where i.generation = $2 and i.stream_seq <> u.seq`, t.Consumer.Name, t.place.generation, n, ids, seqs)
	if err == nil {
		var at int
		var seq int64
		_, err = pgx.ForEachRow(rows, []any{&at, &seq}, func() error {
			found[all[at]] = uint64(seq)
			return nil
		})
	}
	if err != nil {
		return nil, &databaseError{"look events up in the inbox", err}
	}
	return found, nil
}

// same reports whether a message says what the one with its id at an earlier place says. If
// that one is not there any more, or not to be had now, nobody can know that it does not.
func (t *term) same(ctx context.Context, w *work, seq uint64) bool {
	ctx, cancel := context.WithTimeout(ctx, pingTime)
	defer cancel()
	stream, err := t.JS.Stream(ctx, t.Stream)
	if err != nil {
		return true
	}
	msg, err := stream.GetMsg(ctx, seq)
	if err != nil {
		return true
	}
	first, err := events.FromMessage(msg.Header, msg.Data)
	if err != nil || first.ID != w.id {
		return true
	}
	return first.Type == w.event.Type && first.Key == w.event.Key && bytes.Equal(first.Data, w.data)
}

// noteCopies makes inbox rows for the places of copies.
func (t *term) noteCopies(ctx context.Context, all []*work) error {
	if len(all) == 0 {
		return nil
	}
	places, seqs := make([]uuid.UUID, len(all)), make([]int64, len(all))
	for i, w := range all {
		places[i], seqs[i] = w.delivery.place(t.Stream), int64(w.seq)
	}
	_, err := t.DB.Exec(ctx, `
		insert into pgjet.inbox (consumer, event_id, state, attempts, generation, stream_seq)
		select $1, place, 'done', 0, $2, seq from unnest($3::uuid[], $4::bigint[]) as u (place, seq)
		on conflict do nothing`, t.Consumer.Name, t.place.generation, places, seqs)
	if err != nil {
		return &databaseError{"write inbox rows", err}
	}
	return nil
}
