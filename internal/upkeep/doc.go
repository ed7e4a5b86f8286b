// Package upkeep maintains an outbox. For the relay it makes partitions ahead and drops
// those that are published and old: see [Maintain]. For operators it shows what the outbox
// holds, prunes by hand, and lists, cancels and brings forward scheduled events.
//
// It owns no table. Functions of the migrations make and drop partitions, and decide
// whether they may. Package outbox writes scheduled events, for services.
package upkeep
