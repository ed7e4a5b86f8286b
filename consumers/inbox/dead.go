package inbox

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// A Burial is an event that becomes a dead letter.
type Burial struct {
	Message     *Message
	Taken       bool // it is an intent that the session has taken
	Ending      Ending
	Stack       string // of a panic; "" if there was none
	Traceparent string
}

// Bury makes an event a dead letter, in a transaction that has checked the fence. It reports false
// if the inbox already has an event from the stream. It returns [ErrTaken] if the session no longer
// has a taken intent.
func (t *Tenure) Bury(ctx context.Context, tx pgx.Tx, dead Burial) (fresh bool, err error) {
	claim := `
		insert into pgjet.inbox as i (consumer, event_id, state, attempts, generation, stream_seq)
		values (@consumer, @id, 'dead', @attempts, @generation, @seq)
		` + moved + `
		returning xmax = 0 as fresh`
	if dead.Taken {
		claim = `
		update pgjet.inbox i set state = 'dead', attempts = @attempts, generation = greatest(i.generation, @generation),
			stream_seq = case when i.generation > @generation then i.stream_seq else @seq end -- the stream was created again
		  from gone where i.consumer = @consumer and i.event_id = @id returning true as fresh`
	}
	m, text := dead.Message, Storable(dead.Ending.Error)
	tag, err := tx.Exec(ctx, `
		with gone as (
			delete from pgjet.intent where @taken and consumer = @consumer and event_id = @id and taken_by = @session and attempts = @attempts returning 1
		), claimed as (`+claim+`
		)
		insert into pgjet.dead_letter as d (consumer, event_id, attempts, generation, stream_seq, type, key, stream, subject, header, data,
			error, error_group, stack, trace_id, process)
		select @consumer, @id, @attempts, @generation, @seq, @type, @key, @stream, @subject, @header, @data,
		       @error, @group, @stack, @trace, @process from claimed where fresh
		on conflict (consumer, event_id) do update set state = 'dead', attempts = d.attempts + excluded.attempts,
			generation = excluded.generation, stream_seq = excluded.stream_seq, error = excluded.error, error_group = excluded.error_group,
			stack = excluded.stack, process = excluded.process, at = clock_timestamp()`,
		m.args(pgx.NamedArgs{
			"consumer": t.Consumer, "attempts": dead.Ending.Attempt, "taken": dead.Taken, "session": t.Session, "process": t.Process,
			"error": text, "group": group(m.Type, text), "stack": orNull(Storable(dead.Stack), dead.Stack != ""), "trace": traceID(dead.Traceparent),
		}))
	switch {
	case err != nil:
		return false, failed("write a dead letter", err)
	case tag.RowsAffected() == 0 && dead.Taken:
		return false, ErrTaken
	case tag.RowsAffected() == 0:
		return false, nil
	}
	err = t.log(ctx, tx, m, dead.Ending)
	if err == nil && !t.ParkKey {
		err = t.wakeNext(ctx, tx, m)
	}
	return true, failed("write a dead letter", err)
}
