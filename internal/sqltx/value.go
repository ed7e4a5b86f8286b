package sqltx

import (
	"bytes"
	"database/sql/driver"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// A reader returns a column's bytes as a value of database/sql.
type reader = func(src []byte) (driver.Value, error)

// readers are for the types that database/sql has too; their columns are requested in
// binary form. Other columns come as text, as with every driver.
var readers = map[uint32]func(m *pgtype.Map, oid uint32) reader{
	pgtype.BoolOID:        binary[pgtype.Bool],
	pgtype.Int2OID:        binary[pgtype.Int8],
	pgtype.Int4OID:        binary[pgtype.Int8],
	pgtype.Int8OID:        binary[pgtype.Int8],
	pgtype.OIDOID:         binary[pgtype.Uint32],
	pgtype.XIDOID:         binary[pgtype.Uint32],
	pgtype.CIDOID:         binary[pgtype.Uint32],
	pgtype.Float4OID:      binary[pgtype.Float8],
	pgtype.Float8OID:      binary[pgtype.Float8],
	pgtype.DateOID:        binary[pgtype.Date],
	pgtype.TimestampOID:   binary[pgtype.Timestamp],
	pgtype.TimestamptzOID: binary[pgtype.Timestamptz],
	pgtype.ByteaOID:       func(*pgtype.Map, uint32) reader { return raw },
}

// formats requests columns in the formats of readers.
var formats = func() pgx.QueryResultFormatsByOID {
	f := make(pgx.QueryResultFormatsByOID)
	for oid := range readers {
		f[oid] = pgx.BinaryFormatCode
	}
	return f
}()

// plan prepares reading the columns of r.
func (r *rows) plan(m *pgtype.Map) {
	for _, column := range r.rows.FieldDescriptions() {
		read := text
		switch known := readers[column.DataTypeOID]; {
		case known != nil && column.Format == pgx.BinaryFormatCode:
			read = known(m, column.DataTypeOID)
		case column.DataTypeOID == pgtype.JSONOID, column.DataTypeOID == pgtype.JSONBOID:
			read = raw // fits json.RawMessage
		}
		r.names, r.readers = append(r.names, column.Name), append(r.readers, read)
	}
}

func binary[T driver.Valuer](m *pgtype.Map, oid uint32) reader {
	var v T
	plan := m.PlanScan(oid, pgx.BinaryFormatCode, &v)
	return func(src []byte) (driver.Value, error) {
		if err := plan.Scan(src, &v); err != nil {
			return nil, err
		}
		return v.Value()
	}
}

func raw(src []byte) (driver.Value, error)  { return bytes.Clone(src), nil }
func text(src []byte) (driver.Value, error) { return string(src), nil }
