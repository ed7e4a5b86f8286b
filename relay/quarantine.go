package relay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgjet/pgjet/internal/operation"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

// A Quarantined is an event that was set aside. Its payload is in the outbox.
type Quarantined struct {
	Seq          int64      `json:"seq"`
	EventID      uuid.UUID  `json:"event_id"`
	Type         string     `json:"type"` // cut to 200 characters, as Key is; "" if the event was pruned
	Key          string     `json:"key"`
	Reason       string     `json:"reason"` // why no stream stores it
	State        string     `json:"state"`  // held, retry or dropped
	At           time.Time  `json:"at"`
	ChangedAt    *time.Time `json:"changed_at"` // when an operator last decided on it
	ChangedBy    string     `json:"changed_by"`
	ChangeReason string     `json:"change_reason"`
}

// QuarantinePage is how many events [Quarantine] returns at most.
const QuarantinePage = 1000

// Quarantine returns the events in quarantine whose seq is above after, in its order,
// at most 1000. state is one of held, retry and dropped; "" is all.
func Quarantine(ctx context.Context, db beginner, state string, after int64) ([]Quarantined, error) {
	all, err := collect(ctx, db, scanQuarantined, `
		select q.seq, q.event_id, coalesce(left(o.type, 200), ''), coalesce(left(o.key, 200), ''), q.reason, q.state, q.at,
		       q.changed_at, coalesce(q.changed_by, ''), coalesce(q.change_reason, '')
		  from (select * from pgjet.quarantine where seq > $1 and ($2 = '' or state = $2) order by seq limit $3) q
		  left join lateral (select type, key from pgjet.outbox where seq = q.seq and id = q.event_id limit 1) o on true
		 order by q.seq`, after, state, QuarantinePage)
	return all, sqlstate.Wrap("list the quarantine", err)
}

func scanQuarantined(row pgx.CollectableRow) (q Quarantined, err error) {
	err = row.Scan(&q.Seq, &q.EventID, &q.Type, &q.Key, &q.Reason, &q.State, &q.At, &q.ChangedAt, &q.ChangedBy, &q.ChangeReason)
	q.At, q.ChangedAt = q.At.UTC(), utc(q.ChangedAt)
	return q, err
}

// ErrNotQuarantined says that an event that was named is not in quarantine.
var ErrNotQuarantined = errors.New("not in quarantine")

// RetryQuarantined makes the relay try again to publish the events with these seqs, or, if
// seqs is nil, all that are held. A dropped event is tried again only if it is named. It
// returns the seqs of these events. Events that the stream still refuses are held again. If
// one of seqs is not in quarantine, or was pruned since, nothing changes, and the error is
// [ErrNotQuarantined].
func RetryQuarantined(ctx context.Context, db beginner, seqs []int64, by, reason string) ([]int64, error) {
	changed, err := decide(ctx, db, "retry", seqs, by, reason)
	return changed, sqlstate.Wrap("retry events in quarantine", err)
}

// DropQuarantined gives up the events with these seqs, or, if seqs is nil, all that are
// held: no relay tries them again. Their rows stay, in the quarantine until an operator
// retries them, and in the outbox until they are pruned. An event that was to be retried
// may have been published meanwhile. It returns the seqs of the dropped events. If one of
// seqs is not in quarantine, nothing changes, and the error is [ErrNotQuarantined].
func DropQuarantined(ctx context.Context, db beginner, seqs []int64, by, reason string) ([]int64, error) {
	changed, err := decide(ctx, db, "dropped", seqs, by, reason)
	return changed, sqlstate.Wrap("drop events in quarantine", err)
}

// decide moves events in quarantine to a state.
func decide(ctx context.Context, db beginner, state string, seqs []int64, by, reason string) (changed []int64, err error) {
	err = postgres.Within(ctx, db, func(tx pgx.Tx) error {
		changed, err = collect(ctx, tx, pgx.RowTo[int64], `
			with changed as (
				update pgjet.quarantine q set state = $1, changed_at = clock_timestamp(), changed_by = $3, change_reason = $4
				 where case when $2::bigint[] is null then state = 'held' else seq = any($2) end
				   and ($1 = 'dropped' or exists (select from pgjet.outbox o where o.seq = q.seq)) -- else it was pruned
				returning seq
			)
			select seq from changed order by seq`, state, seqs, by, reason)
		if err == nil && len(changed) > 0 {
			kind := map[string]string{"retry": "quarantine.retry", "dropped": "quarantine.drop"}[state]
			_, _, err = operation.Note(ctx, tx, operation.Operation{Kind: kind, Target: "outbox", By: by, Reason: reason, Detail: map[string]any{"seqs": changed}})
		}
		if err != nil {
			return err
		}
		var missing []string
		for _, seq := range seqs {
			if _, found := slices.BinarySearch(changed, seq); !found {
				missing = append(missing, fmt.Sprint(seq))
			}
		}
		if len(missing) > 0 {
			return fmt.Errorf("seq %s is %w, or was pruned, nothing was changed; see: pgjet relay quarantine ls", strings.Join(missing, ", "), ErrNotQuarantined)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return changed, nil
}

// ErrLeadChanged says that another relay took the lead since something was planned: the stream may hold something else now.
var ErrLeadChanged = errors.New("another relay took the lead since this was planned, and may have published them; nothing was changed; plan again")

// leadChanged is the SQLSTATE with which pgjet.republish refuses.
const leadChanged = "PJ002"

// Republish makes the leading relay of a stream publish events again, for an operation that
// is recorded in pgjet.operation. Of these seqs it selects those that were published, and
// returns them. An audit must have found that the stream lacks them while the relay of that
// epoch led. If another relay leads by now, the error is [ErrLeadChanged].
//
// The relay is the only writer: it appends the events within about a second, one by one and
// by compare-and-append, behind all others. Until then they are in quarantine, so a crash
// between the append and its record does not publish them twice.
func Republish(ctx context.Context, db beginner, operation int64, stream string, epoch int64, seqs []int64) ([]int64, error) {
	taken, err := collect(ctx, db, pgx.RowTo[int64], `select pgjet.republish($1, $2, $3, $4)`, operation, stream, epoch, seqs)
	if e, ok := errors.AsType[*pgconn.PgError](err); ok && e.Code == leadChanged {
		err = ErrLeadChanged
	}
	return taken, sqlstate.Wrap("publish events again", err)
}

// EndRepublish ends an operation: events of it that still wait are not published again. It
// returns their seqs.
func EndRepublish(ctx context.Context, db beginner, operation int64) ([]int64, error) {
	ended, err := collect(ctx, db, pgx.RowTo[int64], `select pgjet.end_republish($1)`, operation)
	return ended, sqlstate.Wrap("end publishing events again", err)
}

// Republishing returns how many events of an operation wait to be published again, and how many the stream refused.
func Republishing(ctx context.Context, db beginner, operation int64) (waiting, refused int64, err error) {
	all, err := collect(ctx, db, func(row pgx.CollectableRow) (n [2]int64, err error) {
		err = row.Scan(&n[0], &n[1])
		return n, err
	}, `select count(*) filter (where state = 'retry'), count(*) filter (where state <> 'retry') from pgjet.quarantine where operation = $1`, operation)
	if err != nil {
		return 0, 0, sqlstate.Wrap("look how many events were published again", err)
	}
	return all[0][0], all[0][1], nil
}
