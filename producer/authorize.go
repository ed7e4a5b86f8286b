package producer

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/google/uuid"

	"github.com/pgjet/pgjet/internal/auth"
)

// access says who may call an operation.
type access int

const (
	open    access = iota // anybody
	known                 // who shows a token; the handler asks mayActFor
	isAdmin               // who shows a token with the role admin
)

type identityKey struct{}

// authorize puts who calls into the context of op's handler, or refuses the call.
func (s *Server) authorize(a access) func(huma.Context, func(huma.Context)) {
	return func(ctx huma.Context, next func(huma.Context)) {
		r, w := humago.Unwrap(ctx)
		who, p := s.identify(r)
		switch {
		case p != nil:
			writeProblem(w, p)
		case a == isAdmin && !who.Has(auth.Admin):
			writeProblem(w, forbidden())
		default:
			next(huma.WithValue(ctx, identityKey{}, who))
		}
	}
}

// identify returns for whom r's token speaks. A token has its place in the header
// and nowhere else: addresses end up in logs.
func (s *Server) identify(r *http.Request) (auth.Identity, *Problem) {
	given := r.Header.Values("Authorization")
	if len(given) > 1 { // which one another server looked at, nobody knows
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

// mayActFor returns nil if the caller is the user with this id, or an admin.
func mayActFor(ctx context.Context, id uuid.UUID) error {
	who, _ := ctx.Value(identityKey{}).(auth.Identity)
	if who.Subject == id.String() || who.Has(auth.Admin) {
		return nil
	}
	return forbidden()
}
