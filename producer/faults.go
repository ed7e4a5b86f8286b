package producer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/pgjet/pgjet/internal/sqlstate"
)

// errOutcomeUnknown says that PostgreSQL did not answer a commit.
var errOutcomeUnknown = errors.New("outcome of commit unknown")

// problem returns the problem with which err is answered, and logs err if an operator
// should see it. route is the operation's, such as "GET /users/{id}".
func (s *Server) problem(ctx context.Context, route string, err error) *Problem {
	if p, ok := errors.AsType[*Problem](err); ok {
		return p // the client's fault
	}
	if errors.Is(ctx.Err(), context.Canceled) && errors.Is(err, context.Canceled) {
		return newProblem(499, "client_closed_request", "The client went away.") // nobody reads it
	}
	if p := s.refusal(ctx, err); p != nil {
		return p
	}
	p, level := internalProblem(), slog.LevelError
	switch {
	case errors.Is(err, errProfilesAway):
		p, level = unavailableProblem("profiles_unavailable", "Profiles are not available at the moment. Try again."), slog.LevelWarn
	case errors.Is(err, errOutcomeUnknown):
		p = unavailableProblem("outcome_unknown", "The connection to the database broke: the request may have been carried out, or not. A sign-up with an Idempotency-Key can be sent again as it was.")
	case sqlstate.Of(err).Passing():
		p = unavailableProblem("database_unavailable", "The database is not available. Nothing was stored. Try again.")
	}
	trace.SpanFromContext(ctx).SetAttributes(attribute.String("error.type", p.Code))
	s.log.Log(ctx, level, "request failed", "route", route, "trace_id", traceID(ctx), "code", p.Code, "err", redact(err))
	return p
}

// refusal returns the problem of a request that was refused because of overload, and nil if
// err is anything else. It counts such requests. They are many, so not each is logged.
func (s *Server) refusal(ctx context.Context, err error) *Problem {
	var p *Problem
	cause := ""
	switch {
	case errors.Is(err, errOverloaded):
		cause, p = "overloaded", overloadProblem()
	case errors.Is(err, errArriving):
		cause, p = "bodies", unavailableProblem("overloaded", "The service receives more than it can. Nothing was stored. Try again.")
	case errors.Is(err, errBusy):
		cause, p = "hashes", unavailableProblem("busy", "Too many people sign up or log in at the moment. Nothing was stored. Try again.")
	case errors.Is(err, errDatabaseBusy):
		cause, p = "transactions", unavailableProblem("busy", "Too much is being stored at the moment. Nothing was stored. Try again.")
	default:
		return nil
	}
	s.metrics.refuse(ctx, cause)
	trace.SpanFromContext(ctx).SetAttributes(attribute.String("error.type", p.Code))
	s.warning.Do(func() {
		s.log.WarnContext(ctx, "refusing requests: more come than can be answered; raise users.requests or users.hashes, or add processes",
			"cause", cause, "code", p.Code, "trace_id", traceID(ctx))
	})
	return p
}

func overloadProblem() *Problem {
	return unavailableProblem("overloaded", "The service has more to do than it can. Nothing was stored. Try again.")
}

// refused reports whether err says that a statement failed, or was not even sent.
func refused(err error) bool {
	_, failed := errors.AsType[*pgconn.PgError](err)
	_, unsent := errors.AsType[pgx.ErrPreprocessingBatch](err)
	return failed || unsent
}

// commitError returns the error of a commit, marked with [errOutcomeUnknown] unless it is
// certain that the transaction did not commit.
func commitError(err error) error {
	if err == nil {
		return nil
	}
	if sqlstate.CommitUnknown(err) {
		return fmt.Errorf("%w: %w", errOutcomeUnknown, err)
	}
	return fmt.Errorf("commit: %w", err)
}

// redact returns the text of err without PostgreSQL's message if that may quote a value:
// data exceptions, violated constraints, raised errors.
func redact(err error) string {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || !sqlstate.Of(err).Quotes() {
		return err.Error()
	}
	short := strings.Join(strings.Fields(
		"SQLSTATE "+pgErr.Code+" "+pgErr.SchemaName+" "+pgErr.TableName+" "+pgErr.ConstraintName), " ")
	before, after, _ := strings.Cut(err.Error(), pgErr.Error())
	if before == err.Error() { // err changed the wording
		return short
	}
	return before + short + after
}

// traceID returns the id of ctx's trace, to find its log lines by, or "".
func traceID(ctx context.Context) string {
	if sc := trace.SpanContextFromContext(ctx); sc.HasTraceID() {
		return sc.TraceID().String()
	}
	return ""
}
