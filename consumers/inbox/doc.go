// Package inbox is the room of a consumer's tables, and the only one that writes them: consumer,
// slice, process, inbox, intent, attempt and dead_letter, in the schema pgjet of the database in which the
// handlers write. It knows nothing of NATS, starts no goroutine, and reads no clock but the database's.
//
// What becomes of an event inside a consumer, and which function moves it. The boxes are the states of
// its row in pgjet.inbox; an event without a row is still JetStream's to deliver.
//
//	             Tenure.Claim, with the effects of the handler
//	(no row) ──────────────────────────────────────────────────────────▶ done
//	 │  ▲                                                                 ▲ │
//	 │  └── Forget, Tenure.Unclaim, Tenure.Prune ─────────────────────────┼─┤
//	 │                                                                    │ │
//	 │ Tenure.Intend       ┌──────────────── intent ────────────────┐     │ │
//	 ├────────────────────▶│ waits: for its time, behind its key    │     │ │
//	 │ HandOver.Take       │   │ Take, TakeNext   ▲ Again, GiveBack │◀────┼─┘ HandOver.Take
//	 │                     │   ▼                  │ Abandon         │     │
//	 │                     │ taken by a session ──┘                 │     │
//	 │                     └───┬───────────────┬────────────────────┘     │
//	 │                         │               │ Tenure.Finish, Remember  │
//	 │ Tenure.Bury             │ Tenure.Bury   └──────────────────────────┘
//	 ▼                         ▼
//	dead ─────── Redrive ───▶ intent         dead ── Discard ──▶ discarded ── Reopen ──▶ dead
//
// [Retry] makes an intent that waits for its time due now.
// An intent has its message in pgjet.intent, a dead letter in pgjet.dead_letter. What is redriven keeps its
// dead letter until it is done. Each attempt that did not simply succeed at the first try is in pgjet.attempt.
//
// # Who may do what
//
// A [Tenure] is one session that owns a [Slice] of a consumer. What it does to events it does in transactions that hold the lock of
// the consumer's attempts, and that of the slice's, in shared mode and have looked at the epoch of the slice behind those locks: [Own] takes the
// lock of the slice alone and raises its epoch, [Supersede] that of the consumer and the epochs of all its slices. So a session that was
// superseded changes nothing more. The epoch is what makes it safe; which process believes that it owns a slice only decides which one tries. An intent is its session's for as long as taken_by says so, which
// every statement about it asks for.
//
// # Order
//
// Of an ordered consumer, an event waits while an earlier one of its key is an intent, and, if the consumer parks
// keys, a dead letter. That rule is written down once, and every statement that makes an intent due uses
// it. Whoever ends an intent makes the next one of its key due, in the same transaction.
//
// # Account
//
// Each event that JetStream delivered has a row, or is in the hands of a process: [CountEvents]. Places in the
// stream, which pgjet.slice keeps, are hints; the rows are the record.
package inbox
