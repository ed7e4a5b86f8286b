package producer_test

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alexedwards/argon2id"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/auth"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/producer"
)

// logIn returns the body of a log-in.
func logIn(email, password string) string {
	b, _ := json.Marshal(map[string]string{"email": email, "password": password})
	return string(b)
}

func postSession(t *testing.T, srv *httptest.Server, body string) answer {
	t.Helper()
	return do(t, request(t, "POST", srv.URL+"/sessions", strings.NewReader(body)))
}

// session returns the answer's body as a session.
func (a answer) session(t *testing.T) producer.Session {
	t.Helper()
	var s producer.Session
	if err := json.Unmarshal(a.body, &s); a.StatusCode != 201 || err != nil {
		t.Fatalf("answer = %d %s, want 201 and a session", a.StatusCode, a.body)
	}
	return s
}

// serveAnn starts the user service with one user, and returns that user, too.
func serveAnn(t *testing.T) (*pgxpool.Pool, *httptest.Server, producer.User) {
	t.Helper()
	db := testenv.Postgres(t)
	srv := serve(t, db)
	return db, srv, post(t, srv, signUp("Ann@example.com", "Ann", password)).user(t)
}

func run(t *testing.T, db *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := db.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

func TestLogIn(t *testing.T) {
	db, srv, ann := serveAnn(t)
	run(t, db, `update users.users set roles = '{admin,other}'`)
	a := postSession(t, srv, logIn("aNN@EXAMPLE.com", password))
	s := a.session(t)
	if got := a.Header.Get("Cache-Control"); got != "no-store" {
		t.Errorf("Cache-Control = %q, want no-store", got)
	}
	if left := time.Until(s.ExpiresAt); s.TokenType != "Bearer" || left < 13*time.Minute || left > 15*time.Minute {
		t.Errorf("token_type = %q, expires in %s, want Bearer and 15m", s.TokenType, left)
	}
	who, err := issuer.Verifier().Verify(t.Context(), s.Token)
	if err != nil || who.Subject != ann.ID.String() || !slices.Equal(who.Roles, []string{"admin", "other"}) {
		t.Errorf("the token speaks for %+v (%v), want ann as admin and other", who, err)
	}
	if strings.Contains(string(a.body), "@") {
		t.Errorf("the answer shows the address: %s", a.body)
	}
	if n := count(t, db, "pgjet.outbox"); n != 1 {
		t.Errorf("the outbox has %d events, want that of the sign-up alone", n)
	}

	req := request(t, "GET", srv.URL+"/users/"+ann.ID.String(), nil)
	req.Header.Set("Authorization", "Bearer "+s.Token)
	if got := do(t, req); got.StatusCode != 200 {
		t.Errorf("GET with the token = %d %s, want 200", got.StatusCode, got.body)
	}
}

func TestTokenLifetimeIsTuned(t *testing.T) {
	db := testenv.Postgres(t)
	api := producer.New(db, issuer, testenv.Logger(t))
	tuning := producer.DefaultTuning()
	tuning.TokenLifetime = time.Minute
	api.Tune(tuning)
	srv := httptest.NewServer(api)
	defer srv.Close()
	post(t, srv, signUp("ann@example.com", "Ann", password))
	s := postSession(t, srv, logIn("ann@example.com", password)).session(t)
	if left := time.Until(s.ExpiresAt); left > time.Minute {
		t.Errorf("the token expires in %s, want at most 1m", left)
	}
}

// TestRefusedLogIns: without the password, every log-in gets the same answer.
func TestRefusedLogIns(t *testing.T) {
	db, srv, _ := serveAnn(t)
	var unknown []byte
	for _, row := range []struct{ name, email, password string }{
		{"unknown address", "bob@example.com", password},
		{"wrong password", "ann@example.com", password + "!"},
		{"short password", "ann@example.com", "x"},
		{"password with a control character", "ann@example.com", "x\u0001"},
		{"password in other case", "ann@example.com", strings.ToUpper(password)},
		{"space after the password", "ann@example.com", password + " "},
		{"wildcard", "%@example.com", password},
	} {
		t.Run(row.name, func(t *testing.T) {
			a := postSession(t, srv, logIn(row.email, row.password))
			wantProblem(t, a, 401, "credentials_invalid")
			if got := a.Header.Get("WWW-Authenticate"); got != "Bearer" {
				t.Errorf("WWW-Authenticate = %q, want Bearer", got)
			}
			if unknown == nil {
				unknown = a.body
			}
			if !bytes.Equal(a.body, unknown) {
				t.Errorf("the answer %s differs from that for an unknown address, %s", a.body, unknown)
			}
		})
	}
	run(t, db, `update users.users set state = 'rejected', reason = 'billing_declined'`)
	wantProblem(t, postSession(t, srv, logIn("ann@example.com", password+"!")), 401, "credentials_invalid")
	wantProblem(t, postSession(t, srv, logIn("ann@example.com", password)), 403, "account_rejected")

	// A rejected user may sign up again, and is another user then.
	again := "another " + password
	if a := post(t, srv, signUp("Ann@example.com", "Ann", again)); a.StatusCode != 201 {
		t.Fatalf("sign up again: %d %s", a.StatusCode, a.body)
	}
	wantProblem(t, post(t, srv, signUp("ann@example.com", "Ann", again)), 409, "email_taken")
	if a := postSession(t, srv, logIn("ann@example.com", again)); a.StatusCode != 201 {
		t.Errorf("log in with the new password: %d %s", a.StatusCode, a.body)
	}
	wantProblem(t, postSession(t, srv, logIn("ann@example.com", password)), 401, "credentials_invalid")
	if _, changed, err := producer.Grant(t.Context(), db, "ANN@example.com", auth.Admin, "operator", "on call"); err != nil || !changed {
		t.Errorf("Grant = %v, %v, want a change", changed, err)
	}
	if n, m := count(t, db, "users.users where state = 'rejected' and roles = '{}'"), count(t, db, "users.users where 'admin' = any (roles)"); n != 1 || m != 1 {
		t.Errorf("%d rejected users without a role and %d admins, want one each", n, m)
	}
	run(t, db, `delete from users.users`)
	wantProblem(t, postSession(t, srv, logIn("ann@example.com", password)), 401, "credentials_invalid")
}

func TestBadLogIns(t *testing.T) {
	_, srv, _ := serveAnn(t)
	for _, row := range []badInput{
		{name: "empty body", body: "", status: 400, code: "body_required"},
		{name: "array", body: "[]", status: 400, code: "json_object_required"},
		{name: "two objects", body: "{}{}", status: 400, code: "json_trailing_data"},
		{name: "nothing", body: "{}", status: 422, code: "invalid_fields", fields: "email password"},
		{name: "unknown field", body: `{"email":"ann@example.com","password":"x","name":"Ann"}`, status: 400, code: "unknown_field", fields: "name"},
		{name: "duplicate field", body: `{"email":"ann@example.com","password":"x","password":"y"}`, status: 400, code: "duplicate_field", fields: "password"},
		{name: "field in other case", body: `{"Email":"ann@example.com","password":"x"}`, status: 400, code: "unknown_field", fields: "Email"},
		{name: "password is a number", body: `{"email":"ann@example.com","password":1}`, status: 400, code: "wrong_type", fields: "password"},
		{name: "no address", body: logIn("ann", "x"), status: 422, code: "email_domain", fields: "email"},
		{name: "long address", body: logIn(strings.Repeat("a", 300)+"@example.com", "x"), status: 422, code: "email_too_long", fields: "email"},
		{name: "no password", body: logIn("ann@example.com", ""), status: 422, code: "password_required", fields: "password"},
		{name: "257 characters", body: logIn("ann@example.com", strings.Repeat("a", 257)), status: 422, code: "password_too_long", fields: "password"},
		{name: "over 1024 bytes", body: logIn("ann@example.com", strings.Repeat("ä", 600)), status: 422, code: "password_too_long", fields: "password"},
		{name: "long password, unknown address", body: logIn("bob@example.com", strings.Repeat("a", 257)), status: 422, code: "password_too_long", fields: "password"},
		{name: "1 MiB", body: logIn("ann@example.com", strings.Repeat("a", 1<<20)), status: 413, code: "body_too_large"},
	} {
		t.Run(row.name, func(t *testing.T) {
			a := postSession(t, srv, row.body)
			var fields []string
			if row.fields == "email" && a.StatusCode == 422 { // which rule an address breaks is tested with sign-ups
				row.code = a.problem(t).Code
			}
			for _, e := range wantProblem(t, a, row.status, row.code).Errors {
				fields = append(fields, e.Field)
			}
			if got := strings.Join(fields, " "); got != row.fields {
				t.Errorf("fields = %q, want %q", got, row.fields)
			}
		})
	}
}

// TestLogInComposesThePassword: é is the same on every keyboard.
func TestLogInComposesThePassword(t *testing.T) {
	srv := serve(t, testenv.Postgres(t))
	decomposed, composed := "cre\u0300me bru\u0302le\u0301e", "cr\u00e8me br\u00fbl\u00e9e"
	post(t, srv, signUp("ann@example.com", "Ann", composed))
	postSession(t, srv, logIn("ann@example.com", decomposed)).session(t)
}

// TestLogInHashesAnew renews a hash that was made with other parameters.
func TestLogInHashesAnew(t *testing.T) {
	db, srv, _ := serveAnn(t)
	old, err := argon2id.CreateHash(password, &argon2id.Params{Memory: 1024, Iterations: 1, Parallelism: 1, SaltLength: 16, KeyLength: 32})
	if err != nil {
		t.Fatal(err)
	}
	run(t, db, `update users.users set password = $1`, old)
	stored := func() (hash string, version int) {
		if err := db.QueryRow(t.Context(), `select password, version from users.users`).Scan(&hash, &version); err != nil {
			t.Fatal(err)
		}
		return hash, version
	}
	wantProblem(t, postSession(t, srv, logIn("ann@example.com", "wrong")), 401, "credentials_invalid")
	if hash, _ := stored(); hash != old {
		t.Error("a wrong password changed the hash")
	}
	postSession(t, srv, logIn("ann@example.com", password)).session(t)
	anew, version := stored()
	if !strings.HasPrefix(anew, "$argon2id$v=19$m=19456,t=2,p=1$") || version != 1 {
		t.Errorf("hash = %.40s…, version %d; want one with the parameters of today, version 1", anew, version)
	}
	postSession(t, srv, logIn("ann@example.com", password)).session(t)
	if again, _ := stored(); again != anew {
		t.Error("a hash of today was made anew")
	}
}

// TestLogInWithoutAUsableHash: an invalid hash is a wrong password, and costs the same.
func TestLogInWithoutAUsableHash(t *testing.T) {
	db := testenv.Postgres(t)
	tuning := producer.DefaultTuning()
	tuning.LogInFailures, tuning.NetworkFailures = 0, 0
	_, srv := serveTuned(t, db, tuning, testenv.Logger(t))
	post(t, srv, signUp("ann@example.com", "Ann", password))
	const rest = "$c2FsdHNhbHRzYWx0c2FsdA$aGFzaGhhc2hoYXNoaGFzaGhhc2hoYXNoaGFzaGhhc2g"
	for _, hash := range []string{
		"none",
		"$argon2id$v=19$m=4000000000,t=4000000,p=255" + rest,
		"$argon2id$v=19$m=4000000000,t=1,p=1" + rest,
		"$argon2id$v=19$m=64,t=4000000000,p=1" + rest,
		"$argon2id$v=19$m=155648,t=16,p=1" + rest,
		"$argon2id$v=19$m=19456,t=0,p=1" + rest,
		"$argon2id$v=19$m=19456,t=2,p=0" + rest,
		"$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHRzYWx0c2FsdA$", // matches every password
	} {
		run(t, db, `update users.users set password = $1`, hash)
		wantProblem(t, postSession(t, srv, logIn("ann@example.com", password)), 401, "credentials_invalid")
	}
}

// TestLogInTakesItsTime compares how long the answers take for an unknown address and
// for a wrong password, in turns.
func TestLogInTakesItsTime(t *testing.T) {
	_, srv, _ := serveAnn(t)
	var unknown, wrong []time.Duration
	ask := func(times *[]time.Duration, email string) {
		begun := time.Now()
		wantProblem(t, postSession(t, srv, logIn(email, "wrong horse battery")), 401, "credentials_invalid")
		*times = append(*times, time.Since(begun))
	}
	for range 21 {
		ask(&unknown, "bob@example.com")
		ask(&wrong, "ann@example.com")
	}
	u, w := median(unknown), median(wrong)
	t.Logf("unknown address %s, wrong password %s", u, w)
	if u < w/2 || u > w*2 {
		t.Errorf("the answer takes %s for an unknown address and %s for a wrong password, want about the same", u, w)
	}
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// TestLogInIsNotLogged looks for the address, the password and the token in the log.
func TestLogInIsNotLogged(t *testing.T) {
	db := testenv.Postgres(t)
	log := new(bytes.Buffer)
	srv := httptest.NewServer(producer.New(db, issuer, slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))))
	defer srv.Close()
	post(t, srv, signUp("ann@example.com", "Ann", password))
	s := postSession(t, srv, logIn("ann@example.com", password)).session(t)
	postSession(t, srv, logIn("ann@example.com", "wrong horse battery"))
	run(t, db, `alter table users.users rename to gone`)
	wantProblem(t, postSession(t, srv, logIn("ann@example.com", password)), 500, "internal")
	srv.Close()
	for _, secret := range []string{"ann@", "horse", s.Token} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("the log holds %q: %s", secret, log)
		}
	}
	if others := withoutSecurityEvents(log.String()); len(others) != 1 {
		t.Errorf("log = %s, want one line beside the security events, of the table that is gone", others)
	}
}

// withoutSecurityEvents returns the other lines of a log.
func withoutSecurityEvents(log string) []string {
	var others []string
	for line := range strings.Lines(log) {
		if !strings.Contains(line, `"msg":"security event"`) {
			others = append(others, line)
		}
	}
	return others
}

func TestJWKS(t *testing.T) {
	srv := serve(t, testenv.Postgres(t))
	a := do(t, request(t, "GET", srv.URL+"/.well-known/jwks.json", nil))
	var set struct{ Keys []map[string]any }
	if err := json.Unmarshal(a.body, &set); err != nil || a.StatusCode != 200 || len(set.Keys) != 1 {
		t.Fatalf("GET = %d %s (%v), want one key", a.StatusCode, a.body, err)
	}
	if k := set.Keys[0]; k["d"] != nil || k["kid"] == nil || k["alg"] != "EdDSA" || k["use"] != "sig" {
		t.Errorf("key = %v, want a public one with kid, alg and use", k)
	}
	for name, want := range map[string]string{"Content-Type": "application/jwk-set+json", "Cache-Control": "public, max-age=300", "X-Content-Type-Options": "nosniff"} {
		if got := a.Header.Get(name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
}
