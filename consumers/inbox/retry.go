package inbox

import (
	"context"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/operation"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

// A Retry makes events that wait for their next attempt due now.
type Retry struct {
	Consumer string      // "" means all consumers of the named events
	IDs      []uuid.UUID // nil means all events of the consumer
	By       string      // who asked for it
	Reason   string      // why; By and Reason are kept in pgjet.operation
}

// A RetryOutcome counts what happened to the waiting events of one consumer that were selected.
type RetryOutcome struct {
	Consumer string `json:"consumer"`
	Retried  int64  `json:"retried"` // made due now
	Due      int64  `json:"due"`     // were due already
	Running  int64  `json:"running"` // an attempt is running
	Behind   int64  `json:"behind"`  // wait behind another event of their key
}

// retryPage is the most intents that one statement of [Retry.Run] changes.
const retryPage = 10_000

// Run makes the events due now, and returns one outcome for each consumer that has some of them.
// The order of events of one key, and their numbers of attempts, stay. If there is no such
// consumer, the error is an [UnknownError].
func (r Retry) Run(ctx context.Context, db Beginner) ([]RetryOutcome, error) {
	if r.Consumer != "" {
		if err := known(ctx, db, r.Consumer); err != nil {
			return nil, sqlstate.Wrap("retry events", err)
		}
	}
	rows, err := db.Query(ctx, `
		select consumer, 0, count(*) filter (where taken_by is null and due_at <= statement_timestamp()),
		       count(*) filter (where taken_by is not null), count(*) filter (where taken_by is null and due_at = 'infinity')
		  from pgjet.intent where consumer = any(array(select name from pgjet.consumer where $1 = '' or name = $1))
		   and ($2::uuid[] is null or event_id = any($2))
		 group by consumer order by consumer`, r.Consumer, r.IDs)
	if err != nil {
		return nil, sqlstate.Wrap("look up waiting events", err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[RetryOutcome])
	for i := range all {
		if err == nil {
			all[i].Retried, err = r.runOne(ctx, db, all[i].Consumer)
		}
	}
	return all, sqlstate.Wrap("retry events", err)
}

// runOne makes the events of one consumer due, page by page. All pages are one operation.
func (r Retry) runOne(ctx context.Context, db Beginner, consumer string) (retried int64, err error) {
	var id int64
	var note []uuid.UUID
	for {
		n := 0
		err := postgres.Within(ctx, db, func(tx pgx.Tx) error {
			rows, err := tx.Query(ctx, `
				with waits as materialized (
					select event_id from pgjet.intent
					 where consumer = $1 and taken_by is null and due_at > statement_timestamp() and due_at < 'infinity'
					   and ($2::uuid[] is null or event_id = any($2))
					 order by due_at limit $3 for update skip locked
				)
				update pgjet.intent i set due_at = clock_timestamp() from waits where i.consumer = $1 and i.event_id = waits.event_id
				returning i.event_id`, consumer, r.IDs, retryPage)
			if err != nil {
				return err
			}
			changed, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
			if err != nil || len(changed) == 0 {
				return err
			}
			n = len(changed)
			note = slices.Concat(note, changed[:min(n, 1000-len(note))])
			detail := map[string]any{"retried": retried + int64(n), "events": note}
			if id == 0 {
				id, _, err = operation.Note(ctx, tx, operation.Operation{Kind: "consumer.retry", Target: consumer, By: r.By, Reason: r.Reason, Detail: detail})
				return err
			}
			return operation.Amend(ctx, tx, id, detail)
		})
		if err != nil {
			return retried, err
		}
		retried += int64(n)
		if n < retryPage {
			return retried, nil
		}
	}
}
