// Package consumers runs the code that reacts to events.
//
// A [Consumer] names a durable JetStream consumer and a [Handler], which says what event types it wants and
// how they are handled. A [Runner] delivers each event to it until it is handled:
//
//   - Once. The handler runs in the transaction of the event's inbox row. What it does
//     in that transaction happens once per consumer and event id, however often the
//     event is delivered: the two commit together, and an event whose inbox row exists
//     is not handled again.
//   - Outside effects at least once, see [Effect]. An intent is committed before, and
//     that it is done after. In between lies the only window for a second one.
//   - In order. Events of one key are handled one after the other, in the order of the
//     stream. Those of different keys are handled at the same time, by all processes that
//     share the keys, see [Consumer.Slices]; if one dies, others take over at once.
//     [Consumer.Unordered] gives the order up, and shares the events among all processes.
//   - Never forgotten. The error that a handler returns is the verdict, see [Handler].
//     What fails waits in the database, with its whole message, and later events of its
//     key behind it; nothing else is held up. After [Consumer.MaxAttempts] attempts it is
//     a dead letter, which an operator redrives or discards. An event at which processes
//     die, by a crash that no handler survives, such as a panic in a goroutine that it started, is
//     tried alone and then set aside.
//   - Patient. When PostgreSQL, NATS, or something that a handler calls [Unavailable] is
//     away, attempts are not counted, and events keep their place. So does an event that
//     its handler gives back, by [Later]. [Consumer.Rate] limits how fast events are handled.
//
// A message is acknowledged after the commit, never before. Delivery itself is at least
// once: JetStream's memory of what was acknowledged is only a hint, and the inbox is the
// record. So a durable consumer that was deleted goes on at the inbox's position, one that
// is ahead of a restored database is reset, and [ReadAccount] shows whether anything got
// lost in between. It needs nats-server 2.14 or newer.
//
// A program that runs one, but for what to do with errors:
//
//	db, err := pgxpool.New(ctx, "postgres://shipping@db.example/app?pool_max_conns=12")
//	nc, err := nats.Connect("nats://nats.example", nats.MaxReconnects(-1))
//	js, err := jetstream.New(nc)
//	shipping := consumers.Consumer{Name: "shipping", Handler: consumers.Handle(consumers.On(
//		func(ctx context.Context, tx pgx.Tx, e events.Event, paid OrderPaid) error { // OrderPaid is an events.Payload
//			_, err := tx.Exec(ctx, `insert into parcels (order_id) values ($1)`, paid.OrderID)
//			return err // commits if nil, else it is tried again
//		}))}
//	runner := consumers.Runner{Consumer: shipping, DB: db, JS: js, Log: slog.Default()}
//	err = runner.Run(ctx) // until ctx ends
//
// What becomes of events is kept in tables that package inbox writes. They are in the handler's database, which need not
// be that of the outbox; pgjet migrate up makes them. docs/consumers.md explains the design.
package consumers
