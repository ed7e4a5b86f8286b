package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/trace"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/jserror"
	"github.com/pgjet/pgjet/internal/natsconn"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/sqlstate"
	"github.com/pgjet/pgjet/relay/backlog"
	"github.com/pgjet/pgjet/relay/protocol"
)

func TestMatches(t *testing.T) {
	for _, c := range []struct {
		pattern, subject string
		want             bool
	}{
		{"events.>", "events.07.user.created", true},
		{"events.>", "events", false},
		{"events.*.user.created", "events.07.user.created", true},
		{"events.*.user.created", "events.07.user.renamed", false},
		{"events.*.user", "events.07.user.created", false},
		{"events.07.user.created.x", "events.07.user.created", false},
	} {
		if got := matches(c.pattern, c.subject); got != c.want {
			t.Errorf("matches(%q, %q) = %t", c.pattern, c.subject, got)
		}
	}
}

// TestCauses: every error has a cause, and keeps the one that it has.
func TestCauses(t *testing.T) {
	for want, err := range map[string]error{
		"permission_denied":   blockedByStream(nats.ErrPermissionViolation),
		"nats_unreachable":    blockedByStream(nats.ErrConnectionClosed),
		"stream_missing":      blockedByStream(nats.ErrNoResponders),
		"stream_unresponsive": blockedByStream(block("stream_unresponsive", nats.ErrConnectionClosed)),
		"error":               nats.ErrBadSubject,
	} {
		if got := causeOf(err); got != want {
			t.Errorf("causeOf(%v) = %s, want %s", err, got, want)
		}
	}
}

// TestAwaitTakesWhatHasCome: an answer that came in time counts, however long the relay was
// busy with other work.
func TestAwaitTakesWhatHasCome(t *testing.T) {
	m, err := newMetrics(&Relay{})
	if err != nil {
		t.Fatal(err)
	}
	for range 50 { // select takes either
		l := &link{answers: make(chan reply, 2), metrics: m}
		l.sent = sending{subject: "now", append: protocol.Append{Events: make([]events.Event, 2)}, at: time.Now().Add(-time.Hour), span: trace.SpanFromContext(t.Context())}
		for _, subject := range []string{"before", "now"} {
			l.answers <- reply{&nats.Msg{Subject: subject, Data: []byte(`{"seq": 7}`)}, l.sent.at.Add(time.Millisecond)}
		}
		if answer, err := l.Await(t.Context()); err != nil || answer.Last != 7 || answer.Took != time.Millisecond {
			t.Fatalf("Await() = %+v, %v, want sequence 7", answer, err)
		}
	}
}

// TestNoCauseRepeatsItself: whatever ended a session, and however often its cause was added
// on the way, the report begins with the cause and repeats no sentence. The test covers
// each class of both servers.
func TestNoCauseRepeatsItself(t *testing.T) {
	database := []error{
		&postgres.PoolerError{What: "the relay", Host: "127.0.0.1:6432"}, &postgres.NamesError{Host: "127.0.0.1:6432"},
		backlog.ErrSetBack, protocol.ErrFenced, io.ErrUnexpectedEOF, context.DeadlineExceeded,
	}
	missing := map[string]bool{}
	for _, class := range sqlstate.Reasons {
		missing[string(class)] = true
	}
	for _, code := range []string{"08006", "28P01", "53300", "25006", "55P03", "40001", "26000", "42501", "42P01", "22021", "25P02", "23505", "XX000"} {
		database = append(database, &pgconn.PgError{Severity: "ERROR", Code: code, Message: "text of the server"})
	}
	database = append(database, &pgconn.PgError{Code: "0A000", Routine: "RevalidateCachedQuery", Message: "text of the server"})

	stream := []error{
		nats.ErrPermissionViolation, nats.ErrAuthorization, nats.ErrConnectionClosed, nats.ErrNoResponders, nats.ErrTimeout, nats.ErrMaxPayload,
		&natsconn.OutdatedError{Found: "2.10"}, &protocol.HaltError{Count: 1}, &protocol.HaltError{Foreign: true},
		block(string(jserror.Unreachable), fmt.Errorf("connection lost: %w", nats.ErrPermissionViolation)),
		&protocol.UnclearError{Err: block(string(jserror.Busy), errors.New("no answer within 3s"))},
	}
	for _, class := range jserror.Reasons {
		missing[string(class)] = true
	}
	for code := 10000; code < 10300; code++ {
		if jserror.Name(code) != "" {
			stream = append(stream, &jetstream.APIError{ErrorCode: jetstream.ErrorCode(code), Description: "text of the server"},
				&protocol.Refusal{Code: code, Text: "text of the server"})
		}
	}
	stream = append(stream, &protocol.Refusal{Code: 1, Text: "text of the server"})

	check := func(err error) {
		t.Helper()
		err = withCause(fmt.Errorf("take the lead: %w", err))
		word, text, _ := strings.Cut(err.Error(), ": ")
		delete(missing, word)
		if word != causeOf(err) {
			t.Errorf("%q does not begin with its word, %s", err, causeOf(err))
		}
		seen := map[string]bool{}
		for _, part := range regexp.MustCompile(`[;:,(]|, | and `).Split(text, -1) {
			part = strings.Trim(part, " )")
			if seen[part] && len(part) > 8 || part == word {
				t.Errorf("%q says %q twice", err, part)
			}
			seen[part] = true
		}
		if strings.Count(text, "pooler") > 3 {
			t.Errorf("%q explains twice what a pooler is", err)
		}
	}
	for _, err := range database {
		check(blockedByDatabase(err))
		check(blockedByDatabase(fmt.Errorf("save checkpoint: %w", blockedByDatabase(err))))
	}
	denied := &link{}
	denied.denied.Store(&stream[0])
	for _, l := range []*link{{}, denied} {
		for _, err := range stream {
			check(l.classify(err))
			check(l.classify(fmt.Errorf("look up stream EVENTS: %w", l.classify(err))))
		}
	}
	delete(missing, string(jserror.MessageMissing))
	for word := range missing {
		t.Errorf("no error of this test has the word %s", word)
	}
}
