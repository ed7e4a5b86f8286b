package auth

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/google/uuid"
	"github.com/lestrrat-go/jwx/v3/jwa"
	"github.com/lestrrat-go/jwx/v3/jwk"
	"github.com/lestrrat-go/jwx/v3/jws"
	"github.com/lestrrat-go/jwx/v3/jwt"
)

// An Issuer signs tokens. It is safe for concurrent use.
type Issuer struct {
	key      jwk.Key
	alg      jwa.SignatureAlgorithm
	verifier *Verifier
	jwks     []byte
}

// Generate returns an Issuer with a new key that is not stored: for tests, and for a
// service whose tokens may end with it.
func Generate() (*Issuer, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	set := jwk.NewSet()
	if err := set.AddKey(key); err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	return newIssuer(set)
}

// NewKey returns a new private key for [ReadIssuer], as a JWK.
func NewKey() ([]byte, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	return json.Marshal(key)
}

func newKey() (jwk.Key, error) {
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
	return key, nil
}

// ReadIssuer returns an Issuer with the keys of a file: a JWK, a JWK set, or PEM
// (PKCS #8, PKIX). The first private key signs, all of them verify.
func ReadIssuer(path string) (*Issuer, error) {
	set, err := readFile(path)
	if err != nil {
		return nil, err
	}
	i, err := newIssuer(set)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return i, nil
}

func newIssuer(set jwk.Set) (*Issuer, error) {
	keys, err := usableKeys(set)
	if err != nil {
		return nil, err
	}
	i := &Issuer{verifier: newVerifier(keys)}
	if i.jwks, err = publicJSON(set, keys); err != nil {
		return nil, err
	}
	for n := range set.Len() {
		key, _ := set.Key(n)
		if private, _ := jwk.IsPrivateKey(key); private {
			kid, _ := key.KeyID()
			i.key, i.alg = key, keys[kid].alg
			return i, i.try()
		}
	}
	return nil, errors.New("there is no private key to sign with")
}

// try checks that each private key belongs to the public key beside it.
func (i *Issuer) try() error {
	signed, err := jws.Sign([]byte("{}"), jws.WithKey(i.alg, i.key))
	if err != nil {
		return errors.New("the private key cannot sign")
	}
	kid, _ := i.key.KeyID()
	if _, err := jws.Verify(signed, jws.WithKey(i.alg, i.verifier.keys[kid].public)); err != nil {
		return errors.New("the private key does not belong to its public key")
	}
	return nil
}

// Issue returns a token with the identity who, which expires after lifetime.
func (i *Issuer) Issue(who Identity, lifetime time.Duration) (token string, expires time.Time, err error) {
	now := time.Now().UTC().Truncate(time.Second)
	expires = now.Add(lifetime).Truncate(time.Second)
	t, err := jwt.NewBuilder().Issuer(issuer).Audience([]string{audience}).Subject(who.Subject).
		IssuedAt(now).Expiration(expires).JwtID(uuid.NewString()).Claim("roles", append([]string{}, who.Roles...)).Claim("gen", who.Generation).Build()
	if err != nil {
		return "", time.Time{}, fmt.Errorf("make a token: %w", err)
	}
	header := jws.NewHeaders()
	if err := header.Set(jws.TypeKey, tokenType); err != nil {
		return "", time.Time{}, fmt.Errorf("make a token: %w", err)
	}
	signed, err := jwt.Sign(t, jwt.WithKey(i.alg, i.key, jws.WithProtectedHeaders(header)))
	if err != nil {
		return "", time.Time{}, fmt.Errorf("sign a token: %w", err)
	}
	return string(signed), expires, nil
}

// Verifier returns a verifier of tokens that are signed with one of the issuer's keys.
func (i *Issuer) Verifier() *Verifier { return i.verifier }

// JWKS returns the issuer's public keys as a JWK set.
func (i *Issuer) JWKS() []byte { return i.jwks }

// publicJSON returns keys as a JWK set in the order of set.
func publicJSON(set jwk.Set, keys map[string]key) ([]byte, error) {
	public := jwk.NewSet()
	for n := range set.Len() {
		given, _ := set.Key(n)
		kid, _ := given.KeyID()
		// From the bare key: other members of the JWK are not published.
		key, err := jwk.Import(keys[kid].public)
		if err != nil {
			return nil, fmt.Errorf("public key: %w", err)
		}
		if err := errors.Join(key.Set(jwk.KeyIDKey, kid), key.Set(jwk.AlgorithmKey, keys[kid].alg),
			key.Set(jwk.KeyUsageKey, jwk.ForSignature), public.AddKey(key)); err != nil {
			return nil, fmt.Errorf("public key: %w", err)
		}
	}
	return json.Marshal(public)
}

func readFile(path string) (jwk.Set, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	set, err := parseKeys(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return set, nil
}
