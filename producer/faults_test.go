package producer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

func TestCommitError(t *testing.T) {
	for _, tt := range []struct {
		name    string
		err     error
		unknown bool
	}{
		{"refused by a deferred constraint", &pgconn.PgError{Code: "23505"}, false},
		{"serialization failure", &pgconn.PgError{Code: "40001"}, false},
		{"rolled back", pgx.ErrTxCommitRollback, false},
		{"connection closed, nobody knows when", pgconn.ErrConnClosed, true},
		{"shutdown meanwhile", &pgconn.PgError{Code: "57P01"}, true},
		{"connection lost", io.ErrUnexpectedEOF, true},
		{"connection reset", &net.OpError{Op: "read", Err: errors.New("reset")}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := commitError(tt.err)
			if errors.Is(got, errOutcomeUnknown) != tt.unknown {
				t.Errorf("commitError(%v) = %v, want unknown: %v", tt.err, got, tt.unknown)
			}
			if !errors.Is(got, tt.err) {
				t.Errorf("commitError(%v) = %v lost its cause", tt.err, got)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want bool
	}{
		{&pgconn.PgError{Code: "23505"}, true},
		{fmt.Errorf("append: %w", &pgconn.PgError{Code: "57P01"}), true},
		{pgx.ErrPreprocessingBatch{}, true},
		{io.ErrUnexpectedEOF, false},
		{context.DeadlineExceeded, false},
		{nil, false},
	} {
		if got := refused(tt.err); got != tt.want {
			t.Errorf("refused(%v) = %v, want %v", tt.err, got, tt.want)
		}
	}
}

func TestRedact(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{errors.New("plain"), "plain"},
		{&pgconn.PgError{Severity: "ERROR", Code: "42P01", Message: "relation x does not exist"}, "ERROR: relation x does not exist (SQLSTATE 42P01)"},
		{&pgconn.PgError{Severity: "ERROR", Code: "22P02", Message: `invalid input "secret"`}, "SQLSTATE 22P02"},
		{fmt.Errorf("insert user: %w", &pgconn.PgError{Code: "23514", Message: "secret", TableName: "users", ConstraintName: "names"}), "insert user: SQLSTATE 23514 users names"},
		{&pgconn.PgError{Code: "", Message: "secret"}, "SQLSTATE"},
	} {
		if got := redact(tt.err); got != tt.want {
			t.Errorf("redact(%v) = %q, want %q", tt.err, got, tt.want)
		}
	}
}
