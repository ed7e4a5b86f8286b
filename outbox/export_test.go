package outbox

// Settled returns up to where a reader looks for nothing late.
func Settled(r *Reader) int64 { return r.settled }
