// Package sqlstate maps errors of PostgreSQL to their meaning for pgjet. It holds the only
// list of SQLSTATEs: readiness, status, verdicts, retries and HTTP answers all derive from
// [Of].
package sqlstate

import (
	"cmp"
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// A Class groups errors that call for the same reaction. Its text is the reason that operators
// see in status, readiness and logs.
type Class string

// The classes. [Of] returns "" for any other error.
const (
	// Unreachable: no connection, a lost one, or a server that starts, stops or cannot read
	// its disk.
	Unreachable Class = "database_unreachable"
	// Login: the server refuses the user, its password, or the database.
	Login Class = "database_login"
	// Exhausted: the server is out of connections, memory or disk, or a sequence is used up.
	Exhausted Class = "database_exhausted"
	// ReadOnly: a standby, or a server that is set to take no writes.
	ReadOnly Class = "database_read_only"
	// Timeout: a statement, lock, transaction or idle session exceeded a limit of the
	// server.
	Timeout Class = "database_timeout"
	// Conflict: a serialization failure or a deadlock; the transaction succeeds if it runs again.
	Conflict Class = "database_conflict"
	// StalePlan: a table changed under a prepared statement, which works again at the next
	// attempt.
	StalePlan Class = "plan_outdated"
	// Pooler: a prepared statement is on another connection than the one that prepared it, or a pooler
	// gives each statement another connection and so has no transactions.
	Pooler Class = "pooler"
	// Permission: the role lacks a right.
	Permission Class = "permission_denied"
	// Outdated: a table, column, function or schema is missing.
	Outdated Class = "schema_outdated"
	// Encoding: a character does not exist in the encoding of the database or of the session.
	Encoding Class = "database_encoding"
	// Aborted: an earlier statement of the transaction failed.
	Aborted Class = "transaction_aborted"
	// Rejected: the table does not accept a value.
	Rejected Class = "value_rejected"
	// Failed: any other error that PostgreSQL reports.
	Failed Class = "database_error"
)

// Reasons are all classes, as the reasons why a process gets nothing done.
var Reasons = []Class{
	Unreachable, Login, Exhausted, ReadOnly, Timeout, Conflict, StalePlan, Pooler, Permission, Outdated, Encoding, Aborted, Rejected, Failed,
}

// Single SQLSTATEs that are used by name.
const (
	LockNotAvailable     = "55P03" // lock_timeout, or NOWAIT
	UniqueViolation      = "23505"
	ProgramLimitExceeded = "54000" // such as a value too long for an index
	InvalidCatalogName   = "3D000" // the database does not exist
	DatabaseNotAdmitting = "55000" // of a connection: the database admits nobody
)

// exact are the codes whose class is not that of the others with the same first two characters.
var exact = map[string]Class{
	"0A000": Failed,      // feature_not_supported; see stalePlan and noReadWrite
	"21000": Rejected,    // cardinality_violation
	"2200H": Exhausted,   // sequence_generator_limit_exceeded
	"22021": Encoding,    // character_not_in_repertoire
	"22P05": Encoding,    // untranslatable_character
	"25006": ReadOnly,    // read_only_sql_transaction
	"25P02": Aborted,     // in_failed_sql_transaction
	"25P03": Timeout,     // idle_in_transaction_session_timeout
	"25P04": Timeout,     // transaction_timeout
	"26000": Pooler,      // invalid_sql_statement_name
	"3D000": Login,       // invalid_catalog_name
	"3F000": Outdated,    // invalid_schema_name
	"42501": Permission,  // insufficient_privilege
	"42703": Outdated,    // undefined_column
	"42704": Outdated,    // undefined_object
	"42883": Outdated,    // undefined_function
	"42P01": Outdated,    // undefined_table
	"42P05": Pooler,      // duplicate_prepared_statement
	"54000": Rejected,    // program_limit_exceeded
	"55000": Failed,      // object_not_in_prerequisite_state
	"55006": Unreachable, // object_in_use: the database is being dropped or copied
	"55P03": Timeout,     // lock_not_available
	"57014": Timeout,     // query_canceled
	"57P05": Timeout,     // idle_session_timeout
	"72000": Failed,      // snapshot_too_old
}

// byPrefix are the classes of all other codes, by their first two characters.
var byPrefix = map[string]Class{
	"08": Unreachable, // connection exception
	"22": Rejected,    // data exception
	"23": Rejected,    // integrity constraint violation
	"28": Login,       // invalid authorization
	"40": Conflict,    // transaction rollback
	"53": Exhausted,   // insufficient resources
	"57": Unreachable, // operator intervention
	"58": Unreachable, // system error, such as I/O
}

// Of returns the class of err: that of the PostgreSQL error in it, [Unreachable] for a connection
// that failed or gave no answer in time, and "" for nil and anything else.
func Of(err error) Class {
	if own, ok := errors.AsType[classified](err); ok {
		return own.Class()
	}
	if pgErr, ok := reported(err); ok {
		return classOf(pgErr)
	}
	if err != nil && lost(err) {
		return Unreachable
	}
	return ""
}

// reported returns the error of PostgreSQL in err. Drivers other than pgx show only its
// code.
func reported(err error) (*pgconn.PgError, bool) {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pgErr, true
	}
	other, ok := errors.AsType[interface {
		error
		SQLState() string
	}](err)
	if !ok {
		return nil, false
	}
	return &pgconn.PgError{Code: other.SQLState(), Message: other.Error()}, true
}

