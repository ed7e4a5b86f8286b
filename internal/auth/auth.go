// Package auth makes and verifies the access tokens of the API: short-lived JWTs (RFC 7519)
// under the rules of RFC 8725 and RFC 9068.
//
// # Keys
//
// A key is Ed25519 (EdDSA), P-256 (ES256) or RSA of 2048 bits or more (RS256), and verifies
// tokens of its own algorithm only. There are no shared secrets: a key that verifies cannot
// sign. Keys are found by their kid among the configured ones; a token cannot bring or name
// others.
//
// # Tokens
//
// A token is at most 8 KiB, its header holds alg, kid and typ at+jwt and nothing else, and
// iss, aud, sub, exp and iat are required. Clocks may be 30 seconds apart. Anything
// irregular is refused: duplicate claims, padding, numbers as text.
package auth

import (
	"errors"
	"slices"
	"time"
)

// The issuer and the audience of tokens.
const (
	issuer    = "pgjet-users"
	audience  = "pgjet"
	tokenType = "at+jwt"
)

const (
	leeway   = 30 * time.Second // how far the clocks of two machines may be apart
	maxAhead = 24 * time.Hour   // no access token needs to live longer
	maxToken = 8 << 10          // bytes
)

// Admin is the role that may see, change and delete every user.
const Admin = "admin"

// An Identity is the user in a valid token.
type Identity struct {
	Subject string // the user's id
	Roles   []string
	// Generation counts the user's passwords at the log-in: it shows which tokens are from
	// before a change of the password.
	Generation int
}

// Has reports whether the identity has the role.
func (i Identity) Has(role string) bool { return slices.Contains(i.Roles, role) }

// Errors of [Verifier.Verify]. Their texts are for the log, and hold nothing of the token.
var (
	// ErrInvalid is the error of every token that is not accepted. Clients do not learn the
	// reason.
	ErrInvalid = errors.New("token invalid")
	// ErrUnavailable says that the token could not be checked, since the keys were never
	// loaded.
	ErrUnavailable = errors.New("keys unavailable")
)
