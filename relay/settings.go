package relay

import (
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/internal/jserror"
)

// A Flaw is a setting of a stream that breaks or weakens a promise of this package.
type Flaw struct {
	Breaks bool   // the promise: no relay publishes. Otherwise it only weakens the promise
	Text   string // the setting, what it should be, and the consequence
}

// Flaws returns the flaws in the settings of a stream whose events stay in the outbox for
// retention.
func Flaws(c jetstream.StreamConfig, retention time.Duration) []Flaw {
	var all []Flaw
	for _, f := range []struct {
		is, breaks bool
		text       string
	}{
		{c.Retention != jetstream.LimitsPolicy, true, fmt.Sprintf("retention is %s, should be Limits: what one consumer has acknowledged is removed for all", c.Retention)},
		{c.Discard != jetstream.DiscardNew && (c.MaxMsgs > 0 || c.MaxBytes > 0), true, "discard is old, should be new: at its limit the stream drops events that nobody has handled yet"},
		{c.MaxMsgsPerSubject > 0 && !c.DiscardNewPerSubject, true, fmt.Sprintf("max_msgs_per_subject is %d, should be unlimited: it drops events that nobody has handled yet", c.MaxMsgsPerSubject)},
		{c.NoAck, true, "no_ack is set: the server does not say whether it has stored an event"},
		{c.Sealed, true, "the stream is sealed: it takes no messages"},
		{c.Mirror != nil, true, "the stream is a mirror: it takes no messages but those of another stream"},
		{len(c.Sources) > 0, true, "the stream has sources: the relay must be its only writer"},
		{c.SubjectTransform != nil, true, "subject_transform is set: consumers look for events under the subjects that the relay publishes to"},
		{c.AllowMsgCounter, true, "allow_msg_counter is set: the stream takes counters only"},
		{c.AllowMsgSchedules, false, "allow_msg_schedules is set: a publisher may delay and purge messages"},
		{c.Duplicates > dedupWindow, false, fmt.Sprintf("duplicate_window is %s, should be %s: within it an event that the stream lost cannot be published again", c.Duplicates, dedupWindow)},
		{c.MaxAge > 0 && c.MaxAge < retention, false, fmt.Sprintf("max_age is %s, less than the %s for which the outbox keeps events: consumers that are away for longer miss events", c.MaxAge, retention)},
		{c.AllowRollup, false, "allow_rollup_hdrs is set: a publisher may purge the stream"},
		{!c.DenyDelete, false, "deny_delete is not set: events can be deleted"},
		{!c.DenyPurge, false, "deny_purge is not set: the stream can be purged"},
		{c.Storage != jetstream.FileStorage, false, "storage is memory: the stream forgets everything when its servers restart"},
		{c.PersistMode == jetstream.AsyncPersistMode, false, "persist_mode is async: events are acknowledged before they are stored"},
		{c.ConsumerLimits.InactiveThreshold > 0, false, fmt.Sprintf("consumer_limits.inactive_threshold is %s: durable consumers are deleted when their processes are away for longer", c.ConsumerLimits.InactiveThreshold)},
	} {
		if f.is {
			all = append(all, Flaw{f.breaks, f.text})
		}
	}
	return all
}

// checkSettings returns an error if the stream's settings break a promise, else its other
// flaws.
func (l *link) checkSettings(retention time.Duration) (weaknesses []string, err error) {
	config := l.stream.CachedInfo().Config
	for _, f := range Flaws(config, retention) {
		if f.Breaks {
			return nil, block(string(jserror.StreamDiffers), fmt.Errorf("stream %s cannot keep what pgjet promises: %s; compare with: pgjet stream ensure", l.name, f.Text))
		}
		weaknesses = append(weaknesses, f.Text)
	}
	if !l.subjects.TakenBy(config.Subjects) {
		return nil, block(string(jserror.StreamDiffers), fmt.Errorf("stream %s takes %s, and the subjects of this outbox begin with %s; set --prefix, or --stream",
			l.name, strings.Join(config.Subjects, " "), l.subjects.Prefix()))
	}
	return weaknesses, nil
}
