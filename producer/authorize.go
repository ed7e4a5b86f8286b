package producer

import (
	"context"
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
			w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
			writeProblem(w, p)
		case a == isAdmin && !who.Has(auth.Admin):
			writeProblem(w, forbidden())
		default:
			next(huma.WithValue(ctx, identityKey{}, who))
		}
	}
}

func (s *Server) identify(r *http.Request) (auth.Identity, *Problem) {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return auth.Identity{}, newProblem(http.StatusUnauthorized, "token_invalid", "A valid access token is required: log in with POST /sessions.")
	}
	who, err := s.Verifier.Verify(r.Context(), token)
	if err != nil {
		return auth.Identity{}, newProblem(http.StatusUnauthorized, "token_invalid", "A valid access token is required: log in with POST /sessions.")
	}
	return who, nil
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
