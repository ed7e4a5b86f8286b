// Package auth makes and verifies the access tokens of the API: short-lived JWTs
// (RFC 7519) under the rules of RFC 8725, signed with Ed25519.
package auth

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/lestrrat-go/jwx/v3/jwa"
	"github.com/lestrrat-go/jwx/v3/jwk"
	"github.com/lestrrat-go/jwx/v3/jwt"
)

// Who makes tokens, and for whom.
const (
	issuer   = "pgjet-users"
	audience = "pgjet"
)

// leeway is how far the clocks of two machines may be apart.
const leeway = 30 * time.Second

// Admin is the role that may see, change and delete every user.
const Admin = "admin"

// An Identity is for whom a valid token speaks.
type Identity struct {
	Subject string // the user's id
	Roles   []string
}

// Has reports whether the identity has the role.
func (i Identity) Has(role string) bool { return slices.Contains(i.Roles, role) }

// An Issuer signs tokens. It is safe for concurrent use.
type Issuer struct {
	key      jwk.Key
	verifier *Verifier
}

// Generate returns an Issuer with a new key that is kept nowhere: for tests, and for
// a service whose tokens may end with it.
func Generate() (*Issuer, error) {
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	key, err := jwk.Import(private)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	if err := errors.Join(jwk.AssignKeyID(key), key.Set(jwk.AlgorithmKey, jwa.EdDSA())); err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	return newIssuer(key)
}

func newIssuer(key jwk.Key) (*Issuer, error) {
	public, err := key.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	set := jwk.NewSet()
	if err := set.AddKey(public); err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	return &Issuer{key, &Verifier{set}}, nil
}

// Issue returns a token that speaks for who until it expires.
func (i *Issuer) Issue(who Identity, lifetime time.Duration) (token string, expires time.Time, err error) {
	now := time.Now().Truncate(time.Second)
	expires = now.Add(lifetime)
	t, err := jwt.NewBuilder().Issuer(issuer).Audience([]string{audience}).Subject(who.Subject).
		IssuedAt(now).Expiration(expires).JwtID(uuid.NewString()).Claim("roles", append([]string{}, who.Roles...)).Build()
	if err != nil {
		return "", time.Time{}, fmt.Errorf("make a token: %w", err)
	}
	signed, err := jwt.Sign(t, jwt.WithKey(jwa.EdDSA(), i.key))
	if err != nil {
		return "", time.Time{}, fmt.Errorf("sign a token: %w", err)
	}
	return string(signed), expires, nil
}

// Verifier returns what verifies the issuer's own tokens.
func (i *Issuer) Verifier() *Verifier { return i.verifier }

// A Verifier says for whom a token speaks. It is safe for concurrent use.
type Verifier struct{ keys jwk.Set }

// ErrInvalid is the error of every token that is not accepted, with the reason for
// the log; a client is not told more.
var ErrInvalid = errors.New("token invalid")

// Verify returns for whom token speaks. Its error is [ErrInvalid], or says that the
// keys cannot be had at the moment.
func (v *Verifier) Verify(ctx context.Context, token string) (Identity, error) {
	t, err := jwt.Parse([]byte(token), jwt.WithKeySet(v.keys), jwt.WithContext(ctx), jwt.WithIssuer(issuer),
		jwt.WithAudience(audience), jwt.WithAcceptableSkew(leeway), jwt.WithRequiredClaim("exp"),
		jwt.WithRequiredClaim("iat"), jwt.WithRequiredClaim("sub"))
	if err != nil {
		return Identity{}, fmt.Errorf("%w: %v", ErrInvalid, err)
	}
	who := Identity{}
	who.Subject, _ = t.Subject()
	var roles []any
	if t.Has("roles") {
		if err := t.Get("roles", &roles); err != nil {
			return Identity{}, fmt.Errorf("%w: roles: %v", ErrInvalid, err)
		}
	}
	for _, r := range roles {
		if role, ok := r.(string); ok {
			who.Roles = append(who.Roles, role)
		}
	}
	return who, nil
}
