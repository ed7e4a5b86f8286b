// Package protocol makes the decisions of a relay, without the connections by which it
// learns and acts: which checkpoint the stream confirms, which events the stream holds
// already, what to send next and in which form, and what an answer means. Package relay
// runs it on PostgreSQL and NATS. The tests run it on models of both, in thousands of
// seeded schedules of crashes, zombies, late commits and lost data.
//
// The stream is a log with one legal writer. A [Session] first finds out what the stream
// holds. Then it appends, and names each time the message with which the stream should end.
// Any refused, unanswered or lost append ends the session; the next one begins by reading
// the stream again. It inherits nothing but [Session.Careful].
package protocol

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/relay/backlog"
)

// ErrNoMessage says that a stream holds no message at a sequence.
var ErrNoMessage = errors.New("no such message")

// ErrFenced says that another relay took the lead.
var ErrFenced = errors.New("fenced: another relay took the lead")

// A State describes a stream at one moment.
type State struct {
	Created time.Time // identifies the incarnation: a stream that was deleted and made again has another one
	First   uint64    // the first sequence that it still holds
	Last    uint64    // the last one given out; below First if it holds none
}

// A Message is what a stream holds at one sequence, as far as a relay needs it.
type Message struct {
	Sequence uint64
	Subject  string
	Source   string    // of the event
	ID       uuid.UUID // of the event; zero if the message is not one of ours
	Seq      int64     // of the event in the outbox
}

// An Append asks the stream to store events behind its last message. The stream may do so
// only if its last message is the one named here. It stores the events in this order: all
// of them, or a first part, or none.
type Append struct {
	Events []events.Event
	Last   uint64    // the stream's last sequence
	LastID uuid.UUID // the event there, if this session knows it and may name it; else zero
	Form   Form
	Again  bool // the stream had held some of the events before, and lost them
}

// An Answer says that the stream stored an append.
type Answer struct {
	Last uint64        // its last sequence by now
	Took time.Duration // from sending to the answer
}

// A Checkpoint is a proven pair: at or before Seq, the stream holds the events of the
// outbox up to Position and no others.
type Checkpoint struct {
	Number   int64 // counts checkpoints; the database gives it
	Created  time.Time
	Seq      uint64
	ID       uuid.UUID // the event at Seq; zero if the message is not one of ours
	Position backlog.Position
	Events   int64 // how many events Position covers
}

// A Memory is what the database remembers of a stream.
type Memory struct {
	Checkpoints []Checkpoint      // of any incarnation, newest first; only those written in this database cluster
	Heal        *backlog.Position // how far the stream had come when it lost events, if they are not all back
	Quarantined []int64           // the seqs of events in quarantine
	Adopted     uint64            // up to this sequence an operator accepts what this incarnation holds
	Pruned      int64             // the highest seq that was pruned from the outbox
	PrunedCount int64             // how many events were pruned
}

// A Database is one connection to PostgreSQL, which holds the lead. Every method that
// writes returns [ErrFenced] once another relay leads.
type Database interface {
	backlog.Source
	// Find calls fn with the record, without its payload, of each of these seqs that the
	// outbox holds.
	Find(ctx context.Context, seqs []int64, fn func(backlog.Record)) error
	// Recall returns what is known of the stream with this incarnation.
	Recall(ctx context.Context, created time.Time) (Memory, error)
	// Forget deletes the checkpoints above number and records heal, both for good.
	Forget(ctx context.Context, number int64, heal *backlog.Position) error
	// Save adds a checkpoint. If healed is set, it also deletes the heal position that
	// Forget recorded.
	Save(ctx context.Context, c Checkpoint, healed bool) error
	// Quarantine sets the event of r aside, unless that was done before.
	Quarantine(ctx context.Context, r backlog.Record, reason error) error
	// Retries returns some events that are to be published again after a refusal.
	Retries(ctx context.Context) ([]backlog.Record, error)
	// Release ends the quarantine of the events with these seqs, if they were in it.
	Release(ctx context.Context, seqs []int64) error
	// Report records the messages of this incarnation that the outbox does not know, in
	// place of those recorded before.
	Report(ctx context.Context, created time.Time, unknown []Message) error
}

// A Stream is one connection to NATS. It never reconnects: what was sent over it arrives
// over it, in order, or never.
type Stream interface {
	// State asks the stream's leader. From then on Check uses its answer.
	State(ctx context.Context) (State, error)
	// Message returns the message at a sequence, or [ErrNoMessage].
	Message(ctx context.Context, sequence uint64) (Message, error)
	// Messages calls fn with all messages from first to last, in order. They come from one
	// replica of the stream, which may lack the last ones.
	Messages(ctx context.Context, first, last uint64, fn func(Message) error) error
	// Check returns why the stream could never store e, or nil.
	Check(e events.Event) error
	// Send sends an append, and does not wait for the answer.
	Send(ctx context.Context, a Append) error
	// Await waits for the answer to the append sent last. If the stream refused the append,
	// the error is a [*Refusal]; after any other error the outcome is unknown.
	Await(ctx context.Context) (Answer, error)
}

// A HaltError says that the stream holds messages that the outbox does not know.
// Publishing on would mix two histories, so an operator has to decide.
type HaltError struct {
	Foreign bool      // some are no events: another program writes to the stream
	Ours    bool      // some are events: the database has lost them
	Count   int       // how many there are
	First   Message   // the first of them
	Unknown []Message // up to 1000: the first ones, and the last
}

func (e *HaltError) Error() string {
	why := "database_behind: the database seems to have been restored to an earlier point"
	if e.Foreign {
		why = "foreign_writer: somebody else writes to the stream"
	}
	return fmt.Sprintf("halted: %s: the stream holds %d messages that the outbox does not know, the first at sequence %d; "+
		"see: pgjet relay status; to accept them: pgjet relay adopt", why, e.Count, e.First.Sequence)
}

// A ForeignError says that a stream that names no outbox belongs to another one: it holds
// events, and none of them is of this outbox. A relay must not change anything in it.
type ForeignError struct {
	Count int     // how many events it holds after those that may have aged out
	First Message // the first of them
}

func (e *ForeignError) Error() string {
	return fmt.Sprintf("the stream holds %d events of %q, the first at sequence %d, and none of this outbox", e.Count, e.First.Source, e.First.Sequence)
}

func (e *ForeignError) add(m Message) {
	if e.Count == 0 {
		e.First = m
	}
	e.Count++
}
