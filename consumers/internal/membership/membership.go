// Package membership has the locks by which the processes of a consumer share its slices. They
// decide which process tries to own a slice; the fence in the inbox decides which one owns it.
package membership

import (
	"context"
	"fmt"

	"github.com/pgjet/pgjet/internal/lead"
)

// Locks are the session advisory locks of one connection: see the functions of package lead with
// these names.
type Locks interface {
	PID() int64 // process id of the server process
	Join(ctx context.Context, name string, standby func(lead.Holder)) error
	Try(ctx context.Context, name string) (taken bool, err error)
	Leave(ctx context.Context, name string) error
	Release(ctx context.Context, name string) error
	Holders(ctx context.Context, names []string) (map[string][]lead.Holder, error)
}

// A Member is one of the sessions of a consumer that share its slices.
type Member struct {
	locks    Locks
	consumer string
}

// New returns the member that uses the locks of one connection.
func New(locks Locks, consumer string) *Member { return &Member{locks, consumer} }

// The names of the locks. A member holds active in shared mode, so that the number of slices stays,
// and membership to claim its share. It holds the locks of its slices exclusively.
func (m *Member) active() string     { return "pgjet.active." + m.consumer }
func (m *Member) membership() string { return "pgjet.member." + m.consumer }
func (m *Member) slice(n int) string { return fmt.Sprintf("pgjet.slice.%s.%d", m.consumer, n) }

// Enter keeps the number of slices from changing while the session lasts. While another session
// changes it, Enter waits, and calls standby with that session.
func (m *Member) Enter(ctx context.Context, standby func(lead.Holder)) error {
	return m.locks.Join(ctx, m.active(), standby)
}

// Divide calls divide, which changes the number of slices, and reports true. If another session has
// entered, it calls standby with that session instead, and reports false: then this session has to
// enter again.
func (m *Member) Divide(ctx context.Context, divide func() error, standby func(lead.Holder)) (done bool, err error) {
	if err := m.locks.Leave(ctx, m.active()); err != nil {
		return false, err
	}
	if done, err = m.locks.Try(ctx, m.active()); err != nil {
		return false, err
	}
	if !done {
		holders, err := m.locks.Holders(ctx, []string{m.active()})
		if all := holders[m.active()]; len(all) > 0 {
			standby(all[0])
		}
		return false, err
	}
	if err := divide(); err != nil {
		return false, err
	}
	if err := m.locks.Join(ctx, m.active(), standby); err != nil {
		return false, err
	}
	return true, m.locks.Release(ctx, m.active())
}

// Join claims the session's share of the slices.
func (m *Member) Join(ctx context.Context, standby func(lead.Holder)) error {
	return m.locks.Join(ctx, m.membership(), standby)
}

// Leave gives up the claim to any slices.
func (m *Member) Leave(ctx context.Context) error { return m.locks.Leave(ctx, m.membership()) }

// Take takes a slice if no session has it.
func (m *Member) Take(ctx context.Context, slice int) (taken bool, err error) {
	return m.locks.Try(ctx, m.slice(slice))
}

// Release lets other sessions take a slice.
func (m *Member) Release(ctx context.Context, slice int) error {
	return m.locks.Release(ctx, m.slice(slice))
}

// A Plan is how the slices are shared, and what a member has to change.
type Plan struct {
	Give    []int        // slices that the member owns and another one should own
	Take    []int        // slices that no member owns and this one should own
	Other   *lead.Holder // of a slice, in another session; nil if there is none
	Foreign error        // names a slice that is locked by another program; nil if there is none
}

// Plan looks up which sessions own which slices; mine are those that this one works on.
func (m *Member) Plan(ctx context.Context, slices int, mine []int) (p Plan, err error) {
	names := []string{m.membership()}
	for s := range slices {
		names = append(names, m.slice(s))
	}
	holders, err := m.locks.Holders(ctx, names)
	if err != nil {
		return p, err
	}
	me := m.locks.PID()
	owned := make(map[int64]int) // number of slices of each member, by process id
	for _, h := range holders[m.membership()] {
		if h.PID != nil && !h.Foreign {
			owned[*h.PID] = 0
		}
	}
	var free []int
	for n := range slices {
		s := (n + int(me)) % slices // so that members begin with different ones
		held := holders[m.slice(s)]
		if len(held) == 0 {
			free = append(free, s)
		}
		for _, h := range held {
			if h.PID != nil {
				if _, member := owned[*h.PID]; member { // any session may hold a lock
					owned[*h.PID]++
				}
			}
			if h.PID != nil && *h.PID == me {
				continue
			}
			if p.Other = &h; h.Foreign {
				p.Foreign = fmt.Errorf("lead_taken: the lead of slice %d is %s, which is no process of this consumer; find out what it is, and end it with pg_terminate_backend", s, h)
			}
		}
	}
	want := share(slices, owned, me)
	p.Give = mine[min(want, len(mine)):]
	p.Take = free[:min(max(0, want-len(mine)), len(free))]
	return p, nil
}

// share returns how many slices a member should own: an equal share, and one of the remaining
// slices if it owns that many already, or more than others. The members that own the fewest get
// none of the remaining slices.
func share(slices int, owned map[int64]int, me int64) int {
	if len(owned) == 0 {
		return 0
	}
	each, over := slices/len(owned), slices%len(owned)
	for pid, n := range owned {
		if n > owned[me] || n == owned[me] && pid < me {
			over--
		}
	}
	if over > 0 {
		each++
	}
	return each
}
