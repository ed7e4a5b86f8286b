package relay

import "github.com/pgjet/pgjet/outbox"

const (
	PendingSQL  = pendingSQL
	ReadByIndex = readByIndex
)

func PendingArguments(from outbox.Position, now outbox.Snapshot) []any {
	return pendingArguments(from, now)
}

var (
	CountUnaccounted = countUnaccounted
	Connect          = connect
)
