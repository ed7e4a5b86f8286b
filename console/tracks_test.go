package console

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/internal/operate"
)

// TestTracks: attempts and waits are on the line, in the order of time.
func TestTracks(t *testing.T) {
	t.Parallel()
	begin := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	at := func(d time.Duration) *time.Time { return new(begin.Add(d)) }
	e := operate.Event{
		Outbox: &operate.Row{Time: &begin},
		Stored: &operate.Stored{Time: *at(3 * time.Millisecond)},
		Consumers: []operate.Handling{
			{Consumer: "directory", State: inbox.Done, Began: at(4 * time.Millisecond), At: at(6 * time.Millisecond)},
			{Consumer: "mailer", State: operate.Retrying, Log: []inbox.Attempt{
				{Attempt: 1, Began: *at(5 * time.Millisecond), Seconds: new(0.01), Outcome: inbox.Retried},
				{Attempt: 2, Began: *at(5 * time.Second), Outcome: "died"},
			}},
			{Consumer: "audit", State: operate.Ignored},
		},
	}
	var got []string
	for _, one := range tracks(e, *at(time.Hour)) {
		text, last := one.Place+":", 0
		for _, m := range one.Marks {
			if m.X < 0 || m.Width < leastMark || m.X+m.Width > trackLength || m.X < last {
				t.Errorf("%s: a mark from %d, %d wide, after %d, leaves the line of %d", one.Place, m.X, m.Width, last, trackLength)
			}
			last = m.X
			text += fmt.Sprintf(" %s", m.Look)
		}
		got = append(got, text)
	}
	if want := "outbox: busy, stream: busy, directory: good, mailer: retry wait bad wait"; strings.Join(got, ", ") != want {
		t.Errorf("the tracks are %s, want %s", strings.Join(got, ", "), want)
	}
	if all := tracks(operate.Event{}, begin); all != nil {
		t.Errorf("of an event that has no time: %v", all)
	}
	one := tracks(operate.Event{Outbox: &operate.Row{Time: &begin}}, begin)
	if len(one) != 1 || one[0].Marks[0].X != 0 {
		t.Errorf("of an event that was appended just now: %v", one)
	}
}

// TestReplayCommand: the command on the page of a replay has the flags that select the same events.
func TestReplayCommand(t *testing.T) {
	t.Parallel()
	q := url.Values{"from": {"since"}, "since": {"2h"}, "type": {"user.created"}, "again": {"on"}}
	if got, want := replayFlags(q), " --since 2h --type user.created --again"; got != want {
		t.Errorf("flags are %q, want %q", got, want)
	}
}
