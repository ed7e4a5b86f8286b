package schema

import (
	"errors"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

func TestFailed(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{errors.New("no route"), "pause: no route"},
		{&pgconn.PgError{Severity: "ERROR", Code: "23505", Message: "twice"}, "pause: ERROR: twice (SQLSTATE 23505)"},
		{&pgconn.PgError{Severity: "ERROR", Code: "42P01", Message: "no table"}, "pause: ERROR: no table (SQLSTATE 42P01); run: pgjet migrate up"},
		{&pgconn.PgError{Severity: "ERROR", Code: "42703", Message: "no column"}, "pause: ERROR: no column (SQLSTATE 42703); run: pgjet migrate up"},
		{&pgconn.PgError{Severity: "ERROR", Code: "3F000", Message: "no schema"}, "pause: ERROR: no schema (SQLSTATE 3F000); run: pgjet migrate up"},
	} {
		if got := Failed("pause", c.err); got.Error() != c.want || !errors.Is(got, c.err) {
			t.Errorf("Failed() = %q, want %q", got, c.want)
		}
	}
	if err := Failed("pause", nil); err != nil {
		t.Errorf("Failed() = %v, want nil", err)
	}
}
