package auth

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

func hexBytes(s string) ([]byte, error) { return hex.DecodeString(s) }

// pemOf returns a key as PEM, PKCS #8 or PKIX.
func pemOf(t testing.TB, key any) string {
	t.Helper()
	block := &pem.Block{Type: "PRIVATE KEY"}
	var err error
	if block.Bytes, err = x509.MarshalPKCS8PrivateKey(key); err != nil {
		block.Type = "PUBLIC KEY"
		if block.Bytes, err = x509.MarshalPKIXPublicKey(key); err != nil {
			t.Fatal(err)
		}
	}
	return string(pem.EncodeToMemory(block))
}

// claim returns a token that is valid except for its claims.
func claim(replace ...string) string { return edSigner.sign(edSigner.header(), with(replace...)) }

// head returns a token that is valid except for its header.
func head(header string) string { return edSigner.sign(header, with()) }

// edHead returns the header of edSigner with something more in it.
func edHead(more string) string {
	return strings.TrimSuffix(edSigner.header(), "}") + "," + more + "}"
}

func TestGoodTokens(t *testing.T) {
	v := testVerifier(t)
	for name, token := range map[string]string{
		"EdDSA":                     claim(),
		"ES256":                     ecSigner.sign(ecSigner.header(), with()),
		"RS256":                     rsaSigner.sign(rsaSigner.header(), with()),
		"typ as a media type":       head(`{"alg":"EdDSA","kid":"ed","typ":"application/AT+JWT"}`),
		"aud among others":          claim("aud", `["other","pgjet"]`),
		"no roles":                  claim("roles", ""),
		"empty roles":               claim("roles", "[]"),
		"unknown claims":            claim("name", `"Ann"`, "Sub", `"bob"`),
		"sub of 255 bytes":          claim("sub", `"`+strings.Repeat("a", 255)+`"`),
		"expired, within leeway":    claim("exp", at(-time.Second)),
		"expired, last moment":      claim("exp", at(-29*time.Second)),
		"expires in 24 hours":       claim("exp", at(24*time.Hour)),
		"iat ahead, within leeway":  claim("iat", at(30*time.Second)),
		"nbf ahead, within leeway":  claim("nbf", at(30*time.Second)),
		"nbf in the past":           claim("nbf", at(-time.Hour)),
		"white space in the claims": edSigner.sign(edSigner.header(), " "+with()+"\n"),
	} {
		t.Run(name, func(t *testing.T) {
			who, err := v.Verify(t.Context(), token)
			if err != nil || who.Subject != "ann" && len(who.Subject) != 255 {
				t.Errorf("Verify() = %+v, %v, want ann", who, err)
			}
		})
	}
}

