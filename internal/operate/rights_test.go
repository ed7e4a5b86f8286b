package operate

import (
	"net/url"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/testenv"
)

// TestRights: the rights are those of the user in the database, and none if transactions are
// read-only.
func TestRights(t *testing.T) {
	t.Parallel()
	address := testenv.DatabaseURL(t)
	owner := testenv.PoolAt(t, address)
	role := "rights_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	testenv.Exec(t, owner, `create role `+role)
	testenv.Exec(t, owner, `grant usage on schema pgjet to `+role)
	testenv.Exec(t, owner, `grant select on all tables in schema pgjet to `+role)
	all := Rights{Record: true, Dead: true, Retry: true, Consumers: true, Relays: true, Sagas: true, Scheduled: true, Quarantine: true, Operations: true, Republish: true, Adopt: true}
	for _, row := range []struct {
		name, setting, value string
		want                 Rights
	}{
		{"the owner", "", "", all},
		{"an operator", "role", "pgjet_operator", all},
		{"who may only read", "role", role, Rights{}},
		{"a consumer", "role", "pgjet_consumer", Rights{}}, // it may change much, but record nothing
		{"read-only transactions", "default_transaction_read_only", "on", Rights{}},
	} {
		u, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		q := u.Query()
		if row.setting != "" {
			q.Set(row.setting, row.value)
		}
		u.RawQuery = q.Encode()
		db, err := pgxpool.New(t.Context(), u.String())
		if err != nil {
			t.Fatal(err)
		}
		got, err := Source{DB: db}.Rights(t.Context())
		db.Close()
		if err != nil || got != row.want || got.Any() != (row.want != Rights{}) {
			t.Errorf("%s: the rights are %+v, %v, want %+v", row.name, got, err, row.want)
		}
	}
	testenv.Exec(t, owner, `drop owned by `+role)
	testenv.Exec(t, owner, `drop role `+role)
}

// TestContent: an event has the same content wherever it is read, and without reveal none of its
// values.
func TestContent(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	s := Source{DB: db, Stream: "EVENTS"}
	const data = `{"email": "ada@example.com", "age": 36, "active": true, "tags": ["vip", null], "none": null}`
	inOutbox, dead, gone := uuid.New(), uuid.New(), uuid.New()
	testenv.Exec(t, db, `insert into pgjet.outbox (id, type, key, data, header) values ($1, 'user.created', 'k', $2, '{"tenant": "acme"}')`, inOutbox, data)
	testenv.Exec(t, db, `insert into pgjet.consumer (name, stream, stream_created, ordered, effects) values ('mailer', 'EVENTS', now(), false, false)`)
	testenv.Exec(t, db, `insert into pgjet.dead_letter (consumer, event_id, generation, stream_seq, stream, subject, type, key, header, data, error, error_group, attempts, process)
		values ('mailer', $1, 1, 1, 'EVENTS', 'events.00.user.created', 'user.created', 'k', '{"tenant": ["acme"], "ce-type": ["user.created"]}', $2, 'x', 'x', 1, 'host:1')`, dead, []byte(data))
	outbox, err := s.Event(t.Context(), inOutbox)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		event Event
		from  string
	}{{outbox, "outbox"}, {Event{ID: dead}, "mailer"}} {
		hiddenOne, err := s.Content(t.Context(), row.event, false)
		if err != nil || hiddenOne.From != row.from || !hiddenOne.JSON || !hiddenOne.Masked {
			t.Errorf("Content() = %+v, %v, want it from %s", hiddenOne, err, row.from)
		}
		said := hiddenOne.Payload
		for _, h := range hiddenOne.Header {
			said += h.Name + h.Value
		}
		for _, secret := range []string{"ada@", "36", "vip", "acme"} {
			if strings.Contains(said, secret) {
				t.Errorf("from %s: %q says %s", row.from, said, secret)
			}
		}
		for _, shown := range []string{"email", "true", "null", "tenant"} {
			if !strings.Contains(said, shown) {
				t.Errorf("from %s: %q lacks %s", row.from, said, shown)
			}
		}
		revealed, err := s.Content(t.Context(), row.event, true)
		if err != nil || !strings.Contains(revealed.Payload, "ada@example.com") || revealed.Masked || len(revealed.Header) == 0 {
			t.Errorf("from %s, revealed: %+v, %v", row.from, revealed, err)
		}
	}
	if c, err := s.Content(t.Context(), Event{ID: gone}, true); err != nil || c.From != "" {
		t.Errorf("of an event that nobody has: %+v, %v", c, err)
	}
}

// TestEventTypes: types are counted, with the consumers that handle them, also by patterns.
func TestEventTypes(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	testenv.Exec(t, db, `insert into pgjet.outbox (id, type, key, data) select gen_random_uuid(), case when n < 3 then 'user.created' else 'order.paid' end, 'k', '{}' from generate_series(1, 5) n`)
	testenv.Exec(t, db, `insert into pgjet.consumer (name, stream, stream_created, ordered, effects, types) values
		('mailer', 'EVENTS', now(), false, false, '{user.*,user.deleted}'), ('audit', 'EVENTS', now(), false, false, '{>}')`)
	got, err := Source{DB: db}.EventTypes(t.Context())
	if err != nil || got.Looked != 5 || got.More {
		t.Fatalf("EventTypes() = %+v, %v", got, err)
	}
	var all []string
	for _, one := range got.Types {
		all = append(all, one.Type+" "+strings.Repeat("|", int(one.Events))+" "+strings.Join(one.Consumers, ","))
	}
	if want := "order.paid ||| audit; user.created || audit,mailer; user.deleted  mailer"; strings.Join(all, "; ") != want {
		t.Errorf("the types are %q, want %q", strings.Join(all, "; "), want)
	}
}
