package operate

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/sqlstate"
)

// The kinds of words that [Source.Candidates] returns.
const (
	Consumers   = "consumers"
	Types       = "types"
	Keys        = "keys"
	Streams     = "streams"
	Events      = "events"
	Retries     = "retries" // events that wait for another attempt
	Letters     = "dead letters"
	Sagas       = "sagas"
	Schedules   = "scheduled events"
	Quarantines = "quarantined events"
	Operations  = "operations"
	Plans       = "plans" // to publish again
	Resumable   = "operations that can be resumed"
	Cancellable = "operations that can be cancelled"
)

// candidates are queries for the words, some with a description after a tab. They read little,
// however large the tables are.
var candidates = map[string]string{
	Consumers:   `select name from pgjet.consumer order by name limit 200`,
	Types:       `select distinct left(type, 128) from (select type from pgjet.outbox order by seq desc limit 5000) e order by 1 limit 200`,
	Keys:        `select distinct left(key, 255) from (select key from pgjet.outbox order by seq desc limit 100) e order by 1`,
	Streams:     `select stream from pgjet.leader order by stream limit 200`,
	Events:      `select id || E'\t' || left(type, 128) from pgjet.outbox order by seq desc limit 50`,
	Retries:     `select event_id || E'\t' || left(type, 128) || ' at ' || consumer from (select * from pgjet.intent order by consumer, due_at limit 50) i`,
	Letters:     `select id || E'\t' || left(type, 128) || ' at ' || consumer from (select id, type, consumer, state from pgjet.dead_letter order by id desc limit 500) d where state = 'dead' limit 50`,
	Sagas:       `select id || E'\t' || name || ', ' || state from pgjet.saga order by started_at desc limit 50`,
	Schedules:   `select id || E'\t' || left(type, 128) from pgjet.scheduled order by due, n limit 50`,
	Operations:  operationsThat(`true`),
	Plans:       operationsThat(`kind = 'republish' and state = 'planned'`),
	Resumable:   operationsThat(`kind <> 'republish' and state in ('running', 'failed')`), // if its command was killed, it still counts as running
	Cancellable: operationsThat(`state in ('planned', 'running')`),
	Quarantines: `select seq || E'\t' || state from pgjet.quarantine order by seq desc limit 50`,
}

// operationsThat returns a query for the operations that meet condition.
func operationsThat(condition string) string {
	return `select id || E'\t' || left(kind, 40) || ' of ' || left(target, 100) || coalesce(', ' || state, '')
		from (select * from pgjet.operation order by id desc limit 1000) o where ` + condition + ` order by id desc limit 50`
}

// Candidates returns words for a shell to complete, each perhaps with a description after a tab.
// For most kinds they are the latest ones.
func (s Source) Candidates(ctx context.Context, what string) ([]string, error) {
	query, ok := candidates[what]
	switch {
	case !ok:
		return nil, fmt.Errorf("there are no candidates for %s", what)
	case s.DB == nil:
		return nil, s.DBErr
	}
	all, err := collect(ctx, s.DB, pgx.RowTo[string], query)
	for i := range all {
		all[i] = plainCell(all[i])
	}
	return all, sqlstate.Wrap("look for "+what, err)
}

// plainCell is [Plain], but keeps the tab before a description.
func plainCell(s string) string {
	for i := range len(s) {
		if s[i] == '\t' {
			return Plain(s[:i]) + "\t" + Plain(s[i+1:])
		}
	}
	return Plain(s)
}
