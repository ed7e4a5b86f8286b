package sqltx_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/pgjet/pgjet/internal/sqltx"
	"github.com/pgjet/pgjet/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// within runs fn in a transaction, which is rolled back.
func within(t *testing.T, fn func(tx *sql.Tx) error) error {
	t.Helper()
	db := testenv.Postgres(t)
	tx, err := db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	return sqltx.With(t.Context(), tx, fn)
}

type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// read returns the names and the values of one row.
func read(ctx context.Context, db querier, query string, args ...any) (names []string, values []any, err error) {
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, nil, err
	}
	defer rows.Close()
	if names, err = rows.Columns(); err != nil || !rows.Next() {
		return nil, nil, errors.Join(err, rows.Err(), sql.ErrNoRows)
	}
	values = make([]any, len(names))
	dest := make([]any, len(names))
	for i := range values {
		dest[i] = &values[i]
	}
	return names, values, rows.Scan(dest...)
}

// TestValuesAreThoseOfStdlib: a column has the value that pgx's own driver for database/sql gives it.
func TestValuesAreThoseOfStdlib(t *testing.T) {
	t.Parallel()
	const query = `select true as yes, null::bool as none, 1::int2 as i2, -2::int4 as i4, 9007199254740993 as i8, 1.5::float4 as f4, 2.25::float8 as f8,
		123.456::numeric as n, 'a'::text as t, 'b'::varchar(3) as v, '\x00ff'::bytea as b, date '2026-11-30' as d, timestamp '2026-11-30 01:02:03.4' as ts,
		timestamptz '2026-11-30 01:02:03.4+02' as tz, 'infinity'::timestamptz as inf, '{"a": 1}'::json as j, '{"a": 1}'::jsonb as jb, array[1, 2] as a,
		'0190163d-8694-739b-aea5-966c26f8ad90'::uuid as u, 7::oid as o, '10.0.0.1'::inet as ip, interval '1 day' as iv, 'x'::char as c, 'now'::name as nm, xid8 '9' as x8,
		$1::text as p, $2::int[] as pa`
	db := testenv.Postgres(t)
	std := stdlib.OpenDBFromPool(db)
	defer std.Close()
	wantNames, want, err := read(t.Context(), std, query, "p", []int{3, 4})
	if err != nil {
		t.Fatal(err)
	}
	err = within(t, func(tx *sql.Tx) error {
		names, got, err := read(t.Context(), tx, query, "p", []int{3, 4})
		if err != nil {
			return err
		}
		if !reflect.DeepEqual(names, wantNames) {
			t.Errorf("the columns are %v, want %v", names, wantNames)
		}
		for i := range want {
			if !reflect.DeepEqual(got[i], want[i]) {
				t.Errorf("%s is %T %v, want %T %v", names[i], got[i], got[i], want[i], want[i])
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestStatements: statements may be prepared, have results, and scan into the types of
// database/sql.
func TestStatements(t *testing.T) {
	t.Parallel()
	err := within(t, func(tx *sql.Tx) error {
		if _, err := tx.Exec(`create table a (n int, j jsonb, at timestamptz, s text); create table b ()`); err != nil {
			return err
		}
		insert, err := tx.Prepare(`insert into a values ($1, $2, $3, $4)`)
		if err != nil {
			return err
		}
		defer insert.Close()
		for n := range 3 {
			if _, err := insert.Exec(n, json.RawMessage(`{"n": 1}`), time.Now(), sql.NullString{}); err != nil {
				return err
			}
		}
		result, err := tx.Exec(`update a set s = 'set' where n > $1`, 0)
		if err != nil {
			return err
		}
		if n, err := result.RowsAffected(); n != 2 || err != nil {
			t.Errorf("%d rows were updated, %v, want 2", n, err)
		}
		rows, err := tx.Query(`select n, j, at, s from a order by n`)
		if err != nil {
			return err
		}
		defer rows.Close()
		got := ""
		for rows.Next() {
			var n int32
			var j json.RawMessage
			var at time.Time
			var s sql.NullString
			if err := rows.Scan(&n, &j, &at, &s); err != nil {
				return err
			}
			got += fmt.Sprintln(n, string(j), at.IsZero(), s.String)
		}
		if want := "0 {\"n\": 1} false \n1 {\"n\": 1} false set\n2 {\"n\": 1} false set\n"; got != want {
			t.Errorf("the rows are\n%swant\n%s", got, want)
		}
		return rows.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestErrors: an error of PostgreSQL is pgx's, wherever it occurs, and missing rows are no
// error of the transaction.
func TestErrors(t *testing.T) {
	t.Parallel()
	for query, want := range map[string]string{
		`select 1 where false`: "sql: no rows in result set",
		`select 1/0`:           "ERROR: division by zero (SQLSTATE 22012)",
		`selec`:                `ERROR: syntax error at or near "selec" (SQLSTATE 42601)`,
	} {
		err := within(t, func(tx *sql.Tx) error {
			_, _, err := read(t.Context(), tx, query)
			return err
		})
		if err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %q", query, err, want)
		}
	}
	err := within(t, func(tx *sql.Tx) error {
		rows, err := tx.Query(`select 1/(1-n) from generate_series(0, 1) n`)
		if err != nil {
			return err
		}
		for rows.Next() {
		}
		return rows.Err()
	})
	if err == nil {
		t.Error("an error in a later row is lost")
	}
}

// TestContextEnds: when ctx ends, the transaction of database/sql is over, and that of pgx
// is unchanged.
func TestContextEnds(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	testenv.Exec(t, db, `create table a ()`)
	ctx, cancel := context.WithCancel(t.Context())
	err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
		err := sqltx.With(ctx, tx, func(joined *sql.Tx) error {
			if _, err := joined.ExecContext(ctx, `insert into a default values`); err != nil {
				return err
			}
			cancel()
			testenv.Eventually(t, 10*time.Second, "the transaction is over", func() bool {
				_, err := joined.ExecContext(t.Context(), `select 1`)
				return errors.Is(err, sql.ErrTxDone)
			})
			return joined.Rollback()
		})
		if !errors.Is(err, sql.ErrTxDone) {
			t.Errorf("With() = %v, want %v", err, sql.ErrTxDone)
		}
		return nil
	})
	n := 0
	if err := errors.Join(err, db.QueryRow(t.Context(), `select count(*) from a`).Scan(&n)); err != nil || n != 1 {
		t.Errorf("%d rows are there, %v, want the one of before", n, err)
	}
}

// TestStatementWithoutContext: it ends when that of the transaction does.
func TestStatementWithoutContext(t *testing.T) {
	t.Parallel()
	tx, err := testenv.Postgres(t).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	began := time.Now()
	err = sqltx.With(ctx, tx, func(joined *sql.Tx) error {
		_, err := joined.Exec(`select pg_sleep(30)`)
		return err
	})
	if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took > 20*time.Second {
		t.Errorf("the statement ended after %s with %v, want %v", took, err, context.DeadlineExceeded)
	}
}
