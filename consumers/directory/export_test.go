package directory

// Follow is the consumer's function for events.
var Follow = follow
