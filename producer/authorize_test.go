package producer_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/auth"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/producer"
)

// A forger has the service's key, and makes tokens of any shape with it.
type forger struct {
	issuer *auth.Issuer
	key    ed25519.PrivateKey
	kid    string
}

func newForger(t *testing.T) forger {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	f := forger{key: key}
	if f.issuer, err = auth.ReadIssuer(path); err != nil {
		t.Fatal(err)
	}
	var set struct{ Keys []struct{ Kid string } }
	if err := json.Unmarshal(f.issuer.JWKS(), &set); err != nil {
		t.Fatal(err)
	}
	f.kid = set.Keys[0].Kid
	return f
}

// token signs with more in the header, and with claims beside or instead of the valid ones,
// as raw JSON; "" removes one.
func (f forger) token(header string, claims ...string) string {
	c := map[string]string{
		"iss": `"pgjet-users"`, "aud": `"pgjet"`, "sub": `"` + uuid.Nil.String() + `"`, "roles": `["admin"]`,
		"iat": fmt.Sprint(time.Now().Unix()), "exp": fmt.Sprint(time.Now().Add(time.Minute).Unix()),
	}
	for i := 0; i < len(claims); i += 2 {
		c[claims[i]] = claims[i+1]
	}
	members := make([]string, 0, len(c))
	for name, value := range c {
		if value != "" {
			members = append(members, fmt.Sprintf("%q:%s", name, value))
		}
	}
	encode := base64.RawURLEncoding.EncodeToString
	text := encode([]byte(header)) + "." + encode([]byte("{"+strings.Join(members, ",")+"}"))
	return text + "." + encode(ed25519.Sign(f.key, []byte(text)))
}

func (f forger) header(more string) string {
	return fmt.Sprintf(`{"alg":"EdDSA","kid":%q,"typ":"at+jwt"%s}`, f.kid, more)
}

// A lines is a log that may be written to and read at once.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestTokens sends tokens to the real server. The log has the reason of a refusal, and not
// the token.
func TestTokens(t *testing.T) {
	f, log := newForger(t), new(lines)
	db := testenv.Postgres(t)
	addNil(t, db)
	api := producer.New(db, f.issuer, slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	srv := httptest.NewServer(api)
	defer srv.Close()
	at := func(d time.Duration) string { return fmt.Sprint(time.Now().Add(d).Unix()) }
	good := f.token(f.header(""))
	parts := strings.Split(good, ".")
	path := "/users/" + uuid.Nil.String()
	for _, row := range []struct {
		name   string
		token  string
		reason string // empty: the token is accepted
	}{
		{"good", good, ""},
		{"expired, within leeway", f.token(f.header(""), "exp", at(-5*time.Second)), ""},
		{"expired", f.token(f.header(""), "exp", at(-31*time.Second)), "expired"},
		{"no exp", f.token(f.header(""), "exp", ""), "no exp"},
		{"exp as text", f.token(f.header(""), "exp", `"1"`), "wrong types"},
		{"exp in 10 years", f.token(f.header(""), "exp", at(10*365*24*time.Hour)), "expires too late"},
		{"nbf ahead", f.token(f.header(""), "nbf", at(time.Minute)), "not valid yet"},
		{"iat ahead", f.token(f.header(""), "iat", at(time.Minute)), "issued in the future"},
		{"other iss", f.token(f.header(""), "iss", `"other"`), "another issuer"},
		{"other aud", f.token(f.header(""), "aud", `["other"]`), "another audience"},
		{"no sub", f.token(f.header(""), "sub", ""), "no subject"},
		{"sub twice", f.token(f.header(""), "sub", `"a","sub":"b"`), "claims"},
		{"roles as text", f.token(f.header(""), "roles", `"admin"`), "roles"},
		{"alg none", f.token(strings.Replace(f.header(""), "EdDSA", "none", 1)), "another algorithm"},
		{"alg HS256", f.token(strings.Replace(f.header(""), "EdDSA", "HS256", 1)), "another algorithm"},
		{"unknown kid", f.token(`{"alg":"EdDSA","kid":"../../etc/passwd","typ":"at+jwt"}`), "unknown key"},
		{"no kid", f.token(`{"alg":"EdDSA","typ":"at+jwt"}`), "no key named"},
		{"jku", f.token(f.header(`,"jku":"` + srv.URL + `"`)), "header"},
		{"crit", f.token(f.header(`,"crit":["x"]`)), "header"},
		{"refresh token", f.token(`{"alg":"EdDSA","kid":"a","typ":"rt+jwt"}`), "not an access token"},
		{"no signature", parts[0] + "." + parts[1] + ".", "wrong signature"},
		{"padding", good + "==", "base64"},
		{"dots", strings.Repeat(".", 8000), "three parts"},
		{"over 8 KiB", strings.Repeat("a", 9000), "too long"},
		{"half a megabyte", strings.Repeat(".", 500_000), "too long"},
		{"two spaces", " " + good, "base64"},
		{"nothing", "", "three parts"},
	} {
		t.Run(row.name, func(t *testing.T) {
			seen := len(log.String())
			req := request(t, "GET", srv.URL+path, nil)
			req.Header.Set("Authorization", "Bearer "+row.token)
			a := do(t, req)
			if row.reason == "" {
				if a.StatusCode != 200 {
					t.Errorf("status = %d, want 200: %s", a.StatusCode, a.body)
				}
				return
			}
			wantProblem(t, a, 401, "token_invalid")
			if got := a.Header.Get("WWW-Authenticate"); got != `Bearer error="invalid_token"` {
				t.Errorf("WWW-Authenticate = %q", got)
			}
			said := log.String()[seen:]
			if strings.Contains(string(a.body), row.reason) || !strings.Contains(said, row.reason) || !strings.Contains(said, `"level":"DEBUG"`) {
				t.Errorf("the reason %q is in the answer %s, or not in the log %s", row.reason, a.body, said)
			}
			for part := range strings.SplitSeq(row.token, ".") {
				if len(part) > 8 && strings.Contains(said, part) {
					t.Errorf("the log holds a part of the token: %s", said)
				}
			}
		})
	}
}

// TestAuthorizationHeader sends a valid token in right and wrong places.
func TestAuthorizationHeader(t *testing.T) {
	db := testenv.Postgres(t)
	addNil(t, db)
	srv := serve(t, db)
	good := token(t, uuid.Nil.String())
	for _, row := range []struct {
		name      string
		given     []string
		query     string
		status    int
		code      string
		challenge string
	}{
		{"lower case", []string{"bearer " + good}, "", 200, "", ""},
		{"upper case", []string{"BEARER " + good}, "", 200, "", ""},
		{"none", nil, "", 401, "token_invalid", "Bearer"},
		{"empty", []string{""}, "", 401, "token_invalid", "Bearer"},
		{"another scheme", []string{"Basic " + good}, "", 401, "token_invalid", "Bearer"},
		{"no scheme", []string{good}, "", 401, "token_invalid", "Bearer"},
		{"scheme alone", []string{"Bearer"}, "", 401, "token_invalid", `Bearer error="invalid_token"`},
		{"twice the same", []string{"Bearer " + good, "Bearer " + good}, "", 400, "authorization_repeated", ""},
		{"twice, one bad", []string{"Bearer " + good, "Basic x"}, "", 400, "authorization_repeated", ""},
		{"two in one", []string{"Bearer " + good + ", Bearer " + good}, "", 401, "token_invalid", `Bearer error="invalid_token"`},
		{"in the URL", nil, "?access_token=" + good, 401, "token_invalid", "Bearer"},
		{"in the URL, beside a good one", []string{"Bearer " + good}, "?access_token=x", 200, "", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			req := request(t, "GET", srv.URL+"/users/"+uuid.Nil.String()+row.query, nil)
			req.Header["Authorization"] = row.given
			a := do(t, req)
			if row.code != "" {
				wantProblem(t, a, row.status, row.code)
			} else if a.StatusCode != row.status {
				t.Errorf("status = %d, want %d: %s", a.StatusCode, row.status, a.body)
			}
			if got := a.Header.Get("WWW-Authenticate"); got != row.challenge {
				t.Errorf("WWW-Authenticate = %q, want %q", got, row.challenge)
			}
		})
	}
}

