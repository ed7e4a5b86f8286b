package auth

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lestrrat-go/jwx/v3/jwk"
)

// A signer makes tokens of any shape, by hand.
type signer struct {
	kid, alg string
	private  any
}

func (s signer) public() any { return s.private.(crypto.Signer).Public() }

// sign returns the token with these three parts; header and payload are raw JSON.
func (s signer) sign(header, payload string) string {
	text := encode([]byte(header)) + "." + encode([]byte(payload))
	digest := sha256.Sum256([]byte(text))
	var signature []byte
	switch k := s.private.(type) {
	case ed25519.PrivateKey:
		signature = ed25519.Sign(k, []byte(text))
	case *rsa.PrivateKey:
		signature, _ = rsa.SignPKCS1v15(rand.Reader, k, crypto.SHA256, digest[:])
	case *ecdsa.PrivateKey:
		r, s, err := ecdsa.Sign(rand.Reader, k, digest[:])
		if err != nil {
			panic(err)
		}
		signature = append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	case []byte:
		mac := hmac.New(sha256.New, k)
		mac.Write([]byte(text))
		signature = mac.Sum(nil)
	}
	return text + "." + encode(signature)
}

func (s signer) header() string {
	return fmt.Sprintf(`{"alg":%q,"kid":%q,"typ":"at+jwt"}`, s.alg, s.kid)
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

var (
	edSigner  = signer{"ed", "EdDSA", ed25519.NewKeyFromSeed([]byte("an ed25519 seed has 32 bytes, ok"))}
	ecSigner  = signer{"ec", "ES256", must(ecdsa.ParseRawPrivateKey(elliptic.P256(), []byte("a P-256 scalar has 32 bytes, too")))}
	rsaSigner = signer{"rsa", "RS256", must(rsa.GenerateKey(rand.Reader, 2048))}
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// now is the time of the tests.
var now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// testVerifier returns a verifier with the three signers' keys, at now.
func testVerifier(t testing.TB) *Verifier {
	t.Helper()
	set := jwk.NewSet()
	for _, s := range []signer{edSigner, ecSigner, rsaSigner} {
		if err := set.AddKey(jwkOf(t, s.public(), s.kid)); err != nil {
			t.Fatal(err)
		}
	}
	keys, err := usableKeys(set)
	if err != nil {
		t.Fatal(err)
	}
	v := newVerifier(keys)
	v.now = func() time.Time { return now }
	return v
}

func jwkOf(t testing.TB, raw any, kid string) jwk.Key {
	t.Helper()
	key, err := jwk.Import(raw)
	if err != nil {
		t.Fatal(err)
	}
	if kid != "" {
		if err := key.Set(jwk.KeyIDKey, kid); err != nil {
			t.Fatal(err)
		}
	}
	return key
}

// with returns the claims of a valid token with some replaced by raw JSON; "" removes one.
func with(replace ...string) string {
	c := map[string]string{
		"iss": `"pgjet-users"`, "aud": `"pgjet"`, "sub": `"ann"`, "roles": `["admin"]`,
		"iat": fmt.Sprint(now.Unix()), "exp": fmt.Sprint(now.Add(15 * time.Minute).Unix()),
	}
	for i := 0; i < len(replace); i += 2 {
		c[replace[i]] = replace[i+1]
	}
	var members []string
	for _, name := range slices.Sorted(maps.Keys(c)) {
		if c[name] != "" {
			members = append(members, fmt.Sprintf("%q:%s", name, c[name]))
		}
	}
	return "{" + strings.Join(members, ",") + "}"
}

// at returns a NumericDate that far from now.
func at(d time.Duration) string { return fmt.Sprint(now.Add(d).Unix()) }

func TestIssue(t *testing.T) {
	i, err := Generate()
	if err != nil {
		t.Fatal(err)
	}
	who := Identity{Subject: "ann", Roles: []string{Admin}}
	token, expires, err := i.Issue(who, 15*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	got, err := i.Verifier().Verify(t.Context(), token)
	if err != nil || got.Subject != "ann" || !got.Has(Admin) || got.Has("owner") {
		t.Errorf("Verify(Issue()) = %+v, %v, want ann, an admin", got, err)
	}
	if left := time.Until(expires); left < 14*time.Minute || left > 15*time.Minute {
		t.Errorf("the token expires in %s, want 15m", left)
	}
	none, _, err := i.Issue(Identity{Subject: "ann"}, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := i.Verifier().Verify(t.Context(), none); err != nil || len(got.Roles) != 0 {
		t.Errorf("Verify() of a token without roles = %+v, %v", got, err)
	}
	other, err := Generate()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Verifier().Verify(t.Context(), token); !errors.Is(err, ErrInvalid) {
		t.Errorf("another issuer's verifier: %v, want ErrInvalid", err)
	}
}

// parseVerifier returns a verifier with keys that need not be private.
func parseVerifier(data string) (*Verifier, error) {
	set, err := parseKeys([]byte(data))
	if err != nil {
		return nil, err
	}
	keys, err := usableKeys(set)
	return newVerifier(keys), err
}

// TestKeyFiles reads keys in every form; tokens issued with them verify with the public
// keys that the issuer serves.
func TestKeyFiles(t *testing.T) {
	own, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{
		"own.jwk":    string(own),
		"ed.jwk":     jsonOf(t, jwkOf(t, edSigner.private, "")),
		"ec.jwk":     jsonOf(t, jwkOf(t, ecSigner.private, "ec")),
		"rsa.jwk":    jsonOf(t, jwkOf(t, rsaSigner.private, "rsa")),
		"set.jwks":   `{"keys":[` + jsonOf(t, jwkOf(t, rsaSigner.public(), "old")) + "," + string(own) + "," + jsonOf(t, jwkOf(t, ecSigner.private, "")) + `]}`,
		"ed.pem":     pemOf(t, edSigner.private),
		"ec.pem":     pemOf(t, ecSigner.private),
		"rsa.pem":    pemOf(t, rsaSigner.private),
		"rotate.pem": pemOf(t, edSigner.private) + pemOf(t, ecSigner.public()),
	} {
		t.Run(name, func(t *testing.T) {
			i, err := ReadIssuer(file(t, name, data))
			if err != nil {
				t.Fatal(err)
			}
			token, _, err := i.Issue(Identity{Subject: "ann"}, time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			for _, secret := range []string{`"d"`, `"p"`, `"k"`} {
				if strings.Contains(string(i.JWKS()), secret) {
					t.Fatalf("the JWK set holds a private key: it has a member %s", secret)
				}
			}
			public, err := parseVerifier(string(i.JWKS()))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := public.Verify(t.Context(), token); err != nil {
				t.Errorf("with the public keys: %v", err)
			}
		})
	}
}

// TestRotation: a token of an old key verifies as long as that key is in the file,
// whichever key signs.
func TestRotation(t *testing.T) {
	before := jsonOf(t, jwkOf(t, edSigner.private, "old"))
	after, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	token, _, err := must(ReadIssuer(file(t, "a", before))).Issue(Identity{Subject: "ann"}, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	both := must(ReadIssuer(file(t, "b", `{"keys":[`+string(after)+`,`+before+`]}`)))
	if _, err := both.Verifier().Verify(t.Context(), token); err != nil {
		t.Errorf("with the old key beside the new: %v", err)
	}
	fresh, _, err := both.Issue(Identity{Subject: "ann"}, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	only := must(ReadIssuer(file(t, "c", string(after)))).Verifier()
	if _, err := only.Verify(t.Context(), fresh); err != nil {
		t.Errorf("the first key does not sign: %v", err)
	}
	if _, err := only.Verify(t.Context(), token); !errors.Is(err, ErrInvalid) {
		t.Errorf("without the old key: %v, want ErrInvalid", err)
	}
}

func TestBadKeys(t *testing.T) {
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	weakJWK := fmt.Sprintf(`{"kty":"RSA","n":%q,"e":"AQAB","d":%q,"p":%q,"q":%q}`,
		encode(weak.N.Bytes()), encode(weak.D.Bytes()), encode(weak.Primes[0].Bytes()), encode(weak.Primes[1].Bytes()))
	p384 := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	mixed := fmt.Sprintf(`{"kty":"OKP","crv":"Ed25519","d":%q,"x":%q}`,
		encode(edSigner.private.(ed25519.PrivateKey).Seed()), encode(ed25519.NewKeyFromSeed(make([]byte, 32)).Public().(ed25519.PublicKey)))
	off := `{"kty":"EC","crv":"P-256","x":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE","y":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE"}`
	set := func(keys ...string) string { return `{"keys":[` + strings.Join(keys, ",") + `]}` }
	ed, ec := jsonOf(t, jwkOf(t, edSigner.private, "a")), jsonOf(t, jwkOf(t, ecSigner.private, "a"))
	rows := map[string]string{
		"empty file":             "",
		"no key":                 "Kanarienvogel",
		"broken JSON":            `{"kty":"OKP","d":"Kanarienvogel`,
		"bad base64":             `{"kty":"OKP","crv":"Ed25519","x":"Kanarienvogel!","d":"Kanarienvogel!"}`,
		"empty set":              set(),
		"RSA of 1024 bits":       weakJWK,
		"RSA of 1024 bits, PEM":  pemOf(t, weak),
		"RSA of 1024 bits, 2nd":  set(ed, weakJWK),
		"P-384":                  jsonOf(t, jwkOf(t, p384, "")),
		"X25519":                 `{"kty":"OKP","crv":"X25519","x":"` + encode(make([]byte, 32)) + `"}`,
		"not on the curve":       off,
		"secret":                 `{"kty":"oct","k":"` + encode([]byte("Kanarienvogel")) + `"}`,
		"long secret":            `{"kty":"oct","k":"` + encode([]byte(strings.Repeat("Kanarienvogel", 9))) + `"}`,
		"another algorithm":      strings.Replace(ed, "{", `{"alg":"ES256",`, 1),
		"RSA declared as HS256":  strings.Replace(jsonOf(t, jwkOf(t, rsaSigner.private, "")), "{", `{"alg":"HS256",`, 1),
		"for encryption":         strings.Replace(ed, "{", `{"use":"enc",`, 1),
		"one kid twice":          set(ed, ec),
		"halves of two keys":     mixed,
		"public keys only":       jsonOf(t, jwkOf(t, edSigner.public(), "")),
		"public keys only, PEM":  pemOf(t, edSigner.public()),
		"kid is the empty text ": strings.Replace(ed, `"kid":"a"`, `"kid":""`, 1),
	}
	for i, point := range lowOrderPoints {
		rows[fmt.Sprintf("low order %d", i)] = `{"kty":"OKP","crv":"Ed25519","x":"` + encode(must(hexBytes(point))) + `"}`
	}
	for name, data := range rows {
		t.Run(name, func(t *testing.T) {
			path := file(t, "keys", data)
			_, err := ReadIssuer(path)
			if err == nil || !strings.Contains(err.Error(), path) {
				t.Errorf("ReadIssuer() = %v, want an error that names the file", err)
			}
			if !strings.Contains(name, "public") && !strings.Contains(name, "halves") {
				if _, err := parseVerifier(data); err == nil {
					t.Error("it can be used to verify")
				}
			}
			if err != nil && (strings.Contains(err.Error(), "Kanarienvogel") || strings.Contains(err.Error(), encode([]byte("Kanarienvogel")))) {
				t.Errorf("the error shows the key: %v", err)
			}
		})
	}
	for _, public := range []any{weak.Public(), p384.Public(), &rsa.PublicKey{N: rsaSigner.public().(*rsa.PublicKey).N, E: 2}, []byte("a secret"), nil} {
		if alg, err := algorithm(public); err == nil { // even if the library accepted it
			t.Errorf("algorithm(%T) = %s, want it refused", public, alg)
		}
	}
	if _, err := ReadIssuer(filepath.Join(t.TempDir(), "nothing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a file: %v, want ErrNotExist", err)
	}
}

// TestLowOrderKeysAreForgeable shows why those keys are refused: anyone can sign for them,
// and the standard library accepts it.
func TestLowOrderKeysAreForgeable(t *testing.T) {
	identity := make([]byte, 64) // R is the neutral element, S is 0
	identity[0] = 1
	for _, point := range lowOrderPoints {
		for _, sign := range []byte{0, 0x80} {
			key := ed25519.PublicKey(must(hexBytes(point)))
			key[31] |= sign
			forged := false
			for n := 0; n < 200 && !forged; n++ {
				forged = ed25519.Verify(key, fmt.Append(nil, n), identity)
			}
			if !lowOrder(key) {
				t.Errorf("lowOrder(%x) = false (forged: %t)", []byte(key), forged)
			}
			t.Logf("%x forged: %t", []byte(key), forged)
		}
	}
	if lowOrder(edSigner.public().(ed25519.PublicKey)) {
		t.Error("a good key is refused")
	}
}

func jsonOf(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func file(t testing.TB, name, data string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
