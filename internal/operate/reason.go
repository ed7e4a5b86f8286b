package operate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// The subjects of reasons. Two reasons with the same code and different subjects may have different
// meanings.
const (
	Relay    = "relay"
	Consumer = "consumer"
	Process  = "process"
	Outbox   = "outbox"
)

// A Reason is a word for why something does not move.
type Reason struct {
	Code    string // the word
	About   string // Relay, Consumer, Process or Outbox; "" means all of them
	Meaning string
	Next    string // the command to type, with NAME for the consumer; "" means reading the runbook
	Runbook string // in docs/runbooks; each reason has one
	Healthy bool   // no action is needed
}

const (
	relayBook    = "relay-not-publishing.md"
	consumerBook = "consumer-not-moving.md"
	databaseBook = "database.md"
	processBook  = "process.md"
)

// Reasons are all reasons, the worst first.
var Reasons = []Reason{
	// Nothing can be read or written.
	{Code: "database_unreachable", Meaning: "no connection to PostgreSQL", Runbook: databaseBook},
	{Code: "database_login", Meaning: "PostgreSQL refuses the user, the password or the database", Runbook: databaseBook},
	{Code: "database_exhausted", Meaning: "PostgreSQL is out of connections, memory or disk, or a sequence is used up", Runbook: databaseBook},
	{Code: "database_read_only", Meaning: "PostgreSQL accepts no writes", Runbook: databaseBook},
	{Code: "schema_outdated", Meaning: "a table, column, function or schema is missing", Next: "pgjet migrate up", Runbook: databaseBook},
	{Code: "permission_denied", Meaning: "a right is missing", Runbook: databaseBook},
	{Code: "permission_denied", About: Relay, Meaning: "a right is missing", Runbook: relayBook},
	{Code: "permission_denied", About: Consumer, Meaning: "a right is missing", Runbook: consumerBook},
	{Code: "pooler", Meaning: "a connection pooler is in the way of a connection that needs a session of its own", Runbook: databaseBook},
	{Code: "database_timeout", Meaning: "PostgreSQL ended a statement or a wait, or a session locks a table", Runbook: databaseBook},
	{Code: "database_encoding", Meaning: "a character does not exist in the encoding of the database", Runbook: databaseBook},
	{Code: "value_rejected", Meaning: "PostgreSQL does not accept a value", Runbook: databaseBook},
	{Code: "transaction_aborted", Meaning: "a statement was sent in a transaction that had failed", Runbook: databaseBook},
	{Code: "database_error", Meaning: "PostgreSQL reports another error", Runbook: databaseBook},
	{Code: "database_conflict", Meaning: "a serialization failure or a deadlock", Runbook: databaseBook},
	{Code: "plan_outdated", Meaning: "a table was changed under a prepared statement", Runbook: databaseBook},

	// Nothing is published.
	{Code: "nats_unreachable", About: Relay, Meaning: "no connection to NATS", Runbook: relayBook},
	{Code: "nats_outdated", About: Relay, Meaning: "the server is older than 2.14", Runbook: relayBook},
	{Code: "jetstream_disabled", About: Relay, Meaning: "the server or the account has no JetStream", Runbook: relayBook},
	{Code: "stream_missing", About: Relay, Meaning: "there is no such stream", Next: "pgjet stream ensure", Runbook: relayBook},
	{Code: "foreign_outbox", About: Relay, Meaning: "the stream belongs to another outbox", Next: "pgjet stream ensure --stream NAME --prefix NAME", Runbook: relayBook},
	{Code: "due_held", About: Relay, Meaning: "a transaction holds scheduled events that are due, or earlier ones of their keys", Runbook: relayBook},
	{Code: "outbox_copied", About: Relay, Meaning: "a copy of this database runs beside its original", Runbook: relayBook},
	{Code: "halted", About: Relay, Meaning: "the stream holds messages that the outbox does not have", Next: "pgjet relay adopt --dry-run", Runbook: relayBook},
	{Code: "stream_full", About: Relay, Meaning: "the stream is at one of its limits", Runbook: relayBook},
	{Code: "stream_write_error", About: Relay, Meaning: "the server has the stream, but stores nothing", Runbook: relayBook},
	{Code: "stream_differs", About: Relay, Meaning: "a setting of the stream breaks what pgjet promises", Runbook: relayBook},
	{Code: "stream_unresponsive", About: Relay, Meaning: "the stream does not answer", Runbook: relayBook},
	{Code: "nats_limit", About: Relay, Meaning: "the account, the stream or the server reached a limit", Runbook: relayBook},
	{Code: "lead_taken", About: Relay, Meaning: "a session that is no relay holds the lock", Runbook: relayBook},
	{Code: "no_leader", About: Relay, Meaning: "no relay runs, or none reaches the database", Next: "pgjet relay", Runbook: relayBook},
	{Code: "paused", About: Relay, Meaning: "an operator or a command paused it", Next: "pgjet relay resume", Runbook: relayBook},
	{Code: "stream_error", About: Relay, Meaning: "JetStream reports another error", Runbook: relayBook},
	{Code: "fenced", About: Relay, Meaning: "another relay or program appended to the stream", Runbook: relayBook},
	{Code: "refused", About: Relay, Meaning: "the stream refused an event permanently", Runbook: relayBook},
	{Code: "sequence_set_back", About: Relay, Meaning: "an event has a seq below others that were published long ago", Next: "pgjet relay status", Runbook: relayBook},
	{Code: "error", About: Relay, Meaning: "another error; the text names it", Runbook: relayBook},
	{Code: "stalled", About: Relay, Meaning: "a relay leads and reports nothing, and publishes nothing", Runbook: relayBook},
	{Code: "starting", About: Relay, Meaning: "a relay has just taken the lead and compares the stream with its checkpoint", Next: "pgjet relay status", Runbook: relayBook},

	// A consumer handles nothing, or too little: the order of status.Codes.
	{Code: "expiring", About: Consumer, Meaning: "the stream will soon delete events that were not handled", Next: "pgjet consumer get NAME", Runbook: consumerBook},
	{Code: "unaccounted", About: Consumer, Meaning: "the inbox lacks events that JetStream counts as delivered", Runbook: consumerBook},
	{Code: "stream_missing", About: Consumer, Meaning: "there is no such stream", Next: "pgjet stream ensure", Runbook: consumerBook},
	{Code: "consumer_missing", About: Consumer, Meaning: "there is no durable consumer", Next: "pgjet consumer ensure NAME", Runbook: consumerBook},
	{Code: "paused", About: Consumer, Meaning: "an operator or a command paused it", Next: "pgjet consumer resume NAME", Runbook: consumerBook},
	{Code: "no_process", About: Consumer, Meaning: "events wait, and no process runs", Next: "pgjet consume NAME", Runbook: consumerBook},
	{Code: "lead_taken", About: Consumer, Meaning: "a session that is no process of this consumer holds its lock", Runbook: consumerBook},
	{Code: "foreign_durable", About: Consumer, Meaning: "the durable consumer belongs to another database", Next: "pgjet consumer get NAME", Runbook: consumerBook},
	{Code: "outbox_copied", About: Consumer, Meaning: "a copy of this database runs beside its original", Runbook: consumerBook},
	{Code: "nats_unreachable", About: Consumer, Meaning: "the processes lost the connection to NATS", Runbook: consumerBook},
	{Code: "stream_differs", About: Consumer, Meaning: "the stream stores no subject with the prefix of the consumer", Runbook: consumerBook},
	{Code: "consumer_differs", About: Consumer, Meaning: "the durable consumer has other settings than the process needs", Next: "pgjet consumer ensure NAME", Runbook: consumerBook},
	{Code: "consumer_paused", About: Consumer, Meaning: "the durable consumer is paused in JetStream, not by pgjet", Runbook: consumerBook},
	{Code: "retention_too_short", About: Consumer, Meaning: "the inbox would forget events that can be delivered again", Runbook: consumerBook},
	{Code: "unavailable", About: Consumer, Meaning: "something that every event needs is unavailable", Runbook: consumerBook},
	{Code: "stream_unresponsive", About: Consumer, Meaning: "JetStream does not answer", Runbook: consumerBook},
	{Code: "stream_full", About: Consumer, Meaning: "the account or the server has no room", Runbook: consumerBook},
	{Code: "stream_error", About: Consumer, Meaning: "JetStream reports another error", Runbook: consumerBook},
	{Code: "nats_outdated", About: Consumer, Meaning: "the server is older than 2.14", Runbook: consumerBook},
	{Code: "nats_limit", About: Consumer, Meaning: "the account, the stream or the server allows no more consumers", Runbook: consumerBook},
	{Code: "jetstream_disabled", About: Consumer, Meaning: "the server or the account has no JetStream", Runbook: consumerBook},
	{Code: "blocked", About: Consumer, Meaning: "the processes handle nothing for another reason", Runbook: consumerBook},
	{Code: "at_max_ack_pending", About: Consumer, Meaning: "the limit of unacknowledged events is reached", Runbook: consumerBook},
	{Code: "failing", About: Consumer, Meaning: "most attempts fail, or all of the last ones", Next: "pgjet consumer get NAME", Runbook: consumerBook},
	{Code: "saga_needs_operator", About: Consumer, Meaning: "a saga could not undo a step", Next: "pgjet saga ls --state needs_operator", Runbook: consumerBook},
	{Code: "saga_waiting", About: Consumer, Meaning: "sagas wait at a step", Next: "pgjet saga ls --state running", Runbook: consumerBook},
	{Code: "slow", About: Consumer, Meaning: "events arrive faster than they are handled", Next: "pgjet consumer get NAME", Runbook: consumerBook},
	{Code: "stalled", About: Consumer, Meaning: "workers are free, but handle nothing", Next: "pgjet consumer get NAME", Runbook: consumerBook},
	{Code: "dead_letters", About: Consumer, Meaning: "events became dead letters after their last attempt", Next: "pgjet dead groups --consumer NAME", Runbook: consumerBook},

	{Code: "audit_differs", About: Outbox, Meaning: "the background audit found that outbox and stream differ", Next: "pgjet audit show", Runbook: "audit.md"},
	{Code: "quarantined", About: Outbox, Meaning: "the stream refuses events, which are in quarantine", Next: "pgjet relay quarantine ls", Runbook: "quarantine.md"},
	{Code: "not_ready", About: Process, Meaning: "a process says that it is not ready", Next: "pgjet services ls", Runbook: processBook},
	{Code: "no_answer", About: Process, Meaning: "the health page of a process cannot be reached from here, and those of others can", Next: "pgjet services ls", Runbook: processBook},

	// No action is needed.
	{Code: "breaker_open", About: Process, Meaning: "a service that processes call is unavailable; events and sagas that wait for it are reported, too", Next: "pgjet services ls", Runbook: processBook, Healthy: true},
	{Code: "degraded", About: Process, Meaning: "a process is ready, but most attempts fail or sagas wait", Next: "pgjet services ls", Runbook: processBook, Healthy: true},
	{Code: "moving", About: Consumer, Meaning: "events are being handled", Runbook: consumerBook, Healthy: true},
	{Code: "retrying", About: Consumer, Meaning: "the remaining events wait for another attempt, or behind one of their key", Next: "pgjet consumer get NAME", Runbook: consumerBook, Healthy: true},
	{Code: "unknown", About: Consumer, Meaning: "NATS does not answer, and no problem is known", Next: "pgjet status", Runbook: consumerBook, Healthy: true},
	{Code: "idle", About: Consumer, Meaning: "nothing to do", Runbook: consumerBook, Healthy: true},
}

