package sqlstate_test

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgjet/pgjet/internal/sqlstate"
)

func code(c string) error { return fmt.Errorf("ask: %w", &pgconn.PgError{Code: c}) }

// A foreign is an error of a driver other than pgx.
type foreign string

func (f foreign) Error() string    { return "pq: no" }
func (f foreign) SQLState() string { return string(f) }

// TestOtherDrivers: the errors of all drivers mean the same.
func TestOtherDrivers(t *testing.T) {
	for code, want := range map[foreign]sqlstate.Class{"42P01": sqlstate.Outdated, "40001": sqlstate.Conflict, "57P01": sqlstate.Unreachable} {
		err := fmt.Errorf("ask: %w", code)
		if got := sqlstate.Of(err); got != want || !sqlstate.Is(err, string(code)) || sqlstate.CommitUnknown(err) != (code == "57P01") {
			t.Errorf("Of(%s) = %q, want %q; Is = %t; CommitUnknown = %t", code, got, want, sqlstate.Is(err, string(code)), sqlstate.CommitUnknown(err))
		}
	}
	if got := sqlstate.Of(driver.ErrBadConn); got != sqlstate.Unreachable {
		t.Errorf("Of(%v) = %q, want %q", driver.ErrBadConn, got, sqlstate.Unreachable)
	}
}

func TestOf(t *testing.T) {
	for _, row := range []struct {
		err     error
		class   sqlstate.Class
		passing bool
	}{
		{nil, "", false},
		{errors.New("anything else"), "", false},
		{pgx.ErrNoRows, "", false},
		{context.Canceled, "", false},
		{fmt.Errorf("begin: %w", context.DeadlineExceeded), sqlstate.Unreachable, true},
		{io.EOF, sqlstate.Unreachable, true},
		{io.ErrUnexpectedEOF, sqlstate.Unreachable, true},
		{pgconn.ErrConnClosed, sqlstate.Unreachable, true},
		{&net.OpError{Op: "read", Err: errors.New("reset")}, sqlstate.Unreachable, true},
		{code("08006"), sqlstate.Unreachable, true},
		{code("57P01"), sqlstate.Unreachable, true},
		{code("57P03"), sqlstate.Unreachable, true},
		{code("58030"), sqlstate.Unreachable, true},
		{code("28P01"), sqlstate.Login, true},
		{code("3D000"), sqlstate.Login, true},
		{code("53300"), sqlstate.Exhausted, true},
		{code("53100"), sqlstate.Exhausted, true},
		{code("25006"), sqlstate.ReadOnly, true},
		{code("57014"), sqlstate.Timeout, true},
		{code("55P03"), sqlstate.Timeout, true},
		{code("25P03"), sqlstate.Timeout, true},
		{code("25P04"), sqlstate.Timeout, true},
		{code("57P05"), sqlstate.Timeout, true},
		{code("40001"), sqlstate.Conflict, true},
		{code("40P01"), sqlstate.Conflict, true},
		{code("26000"), sqlstate.Pooler, true},
		{code("42P05"), sqlstate.Pooler, true},
		{&pgconn.PgError{Code: "08P01", Message: "transaction blocks not allowed in statement pooling mode"}, sqlstate.Pooler, true},
		{code("08P01"), sqlstate.Unreachable, true},
		{code("42501"), sqlstate.Permission, false},
		{code("42P01"), sqlstate.Outdated, false},
		{code("42703"), sqlstate.Outdated, false},
		{code("42883"), sqlstate.Outdated, false},
		{code("3F000"), sqlstate.Outdated, false},
		{code("22P05"), sqlstate.Encoding, false},
		{code("22021"), sqlstate.Encoding, false},
		{code("25P02"), sqlstate.Aborted, false},
		{code("22P02"), sqlstate.Rejected, false},
		{code("23505"), sqlstate.Rejected, false},
		{code("54000"), sqlstate.Rejected, false},
		{code("0A000"), sqlstate.Failed, false},
		{code("42601"), sqlstate.Failed, false},
		{code("P0001"), sqlstate.Failed, false},
		{code("XX000"), sqlstate.Failed, false},
		{code(""), sqlstate.Failed, false},
		// The text is in the language of the server.
		{&pgconn.PgError{Code: "0A000", Message: "gecachter Plan darf den Ergebnistyp nicht ändern", Routine: "RevalidateCachedQuery"}, sqlstate.StalePlan, true},
		{&pgconn.PgError{Code: "0A000", Message: "kann den Transaktionsmodus nicht auf Lesen/Schreiben setzen", Routine: "call_bool_check_hook"}, sqlstate.ReadOnly, true},
	} {
		if got := sqlstate.Of(row.err); got != row.class || got.Passing() != row.passing {
			t.Errorf("Of(%v) = %q, passing %t; want %q, %t", row.err, got, got.Passing(), row.class, row.passing)
		}
	}
}

func TestExplain(t *testing.T) {
	for _, row := range []struct {
		err  error
		want string
	}{
		{errors.New("cannot scan"), "database_error: cannot scan"},
		{io.EOF, "database_unreachable: EOF"},
		{&pgconn.PgError{Severity: "ERROR", Code: "42501", Message: "no"}, "permission_denied: ERROR: no (SQLSTATE 42501); the user needs the rights of pgjet_relay"},
		{&pgconn.PgError{Severity: "ERROR", Code: "3F000", Message: "no"}, "schema_outdated: ERROR: no (SQLSTATE 3F000); run: pgjet migrate up, for the demo with --demo"},
	} {
		got := sqlstate.Explain(row.err, "pgjet_relay")
		if got.Error() != row.want || !errors.Is(got, row.err) {
			t.Errorf("Explain(%v) = %q, want %q with the error in it", row.err, got, row.want)
		}
	}
	if err := sqlstate.Explain(nil, "pgjet_relay"); err != nil {
		t.Errorf("Explain(nil) = %v", err)
	}
}

func TestWrap(t *testing.T) {
	outdated := &pgconn.PgError{Severity: "ERROR", Code: "42P01", Message: "none"}
	if got, want := sqlstate.Wrap("pause", outdated).Error(), "pause: ERROR: none (SQLSTATE 42P01); run: pgjet migrate up, for the demo with --demo"; got != want {
		t.Errorf("Wrap = %q, want %q", got, want)
	}
	if err := sqlstate.Wrap("pause", nil); err != nil {
		t.Errorf("Wrap(nil) = %v", err)
	}
}

// TestOnlyTable: no other package compares SQLSTATEs, so all agree on their meaning.
func TestOnlyTable(t *testing.T) {
	state := regexp.MustCompile(`"(0[89A-Z]|2[1-9A-Z]|3[489A-F]|4[0-4]|5[3-8]|72|F0|HV|XX)[0-9P][0-9]{2}"`)
	err := filepath.WalkDir("../..", func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() && (d.Name() == "bench" || d.Name() == "sqlstate") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range state.FindAllString(string(text), -1) {
			t.Errorf("%s compares SQLSTATE %s; ask package sqlstate instead", path, m)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
