package relay

import "github.com/pgjet/pgjet/outbox"

const ReadByIndex = readByIndex

var PendingSQL = pendingSQL

func PendingArguments(from outbox.Position, now outbox.Snapshot) []any {
	return pendingArguments(from, now)
}
