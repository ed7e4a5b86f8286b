package producer_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/auth"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/producer"
)

// TestTokenAfterItsUserChanged uses valid tokens of admins who have lost the role, are
// gone, or have another password.
func TestTokenAfterItsUserChanged(t *testing.T) {
	db, srv, _ := serveAnn(t)
	bob := post(t, srv, signUp("bob@example.com", "Bob", password)).user(t).ID.String()
	for _, row := range []struct {
		name, change string
		status       int
		code         string
		ownStatus    int // of GET and PATCH of oneself
	}{
		{"revoked", `update users.users set roles = '{}' where id = $1`, 403, "forbidden", 200},
		{"rejected", `update users.users set state = 'rejected' where id = $1`, 403, "account_rejected", 403},
		{"deleted", `delete from users.users where id = $1`, 401, "token_invalid", 401},
		{"another password", `update users.users set token_generation = 1 where id = $1`, 401, "token_invalid", 401},
	} {
		t.Run(row.name, func(t *testing.T) {
			id := uuid.NewString()
			run(t, db, `insert into users.users (id, email, name, password, roles) values ($1, $2, 'Eve', '', '{admin}')`, id, id+"@example.com")
			eve := token(t, id, auth.Admin)
			for _, method := range []string{"GET", "PATCH"} {
				if a := call(t, srv, method, "/users/"+bob, map[string]string{"PATCH": `{"name":"Bob"}`}[method], eve); a.StatusCode != 200 {
					t.Fatalf("before: %s = %d %s", method, a.StatusCode, a.body)
				}
			}
			run(t, db, row.change, id)
			for _, r := range [][3]string{
				{"GET", "/users", ""},
				{"GET", "/users/" + bob, ""},
				{"GET", "/users/" + uuid.NewString(), ""},
				{"PATCH", "/users/" + bob, `{"name":"Robert"}`},
				{"DELETE", "/users/" + bob, ""},
				{"DELETE", "/users/" + uuid.NewString(), ""},
				{"DELETE", "/users/" + id, ""},
			} {
				a := call(t, srv, r[0], r[1], r[2], eve)
				wantProblem(t, a, row.status, row.code)
				if challenge := a.Header.Get("WWW-Authenticate"); (row.status == 401) != (challenge != "") {
					t.Errorf("%s %s: WWW-Authenticate = %q", r[0], r[1], challenge)
				}
			}
			for _, method := range []string{"GET", "PATCH"} {
				if a := call(t, srv, method, "/users/"+id, map[string]string{"PATCH": `{"name":"Eva"}`}[method], eve); a.StatusCode != row.ownStatus {
					t.Errorf("%s of oneself = %d %s, want %d", method, a.StatusCode, a.body, row.ownStatus)
				}
			}
		})
	}
	if u := get(t, srv, "/users/"+bob).user(t); u.Name != "Bob" {
		t.Errorf("Bob is called %q, want Bob", u.Name)
	}
}

// TestGrantedLater: the row alone makes no one an admin, the token must contain the role,
// too.
func TestGrantedLater(t *testing.T) {
	db, srv, ann := serveAnn(t)
	before := token(t, ann.ID.String())
	run(t, db, `update users.users set roles = '{admin}'`)
	wantProblem(t, call(t, srv, "GET", "/users", "", before), 403, "forbidden")
	if a := call(t, srv, "GET", "/users", "", token(t, ann.ID.String(), auth.Admin)); a.StatusCode != 200 {
		t.Errorf("with a token of the next log-in: %d %s, want 200", a.StatusCode, a.body)
	}
}

