package relay

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/jserror"
	"github.com/pgjet/pgjet/internal/natsconn"
)

// dedupWindow is as short as the server allows. Nothing relies on it, and within it a lost
// event could not be published again.
const dedupWindow = 100 * time.Millisecond

// StreamConfig returns the configuration of a stream that keeps the promises of this
// package: on disk, refusing new messages rather than dropping old ones, and closed to
// deletion, purge and roll-up. It captures the subjects of the default prefix; for another
// prefix set Subjects, by [events.SubjectsOf]. You may also set limits, compression and
// placement, and use [Outbox.Own] to name the outbox.
func StreamConfig(name string, replicas int) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:               name,
		Description:        "Events published by pgjet. The relay is the only writer.",
		Subjects:           []string{events.AllSubjects},
		Storage:            jetstream.FileStorage,
		Retention:          jetstream.LimitsPolicy,
		Discard:            jetstream.DiscardNew,
		Replicas:           replicas,
		Duplicates:         dedupWindow,
		DenyDelete:         true,
		DenyPurge:          true,
		AllowAtomicPublish: true,
		AllowDirect:        true,
	}
}

// EnsureStream creates the stream if it does not exist, and reports whether it did. It does
// not change an existing stream, but returns how that differs from want, a line for each
// setting. If want sets no limits, compression or placement, those of the stream may have
// any value. EnsureStream does not compare the outboxes that the streams name; see [Claim].
func EnsureStream(ctx context.Context, js jetstream.JetStream, want jetstream.StreamConfig) (created bool, differences []string, err error) {
	if err := natsconn.CheckVersion(js.Conn()); err != nil {
		return false, nil, natsconn.Explain(js.Conn(), err, "operator")
	}
	stream, err := js.Stream(ctx, want.Name)
	if natsconn.Of(err) == jserror.StreamMissing {
		_, err = js.CreateStream(ctx, want)
		created, err = err == nil, natsconn.Explain(js.Conn(), err, "operator")
		if natsconn.Of(err) == jserror.StreamDiffers { // the other stream cannot be named: the server does not say which
			err = fmt.Errorf("%w: another stream of this account takes some of %s; set --prefix to one that no other begins with, and that begins with no other: nats stream ls --subject '%[2]s'",
				err, strings.Join(want.Subjects, ", "))
		}
		return created, nil, err
	}
	if err != nil {
		return false, nil, natsconn.Explain(js.Conn(), err, "operator")
	}
	return false, differ(stream.CachedInfo().Config, want), nil
}

func differ(have, want jetstream.StreamConfig) []string {
	var lines []string
	for _, s := range []struct {
		name       string
		have, want any
	}{
		{"subjects", have.Subjects, want.Subjects},
		{"storage", have.Storage, want.Storage},
		{"retention", have.Retention, want.Retention},
		{"discard", have.Discard, want.Discard},
		{"duplicate_window", have.Duplicates, want.Duplicates},
		{"replicas", have.Replicas, want.Replicas},
		{"deny_delete", have.DenyDelete, want.DenyDelete},
		{"deny_purge", have.DenyPurge, want.DenyPurge},
		{"allow_rollup_hdrs", have.AllowRollup, want.AllowRollup},
		{"allow_atomic", have.AllowAtomicPublish, want.AllowAtomicPublish},
		{"allow_direct", have.AllowDirect, want.AllowDirect},
		{"allow_msg_counter", have.AllowMsgCounter, want.AllowMsgCounter},
		{"allow_msg_schedules", have.AllowMsgSchedules, want.AllowMsgSchedules},
		{"max_msgs_per_subject", max(have.MaxMsgsPerSubject, 0), max(want.MaxMsgsPerSubject, 0)},
		{"no_ack", have.NoAck, want.NoAck},
		{"persist_mode", have.PersistMode, want.PersistMode},
		{"sealed", have.Sealed, want.Sealed},
		{"mirror", have.Mirror != nil, want.Mirror != nil},
		{"sources", len(have.Sources), len(want.Sources)},
		{"subject_transform", have.SubjectTransform != nil, want.SubjectTransform != nil},
		{"max_bytes", have.MaxBytes, limit(want.MaxBytes, have.MaxBytes)},
		{"max_age", have.MaxAge, cmp.Or(want.MaxAge, have.MaxAge)},
		{"compression", have.Compression, cmp.Or(want.Compression, have.Compression)},
		{"placement", placed(have.Placement), cmp.Or(placed(want.Placement), placed(have.Placement))},
		{"consumer_limits.inactive_threshold", have.ConsumerLimits.InactiveThreshold, want.ConsumerLimits.InactiveThreshold},
	} {
		if h, w := fmt.Sprint(s.have), fmt.Sprint(s.want); h != w {
			lines = append(lines, fmt.Sprintf("%s is %s, should be %s", s.name, h, w))
		}
	}
	return lines
}

// limit returns the wanted limit, or have if any will do.
func limit(want, have int64) int64 {
	if want <= 0 {
		return have
	}
	return want
}

// placed describes where a stream is to be placed, "" for anywhere.
func placed(p *jetstream.Placement) string {
	if p == nil {
		return ""
	}
	return strings.TrimSpace(p.Cluster + " " + strings.Join(slices.Sorted(slices.Values(p.Tags)), ","))
}
