// Package inbox reads and writes the tables of consumers, and is the only package that writes them:
// consumer, slice, process, inbox, intent, attempt and dead_letter, in the schema pgjet of the
// database that the handlers write to. It knows nothing of NATS, starts no goroutine, and reads no
// clock but the database's.
//
// The diagram shows the states of an event inside a consumer, and the functions that move it. The
// boxes are the states of its row in pgjet.inbox. JetStream has to deliver an event without a row.
//
//	             Tenure.Claim, with the effects of the handler
//	(no row) ──────────────────────────────────────────────────────────▶ done
//	 │  ▲                                                                 ▲ │
//	 │  └── Forget, Tenure.Unclaim, Tenure.Prune ─────────────────────────┼─┤
//	 │                                                                    │ │
//	 │ Tenure.Intend       ┌──────────────── intent ────────────────┐     │ │
//	 ├────────────────────▶│ waits: for its time, behind its key    │     │ │
//	 │ HandOver.Run        │   │ Take, TakeNext   ▲ Again, GiveBack │◀────┼─┘ HandOver.Run
//	 │                     │   ▼                  │ Abandon, Leave  │     │
//	 │                     │ taken by a session ──┘                 │     │
//	 │                     └───┬───────────────┬────────────────────┘     │
//	 │                         │               │ Tenure.Finish, Remember  │
//	 │ Tenure.Bury             │ Tenure.Bury   └──────────────────────────┘
//	 ▼                         ▼
//	dead ─────── Redrive ───▶ intent         dead ── Discard ──▶ discarded ── Reopen ──▶ dead
//
// [Forget] deletes rows that are done, and those of intents; [Tenure.Prune] deletes rows that are
// done or discarded. [Tenure.Copies] inserts a row, done, for a message that repeats another one.
// [Retry] makes an intent that waits for its time due now, and [Tenure.Wake] one that waits behind
// nothing. An intent has its message in pgjet.intent, a dead letter in pgjet.dead_letter. A redriven
// event keeps its dead letter until it is done. Each attempt that did not simply succeed as the
// first one is in pgjet.attempt.
//
// # Fencing
//
// A [Tenure] is the time in which one session owns one [Slice] of a consumer. Its transactions hold
// the consumer's lock of attempts and the slice's lock in shared mode, and have checked the slice's
// epoch behind those locks. [Tenure.Own] takes the slice's lock exclusively and raises its epoch; [Supersede] does
// both for the consumer and all its slices. So a superseded session changes nothing more. The
// epoch alone makes this safe; which process believes that it owns a slice only decides which one
// tries. An intent belongs to the session named in taken_by, and each statement about the intent
// checks that name.
//
// # Order
//
// In an ordered consumer, an event waits while an earlier event of its key is an intent or, if the
// consumer parks keys, a dead letter. This rule is written down once, and used by every statement
// that makes an intent due. A statement that ends an intent makes the next one of its key due, in
// the same transaction.
//
// # Account
//
// Each event that JetStream delivered has a row, or is being handled by a process: [CountEvents].
// The stream sequences in pgjet.slice are hints; the rows are the record.
//
// # Files
//
// DESIGN.md says why it is built this way, and which file does what. The package is large because
// one package writes these tables: each statement has to keep the rules of all others.
package inbox
