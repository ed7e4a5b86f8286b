package auth

import (
	"context"
	"encoding/base64"
	"fmt"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/lestrrat-go/jwx/v3/jws"
)

// A Verifier verifies tokens and returns the identity in them. It is safe for concurrent
// use.
type Verifier struct {
	keys   map[string]key
	remote *Remote // nil: there are only keys
	now    func() time.Time
}

func newVerifier(keys map[string]key) *Verifier { return &Verifier{keys: keys, now: time.Now} }

// With returns a Verifier that has the keys of r in addition to those of v, which come
// first.
func (v *Verifier) With(r *Remote) *Verifier { return &Verifier{v.keys, r, v.now} }

// Verify returns the identity in token. Its error is [ErrInvalid] or [ErrUnavailable].
func (v *Verifier) Verify(ctx context.Context, token string) (Identity, error) {
	h, payload, err := open(token)
	if err != nil {
		return Identity{}, err
	}
	k, err := v.key(ctx, h.KeyID)
	if err != nil {
		return Identity{}, err
	}
	if h.Algorithm != k.alg.String() {
		return Identity{}, refused("another algorithm than its key's")
	}
	if _, err := jws.VerifyCompactFast(k.public, []byte(token), k.alg); err != nil {
		return Identity{}, refused("wrong signature")
	}
	return identify(payload, v.now())
}

func (v *Verifier) key(ctx context.Context, kid string) (key, error) {
	if k, ok := v.keys[kid]; ok {
		return k, nil
	}
	if v.remote != nil {
		return v.remote.key(ctx, kid)
	}
	return key{}, refused("unknown key")
}

func refused(reason string) error { return fmt.Errorf("%w: %s", ErrInvalid, reason) }

// A header has these members and no others: jku, x5u, jwk or crit would take decisions that
// belong to the verifier.
type header struct {
	Algorithm string `json:"alg"`
	KeyID     string `json:"kid"`
	Type      string `json:"typ"`
}

// open returns the header and the payload of a token, whose signature has not been checked
// yet.
func open(token string) (h header, payload []byte, err error) {
	if len(token) > maxToken {
		return h, nil, refused("too long")
	}
	parts := strings.SplitN(token, ".", 4)
	if len(parts) != 3 {
		return h, nil, refused("not three parts")
	}
	var decoded [3][]byte
	for i, p := range parts {
		// Only one text is valid for a signature. Go's decoder would skip line breaks.
		if decoded[i], err = base64.RawURLEncoding.Strict().DecodeString(p); err != nil || strings.ContainsAny(p, "\r\n") {
			return h, nil, refused("not base64url")
		}
	}
	if err := json.Unmarshal(decoded[0], &h, json.RejectUnknownMembers(true)); err != nil {
		return h, nil, refused("header is not an object of alg, kid and typ")
	}
	if h.KeyID == "" {
		return h, nil, refused("no key named")
	}
	if strings.TrimPrefix(strings.ToLower(h.Type), "application/") != tokenType {
		return h, nil, refused("not an access token")
	}
	return h, decoded[1], nil
}

// claims are the claims that are checked; others are ignored. A number has to be an
// integer, as JSON defines it.
type claims struct {
	Issuer    string         `json:"iss"`
	Subject   string         `json:"sub"`
	Audience  jsontext.Value `json:"aud"`
	Expires   *int64         `json:"exp"`
	IssuedAt  *int64         `json:"iat"`
	NotBefore *int64         `json:"nbf"`
	Roles     jsontext.Value `json:"roles"`
	// Generation is 0 in a token without it.
	Generation int `json:"gen"`
}

// identify returns the identity in the payload of a signed token.
func identify(payload []byte, now time.Time) (Identity, error) {
	var c claims
	if json.Unmarshal(payload, &c) != nil {
		return Identity{}, refused("claims are not an object, or of wrong types")
	}
	if c.Issuer != issuer {
		return Identity{}, refused("another issuer")
	}
	if !c.forUs() {
		return Identity{}, refused("for another audience")
	}
	if reason := c.time(now); reason != "" {
		return Identity{}, refused(reason)
	}
	if c.Subject == "" || len(c.Subject) > 255 {
		return Identity{}, refused("no subject of 1 to 255 bytes")
	}
	who := Identity{Subject: c.Subject, Generation: c.Generation}
	if c.Roles != nil {
		var ok bool
		if who.Roles, ok = texts(c.Roles); !ok {
			return Identity{}, refused("roles are not an array of strings")
		}
	}
	return who, nil
}

func (c *claims) forUs() bool {
	if c.Audience.Kind() == '"' {
		var one string
		return json.Unmarshal(c.Audience, &one) == nil && one == audience
	}
	all, ok := texts(c.Audience)
	for _, a := range all {
		if ok && a == audience {
			return true
		}
	}
	return false
}

// time returns what is wrong with the token's times at now, or "".
func (c *claims) time(now time.Time) string {
	const last = 1 << 40 // some 30 000 years on, and far from overflow
	for _, t := range []*int64{c.Expires, c.IssuedAt, c.NotBefore} {
		if t != nil && (*t < 0 || *t > last) {
			return "a time out of range"
		}
	}
	switch {
	case c.Expires == nil || c.IssuedAt == nil:
		return "no exp or no iat"
	case !now.Before(time.Unix(*c.Expires, 0).Add(leeway)):
		return "expired"
	case time.Unix(*c.Expires, 0).After(now.Add(maxAhead)):
		return "expires too late"
	case time.Unix(*c.IssuedAt, 0).After(now.Add(leeway)):
		return "issued in the future"
	case c.NotBefore != nil && time.Unix(*c.NotBefore, 0).After(now.Add(leeway)):
		return "not valid yet"
	}
	return ""
}

// texts returns the strings of a JSON array that holds nothing else.
func texts(v jsontext.Value) ([]string, bool) {
	var all []any
	if v.Kind() != '[' || json.Unmarshal(v, &all) != nil {
		return nil, false
	}
	out := make([]string, len(all))
	for i, a := range all {
		s, ok := a.(string)
		if !ok {
			return nil, false
		}
		out[i] = s
	}
	return out, true
}