// A classified is an error that has a class, and says what to do.
type classified interface {
	error
	Class() Class
}

func classOf(err *pgconn.PgError) Class {
	switch {
	case stalePlan(err):
		return StalePlan
	case noReadWrite(err):
		return ReadOnly
	case noTransactions(err):
		return Pooler
	}
	if class, ok := exact[err.Code]; ok {
		return class
	}
	return cmp.Or(byPrefix[err.Code[:min(2, len(err.Code))]], Failed)
}

// stalePlan recognises "cached plan must not change result type", and the refusal of a
// description that has another number of columns than the table by now. Both codes have
// other uses, and the texts depend on the language of the server.
func stalePlan(err *pgconn.PgError) bool {
	return err.Code == "0A000" && err.Routine == "RevalidateCachedQuery" || err.Code == "08P01" && err.Routine == "PortalSetResultFormat"
}

// noReadWrite recognises "cannot set transaction read-write mode during recovery", with
// which a standby refuses to begin a transaction that may write.
func noReadWrite(err *pgconn.PgError) bool {
	return err.Code == "0A000" && err.Routine == "call_bool_check_hook"
}

// noTransactions recognises "transaction blocks not allowed in statement pooling mode",
// which PgBouncer never translates, under a code that has other uses.
func noTransactions(err *pgconn.PgError) bool {
	return err.Code == "08P01" && err.Routine == "" && strings.Contains(err.Message, "statement pooling mode")
}

// lost reports whether a connection could not be opened, ended, or did not answer in time.
func lost(err error) bool {
	_, connecting := errors.AsType[*pgconn.ConnectError](err)
	_, network := errors.AsType[net.Error](err)
	return connecting || network || pgconn.SafeToRetry(err) || errors.Is(err, pgconn.ErrConnClosed) || errors.Is(err, driver.ErrBadConn) ||
		errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// Passing reports whether an error of this class passes by itself or with an operator's
// help, while the statement is valid: it may be sent again unchanged.
func (c Class) Passing() bool {
	switch c {
	case Unreachable, Login, Exhausted, ReadOnly, Timeout, Conflict, StalePlan, Pooler:
		return true
	}
	return false
}

// Quotes reports whether the text of such an error may repeat a value of a row.
func (c Class) Quotes() bool {
	return c == Rejected || c == Encoding || c == Failed
}

// advice says what to do, after the text of the error. Errors that pass by themselves need
// none.
var advice = map[Class]string{
	Login:     "check the user, the password and the database in the URL",
	Exhausted: "look at the server's connections, memory and disk",
	ReadOnly:  "connect to the primary, or wait until this server is promoted",
	Pooler:    "a connection pooler, which gives sessions to others, stands in between; see: pgjet explain pooler",
	Outdated:  "run: pgjet migrate up, for the demo with --demo",
	Encoding:  "the database must have the encoding UTF8",
}

// Reason returns the class of an error that came from a database. It is [Failed] where [Of]
// returns "".
func Reason(err error) Class { return cmp.Or(Of(err), Failed) }

// Advise returns err with what to do after it, unless err says that itself, as pgjet's own
// errors with a class do. The role is the pgjet role whose rights the connection's user
// needs, such as pgjet_relay; "" names none.
func Advise(err error, role string) error {
	if _, own := errors.AsType[classified](err); own {
		return err
	}
	class := Of(err)
	todo := advice[class]
	if class == Permission && role != "" {
		todo = "the user needs the rights of " + role
	}
	if _, own := errors.AsType[classified](err); own || todo == "" || strings.Contains(err.Error(), todo) {
		return err
	}
	return fmt.Errorf("%w; %s", err, todo)
}

// Explain returns err with its reason before it, such as "schema_outdated: ", and what to
// do after it, as [Advise] does. A nil error stays nil.
func Explain(err error, role string) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", Reason(err), Advise(err, role))
}

// Wrap returns err with what failed before it, and what to do after it if that is known. A
// nil error stays nil.
func Wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, Advise(err, ""))
}

// Is reports whether err is an error of PostgreSQL with this code.
func Is(err error, code string) bool {
	pgErr, ok := reported(err)
	return ok && pgErr.Code == code
}

// CommitUnknown reports whether a commit that returned err may have succeeded: a server may
// shut down, or a connection break, between the commit and its answer.
func CommitUnknown(err error) bool {
	if pgErr, ok := reported(err); ok {
		return pgErr.Code[:min(2, len(pgErr.Code))] == "57"
	}
	switch {
	case err == nil, errors.Is(err, pgx.ErrTxCommitRollback):
		return false
	// pgx considers a closed connection safe to retry even if it broke after the commit was
	// sent.
	case errors.Is(err, pgconn.ErrConnClosed):
		return true
	}
	return !pgconn.SafeToRetry(err)
}
