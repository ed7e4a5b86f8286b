// Package upkeep looks after an outbox. For the relay it makes partitions ahead and drops those that are published and old: see [Maintain]. For
// operators it says what the outbox holds, prunes by hand, and lists, cancels and brings forward what is scheduled.
//
// It owns no table. Partitions are made and dropped by functions of the migrations, which decide by themselves whether they may; what is scheduled is
// of package outbox, for services.
package upkeep
