package outbox

import (
	"context"
	"database/sql"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pgjet/pgjet/events"
)

// An SQLTx is an open transaction of database/sql, with any driver for PostgreSQL: a
// [*sql.Tx], or a type that wraps one, such as *sqlx.Tx or bun.Tx. A pool or a connection
// is none: it cannot commit.
type SQLTx interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	Commit() error
	Rollback() error
}

// AppendSQL is [Append] for a transaction of database/sql. It makes the same guarantees and
// returns the same errors. It neither commits tx nor rolls it back.
//
// The statement has no arguments, since the events stand in its text: so every driver makes
// one round trip of it. Logs and traces of statement texts therefore contain payloads. A
// transaction that prepares and keeps each statement, such as GORM's PreparedStmtTX, would
// keep them all: give AppendSQL the transaction that it wraps.
func AppendSQL(ctx context.Context, tx SQLTx, payloads ...events.Payload) error {
	return write(ctx, payloads, func(query string, args []any) error {
		query, err := inline(query, args)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, query)
		return err
	})
}

// inline returns query with the arguments in it. With arguments, drivers make two round
// trips; bun passes none on and replaces question marks.
func inline(query string, args []any) (string, error) {
	types, replace := pgtype.NewMap(), make([]string, 0, 2*len(args))
	for i, arg := range slices.Backward(args) { // $10 before $1
		text, err := types.Encode(typeOf(arg), pgtype.TextFormatCode, arg, []byte{})
		if err != nil {
			return "", fmt.Errorf("argument %d has no text form", i+1) // err shows the argument
		}
		replace = append(replace, "$"+strconv.Itoa(i+1), literal(text))
	}
	return strings.NewReplacer(replace...).Replace(query), nil
}

// literal returns text, or null for nil, as SQL that means the same under every encoding of
// the session and every standard_conforming_strings.
func literal(text []byte) string {
	switch {
	case text == nil:
		return "null"
	case slices.ContainsFunc(text, func(c byte) bool { return c < ' ' || c > '~' || c == '\'' || c == '\\' || c == '?' }):
		return "convert_from(decode('" + hex.EncodeToString(text) + "', 'hex'), 'UTF8')"
	}
	return "'" + string(text) + "'"
}

// typeOf returns the PostgreSQL type in whose text form arg is written.
func typeOf(arg any) uint32 {
	switch arg.(type) {
	case pgtype.UUID:
		return pgtype.UUIDOID
	case []pgtype.UUID:
		return pgtype.UUIDArrayOID
	case time.Time, *time.Time:
		return pgtype.TimestamptzOID
	case []*time.Time:
		return pgtype.TimestamptzArrayOID
	case []string, []*string:
		return pgtype.TextArrayOID
	case []byte:
		return pgtype.ByteaOID
	case [][]byte:
		return pgtype.ByteaArrayOID
	}
	return pgtype.TextOID
}