func badTokens(t testing.TB) map[string]string {
	good := claim()
	parts := strings.Split(good, ".")
	rsaPEM := []byte(pemOf(t, rsaSigner.public()))
	rows := map[string]string{
		"empty":     "",
		"one part":  parts[0],
		"two parts": parts[0] + "." + parts[1],
		"four":      good + ".",
		"a bare \"": `"`,
		"nul":       good + "\x00",
		"JSON":      `{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`,

		"no signature":       parts[0] + "." + parts[1] + ".",
		"other claims":       parts[0] + "." + encode([]byte(with("sub", `"bob"`))) + "." + parts[2],
		"other key":          signer{"ed", "EdDSA", ed25519.NewKeyFromSeed(make([]byte, 32))}.sign(edSigner.header(), with()),
		"ES256 (0,0)":        encode([]byte(ecSigner.header())) + "." + encode([]byte(with())) + "." + encode(make([]byte, 64)),
		"ES256 as DER":       encode([]byte(ecSigner.header())) + "." + encode([]byte(with())) + "." + encode([]byte("0\x06\x02\x01\x01\x02\x01\x01")),
		"Ed25519 of zeros":   parts[0] + "." + parts[1] + "." + encode(make([]byte, 64)),
		"RS256 of EdDSA key": edSigner.sign(`{"alg":"RS256","kid":"ed","typ":"at+jwt"}`, with()),
		"EdDSA of RSA key":   rsaSigner.sign(`{"alg":"EdDSA","kid":"rsa","typ":"at+jwt"}`, with()),
		"PS256 of RSA key":   rsaSigner.sign(`{"alg":"PS256","kid":"rsa","typ":"at+jwt"}`, with()),
		"HS256, RSA as key":  signer{"rsa", "HS256", rsaPEM}.sign(`{"alg":"HS256","kid":"rsa","typ":"at+jwt"}`, with()),
		"HS256, Ed as key":   signer{"ed", "HS256", []byte(edSigner.public().(ed25519.PublicKey))}.sign(`{"alg":"HS256","kid":"ed","typ":"at+jwt"}`, with()),

		"no kid":            head(`{"alg":"EdDSA","typ":"at+jwt"}`),
		"empty kid":         head(`{"alg":"EdDSA","kid":"","typ":"at+jwt"}`),
		"kid is a number":   head(`{"alg":"EdDSA","kid":1,"typ":"at+jwt"}`),
		"unknown kid":       head(`{"alg":"EdDSA","kid":"nobody","typ":"at+jwt"}`),
		"kid is a path":     head(`{"alg":"EdDSA","kid":"../../dev/null","typ":"at+jwt"}`),
		"kid is SQL":        head(`{"alg":"EdDSA","kid":"' or 1=1 --","typ":"at+jwt"}`),
		"kid of 10 kB":      head(`{"alg":"EdDSA","kid":"` + strings.Repeat("a", 10_000) + `","typ":"at+jwt"}`),
		"kid in other case": head(`{"alg":"EdDSA","KID":"ed","typ":"at+jwt"}`),

		"jku":             head(edHead(`"jku":"http://127.0.0.1:1/"`)),
		"x5u":             head(edHead(`"x5u":"http://127.0.0.1:1/"`)),
		"x5c":             head(edHead(`"x5c":["AA"]`)),
		"jwk":             head(edHead(`"jwk":{"kty":"OKP"}`)),
		"crit":            head(edHead(`"crit":["exp"]`)),
		"empty crit":      head(edHead(`"crit":[]`)),
		"b64":             head(edHead(`"b64":false`)),
		"zip":             head(edHead(`"zip":"DEF"`)),
		"alg twice":       head(edHead(`"alg":"EdDSA"`)),
		"no typ":          head(`{"alg":"EdDSA","kid":"ed"}`),
		"typ JWT":         head(`{"alg":"EdDSA","kid":"ed","typ":"JWT"}`),
		"refresh token":   head(`{"alg":"EdDSA","kid":"ed","typ":"rt+jwt"}`),
		"header an array": head(`["alg"]`),
		"header null":     head(`null`),
		"header nothing":  head(``),
		"header UTF-8":    head("{\"alg\":\"EdDSA\",\"kid\":\"ed\",\"typ\":\"at+jwt\xff\"}"),

		"expired 30 s ago":    claim("exp", at(-30*time.Second)),
		"expired 31 s ago":    claim("exp", at(-31*time.Second)),
		"no exp":              claim("exp", ""),
		"exp null":            claim("exp", "null"),
		"exp as text":         claim("exp", `"`+at(time.Minute)+`"`),
		"exp 1e99":            claim("exp", "1e99"),
		"exp with exponent":   claim("exp", "1.8e9"),
		"exp a float":         claim("exp", at(time.Minute)+".5"),
		"exp -1":              claim("exp", "-1"),
		"exp NaN":             claim("exp", "NaN"),
		"exp beyond int64":    claim("exp", "9223372036854775808"),
		"exp last int64":      claim("exp", "9223372036854775807"),
		"exp in 24 h and 1 s": claim("exp", at(24*time.Hour+time.Second)),
		"exp in 10 years":     claim("exp", at(10*365*24*time.Hour)),
		"exp an array":        claim("exp", "["+at(time.Minute)+"]"),
		"no iat":              claim("iat", ""),
		"iat null":            claim("iat", "null"),
		"iat 31 s ahead":      claim("iat", at(31*time.Second)),
		"iat -1":              claim("iat", "-1"),
		"iat as text":         claim("iat", `"1"`),
		"iat last int64":      claim("iat", "9223372036854775807"),
		"nbf 31 s ahead":      claim("nbf", at(31*time.Second)),
		"nbf as text":         claim("nbf", `"1"`),

		"no iss":            claim("iss", ""),
		"other iss":         claim("iss", `"pgjet"`),
		"iss with a slash":  claim("iss", `"pgjet-users/"`),
		"iss an array":      claim("iss", `["pgjet-users"]`),
		"no aud":            claim("aud", ""),
		"other aud":         claim("aud", `"other"`),
		"empty aud":         claim("aud", `[]`),
		"aud null":          claim("aud", `null`),
		"aud with a number": claim("aud", `["pgjet",1]`),
		"aud an object":     claim("aud", `{"pgjet":true}`),
		"no sub":            claim("sub", ""),
		"empty sub":         claim("sub", `""`),
		"sub null":          claim("sub", `null`),
		"sub a number":      claim("sub", `1`),
		"sub of 256 bytes":  claim("sub", `"`+strings.Repeat("a", 256)+`"`),
		"roles as text":     claim("roles", `"admin"`),
		"roles null":        claim("roles", `null`),
		"roles with null":   claim("roles", `["admin",null]`),
		"roles nested":      claim("roles", `[["admin"]]`),
		"roles an object":   claim("roles", `{"admin":true}`),

		"claims an array":     edSigner.sign(edSigner.header(), "["+with()+"]"),
		"claims null":         edSigner.sign(edSigner.header(), "null"),
		"claims a text":       edSigner.sign(edSigner.header(), `"sub"`),
		"claims nothing":      edSigner.sign(edSigner.header(), ""),
		"claims cut short":    edSigner.sign(edSigner.header(), with()[1:]),
		"claims go on":        edSigner.sign(edSigner.header(), with()+"{}"),
		"sub twice":           edSigner.sign(edSigner.header(), strings.TrimSuffix(with(), "}")+`,"sub":"bob"}`),
		"sub twice, escaped":  edSigner.sign(edSigner.header(), strings.TrimSuffix(with(), "}")+`,"su\u0062":"bob"}`),
		"unknown claim twice": edSigner.sign(edSigner.header(), strings.TrimSuffix(with(), "}")+`,"a":1,"a":1}`),
		"claims not UTF-8":    claim("name", "\"\xff\""),

		"padding":             parts[0] + "." + parts[1] + "." + parts[2] + "==",
		"standard alphabet":   parts[0] + "." + parts[1] + "." + strings.Repeat("+/", 43),
		"not base64":          parts[0] + ".!" + parts[1] + "." + parts[2],
		"line break":          parts[0] + "." + parts[1] + "." + parts[2] + "\n",
		"line break inside":   parts[0] + "." + parts[1][:4] + "\r\n" + parts[1][4:] + "." + parts[2],
		"bits to spare":       spareBits(good),
		"space around":        " " + good,
		"million dots":        strings.Repeat(".", 1_000_000),
		"8 KiB of dots":       strings.Repeat(".", 8<<10),
		"megabyte":            strings.Repeat("a", 1<<20),
		"good but over 8 KiB": claim("name", `"`+strings.Repeat("a", 8<<10)+`"`),
		"deep":                claim("name", strings.Repeat("[", 2500)+strings.Repeat("]", 2500)) + "x",
	}
	for _, alg := range []string{"none", "None", "nOnE", ""} {
		h := fmt.Sprintf(`{"alg":%q,"kid":"ed","typ":"at+jwt"}`, alg)
		rows["alg "+alg+", no signature"] = encode([]byte(h)) + "." + encode([]byte(with())) + "."
		rows["alg "+alg+", signed"] = head(h)
	}
	return rows
}

