package migrations_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgjet/pgjet/internal/testenv"
)

// TestRoles tries every kind of statement as every role: w is pgjet_writer, r
// pgjet_relay, c pgjet_consumer and o pgjet_operator. All others must be refused.
func TestRoles(t *testing.T) {
	db := testenv.Postgres(t)
	roles := map[string]string{"w": "pgjet_writer", "r": "pgjet_relay", "c": "pgjet_consumer", "o": "pgjet_operator"}
	id := uuid.NewString()
	for _, s := range []struct{ allowed, sql string }{
		{"w", `insert into pgjet.outbox (id, type, key, traceparent, header, data, time) values ('` + id + `', 't', 'k', null, null, '{}', now())`},
		{"", `insert into pgjet.outbox (xid, id, type, key, data) values ('3', '` + id + `', 't', 'k', '{}')`},
		{"", `insert into pgjet.outbox (seq, id, type, key, data) overriding system value values (1, '` + id + `', 't', 'k', '{}')`},
		{"ro", `select from pgjet.outbox where seq > 0`},
		{"ro", `select from pgjet.outbox_partition`},
		{"ro", `select pgjet.outbox_stray()`},
		{"ro", `select pgjet.add_outbox_partition(1000000, 1000010)`},
		{"", `update pgjet.outbox set key = 'x'`},
		{"", `delete from pgjet.outbox`},
		{"", `truncate pgjet.outbox`},
		{"", `drop table pgjet.outbox_1`},
		{"ro", `select from pgjet.leader`},
		{"ro", `insert into pgjet.leader (stream, epoch) values ('S', 0)`},
		{"r", `update pgjet.leader set epoch = epoch + 1`},
		{"ro", `update pgjet.leader set paused_at = now(), paused_by = 'x', pause_reason = 'y'`},
		{"", `delete from pgjet.leader`},
		{"r", `insert into pgjet.checkpoint (stream, stream_created, stream_seq, snapshot, floor, epoch) values ('S', now(), 1, '1:1:', 1, 1)`},
		{"r", `delete from pgjet.checkpoint`},
		{"", `update pgjet.checkpoint set floor = 9`},
		{"r", `insert into pgjet.quarantine (seq, event_id, reason) values (1, '` + id + `', 'x')`},
		{"r", `delete from pgjet.quarantine`},
		{"ro", `update pgjet.quarantine set state = 'retry', changed_at = now(), changed_by = 'x', change_reason = 'y'`},
		{"r", `update pgjet.quarantine set event_id = '` + id + `'`},
		{"ro", `delete from pgjet.unknown_message`},
		{"r", `insert into pgjet.unknown_message (stream, stream_created, stream_seq, subject) values ('S', now(), 1, 's')`},
		{"o", `insert into pgjet.adoption (stream, stream_created, stream_seq, by, reason) values ('S', now(), 1, 'x', 'y')`},
		{"ro", `select from pgjet.adoption`},
		{"o", `insert into pgjet.operation (kind, target, by, reason) values ('a', 'b', 'c', 'd')`},
		{"", `update pgjet.operation set by = 'x'`},
		{"", `update pgjet.pruned set seq = 0`},
		{"c", `insert into pgjet.inbox (consumer, event_id, state, attempts) values ('c', '` + id + `', 'done', 1)`},
		{"c", `delete from pgjet.inbox`},
		{"co", `select from pgjet.dead_letter`},
		{"", `create table pgjet.mine ()`},
		{"", `drop table pgjet.inbox`},
	} {
		for letter, role := range roles {
			err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
				if _, err := tx.Exec(t.Context(), `set local role `+role); err != nil {
					return err
				}
				if _, err := tx.Exec(t.Context(), s.sql); err != nil {
					return err
				}
				return errUndo
			})
			pgErr, _ := errors.AsType[*pgconn.PgError](err)
			refused := pgErr != nil && pgErr.Code == "42501"
			if !refused && !errors.Is(err, errUndo) {
				t.Errorf("%s: %s: %v", role, s.sql, err)
			}
			if allowed := strings.Contains(s.allowed, letter); allowed == refused {
				t.Errorf("%s is allowed %t, want %t: %s", role, !refused, allowed, s.sql)
			}
		}
	}
}

var errUndo = errors.New("undo")
