package operate

import (
	"context"

	"github.com/pgjet/pgjet/internal/sqlstate"
)

// Rights are the changes that the database allows the user of a connection. Each includes the right
// to record the change in pgjet.operation.
type Rights struct {
	Record     bool `json:"record"`     // record that something was shown
	Dead       bool `json:"dead"`       // redrive, discard and reopen dead letters
	Retry      bool `json:"retry"`      // make waiting events due now
	Consumers  bool `json:"consumers"`  // pause and resume consumers
	Relays     bool `json:"relays"`     // pause and resume relays
	Sagas      bool `json:"sagas"`      // let sagas continue
	Scheduled  bool `json:"scheduled"`  // cancel scheduled events, and bring them forward
	Quarantine bool `json:"quarantine"` // retry and drop events in quarantine
	Operations bool `json:"operations"` // cancel operations
	Republish  bool `json:"republish"`  // let the relay republish events
	Adopt      bool `json:"adopt"`      // accept messages of a stream that the outbox does not have
}

// Any reports whether any change is allowed.
func (r Rights) Any() bool { return r != Rights{} }

// Rights asks the database for the rights of the user of its connections: none if transactions are
// read-only.
func (s Source) Rights(ctx context.Context) (r Rights, err error) {
	if s.DB == nil {
		return r, s.DBErr
	}
	err = s.DB.QueryRow(ctx, `
		with may as (select current_setting('transaction_read_only') = 'off' and not pg_is_in_recovery()
			and has_table_privilege('pgjet.operation', 'insert') as record)
		select record,
		       record and has_any_column_privilege('pgjet.dead_letter', 'update') and has_table_privilege('pgjet.inbox', 'insert')
		           and has_table_privilege('pgjet.inbox', 'update') and has_table_privilege('pgjet.intent', 'insert'),
		       record and has_table_privilege('pgjet.intent', 'update'),
		       record and has_any_column_privilege('pgjet.consumer', 'update'),
		       record and has_any_column_privilege('pgjet.leader', 'update'),
		       record and has_any_column_privilege('pgjet.saga', 'update'),
		       record and has_table_privilege('pgjet.scheduled', 'delete'),
		       record and has_any_column_privilege('pgjet.quarantine', 'update'),
		       record and has_any_column_privilege('pgjet.operation', 'update'),
		       record and coalesce(has_function_privilege(to_regprocedure('pgjet.republish(bigint,text,bigint,bigint[])'), 'execute'), false),
		       record and has_table_privilege('pgjet.adoption', 'insert') and has_table_privilege('pgjet.unknown_message', 'delete')
		  from may`).Scan(&r.Record, &r.Dead, &r.Retry, &r.Consumers, &r.Relays, &r.Sagas, &r.Scheduled, &r.Quarantine, &r.Operations, &r.Republish, &r.Adopt)
	return r, sqlstate.Wrap("read the rights of the user", err)
}