// addNil adds a user whose id is [uuid.Nil].
func addNil(t *testing.T, db *pgxpool.Pool) {
	t.Helper()
	run(t, db, `insert into users.users (id, email, name, password) values ($1, 'nil@example.com', 'Nil', '')`, uuid.Nil)
}

// TestOnlyOneself: a user sees themself, an admin everyone.
func TestOnlyOneself(t *testing.T) {
	_, srv, ann := serveAnn(t)
	for _, row := range []struct {
		name   string
		token  string
		status int
	}{
		{"ann", token(t, ann.ID.String()), 200},
		{"somebody else", token(t, uuid.NewString()), 404},
		{"another role", token(t, uuid.NewString(), "admins", "Admin"), 404},
		{"an admin", admin(t, srv), 200},
		{"an admin who never was", token(t, uuid.NewString(), auth.Admin), 401},
		{"in capitals", token(t, strings.ToUpper(ann.ID.String())), 404},
	} {
		t.Run(row.name, func(t *testing.T) {
			req := request(t, "GET", srv.URL+"/users/"+ann.ID.String(), nil)
			req.Header.Set("Authorization", "Bearer "+row.token)
			a := do(t, req)
			if a.StatusCode != row.status {
				t.Errorf("status = %d, want %d: %s", a.StatusCode, row.status, a.body)
			}
			if row.status == 404 {
				wantProblem(t, a, 404, "user_not_found")
			}
		})
	}
}

// TestKeysUnavailable has keys that cannot be fetched: their tokens can be neither accepted
// nor refused. Tokens of the service's own keys are accepted.
func TestKeysUnavailable(t *testing.T) {
	away := httptest.NewServer(http.NotFoundHandler())
	away.Close()
	remote, err := auth.NewRemote(away.URL, testenv.Logger(t))
	if err != nil {
		t.Fatal(err)
	}
	db := testenv.Postgres(t)
	addNil(t, db)
	api := producer.New(db, issuer, testenv.Logger(t))
	api.Verifier = issuer.Verifier().With(remote)
	srv := httptest.NewServer(api)
	defer srv.Close()
	show := func(i *auth.Issuer) answer {
		s, _, err := i.Issue(auth.Identity{Subject: uuid.Nil.String()}, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		req := request(t, "GET", srv.URL+"/users/"+uuid.Nil.String(), nil)
		req.Header.Set("Authorization", "Bearer "+s)
		return do(t, req)
	}
	other, err := auth.Generate()
	if err != nil {
		t.Fatal(err)
	}
	a := show(other)
	wantProblem(t, a, 503, "keys_unavailable")
	if a.Header.Get("Retry-After") != "1" || a.Header.Get("WWW-Authenticate") != "" {
		t.Errorf("header = %v, want Retry-After and no WWW-Authenticate", a.Header)
	}
	if a := show(issuer); a.StatusCode != 200 {
		t.Errorf("with a key of its own: %d %s, want 200", a.StatusCode, a.body)
	}
}