// TestRevokedDuringTheWait revokes a role while a deletion waits for the user's row.
func TestRevokedDuringTheWait(t *testing.T) {
	db, srv, ann := serveAnn(t)
	adm := admin(t, srv)
	tx, err := db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	if _, err := tx.Exec(t.Context(), `select from users.users where id = $1 for update`, ann.ID); err != nil {
		t.Fatal(err)
	}
	answers := make(chan answer)
	go func() { answers <- call(t, srv, "DELETE", "/users/"+ann.ID.String(), "", adm) }()
	testenv.Eventually(t, 10*time.Second, "the deletion waits", func() bool {
		n := 0
		_ = db.QueryRow(t.Context(), `select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()`).Scan(&n)
		return n == 1
	})
	if _, changed, err := producer.Revoke(t.Context(), db, adminID, auth.Admin, "operator", "left"); err != nil || !changed {
		t.Fatalf("Revoke = %t, %v", changed, err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantProblem(t, <-answers, 403, "forbidden")
	if n := count(t, db, "users.users"); n != 1 {
		t.Errorf("%d users are left, want 1", n)
	}
}

// operations returns what pgjet.operation holds.
func operations(t *testing.T, db *pgxpool.Pool) (all []string) {
	t.Helper()
	err := db.QueryRow(t.Context(), `
		select coalesce(array_agg(concat_ws(' ', kind, target, 'by', by) order by id), '{}') from pgjet.operation`).Scan(&all)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestOperationsOfAdmins: an admin's changes are recorded, users' changes of themselves are
// not.
func TestOperationsOfAdmins(t *testing.T) {
	db, srv, ann := serveAnn(t)
	id := ann.ID.String()
	call(t, srv, "PATCH", "/users/"+id, `{"name":"Anna"}`, token(t, id))
	call(t, srv, "PATCH", "/users/"+id, `{"name":"Annie"}`, admin(t, srv))
	call(t, srv, "PATCH", "/users/"+id, `{"name":"Annie"}`, admin(t, srv)) // changes nothing
	wantProblem(t, call(t, srv, "DELETE", "/users/"+id, "", admin(t, srv), "If-Match", `"9"`), 412, "changed_meanwhile")
	call(t, srv, "DELETE", "/users/"+id, "", admin(t, srv))
	want := []string{"user.rename " + id + " by user " + adminID, "user.delete " + id + " by user " + adminID}
	if diff := cmp.Diff(want, operations(t, db)); diff != "" {
		t.Errorf("operations (-want +got):\n%s", diff)
	}
	var trace, network string
	err := db.QueryRow(t.Context(), `select detail->>'trace_id', detail->>'network' from pgjet.operation limit 1`).Scan(&trace, &network)
	if err != nil || len(trace) != 32 || network != "127.0.0.0/24" {
		t.Errorf("detail = %q, %q (%v), want a trace and 127.0.0.0/24", trace, network, err)
	}
}

// behindProxy starts a service that believes X-Forwarded-For, and returns a function that
// logs in from an address.
func behindProxy(t *testing.T, tuning producer.Tuning, log *slog.Logger) (*httptest.Server, func(from, email, password string) answer) {
	t.Helper()
	db := testenv.Postgres(t)
	api := producer.New(db, issuer, log)
	t.Cleanup(api.Close)
	api.Proxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	api.Tune(tuning)
	srv := httptest.NewServer(api)
	t.Cleanup(srv.Close)
	databases.Store(srv.URL, db)
	return srv, func(from, email, password string) answer {
		t.Helper()
		req := request(t, "POST", srv.URL+"/sessions", strings.NewReader(logIn(email, password)))
		req.Header.Set("X-Forwarded-For", from)
		return do(t, req)
	}
}

// TestStrangersLockNobodyOut tries wrong passwords of a user from one network; the user
// logs in from another.
func TestStrangersLockNobodyOut(t *testing.T) {
	srv, from := behindProxy(t, producer.DefaultTuning(), testenv.Logger(t))
	post(t, srv, signUp("ann@example.com", "Ann", password))
	for range 5 {
		wantProblem(t, from("203.0.113.7", "ann@example.com", "a wrong password"), 401, "credentials_invalid")
	}
	for _, guess := range []string{"a wrong password", password} {
		wantRateLimited(t, from("203.0.113.7", "ANN@example.com", guess))
	}
	from("198.51.100.1", "ann@example.com", password).session(t)
	from("203.0.113.8", "ann@example.com", password).session(t)
	wantProblem(t, from("203.0.113.7", "bob@example.com", "a wrong password"), 401, "credentials_invalid") // another account

	// The same for an unknown address.
	for range 4 {
		wantProblem(t, from("203.0.113.7", "bob@example.com", "a wrong password"), 401, "credentials_invalid")
	}
	wantRateLimited(t, from("203.0.113.7", "bob@example.com", "a wrong password"))

	// Of IPv6, a /64 is one network.
	for i := range 5 {
		wantProblem(t, from(fmt.Sprintf("2001:db8:0:1::%x", i+1), "ann@example.com", "a wrong password"), 401, "credentials_invalid")
	}
	wantRateLimited(t, from("2001:db8:0:1:ffff::1", "ann@example.com", password))
	from("2001:db8:0:2::1", "ann@example.com", password).session(t)
}

// TestSuccessEndsTheCount: a user who mistypes now and then never has to wait.
func TestSuccessEndsTheCount(t *testing.T) {
	srv, from := behindProxy(t, producer.DefaultTuning(), testenv.Logger(t))
	post(t, srv, signUp("ann@example.com", "Ann", password))
	for range 3 {
		for range 4 {
			wantProblem(t, from("203.0.113.7", "ann@example.com", "a wrong password"), 401, "credentials_invalid")
		}
		from("203.0.113.7", "ann@example.com", password).session(t)
	}
}

// TestFailuresOfANetwork tries one password with many accounts. Log-ins that succeed do not count,
// sign-ups have a limit of their own.
func TestFailuresOfANetwork(t *testing.T) {
	tuning := producer.DefaultTuning()
	tuning.NetworkFailures, tuning.PerAddress = 3, 1
	srv, from := behindProxy(t, tuning, testenv.Logger(t))
	post(t, srv, signUp("ann@example.com", "Ann", password))
	wantRateLimited(t, post(t, srv, signUp("bob@example.com", "Bob", password)))
	for range 5 {
		from("203.0.113.7", "ann@example.com", password).session(t)
	}
	for i := range 3 {
		wantProblem(t, from("203.0.113.7", fmt.Sprintf("u%d@example.com", i), password), 401, "credentials_invalid")
	}
	wantRateLimited(t, from("203.0.113.7", "u9@example.com", password))
	wantRateLimited(t, from("203.0.113.7", "ann@example.com", password))
	from("203.0.113.9", "ann@example.com", password).session(t)
}

// changePassword changes a password from now to then.
func changePassword(t *testing.T, srv *httptest.Server, id, token, now, then string) answer {
	t.Helper()
	b, _ := json.Marshal(map[string]string{"current_password": now, "new_password": then})
	return call(t, srv, "PUT", "/users/"+id+"/password", string(b), token)
}

func TestChangePassword(t *testing.T) {
	db, srv, ann := serveAnn(t)
	id := ann.ID.String()
	session := postSession(t, srv, logIn("ann@example.com", password)).session(t)
	const next = "a wholly different sentence"
	wrong := wantProblem(t, changePassword(t, srv, id, session.Token, "not my password", next), 403, "password_wrong")
	if len(wrong.Errors) != 1 || wrong.Errors[0].Field != "current_password" {
		t.Errorf("errors = %+v, want one of current_password", wrong.Errors)
	}
	for _, row := range []struct{ now, then, code, field string }{
		{password, "short", "password_too_short", "new_password"},
		{password, "123456789012", "password_common", "new_password"},
		{password, "ann@example.com", "password_is_email", "new_password"},
		{password, password, "password_unchanged", "new_password"},
		{"na\u0308chster Satz von uns", "n\u00e4chster Satz von uns", "password_unchanged", "new_password"},
		{"", next, "password_required", "current_password"},
	} {
		p := wantProblem(t, changePassword(t, srv, id, session.Token, row.now, row.then), 422, row.code)
		if p.Errors[0].Field != row.field {
			t.Errorf("field = %q, want %q", p.Errors[0].Field, row.field)
		}
	}
	wantProblem(t, changePassword(t, srv, id, admin(t, srv), password, next), 403, "forbidden")
	wantProblem(t, changePassword(t, srv, id, token(t, uuid.NewString()), password, next), 404, "user_not_found")
	wantProblem(t, changePassword(t, srv, id, "", password, next), 401, "token_invalid")

	if a := changePassword(t, srv, id, session.Token, password, next); a.StatusCode != http.StatusNoContent || len(a.body) > 0 {
		t.Fatalf("PUT = %d %s, want 204", a.StatusCode, a.body)
	}
	wantProblem(t, call(t, srv, "GET", "/users/"+id, "", session.Token), 401, "token_invalid")
	wantProblem(t, changePassword(t, srv, id, session.Token, next, password), 401, "token_invalid")
	wantProblem(t, postSession(t, srv, logIn("ann@example.com", password)), 401, "credentials_invalid")
	again := postSession(t, srv, logIn("ann@example.com", next)).session(t)
	if a := call(t, srv, "GET", "/users/"+id, "", again.Token); a.StatusCode != 200 || a.Header.Get("ETag") != `"1"` {
		t.Errorf("with a new token: %d, ETag %s, want 200 and 1", a.StatusCode, a.Header.Get("ETag"))
	}
	if n := count(t, db, "pgjet.outbox"); n != 1 {
		t.Errorf("the outbox has %d events, want that of the sign-up alone", n)
	}
	run(t, db, `update users.users set state = 'rejected' where id = $1`, id)
	wantProblem(t, changePassword(t, srv, id, again.Token, next, password), 403, "account_rejected")
}

// TestGuessesOfTheCurrentPassword: a token does not make guessing easier.
func TestGuessesOfTheCurrentPassword(t *testing.T) {
	srv, from := behindProxy(t, producer.DefaultTuning(), testenv.Logger(t))
	id := post(t, srv, signUp("ann@example.com", "Ann", password)).user(t).ID.String()
	for range 5 {
		wantProblem(t, changePassword(t, srv, id, token(t, id), "not my password", "a wholly different sentence"), 403, "password_wrong")
	}
	wantRateLimited(t, changePassword(t, srv, id, token(t, id), password, "a wholly different sentence"))
	wantRateLimited(t, from("127.0.0.1", "ann@example.com", password))
	from("198.51.100.1", "ann@example.com", password).session(t)
}

// TestPasswordsChangedAtOnce: of two changes at the same time, one succeeds.
func TestPasswordsChangedAtOnce(t *testing.T) {
	_, srv, ann := serveAnn(t)
	id := ann.ID.String()
	answers := make(chan answer)
	for i := range 2 {
		go func() {
			answers <- changePassword(t, srv, id, token(t, id), password, fmt.Sprintf("sentence number %d of us", i))
		}()
	}
	first, second := <-answers, <-answers
	if first.StatusCode > second.StatusCode {
		first, second = second, first
	}
	if second.StatusCode < 400 || first.StatusCode != 204 {
		t.Errorf("answers %d %s and %d %s, want 204 and a refusal", first.StatusCode, first.body, second.StatusCode, second.body)
	}
}

// securityEvents returns the attributes of a log's security events.
func securityEvents(t *testing.T, log string) (all []map[string]any) {
	t.Helper()
	for line := range strings.Lines(log) {
		var e map[string]any
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(e["msg"].(string), "security event") {
			all = append(all, e)
		}
	}
	return all
}

// TestSecurityEvents causes each kind of event once.
func TestSecurityEvents(t *testing.T) {
	log := new(syncBuffer)
	tuning := producer.DefaultTuning()
	tuning.LogInFailures = 1
	srv, from := behindProxy(t, tuning, slog.New(slog.NewJSONHandler(log, nil)))
	id := post(t, srv, signUp("ann@example.com", "Ann", password)).user(t).ID.String()
	own, adm := token(t, id), admin(t, srv)
	from("198.51.100.77", "ann@example.com", password)
	from("203.0.113.7", "ann@example.com", "a wrong password")
	from("203.0.113.7", "ann@example.com", "a wrong password")
	from("2001:db8:0:1:2:3:4:5", "bob@example.com", "a wrong password")
	call(t, srv, "GET", "/users", "", "no token")
	call(t, srv, "GET", "/users", "", own)
	call(t, srv, "GET", "/users/"+uuid.NewString(), "", own)
	changePassword(t, srv, id, own, "not my password", "a wholly different sentence")
	from("198.51.100.77", "ann@example.com", password)
	call(t, srv, "PATCH", "/users/"+id, `{"name":"Anna"}`, adm)
	call(t, srv, "DELETE", "/users/"+id, "", adm)
	call(t, srv, "GET", "/users/"+id, "", own)

	var got []string
	for _, e := range securityEvents(t, log.String()) {
		if trace, _ := e["trace_id"].(string); len(trace) != 32 {
			t.Errorf("trace_id = %v", e["trace_id"])
		}
		line := fmt.Sprint(e["event"], " ", e["outcome"], " ", e["user_id"], " ", e["network"], " ", e["target_id"], " ", e["reason"])
		got = append(got, strings.NewReplacer(id, "ANN", adminID, "ADMIN", "<nil>", "-").Replace(line))
	}
	want := []string{
		"log_in success ANN 198.51.100.0/24 - -",
		"log_in failure ANN 203.0.113.0/24 - credentials_invalid",
		"rate_limited refused  203.0.113.0/24 - failed log-ins of one account",
		"log_in failure  2001:db8:0:1::/64 - credentials_invalid",
		"token_refused refused  127.0.0.0/24 - token_invalid",
		"forbidden refused ANN 127.0.0.0/24 - forbidden",
		"forbidden refused ANN 127.0.0.0/24 - forbidden",
		"password_change failure ANN 127.0.0.0/24 - password_wrong",
		"log_in success ANN 198.51.100.0/24 - -",
		"user_rename success ADMIN 127.0.0.0/24 ANN -",
		"user_delete success ADMIN 127.0.0.0/24 ANN -",
		"token_refused refused ANN 127.0.0.0/24 - token_invalid",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("security events (-want +got):\n%s", diff)
	}
	for _, secret := range []string{"example.com", "horse", own, "203.0.113.7"} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("the log holds %q:\n%s", secret, log)
		}
	}
}

// TestFloodOfSecurityEvents makes many refusals: the log gets a few lines, and the number
// of the others.
func TestFloodOfSecurityEvents(t *testing.T) {
	log := new(syncBuffer)
	api := producer.New(testenv.Postgres(t), issuer, slog.New(slog.NewJSONHandler(log, nil)))
	api.Proxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	srv := httptest.NewServer(api)
	defer srv.Close()
	const requests = 600
	for i := range requests {
		req := request(t, "GET", srv.URL+"/users", nil)
		if i%2 == 0 {
			req.Header.Set("X-Forwarded-For", fmt.Sprintf("10.0.%d.1", i%256))
		}
		wantProblem(t, do(t, req), 401, "token_invalid")
	}
	api.Close() // ends the window
	events, total := securityEvents(t, log.String()), 0
	for _, e := range events {
		if n, ok := e["count"].(float64); ok {
			total += int(n)
		} else {
			total++
		}
	}
	if total != requests || len(events) > 32*6+1 {
		t.Errorf("%d lines speak of %d events, want at most %d of %d", len(events), total, 32*6+1, requests)
	}
}

// TestGuessablePasswords signs up with passwords that attackers try first, and with others.
func TestGuessablePasswords(t *testing.T) {
	srv := serve(t, testenv.Postgres(t))
	for _, guess := range []string{
		"123456789012", "passwordpassword", "password1234", "Password1234!", "P@ssw0rd1234", "p4ssw0rdp4ssw0rd", "aaaaaaaaaaaa", "            ",
		"abababababab", "abcabcabcabc", "abcdefghijkl", "lkjihgfedcba", "987654321098", "qwertyuiop123", "qwertyuiopas", "1qaz2wsx3edc",
		"1q2w3e4r5t6y", "asdfghjkl123", "QWERTZUIOP12", "iloveyou1234", "welcome12345", "adminadmin12", "letmeinletmein", "Summer2024!!",
		"qwerty123456", "111111111111", "123123123123", "112233445566", "passw0rd!!!!", "changeme1234", "football2020", "ann.lee@1990",
		"AnnLee19901990", "annannannann", "leeann123456", "trustno1trustno1", "!@#$%^&*()_+", "x7Kq9zx7Kq9z",
		"drowssapdrowssap", "Dr0wss@p1234", "nogardnogard", "eelnna123456", "１２３４５６７８９０１２", "ｐａｓｓｗｏｒｄ１２３４", "𝐩𝐚𝐬𝐬𝐰𝐨𝐫𝐝𝐩𝐚𝐬𝐬𝐰𝐨𝐫𝐝", "ⓟⓐⓢⓢⓦⓞⓡⓓ2024",
		strings.Repeat("\ufdfa", 256), strings.Repeat("a", 256),
	} {
		a := post(t, srv, signUp("ann.lee@example.com", "Ann Lee", guess))
		if a.StatusCode != 422 {
			t.Errorf("%q: status = %d, want 422: %s", guess, a.StatusCode, a.body)
			continue
		}
		wantProblem(t, a, 422, "password_common")
	}
	for i, good := range []string{
		"correct horse battery", "zK3#vq9!Lm2x", "mein Hund heisst Ortwin", "das Wetter 2024 war nass", "sea-glass under ninth tram", "パスワードはひみつですよね",
		"8417305926 and more", "8f14e45fceea", "grüne Wälder rauschen",
	} {
		if a := post(t, srv, signUp(fmt.Sprintf("u%d@example.com", i), "Ann Lee", good)); a.StatusCode != 201 {
			t.Errorf("%q: status = %d, want 201: %s", good, a.StatusCode, a.body)
		}
	}
}
