package producer

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/auth"
)

// An access says who may call an operation.
type access int

const (
	open    access = iota // anybody
	known                 // a token is needed; the handler calls ownUser
	isAdmin               // a token with the role admin is needed
)

type identityKey struct{}

// authorize puts the caller's identity into the context of op's handler, or refuses the
// call.
func (s *Server) authorize(a access) func(huma.Context, func(huma.Context)) {
	return func(ctx huma.Context, next func(huma.Context)) {
		r, w := humago.Unwrap(ctx)
		who, p := s.identify(r)
		switch {
		case p != nil:
			s.recordRefusal(ctx.Context(), who, p)
			writeProblem(w, p)
		case a == isAdmin && !who.Has(auth.Admin):
			p := forbidden()
			s.recordRefusal(ctx.Context(), who, p)
			writeProblem(w, p)
		default:
			next(huma.WithValue(ctx, identityKey{}, who))
		}
	}
}

// identify returns the identity in r's token. It accepts a token only in the header
// Authorization: URLs end up in logs.
func (s *Server) identify(r *http.Request) (auth.Identity, *Problem) {
	given := r.Header.Values("Authorization")
	if len(given) > 1 { // another server may have checked either one
		return auth.Identity{}, newProblem(http.StatusBadRequest, "authorization_repeated", "The request has more than one Authorization header.")
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return auth.Identity{}, tokenInvalid("Bearer")
	}
	who, err := s.Verifier.Verify(r.Context(), token)
	switch {
	case errors.Is(err, auth.ErrUnavailable):
		return auth.Identity{}, unavailableProblem("keys_unavailable", "The keys to verify access tokens with are not available. Try again.")
	case err != nil:
		s.log.DebugContext(r.Context(), "token refused", "route", r.Pattern, "trace_id", traceID(r.Context()), "err", err)
		return auth.Identity{}, tokenInvalid(`Bearer error="invalid_token"`)
	}
	return who, nil
}

func tokenInvalid(challenge string) *Problem {
	p := newProblem(http.StatusUnauthorized, "token_invalid", "A valid access token is required: log in with POST /sessions.")
	p.challenge = challenge
	return p
}

func forbidden() *Problem {
	return newProblem(http.StatusForbidden, "forbidden", "The access token does not allow this.")
}

func accountRejected() *Problem {
	return newProblem(http.StatusForbidden, "account_rejected", "This account was rejected: nobody can log in to it.")
}

// caller returns the identity in the request's token.
func caller(ctx context.Context) auth.Identity {
	who, _ := ctx.Value(identityKey{}).(auth.Identity)
	return who
}

// A standing is the current state of the caller in the database. A token holds the state
// when its user logged in.
type standing struct {
	State           string
	Roles           []string
	TokenGeneration int
}

// rolesColumn are a user's roles, even in nested arrays. If they have more than 512 bytes,
// it is admin alone: no server would accept a token with all of them in a header.
const rolesColumn = `case when octet_length(array_to_string(roles, ',', '')) <= 512 then array(select r from unnest(roles) r where r is not null)
	else array(select 'admin' where 'admin' = any (roles)) end as roles`

// queueStanding queues a query for the caller's row, which sets refusal: to nil if the
// caller may do what their token says, else to the problem. A caller other than target acts
// as an admin.
//
// In a transaction, queue it after the lock on the row to change. A statement sees what was
// committed before it began, so a role that was revoked during the wait is gone.
func queueStanding(b *pgx.Batch, who auth.Identity, target string, refusal *error) {
	id, err := parseUserID(who.Subject)
	if err != nil {
		id = uuid.Nil // no user has it
	}
	b.Queue(`select state, `+rolesColumn+`, token_generation from users.users where id = $1`, id).Query(func(rows pgx.Rows) error {
		now, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[standing])
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			*refusal = tokenInvalid(`Bearer error="invalid_token"`)
		case err != nil:
			return fmt.Errorf("look at the caller: %w", err)
		default:
			*refusal = now.refusal(who, target)
		}
		return nil
	})
}

// refusal returns why the token of who does not allow acting on target any more; nil if it
// does.
func (now standing) refusal(who auth.Identity, target string) error {
	switch {
	case now.TokenGeneration != who.Generation: // the password was changed
		return tokenInvalid(`Bearer error="invalid_token"`)
	case now.State == "rejected":
		return accountRejected()
	case who.Subject == target, who.Has(auth.Admin) && slices.Contains(now.Roles, auth.Admin):
		return nil
	}
	return forbidden()
}

// mayActOn returns nil if the caller may currently act on target, else the problem.
func (s *Server) mayActOn(ctx context.Context, target string) error {
	var refusal error
	b := &pgx.Batch{}
	queueStanding(b, caller(ctx), target, &refusal)
	if err := s.db.Send(ctx, b); err != nil {
		return err
	}
	return refusal
}

// everybody is the target of callers that act on all users.
const everybody = ""
