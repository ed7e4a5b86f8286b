// Package backlog reads the events of an outbox beyond a position. It returns every event
// once, and those of one key in the order of their commits, however late a transaction
// commits and whatever other transactions are open. [Read] explains how, with a [Reader].
// The package is for the relay, and writes nothing.
package backlog

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// A Snapshot is the set of transactions that had ended at one moment, as in a pg_snapshot.
// The zero Snapshot stands before all transactions.
type Snapshot struct {
	Xmin, Xmax uint64   // all below Xmin had ended; none from Xmax on
	Running    []uint64 // those between that had not, ascending
}

// ParseSnapshot reads the text form of a pg_snapshot, such as "10:20:10,14,15".
func ParseSnapshot(s string) (Snapshot, error) {
	parts := strings.Split(s, ":")
	if len(parts) != 3 {
		return Snapshot{}, fmt.Errorf("snapshot %q is not of the form xmin:xmax:running", s)
	}
	fields := parts[:2]
	if parts[2] != "" {
		fields = append(fields, strings.Split(parts[2], ",")...)
	}
	xids := make([]uint64, len(fields))
	for i, f := range fields {
		xid, err := strconv.ParseUint(f, 10, 64)
		if err != nil {
			return Snapshot{}, fmt.Errorf("snapshot %q: %w", s, err)
		}
		xids[i] = xid
	}
	return Snapshot{Xmin: xids[0], Xmax: xids[1], Running: xids[2:]}, nil
}

// String returns the text form that PostgreSQL reads. The zero Snapshot is
// "1:1:", the earliest that it accepts.
func (s Snapshot) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d:%d:", max(s.Xmin, 1), max(s.Xmax, 1))
	for i, xid := range s.Running {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.FormatUint(xid, 10))
	}
	return b.String()
}

// Sees reports whether transaction xid had ended. The rows of a committed one were visible
// then.
func (s Snapshot) Sees(xid uint64) bool {
	if xid >= s.Xmax {
		return false
	}
	_, running := slices.BinarySearch(s.Running, xid)
	return !running
}

// A Position is how far the outbox has been read: every event visible in Snapshot whose seq
// is at most Floor, and no other. The zero Position is the beginning.
type Position struct {
	Snapshot Snapshot
	Floor    int64
}

// Covers reports whether the event of r lies before p.
func (p Position) Covers(r Record) bool {
	return r.Event.Seq <= p.Floor && p.Snapshot.Sees(r.XID)
}
