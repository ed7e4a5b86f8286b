package directory

// Follow is what the consumer does with events.
var Follow = follow
