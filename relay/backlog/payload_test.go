package backlog_test

import (
	"cmp"
	"errors"
	"strings"
	"testing"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/internal/tests/notes"
	"github.com/pgjet/pgjet/relay/backlog"
)

// TestMislaidPayload: PostgreSQL has checked that data is JSON, but not body.
func TestMislaidPayload(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	testenv.Exec(t, db, `insert into pgjet.outbox (id, type, key, content_type, data, body) values
		(gen_random_uuid(), 'note.made', 'k', 'application/json', null, '{'),
		(gen_random_uuid(), 'note.made', 'k', '', null, '{'),
		(gen_random_uuid(), 'note.made', 'k', 'application/protobuf', '{}', null),
		(gen_random_uuid(), 'note.made', 'k', 'application/json', '{}', null),
		(gen_random_uuid(), 'note.made', 'k', 'application/protobuf', null, '{')`)
	var fields []string
	_, err := backlog.Read(t.Context(), notes.NewCursor(t, db).Reader, backlog.Position{}, func(r backlog.Record) error {
		invalid, _ := errors.AsType[*events.InvalidError](cmp.Or(r.Err, r.Event.ValidateStored()))
		if invalid == nil {
			invalid = &events.InvalidError{}
		}
		fields = append(fields, invalid.Field)
		return nil
	})
	if got, want := strings.Join(fields, " "), "content_type content_type content_type  "; err != nil || got != want {
		t.Errorf("invalid are the fields %q, %v, want %q", got, err, want)
	}
}