// spareBits sets the unused bits at the end of the signature.
func spareBits(token string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, token[len(token)-1])
	return token[:len(token)-1] + string(alphabet[last|1])
}

func TestBadTokens(t *testing.T) {
	v := testVerifier(t)
	for name, token := range badTokens(t) {
		t.Run(name, func(t *testing.T) {
			who, err := v.Verify(t.Context(), token)
			if !errors.Is(err, ErrInvalid) || errors.Is(err, ErrUnavailable) || who.Subject != "" || who.Roles != nil {
				t.Fatalf("Verify() = %+v, %v, want nobody and ErrInvalid", who, err)
			}
			for part := range strings.SplitSeq(token, ".") {
				if len(part) > 4 && strings.Contains(err.Error(), part) {
					t.Errorf("the error repeats the token: %v", err)
				}
				if raw, _ := base64.RawURLEncoding.DecodeString(part); len(raw) > 4 && strings.Contains(err.Error(), string(raw)) {
					t.Errorf("the error repeats the token: %v", err)
				}
			}
		})
	}
}

// TestExpiryToTheNanosecond verifies at the last moment, and right after it.
func TestExpiryToTheNanosecond(t *testing.T) {
	v := testVerifier(t)
	token := claim("exp", at(0))
	v.now = func() time.Time { return now.Add(leeway - 1) }
	if _, err := v.Verify(t.Context(), token); err != nil {
		t.Errorf("a nanosecond before exp and leeway: %v, want it accepted", err)
	}
	v.now = func() time.Time { return now.Add(leeway) }
	if _, err := v.Verify(t.Context(), token); !errors.Is(err, ErrInvalid) {
		t.Errorf("at exp and leeway: %v, want ErrInvalid", err)
	}
}

