package operate

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/pgjet/pgjet/internal/natsconn"
	"github.com/pgjet/pgjet/internal/sqlstate"
	"github.com/pgjet/pgjet/relay"
	"github.com/pgjet/pgjet/relay/audit"
)

// An Audit is a comparison of outbox and stream.
type Audit struct {
	Stream string     `json:"stream"`
	At     time.Time  `json:"at"`    // when it began, by the clock of the asking process
	Since  *time.Time `json:"since"` // nil: everything that both still have
	Agrees bool       `json:"agrees"`
	audit.Result
	Pending     int64              `json:"pending"` // committed, and not published yet: no difference
	Differences []audit.Difference `json:"differences"`
	Listed      int                `json:"listed"` // the number of differences in the list
}

// Audit compares the outbox with the stream of the Source, in both directions. It reads all of
// both, or only events published since a time. progress, which may be nil, is called with the
// numbers of messages and rows that were read and, roughly, of all. Both servers are needed.
func (s Source) Audit(ctx context.Context, since *time.Time, progress func(done, total int64)) (Audit, error) {
	a := Audit{Stream: s.Stream, At: time.Now().UTC(), Since: utc(since)}
	if err := errors.Join(s.DBErr, s.NATSErr); err != nil {
		return a, err
	}
	conn, err := s.DB.Acquire(ctx)
	if err != nil {
		return a, sqlstate.Wrap("compare outbox and stream", err)
	}
	defer conn.Release()
	from := time.Time{}
	if since != nil {
		from = *since
	}
	w, err := audit.Sides{DB: conn.Conn(), JS: s.JS, Stream: s.Stream}.Begin(ctx, from)
	if err == nil {
		err = w.Run(ctx, progress)
	}
	if err != nil {
		return a, s.auditError(ctx, err)
	}
	status, err := relay.ReadStatus(ctx, conn, s.Stream)
	if err != nil {
		return a, err
	}
	a.Result, a.Differences, a.Pending = w.Result, append([]audit.Difference{}, w.Differences...), status.Pending.Events
	a.Agrees, a.Listed = a.Result.Differences() == 0, len(w.Differences)
	return a, nil
}

// auditError names the server that failed.
func (s Source) auditError(ctx context.Context, err error) error {
	if natsconn.Of(err) != "" && sqlstate.Of(err) == "" {
		return s.streamError(ctx, err)
	}
	return sqlstate.Wrap("compare outbox and stream", err)
}

// AuditFound returns the pass of the background audit that found differences: the running one if it
// has found some, otherwise the last complete one; nil if neither has.
func AuditFound(r relay.Status) *relay.Audited {
	for _, a := range []*relay.Audited{r.Auditing, r.Audit} {
		if a.Differences() > 0 {
			return a
		}
	}
	return nil
}

// DescribeAudit describes the findings of a pass of the background audit, such as "1 missing, 2
// extra, of 1000 compared".
func DescribeAudit(a relay.Audited) string {
	var parts []string
	for _, kind := range []struct {
		n    int64
		word string
	}{{a.Missing, "missing"}, {a.Extra, "extra"}, {a.Twice, "twice"}, {a.OutOfOrder, "out of order"}, {a.Changed, "changed"}} {
		if kind.n > 0 {
			parts = append(parts, fmt.Sprint(kind.n, " ", kind.word))
		}
	}
	if len(parts) == 0 {
		parts = []string{"no difference"}
	}
	return fmt.Sprintf("%s, of %d compared", strings.Join(parts, ", "), a.Compared)
}

// Audits are the findings of the background audit of a stream.
type Audits struct {
	Stream      string             `json:"stream"`
	At          time.Time          `json:"at"`          // by the clock of the database
	Last        *relay.Audited     `json:"last"`        // the last complete pass; nil if there was none
	Now         *relay.Audited     `json:"now"`         // the running pass; nil if there is none
	Differences []audit.Difference `json:"differences"` // the first ones of the pass that has some
}

// Audits returns the findings of the background audit of the Source's stream. It needs only the
// database.
func (s Source) Audits(ctx context.Context) (Audits, error) {
	if s.DB == nil {
		return Audits{}, s.DBErr
	}
	r, err := relay.ReadStatus(ctx, s.DB, s.Stream)
	a := Audits{Stream: s.Stream, At: r.At, Last: r.Audit, Now: r.Auditing, Differences: []audit.Difference{}}
	if found := AuditFound(r); err == nil && found != nil {
		a.Differences, err = relay.AuditDifferences(ctx, s.DB, found.ID)
	}
	return a, err
}
