// Package rivals notices processes that do the same work in a copy of their database, beside
// the original. No lock of PostgreSQL reaches from one database to the other. So the
// processes meet in NATS: each announces itself there, hears the others, and stops if one
// of them goes first.
package rivals

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"

	"github.com/pgjet/pgjet/internal/postgres"
)

// Copied is the reason of a process that stops since one in a copy of its database, or in the
// original, goes first.
const Copied = "outbox_copied"

const (
	// every is how often a process announces itself.
	every = 500 * time.Millisecond
	// ListenFor is how long a process listens before it works, if the work was done last on
	// another server.
	ListenFor = 3 * every
	// heardFor is how long an announcement counts.
	heardFor = 4 * every
	// joinTime bounds how long the server may take to say whether it lets a process join.
	joinTime = time.Second
	// maxSize is the size limit of an announcement, which is shown to operators.
	maxSize = 4 << 10
)

// A Presence is what a process announces about itself.
type Presence struct {
	Outbox      uuid.UUID `json:"outbox"`       // the identity of the database, which a copy has, too
	Source      string    `json:"source"`       // the service, for people
	Place       string    `json:"place"`        // which database of which cluster; a copy made with files has the same
	Since       time.Time `json:"since"`        // when the work was done there first
	ServerStart time.Time `json:"server_start"` // distinguishes servers that run at the same time
	Database    string    `json:"database"`     // for people
	Process     string    `json:"process"`      // for people
}

// Same reports whether q is in the same database of the same server, where locks of PostgreSQL
// decide which of the two works.
func (p Presence) Same(q Presence) bool {
	return p.Outbox == q.Outbox && p.Place == q.Place && p.ServerStart.Equal(q.ServerStart)
}

// precedes reports which of two that are not the same goes on: the one that was there
// first.
func (p Presence) precedes(q Presence) bool {
	return cmp.Or(p.Since.Compare(q.Since), p.ServerStart.Compare(q.ServerStart),
		cmp.Compare(p.Place, q.Place), cmp.Compare(p.Outbox.String(), q.Outbox.String())) < 0
}

// Locate returns the presence of a process that works in the database of conn. The query
// last, with its arguments, returns where the work was done last, as place, placed_at and
// server_start, or no row if it never was. Locate reports whether that was elsewhere, or
// before the server was started. Then the process has to listen before it works: the
// database may be a copy, beside which the original goes on.
func Locate(ctx context.Context, conn *pgx.Conn, last string, args ...any) (p Presence, elsewhere bool, err error) {
	if _, err := postgres.Identity(ctx, conn); err != nil { // says what to do if there is none
		return p, false, err
	}
	config := conn.Config()
	p.Database = fmt.Sprintf("%s at %s:%d", config.Database, config.Host, config.Port)
	err = conn.QueryRow(ctx, `
		with here as (
			select c.system_identifier || '/' || d.oid as place, pg_postmaster_start_time() as server_start
			  from pg_control_system() c, pg_database d where d.datname = current_database()
		), was as (
			select i.id, coalesce(l.place, i.system_identifier || '/' || i.database) as place, coalesce(l.placed_at, i.created_at) as placed_at, l.server_start
			  from pgjet.identity i left join (`+last+`) l on true
		)
		select was.id, here.place, here.server_start, case when was.place = here.place then was.placed_at else clock_timestamp() end,
		       was.place <> here.place or coalesce(was.server_start <> here.server_start, false)
		  from here, was`, args...).Scan(&p.Outbox, &p.Place, &p.ServerStart, &p.Since, &elsewhere)
	return p, elsewhere, err
}

// An Others is what a process has heard of those that do the same work elsewhere.
type Others struct {
	here     Presence
	conflict chan struct{}

	mu    sync.Mutex
	heard map[Presence]sighting
}

// A sighting is when a process announced itself, first and last.
type sighting struct{ first, last time.Time }

// NewOthers returns what a process at here has heard before it listens: nothing.
func NewOthers(here Presence) *Others {
	return &Others{here: here, conflict: make(chan struct{}, 1), heard: make(map[Presence]sighting)}
}

// Here returns where this process is.
func (o *Others) Here() Presence { return o.here }

// Conflict returns a channel that has an element when [Others.First] may have another
// answer than none.
func (o *Others) Conflict() <-chan struct{} { return o.conflict }

// Hear records an announcement, and signals a conflict if its process goes first.
func (o *Others) Hear(msg *nats.Msg) {
	var p Presence
	if len(msg.Data) > maxSize || json.Unmarshal(msg.Data, &p) != nil || o.here.Same(p) || !p.precedes(o.here) {
		return
	}
	p.Since, p.ServerStart = p.Since.UTC(), p.ServerStart.UTC()
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	for q, s := range o.heard {
		if now.Sub(s.last) > heardFor {
			delete(o.heard, q)
		}
	}
	s, again := o.heard[p]
	if !again {
		s.first = now
	}
	s.last = now
	o.heard[p] = s
	if again {
		select {
		case o.conflict <- struct{}{}:
		default:
		}
	}
}

// First returns one of the other processes that count, if it goes first and has announced
// itself more than once. A single announcement may be the last one of a process that was
// frozen.
func (o *Others) First(counts func(Presence) bool) (p Presence, is bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for q, s := range o.heard {
		if counts(q) && s.last.Sub(s.first) >= every/2 && time.Since(s.last) <= heardFor {
			return q, true
		}
	}
	return p, false
}

// Copy reports whether p works with a copy of this process's database, or with the original
// of which that is one.
func (o *Others) Copy(p Presence) bool { return p.Outbox == o.here.Outbox }

// Announce announces on a subject that the process works, until stop is called.
func (o *Others) Announce(ctx context.Context, nc *nats.Conn, subject string) (stop func()) {
	said := o.announcement()
	ctx, cancel := context.WithCancel(ctx)
	var beside sync.WaitGroup
	beside.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for ctx.Err() == nil {
			_ = nc.Publish(subject, said) // a lost connection is noticed elsewhere
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	})
	return func() { cancel(); beside.Wait() }
}

// Join subscribes o to a subject, and announces the process there until leave is called. denied
// is that NATS does not let it do the one or the other. err is that NATS did not answer: then the
// process joins once it does.
func (o *Others) Join(ctx context.Context, nc *nats.Conn, subject string) (leave func(), denied, err error) {
	sub, err := nc.Subscribe(subject, o.Hear)
	if err != nil {
		return func() {}, nil, err
	}
	err = nc.Publish(subject, o.announcement())
	if err == nil {
		err = nc.FlushTimeout(joinTime)
	}
	stop := func() {}
	// A refusal comes before the answer to the flush.
	if denied = nc.LastError(); !errors.Is(denied, nats.ErrPermissionViolation) || !strings.Contains(denied.Error(), `"`+subject+`"`) {
		denied = nil
	}
	if denied == nil || !strings.Contains(denied.Error(), "Publish") { // the server would log each one
		stop = o.Announce(ctx, nc, subject)
	}
	return func() { stop(); _ = sub.Unsubscribe() }, denied, err // the connection is gone otherwise
}

func (o *Others) announcement() []byte {
	said, err := json.Marshal(o.here)
	if err != nil {
		panic(err) // it holds texts and times
	}
	return said
}