// TestLongTokensCostNothing has a megabyte refused, many times.
func TestLongTokensCostNothing(t *testing.T) {
	v, dots := testVerifier(t), strings.Repeat(".", 1_000_000)
	if n := testing.AllocsPerRun(100, func() { _, _ = v.Verify(t.Context(), dots) }); n > 10 {
		t.Errorf("%v allocations for a token of a million dots", n)
	}
	begun := time.Now()
	for range 1000 {
		_, _ = v.Verify(t.Context(), dots)
	}
	if d := time.Since(begun) / 1000; d > time.Millisecond {
		t.Errorf("a token of a million dots takes %s, want less than 1 ms", d)
	}
}

// FuzzVerify: whatever is sent, only a token that a key's owner signed is accepted.
func FuzzVerify(f *testing.F) {
	v := testVerifier(f)
	good := []string{claim(), ecSigner.sign(ecSigner.header(), with()), rsaSigner.sign(rsaSigner.header(), with())}
	for _, token := range badTokens(f) {
		if len(token) <= maxToken {
			f.Add(token)
		}
	}
	for _, token := range good {
		f.Add(token)
	}
	f.Fuzz(func(t *testing.T, token string) {
		who, err := v.Verify(t.Context(), token)
		switch {
		case err == nil && who.Subject == "":
			t.Errorf("Verify(%q) accepts a token for nobody", token)
		case err == nil && !signedByUs(token, good):
			t.Errorf("Verify(%q) accepts a token that nobody signed", token)
		case err != nil && !errors.Is(err, ErrInvalid):
			t.Errorf("Verify(%q) = %v, want ErrInvalid", token, err)
		}
	})
}

// signedByUs reports whether token has exactly the bytes of one that was made here. (RSA
// and Ed25519 signatures are unique; an ECDSA one has a twin, with the other S.)
func signedByUs(token string, good []string) bool {
	for _, g := range good {
		i := strings.LastIndexByte(g, '.')
		if token == g || strings.Contains(g, encode([]byte(ecSigner.header()))) && strings.HasPrefix(token, g[:i+1]) {
			return true
		}
	}
	return false
}
