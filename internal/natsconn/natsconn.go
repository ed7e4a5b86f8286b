// Package natsconn interprets a connection to NATS: the meaning of an error, by the list in
// package jserror, whether the server is new enough, and which streams there are.
package natsconn

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/internal/jserror"
)

// Needed is the oldest supported version of nats-server: older ones cannot reset consumers.
const Needed = "2.14"

// An OutdatedError is the version of a server that is older than [Needed].
type OutdatedError struct{ Found string }

func (e *OutdatedError) Error() string {
	return fmt.Sprintf("the server runs nats-server %s, pgjet needs %s or newer; %s", e.Found, Needed, jserror.Outdated.Advice())
}

// CheckVersion returns an [OutdatedError] if the server to which nc is connected is too
// old. Without a connection its version is unknown, and CheckVersion returns nil.
func CheckVersion(nc *nats.Conn) error {
	if found := nc.ConnectedServerVersion(); older(found, Needed) {
		return &OutdatedError{found}
	}
	return nil
}

// older reports whether the version a is older than b; false if either is no version.
func older(a, b string) bool {
	ours, ok := numbers(a)
	theirs, _ := numbers(b)
	return ok && slices.Compare(ours, theirs) < 0
}

// numbers returns the first two numbers of a version such as 2.14.0-RC.1.
func numbers(version string) ([]int, bool) {
	parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	if len(parts) < 2 {
		return nil, false
	}
	major, err := strconv.Atoi(parts[0])
	minor, err2 := strconv.Atoi(parts[1])
	return []int{major, minor}, err == nil && err2 == nil
}

// Of returns the class of an error of NATS or JetStream: "" for nil and anything else. A
// request without an answer is [jserror.Busy]; use [Denied] to find a missing permission.
func Of(err error) jserror.Class {
	if code := Code(err); code != 0 {
		return jserror.Of(code)
	}
	if _, old := errors.AsType[*OutdatedError](err); old {
		return jserror.Outdated
	}
	for _, row := range []struct {
		err   error
		class jserror.Class
	}{
		{nats.ErrPermissionViolation, jserror.Permission},
		{nats.ErrAuthorization, jserror.Permission},
		{nats.ErrAuthExpired, jserror.Permission},
		{nats.ErrAuthRevoked, jserror.Permission},
		{nats.ErrMaxPayload, jserror.Refused},
		{jetstream.ErrNoStreamResponse, jserror.StreamMissing},
		{jetstream.ErrConsumerDeleted, jserror.ConsumerMissing},
		{jetstream.ErrNoHeartbeat, jserror.Busy},
		{jetstream.ErrConsumerLeadershipChanged, jserror.Busy},
		{nats.ErrNoResponders, jserror.Disabled},
		{nats.ErrTimeout, jserror.Busy},
		{context.DeadlineExceeded, jserror.Busy},
		{nats.ErrConnectionClosed, jserror.Unreachable},
		{nats.ErrConnectionReconnecting, jserror.Unreachable},
		{nats.ErrDisconnected, jserror.Unreachable},
		{nats.ErrNoServers, jserror.Unreachable},
		{nats.ErrReconnectBufExceeded, jserror.Unreachable},
	} {
		if errors.Is(err, row.err) {
			return row.class
		}
	}
	return ""
}

// Code returns the error code of the JetStream error in err, 0 if there is none.
func Code(err error) int {
	if e, ok := errors.AsType[jetstream.JetStreamError](err); ok && e.APIError() != nil {
		return int(e.APIError().ErrorCode)
	}
	if e, ok := errors.AsType[*jetstream.APIError](err); ok {
		return int(e.ErrorCode)
	}
	return 0
}

// Denied returns err, or, if the server did not answer because nc's user lacks a
// permission, an error that names the permission. The server reports a denial separately
// from the request, which then times out.
func Denied(nc *nats.Conn, err error) error {
	if err == nil || Of(err) != jserror.Busy {
		return err
	}
	if last := nc.LastError(); errors.Is(last, nats.ErrPermissionViolation) && strings.Contains(last.Error(), "$JS.") {
		return fmt.Errorf("%w (%w)", last, err)
	}
	return err
}

// Explain returns err, an error of nc, with its reason before it, such as "stream_full: ",
// and what to do after it. The role is the one whose permissions nc's user needs, as in
// pgjet nats permissions. An error that is not from NATS, and nil, stay as they are.
func Explain(nc *nats.Conn, err error, role string) error {
	err = Denied(nc, err)
	class := Of(err)
	switch {
	case class == "":
		return err
	case !nc.IsConnected() && Code(err) == 0 && class != jserror.Permission && class != jserror.Outdated:
		class = jserror.Unreachable // whatever it looked like
	}
	todo := class.Advice()
	if class == jserror.Permission {
		todo = "compare with: pgjet nats permissions " + role
	}
	if todo == "" || strings.Contains(err.Error(), todo) {
		return fmt.Errorf("%s: %w", class, err)
	}
	return fmt.Errorf("%s: %w; %s", class, err, todo)
}

// StoredAt returns when a stream stored the message at a sequence; zero if it has none
// there.
func StoredAt(ctx context.Context, stream jetstream.Stream, seq uint64) (time.Time, error) {
	msg, err := stream.GetMsg(ctx, seq)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return time.Time{}, nil
	case err != nil:
		return time.Time{}, fmt.Errorf("look at message %d of the stream: %w", seq, err)
	}
	return msg.Time, nil
}

// Streams returns the names of the existing streams, at most 20. It returns none if the
// user may not list them.
func Streams(ctx context.Context, js jetstream.JetStream) []string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var all []string
	names := js.StreamNames(ctx)
	for name := range names.Name() {
		if len(all) < 20 {
			all = append(all, name)
		}
	}
	slices.Sort(all)
	return all
}

// NoStream returns a message that a stream does not exist, with those that do.
func NoStream(ctx context.Context, js jetstream.JetStream, stream string) string {
	others := "no stream exists"
	if all := Streams(ctx, js); len(all) > 0 {
		others = "these exist: " + strings.Join(all, ", ")
	} else if errors.Is(js.Conn().LastError(), nats.ErrPermissionViolation) {
		others = "which ones exist this user may not know"
	}
	return fmt.Sprintf("stream %s does not exist; %s", stream, others)
}
