// Package pause knows the pauses of consumers that operations of pgjet make for themselves. The reason of
// such a pause names its operation, which ends it. One that was killed cannot: then the next operation
// ends the pause, or an operator does. A pause that an operator made nobody else ends.
package pause

import "strings"

const (
	// Replay begins the reason of a pause that a replay made; the number of its operation follows.
	Replay = "replay, operation "
	// Extension is the reason of a pause that was made to add types of events to a durable consumer.
	Extension = "types of events are added to the durable consumer"
)

// ByOperation reports whether an operation made the pause with this reason.
func ByOperation(reason string) bool {
	return strings.HasPrefix(reason, Replay) || reason == Extension
}

// SQL of a row c of pgjet.consumer.
const (
	// Made is the condition that an operation made the pause.
	Made = `(starts_with(coalesce(c.pause_reason, ''), '` + Replay + `') or coalesce(c.pause_reason, '') = '` + Extension + `')`
	// Interrupted is the condition that it does not run any more: it has no session that holds its lock. One
	// that adds types takes the lock soon after the pause.
	Interrupted = `(` + Made + ` and c.paused_at < clock_timestamp() - interval '5 s' and not exists (
		select from pg_locks l where l.locktype = 'advisory' and l.objsubid = 1 and l.granted
		   and (l.classid::bigint << 32 | l.objid::bigint) = hashtextextended('pgjet.replay.' || c.name, 0)
		   and l.database = (select oid from pg_database where datname = current_database())))`
)

// Advice says what to do about a pause whose operation was interrupted.
func Advice(consumer, reason string) string {
	again := "run the replay again"
	if reason == Extension {
		again = "run again: pgjet consumer ensure " + consumer + " --apply"
	}
	return "what paused it does not run any more; " + again + ", or: pgjet consumer resume " + consumer
}
