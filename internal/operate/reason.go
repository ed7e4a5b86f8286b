package operate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// What reasons are about. One with the same code may mean, and call for, different things.
const (
	Relay    = "relay"
	Consumer = "consumer"
	Process  = "process"
	Outbox   = "outbox"
)

// A Reason is a word for why something does not move.
type Reason struct {
	Code    string // the word
	About   string // Relay, Consumer, Process or Outbox; "" is all of them
	Meaning string
	Next    string // the command to type, with NAME for the consumer; "" is to read the runbook
	Runbook string // in docs/runbooks; each reason has one
	Healthy bool   // nobody has to do anything
}

const (
	relayBook    = "relay-not-publishing.md"
	consumerBook = "consumer-not-moving.md"
	databaseBook = "database.md"
	processBook  = "process.md"
)

// Reasons are all there are, the worst first.
var Reasons = []Reason{
	// Nothing can be asked, or nothing can be written.
	{Code: "database_unreachable", Meaning: "no connection to PostgreSQL", Runbook: databaseBook},
	{Code: "database_login", Meaning: "PostgreSQL refuses the user, the password or the database", Runbook: databaseBook},
	{Code: "database_exhausted", Meaning: "PostgreSQL is out of connections, memory or disk, or a sequence is used up", Runbook: databaseBook},
	{Code: "database_read_only", Meaning: "PostgreSQL takes no writes", Runbook: databaseBook},
	{Code: "schema_outdated", Meaning: "a table, column, function or schema is missing", Next: "pgjet migrate up", Runbook: databaseBook},
	{Code: "permission_denied", Meaning: "a right is missing", Runbook: databaseBook},
	{Code: "permission_denied", About: Relay, Meaning: "a right is missing", Runbook: relayBook},
	{Code: "permission_denied", About: Consumer, Meaning: "a right is missing", Runbook: consumerBook},
	{Code: "pooler", Meaning: "a connection pooler stands before what needs a session of its own", Runbook: databaseBook},
	{Code: "database_timeout", Meaning: "PostgreSQL ended a statement or a wait, or somebody holds a table", Runbook: databaseBook},
	{Code: "database_encoding", Meaning: "a character does not exist in the encoding of the database", Runbook: databaseBook},
	{Code: "value_rejected", Meaning: "PostgreSQL does not take a value", Runbook: databaseBook},
	{Code: "transaction_aborted", Meaning: "a statement was sent in a transaction that had failed", Runbook: databaseBook},
	{Code: "database_error", Meaning: "PostgreSQL reports another error", Runbook: databaseBook},
	{Code: "database_conflict", Meaning: "a serialization failure or a deadlock", Runbook: databaseBook},
	{Code: "plan_outdated", Meaning: "a table was changed under a prepared statement", Runbook: databaseBook},

	// Nothing is published.
	{Code: "nats_unreachable", About: Relay, Meaning: "no connection to NATS", Runbook: relayBook},
	{Code: "nats_outdated", About: Relay, Meaning: "the server is older than 2.14", Runbook: relayBook},
	{Code: "jetstream_disabled", About: Relay, Meaning: "the server or the account has no JetStream", Runbook: relayBook},
	{Code: "stream_missing", About: Relay, Meaning: "there is no such stream", Next: "pgjet stream ensure", Runbook: relayBook},
	{Code: "foreign_outbox", About: Relay, Meaning: "the stream is another outbox's", Next: "pgjet stream ensure --stream NAME --prefix NAME", Runbook: relayBook},
	{Code: "due_held", About: Relay, Meaning: "a transaction holds scheduled events that are due, or earlier ones of their keys", Runbook: relayBook},
	{Code: "outbox_copied", About: Relay, Meaning: "a copy of this database runs beside its original", Runbook: relayBook},
	{Code: "halted", About: Relay, Meaning: "the stream holds what the outbox does not know", Next: "pgjet relay adopt --dry-run", Runbook: relayBook},
	{Code: "stream_full", About: Relay, Meaning: "the stream is at one of its limits", Runbook: relayBook},
	{Code: "stream_write_error", About: Relay, Meaning: "nothing is stored although the server knows the stream", Runbook: relayBook},
	{Code: "stream_differs", About: Relay, Meaning: "a setting of the stream breaks what pgjet promises", Runbook: relayBook},
	{Code: "stream_unresponsive", About: Relay, Meaning: "the stream does not answer", Runbook: relayBook},
	{Code: "nats_limit", About: Relay, Meaning: "the account, the stream or the server reached a limit", Runbook: relayBook},
	{Code: "lead_taken", About: Relay, Meaning: "a session that is no relay holds the lock", Runbook: relayBook},
	{Code: "no_leader", About: Relay, Meaning: "no relay runs, or none reaches the database", Next: "pgjet relay", Runbook: relayBook},
	{Code: "paused", About: Relay, Meaning: "somebody paused it", Next: "pgjet relay resume", Runbook: relayBook},
	{Code: "stream_error", About: Relay, Meaning: "JetStream reports another error", Runbook: relayBook},
	{Code: "fenced", About: Relay, Meaning: "somebody else appended to the stream", Runbook: relayBook},
	{Code: "refused", About: Relay, Meaning: "the stream refused an event for good", Runbook: relayBook},
	{Code: "sequence_set_back", About: Relay, Meaning: "an event has a seq below others that were published long ago", Next: "pgjet relay status", Runbook: relayBook},
	{Code: "error", About: Relay, Meaning: "something else; the text says what", Runbook: relayBook},
	{Code: "stalled", About: Relay, Meaning: "a relay leads and reports nothing, and publishes nothing", Runbook: relayBook},
	{Code: "starting", About: Relay, Meaning: "a relay has just taken the lead and compares the stream with its checkpoint", Next: "pgjet relay status", Runbook: relayBook},

	// A consumer handles nothing, or too little: the order of status.Codes.
	{Code: "expiring", About: Consumer, Meaning: "the stream will soon delete events that were not handled", Next: "pgjet consumer get NAME", Runbook: consumerBook},
	{Code: "unaccounted", About: Consumer, Meaning: "the inbox does not know events that JetStream counts as delivered", Runbook: consumerBook},
	{Code: "stream_missing", About: Consumer, Meaning: "there is no such stream", Next: "pgjet stream ensure", Runbook: consumerBook},
	{Code: "consumer_missing", About: Consumer, Meaning: "there is no durable consumer", Next: "pgjet consumer ensure NAME", Runbook: consumerBook},
	{Code: "paused", About: Consumer, Meaning: "somebody paused it", Next: "pgjet consumer resume NAME", Runbook: consumerBook},
	{Code: "no_process", About: Consumer, Meaning: "events wait, and no process runs", Next: "pgjet consume NAME", Runbook: consumerBook},
	{Code: "lead_taken", About: Consumer, Meaning: "a session that is no process of this consumer holds its lock", Runbook: consumerBook},
	{Code: "foreign_durable", About: Consumer, Meaning: "the durable consumer is another database's", Next: "pgjet consumer get NAME", Runbook: consumerBook},
	{Code: "outbox_copied", About: Consumer, Meaning: "a copy of this database runs beside its original", Runbook: consumerBook},
	{Code: "nats_unreachable", About: Consumer, Meaning: "the processes lost NATS", Runbook: consumerBook},
	{Code: "stream_differs", About: Consumer, Meaning: "the stream takes no subject with the prefix of the consumer", Runbook: consumerBook},
	{Code: "consumer_differs", About: Consumer, Meaning: "the durable consumer is not what the process needs", Next: "pgjet consumer ensure NAME", Runbook: consumerBook},
	{Code: "consumer_paused", About: Consumer, Meaning: "the durable consumer is paused in JetStream, not by pgjet", Runbook: consumerBook},
	{Code: "retention_too_short", About: Consumer, Meaning: "the inbox would forget events that can come again", Runbook: consumerBook},
	{Code: "unavailable", About: Consumer, Meaning: "something is away that every event needs", Runbook: consumerBook},
	{Code: "stream_unresponsive", About: Consumer, Meaning: "JetStream does not answer", Runbook: consumerBook},
	{Code: "stream_full", About: Consumer, Meaning: "the account or the server has no room", Runbook: consumerBook},
	{Code: "stream_error", About: Consumer, Meaning: "JetStream reports another error", Runbook: consumerBook},
	{Code: "nats_outdated", About: Consumer, Meaning: "the server is older than 2.14", Runbook: consumerBook},
	{Code: "nats_limit", About: Consumer, Meaning: "the account, the stream or the server allows no more consumers", Runbook: consumerBook},
	{Code: "jetstream_disabled", About: Consumer, Meaning: "the server or the account has no JetStream", Runbook: consumerBook},
	{Code: "blocked", About: Consumer, Meaning: "the processes handle nothing for another reason", Runbook: consumerBook},
	{Code: "at_max_ack_pending", About: Consumer, Meaning: "all that JetStream lets out at once is out", Runbook: consumerBook},
	{Code: "failing", About: Consumer, Meaning: "most attempts fail, or all of the last ones", Next: "pgjet consumer get NAME", Runbook: consumerBook},
	{Code: "saga_needs_operator", About: Consumer, Meaning: "a saga could not undo a step", Next: "pgjet saga ls --state needs_operator", Runbook: consumerBook},
	{Code: "saga_waiting", About: Consumer, Meaning: "sagas wait at a step", Next: "pgjet saga ls --state running", Runbook: consumerBook},
	{Code: "slow", About: Consumer, Meaning: "more comes than is handled", Next: "pgjet consumer get NAME", Runbook: consumerBook},
	{Code: "stalled", About: Consumer, Meaning: "workers are free and take nothing", Next: "pgjet consumer get NAME", Runbook: consumerBook},
	{Code: "dead_letters", About: Consumer, Meaning: "events were given up after their last attempt", Next: "pgjet dead groups --consumer NAME", Runbook: consumerBook},

	{Code: "audit_differs", About: Outbox, Meaning: "the background audit found that outbox and stream differ", Next: "pgjet audit show", Runbook: "audit.md"},
	{Code: "quarantined", About: Outbox, Meaning: "the stream refuses events, which are set aside", Next: "pgjet relay quarantine ls", Runbook: "quarantine.md"},
	{Code: "not_ready", About: Process, Meaning: "a process says that it is not ready", Next: "pgjet services ls", Runbook: processBook},
	{Code: "no_answer", About: Process, Meaning: "the health page of a process cannot be reached from here, and those of others can", Next: "pgjet services ls", Runbook: processBook},

	// Nobody has to do anything.
	{Code: "breaker_open", About: Process, Meaning: "a service that processes call is away; what waits for it is found, too", Next: "pgjet services ls", Runbook: processBook, Healthy: true},
	{Code: "degraded", About: Process, Meaning: "a process is ready, and most attempts fail or sagas wait", Next: "pgjet services ls", Runbook: processBook, Healthy: true},
	{Code: "moving", About: Consumer, Meaning: "it works", Runbook: consumerBook, Healthy: true},
	{Code: "retrying", About: Consumer, Meaning: "all that is left waits for another attempt, or behind one of its key", Next: "pgjet consumer get NAME", Runbook: consumerBook, Healthy: true},
	{Code: "idle", About: Consumer, Meaning: "nothing to do", Runbook: consumerBook, Healthy: true},
}

// find returns the place of a reason in Reasons, and the reason. One that is not in the list
// ranks behind those that are, and its runbook is the one of what it is about.
func find(about, code string) (rank int, r Reason) {
	for _, about := range []string{about, ""} {
		if i := slices.IndexFunc(Reasons, func(r Reason) bool { return r.Code == code && r.About == about }); i >= 0 {
			return i, Reasons[i]
		}
	}
	book := map[string]string{Relay: relayBook, Consumer: consumerBook, Process: processBook}[about]
	return len(Reasons), Reason{Code: code, About: about, Runbook: book}
}

// next returns the command to type about a reason. If nothing else is known, that is the one that prints its runbook.
func (r Reason) next() string {
	if r.Next == "" && r.Runbook != "" {
		return "pgjet explain " + r.Code
	}
	return r.Next
}

// ReasonsPage returns docs/reference/reasons.md.
func ReasonsPage() string {
	var b strings.Builder
	b.WriteString("# Reasons\n\nWhy something does not move has a word. These are all, the worst first, as `pgjet explain` lists them; `pgjet explain CODE` prints the\n" +
		"runbook. This page is made from the list in `internal/operate`.\n\n" +
		"| reason | of | what it means | next | needs somebody |\n|---|---|---|---|---|\n")
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