// find returns a reason and its index in Reasons. A reason that is not in the list comes after all
// others, and its runbook is that of its subject.
func find(about, code string) (rank int, r Reason) {
	for _, about := range []string{about, ""} {
		if i := slices.IndexFunc(Reasons, func(r Reason) bool { return r.Code == code && r.About == about }); i >= 0 {
			return i, Reasons[i]
		}
	}
	book := map[string]string{Relay: relayBook, Consumer: consumerBook, Process: processBook}[about]
	return len(Reasons), Reason{Code: code, About: about, Runbook: book}
}

// next returns the command to type about a reason. By default it prints the runbook.
func (r Reason) next() string {
	if r.Next == "" && r.Runbook != "" {
		return "pgjet explain " + r.Code
	}
	return r.Next
}

// ReasonsPage returns docs/reference/reasons.md.
func ReasonsPage() string {
	var b strings.Builder
	b.WriteString("# Reasons\n\nEach reason why something does not move has a word. This is the list, the worst first, as `pgjet explain` lists them; `pgjet explain CODE` prints the\n" +
		"runbook. This page is made from the list in `internal/operate`.\n\n" +
		"| reason | of | what it means | next | needs action |\n|---|---|---|---|---|\n")
	for _, r := range Reasons {
		next := "`pgjet explain " + r.Code + "`"
		if r.Next != "" {
			next = "`" + r.Next + "`"
		}
		if r.Runbook != "" {
			next += ", [runbook](../runbooks/" + r.Runbook + ")"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", r.Code, cmp.Or(r.About, "all"), r.Meaning, next, map[bool]string{true: "no", false: "yes"}[r.Healthy])
	}
	return b.String()
}
