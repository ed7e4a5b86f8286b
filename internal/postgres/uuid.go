package postgres

import (
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// uuids is the key under which a connection records that it has [quickUUIDs].
const uuids = "pgjet.uuids"

// quickUUIDs makes a connection send arguments of type [uuid.UUID] as they are. Since they have a
// driver value, pgx would format each as text, fail to encode that, and parse it again: some 4 µs.
// What is sent is the same. A codec from a library would also change what users of the connection scan.
func quickUUIDs(conn *pgx.Conn) {
	known := conn.PgConn().CustomData()
	if known[uuids] != nil {
		return
	}
	known[uuids] = true
	m := conn.TypeMap()
	m.TryWrapEncodePlanFuncs = append([]pgtype.TryWrapEncodePlanFunc{wrapUUID}, m.TryWrapEncodePlanFuncs...)
}

func wrapUUID(value any) (plan pgtype.WrappedEncodePlanNextSetter, next any, ok bool) {
	if id, ok := value.(uuid.UUID); ok {
		return &uuidPlan{}, pgtype.UUID{Bytes: id, Valid: true}, true
	}
	return nil, nil, false
}

type uuidPlan struct{ next pgtype.EncodePlan }

func (p *uuidPlan) SetNext(next pgtype.EncodePlan) { p.next = next }

func (p *uuidPlan) Encode(value any, buf []byte) ([]byte, error) {
	return p.next.Encode(pgtype.UUID{Bytes: value.(uuid.UUID), Valid: true}, buf)
}
