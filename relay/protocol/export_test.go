package protocol

// SmallAppends makes appends small, so that a page takes several.
func SmallAppends(n int) { appendEvents = n }
