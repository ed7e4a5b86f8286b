package postgres_test

import (
	"database/sql/driver"
	"fmt"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/testenv"
)

// A textID is a type of a user with a driver value of its own.
type textID uuid.UUID

func (i textID) Value() (driver.Value, error) { return "id-" + uuid.UUID(i).String(), nil }

// TestQuickUUIDs: on a connection of a DB, arguments of type uuid.UUID arrive as on any other,
// whatever the type of the parameter is, and with less work.
func TestQuickUUIDs(t *testing.T) { // not in parallel: it counts allocations
	db, err := pgxpool.New(t.Context(), testenv.EmptyDatabaseURL(t))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	testenv.Exec(t, db, `create domain order_id as uuid; create domain label as text`)
	plain, err := db.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Release()
	quick, err := postgres.DB{Pool: db}.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer quick.Release()
	id := uuid.MustParse("0192e7a1-7a51-7c3b-9d1f-0a0b0c0d0e0f")
	for _, value := range []any{id, &id, (*uuid.UUID)(nil), []uuid.UUID{id, uuid.Nil}, []uuid.UUID{}, []uuid.UUID(nil), []*uuid.UUID{&id, nil},
		uuid.NullUUID{UUID: id, Valid: true}, uuid.NullUUID{}, textID(id), [16]byte(id), id.String()} {
		for _, kind := range []string{"uuid", "text", "varchar", "order_id", "label", "json", "jsonb", "bytea", "uuid[]", "text[]", "order_id[]"} {
			for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
				ask := func(conn *pgxpool.Conn) (answer string) {
					var text *string
					if err := conn.QueryRow(t.Context(), `select ($1::`+kind+`)::text`, mode, value).Scan(&text); err != nil {
						return "an error"
					}
					if text == nil {
						return "null"
					}
					return *text
				}
				if want, got := ask(plain), ask(quick); got != want {
					t.Errorf("%T as %s in mode %s arrives as %q, want %q", value, kind, mode, got, want)
				}
			}
		}
	}
	var scanned [2]any
	for i, conn := range []*pgxpool.Conn{plain, quick} {
		if err := conn.QueryRow(t.Context(), `select $1::uuid`, id).Scan(&scanned[i]); err != nil {
			t.Fatal(err)
		}
	}
	if a, b := fmt.Sprintf("%T %[1]v", scanned[0]), fmt.Sprintf("%T %[1]v", scanned[1]); a != b {
		t.Errorf("a value of unknown type is scanned as %s, want %s", b, a)
	}
	work := func(conn *pgxpool.Conn) float64 {
		m, buf := conn.Conn().TypeMap(), make([]byte, 0, 64)
		return testing.AllocsPerRun(100, func() {
			if _, err := m.Encode(pgtype.UUIDOID, pgtype.BinaryFormatCode, id, buf); err != nil {
				t.Fatal(err)
			}
		})
	}
	if p, q := work(plain), work(quick); q > p/3 {
		t.Errorf("an argument takes %v allocations, %v on a connection of another kind", q, p)
	}
}
