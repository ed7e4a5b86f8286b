package outbox_test

import (
	"context"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/internal/tests/notes"
	"github.com/pgjet/pgjet/relay/backlog"
)

// TestSQLWritersDoc executes the statements of docs/sql-writers.md, with the rights shown
// there, and reads valid events.
func TestSQLWritersDoc(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	testenv.Exec(t, db, `create table public.orders (id text primary key, paid boolean);
		insert into public.orders values ('o-17', false);
		drop role if exists orders_service;
		create role orders_service;
		grant select, update on public.orders to orders_service`)
	t.Cleanup(func() { db.Exec(context.Background(), `drop owned by orders_service; drop role orders_service`) })
	doc, err := os.ReadFile("../../../docs/sql-writers.md")
	if err != nil {
		t.Fatal(err)
	}
	var inserts, scheduled, others []string
	for _, block := range regexp.MustCompile("(?s)```sql\n(.*?)```").FindAllStringSubmatch(string(doc), -1) {
		switch {
		case strings.Contains(block[1], "pgjet.scheduled"):
			scheduled = append(scheduled, block[1])
		case strings.Contains(block[1], "insert into"):
			inserts = append(inserts, block[1])
		default:
			others = append(others, block[1])
		}
	}
	for _, sql := range others {
		testenv.Exec(t, db, sql)
	}
	service, err := pgx.ConnectConfig(t.Context(), db.Config().ConnConfig.Copy())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { service.Close(context.Background()) })
	for _, sql := range append([]string{`set role orders_service`}, inserts...) {
		if _, err := service.Exec(t.Context(), sql); err != nil {
			t.Errorf("%v, of\n%s", err, sql)
		}
	}
	for i, sql := range scheduled { // to schedule an event, and to cancel it
		tag, err := service.Exec(t.Context(), sql)
		waiting := 0
		if err := db.QueryRow(t.Context(), `select count(*) from pgjet.scheduled`).Scan(&waiting); err != nil {
			t.Fatal(err)
		}
		if err != nil || tag.RowsAffected() != 1 || waiting != 1-i {
			t.Errorf("%s, %v, and %d events wait, of\n%s", tag, err, waiting, sql)
		}
	}
	var got []events.Event
	_, err = backlog.Read(t.Context(), notes.NewCursor(t, db).Reader, backlog.Position{}, func(r backlog.Record) error {
		got = append(got, r.Event)
		return r.Event.Validate()
	})
	if err != nil || len(got) != len(inserts) || len(got) != 4 {
		t.Fatalf("read %d events, %v, want %d valid ones", len(got), err, len(inserts))
	}
	for _, e := range got {
		if e.ID.Version() != 7 {
			t.Errorf("id %s has version %d, want 7", e.ID, e.ID.Version())
		}
	}
}
