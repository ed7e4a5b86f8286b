// Package consumers runs handlers of events.
//
// A [Consumer] names a durable JetStream consumer and a [Handler], which lists the event types it
// wants and handles them. A [Runner] delivers each event to it until it is handled:
//
//   - Once. The handler runs in the transaction of the event's inbox row. What it writes
//     in that transaction happens once per consumer and event id, however often the
//     event is delivered: both commit together, and an event whose inbox row exists
//     is not handled again.
//   - Outside effects at least once, see [Effect]. An intent is committed before the effect, and
//     its end after it. Only between the effect and that commit can it happen a second time.
//   - In order. Events of one key are handled one after the other, in the order of the
//     stream. Those of different keys are handled at the same time, by all processes that
//     share the keys, see [Consumer.Slices]; if one dies, others take over at once.
//     [Consumer.Unordered] gives the order up, and shares the events among all processes.
//   - Never forgotten. The error that a handler returns decides what happens to the event, see
//     [Handler]. A failed event waits in the database, with its whole message, and later events of
//     its key wait behind it; all other events go on. After [Consumer.MaxAttempts] attempts it is
//     a dead letter, which an operator redrives or discards. An event at which processes
//     die, by a crash that no handler survives, such as a panic in a goroutine that it started, is
//     attempted alone and then becomes a dead letter.
//   - Patient. During an outage of PostgreSQL, NATS, or anything that a handler calls
//     [Unavailable], attempts are not counted, and events keep their order. The same holds for an
//     event that its handler gives back by [Later]. [Consumer.Rate] limits how fast events are handled.
//
// A message is acknowledged after the commit, never before. Delivery itself is at least once:
// JetStream's record of acknowledgements is only a hint, and the inbox is the record. So a deleted
// durable consumer continues at the inbox's position, one that is ahead of a restored database is
// reset, and [ReadAccount] shows whether any event got lost in between. It needs nats-server 2.14
// or newer.
//
// A program that runs one consumer, without error handling:
//
//	db, err := pgxpool.New(ctx, "postgres://shipping@db.example/app?pool_max_conns=12")
//	nc, err := nats.Connect("nats://nats.example", nats.MaxReconnects(-1))
//	js, err := jetstream.New(nc)
//	shipping := consumers.Consumer{Name: "shipping", Handler: consumers.Handle(consumers.On(
//		func(ctx context.Context, tx pgx.Tx, e events.Event, paid OrderPaid) error { // OrderPaid is an events.Payload
//			_, err := tx.Exec(ctx, `insert into parcels (order_id) values ($1)`, paid.OrderID)
//			return err // nil commits; any other error is followed by another attempt
//		}))}
//	runner := consumers.Runner{Consumer: shipping, DB: db, JS: js, Log: slog.Default()}
//	err = runner.Run(ctx) // until ctx ends
//
// The state of each event is kept in tables that package inbox writes. They are in the handler's
// database, which need not be that of the outbox; pgjet migrate up creates them. docs/consumers.md
// explains the design.
//
// # Files
//
// The package is large because what handles events shares one run: its workers, its lanes and what
// it owns. Parts that need no session are packages below internal.
//
//   - consumer.go, handler.go and defaults.go are what a program declares, runner.go runs it.
//   - session.go, register.go and share.go are one connected process, tenure.go and align.go one
//     slice of it.
//   - receive.go, skip.go, order.go, work.go, claim.go, handle.go, verdict.go and settle.go are the
//     way of an event, group.go and due.go events that wait together or wait for their time,
//     queue.go statements that are sent together.
//   - database.go is what a session needs of PostgreSQL, copies.go finds copies of the database.
//   - account.go and audit.go count events; recorded.go, durable.go and telemetry.go are for tools
//     and monitoring. follow.go is a feed without an inbox.
package consumers
