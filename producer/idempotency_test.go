package producer_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/rs/zerolog"

	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/producer"
)

// signUpWith signs up with an Idempotency-Key in each of these lines.
func signUpWith(t *testing.T, srv *httptest.Server, body string, keys ...string) answer {
	t.Helper()
	var header []string
	for _, k := range keys {
		header = append(header, "Idempotency-Key", k)
	}
	return call(t, srv, "POST", "/users", body, "", header...)
}

// wantReplay fails unless a repeats the answer first.
func wantReplay(t *testing.T, a, first answer) {
	t.Helper()
	if a.StatusCode != 201 || a.Header.Get("Idempotent-Replayed") != "true" {
		t.Fatalf("status = %d, Idempotent-Replayed = %q, want 201, true: %s", a.StatusCode, a.Header.Get("Idempotent-Replayed"), a.body)
	}
	if !bytes.Equal(a.body, first.body) {
		t.Errorf("body = %s, want that of the first answer, %s", a.body, first.body)
	}
	for _, name := range []string{"Location", "ETag", "Content-Type"} {
		if got, want := a.Header.Get(name), first.Header.Get(name); got != want || got == "" {
			t.Errorf("%s = %q, want %q as in the first answer", name, got, want)
		}
	}
}

// wantStored fails unless so many users, events and answers are there.
func wantStored(t *testing.T, db *pgxpool.Pool, users, events, answers int) {
	t.Helper()
	want := []int{users, events, answers}
	got := []int{count(t, db, "users.users"), count(t, db, "pgjet.outbox"), count(t, db, "users.idempotency")}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("users, events and kept answers (-want +got):\n%s", diff)
	}
}

func TestSameKey(t *testing.T) {
	db := testenv.Postgres(t)
	srv := serve(t, db)
	body := signUp("Ann@EXAMPLE.com", " Ann <3 ", password)
	first := signUpWith(t, srv, body, `"8e03978e-40d5"`)
	if first.StatusCode != 201 || first.Header.Get("Idempotent-Replayed") != "" {
		t.Fatalf("status = %d, Idempotent-Replayed = %q, want 201, none: %s", first.StatusCode, first.Header.Get("Idempotent-Replayed"), first.body)
	}
	wantReplay(t, signUpWith(t, srv, body, `"8e03978e-40d5"`), first)
	wantReplay(t, signUpWith(t, srv, body, `8e03978e-40d5`), first)
	wantReplay(t, signUpWith(t, srv, signUp("Ann@example.com", "Ann <3", password), `8e03978e-40d5`), first)
	own := token(t, first.user(t).ID.String())
	if a := call(t, srv, "PATCH", first.Header.Get("Location"), `{"name":"Annabel"}`, own); a.StatusCode != 200 {
		t.Fatalf("PATCH = %d, want 200: %s", a.StatusCode, a.body)
	}
	wantReplay(t, signUpWith(t, srv, body, `8e03978e-40d5`), first)
	wantStored(t, db, 1, 2, 1)

	for name, other := range map[string]string{
		"address":  signUp("bob@example.com", "Ann <3", password),
		"name":     signUp("Ann@example.com", "Bob", password),
		"password": signUp("Ann@example.com", "Ann <3", password+"!"),
	} {
		t.Run("other "+name, func(t *testing.T) {
			a := signUpWith(t, srv, other, "8e03978e-40d5")
			wantProblem(t, a, 422, "idempotency_mismatch")
			wantNoEcho(t, a, other)
		})
	}
	wantProblem(t, signUpWith(t, srv, body, "8E03978E-40D5"), 409, "email_taken") // another key
	wantProblem(t, signUpWith(t, srv, body), 409, "email_taken")
	wantStored(t, db, 1, 2, 1)
}

// A key is no secret: what is stored of a sign-up does not reveal its password.
func TestKeptAnswerHoldsNoPassword(t *testing.T) {
	db := testenv.Postgres(t)
	srv := serve(t, db)
	signUpWith(t, srv, signUp("ann@example.com", "Ann", password), "a")
	signUpWith(t, srv, signUp("bob@example.com", "Ann", password), "b")
	var row, hash string
	err := db.QueryRow(t.Context(), `select i::text, u.password from users.idempotency i join users.users u on id = user_id where key = 'a'`).Scan(&row, &hash)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(row, password) || strings.Count(row, "$argon2id$") != 1 || !strings.Contains(row, hash) {
		t.Errorf("row = %s, want one argon2id hash and no password", row)
	}
	// Only with another password, the row is the same except for its hash.
	signUpWith(t, srv, signUp("eve@example.com", "Eve", password), "c")
	if a := call(t, srv, "DELETE", "/users/"+userOf(t, db, "c"), "", admin(t, srv)); a.StatusCode != 204 {
		t.Fatalf("DELETE = %d: %s", a.StatusCode, a.body)
	}
	before := fingerprintOf(t, db, "a")
	if a := call(t, srv, "DELETE", "/users/"+userOf(t, db, "a"), "", admin(t, srv)); a.StatusCode != 204 {
		t.Fatalf("DELETE = %d: %s", a.StatusCode, a.body)
	}
	signUpWith(t, srv, signUp("ann@example.com", "Ann", "another "+password), "a")
	if after := fingerprintOf(t, db, "a"); after != before {
		t.Errorf("the fingerprint depends on the password")
	}
}

func userOf(t *testing.T, db *pgxpool.Pool, key string) (id string) {
	t.Helper()
	if err := db.QueryRow(t.Context(), `select user_id::text from users.idempotency where key = $1`, key).Scan(&id); err != nil {
		t.Fatal(err)
	}
	return id
}

func fingerprintOf(t *testing.T, db *pgxpool.Pool, key string) (sum string) {
	t.Helper()
	if err := db.QueryRow(t.Context(), `select encode(fingerprint, 'hex') from users.idempotency where key = $1`, key).Scan(&sum); err != nil {
		t.Fatal(err)
	}
	return sum
}

func TestBadKeys(t *testing.T) {
	db := testenv.Postgres(t)
	srv := serve(t, db)
	body := signUp("ann@example.com", "Ann", password)
	for _, keys := range [][]string{
		{""}, {`""`}, {`"`}, {`"a`}, {`a"`}, {`"a"b"`}, {`"a\"b"`}, {"a b"}, {`"a b"`}, {"a\tb"}, {"a,b"}, {`"a", "b"`}, {`"a";b=c`},
		{"ä"}, {"\xff"}, {strings.Repeat("a", 256)}, {`"` + strings.Repeat("a", 256) + `"`}, {strings.Repeat("a", 10_000)},
		{"a", "a"}, {"a", ""},
	} {
		req := request(t, "POST", srv.URL+"/users", strings.NewReader(body))
		req.Header["Idempotency-Key"] = keys
		wantProblem(t, do(t, req), 400, "idempotency_key_invalid")
	}
	wantStored(t, db, 0, 0, 0)
	for i, key := range []string{"a", "!", strings.Repeat("a", 255), `"` + strings.Repeat("~", 255) + `"`, "aGVsbG8/d29ybGQ+Cg==", "a:b[c]{d}(e)'f'<g>|h"} {
		if a := signUpWith(t, srv, signUp(fmt.Sprintf("ann%d@example.com", i), "Ann", password), key); a.StatusCode != 201 {
			t.Errorf("key %q: status = %d, want 201: %s", key, a.StatusCode, a.body)
		}
	}
}

// Only successes are kept: a corrected request may use the same key.
func TestFailuresAreNotKept(t *testing.T) {
	db := testenv.Postgres(t)
	srv := serve(t, db)
	if a := post(t, srv, signUp("ann@example.com", "Ann", password)); a.StatusCode != 201 {
		t.Fatalf("status = %d: %s", a.StatusCode, a.body)
	}
	wantProblem(t, signUpWith(t, srv, `{"email":`, "k"), 400, "json_invalid")
	wantProblem(t, signUpWith(t, srv, signUp("bob@example.com", "Bob", "short"), "k"), 422, "password_too_short")
	wantProblem(t, signUpWith(t, srv, signUp("ann@example.com", "Bob", password), "k"), 409, "email_taken")
	wantStored(t, db, 1, 1, 0)
	if a := signUpWith(t, srv, signUp("bob@example.com", "Bob", password), "k"); a.StatusCode != 201 {
		t.Errorf("corrected: status = %d, want 201: %s", a.StatusCode, a.body)
	}
	wantStored(t, db, 2, 2, 1)
}

// After a day a key is as good as new, and old answers are dropped, a few at a time.
func TestAnswersAreKeptForADay(t *testing.T) {
	db := testenv.Postgres(t)
	srv := serve(t, db)
	body := signUp("ann@example.com", "Ann", password)
	first := signUpWith(t, srv, body, "k")
	exec := func(sql string) {
		t.Helper()
		if _, err := db.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	exec(`insert into users.idempotency (key, fingerprint, password, user_id)
	      select 'old' || n, '', '', user_id from users.idempotency, generate_series(1, 25) n`)
	exec(`update users.idempotency set created_at = now() - interval '23 hours 59 minutes'`)
	wantReplay(t, signUpWith(t, srv, body, "k"), first)
	wantStored(t, db, 1, 1, 26)

	exec(`update users.idempotency set created_at = now() - interval '24 hours 1 minute'`)
	wantProblem(t, signUpWith(t, srv, body, "k"), 409, "email_taken")
	wantStored(t, db, 1, 1, 26)
	other := signUp("bob@example.com", "Bob", password)
	second := signUpWith(t, srv, other, "k")
	if second.StatusCode != 201 {
		t.Fatalf("status = %d, want 201: %s", second.StatusCode, second.body)
	}
	wantReplay(t, signUpWith(t, srv, other, "k"), second)
	wantStored(t, db, 2, 2, 16) // of 25 old ones, 10 are gone
	for i := range 2 {
		signUpWith(t, srv, signUp(fmt.Sprintf("eve%d@example.com", i), "Eve", password), fmt.Sprint("eve", i))
	}
	wantStored(t, db, 4, 4, 3)
}

// together runs fn n times at once and counts the answers: by status and code, and
// the successes by body.
func together(t *testing.T, n int, fn func(i int) answer) (codes, bodies map[string]int) {
	t.Helper()
	answers := make(chan answer, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { answers <- fn(i) })
	}
	wg.Wait()
	close(answers)
	codes, bodies = map[string]int{}, map[string]int{}
	for a := range answers {
		if a.StatusCode == http.StatusCreated {
			codes["201"]++
			bodies[string(a.body)]++
		} else {
			codes[fmt.Sprint(a.StatusCode, " ", a.problem(t).Code)]++
		}
	}
	return codes, bodies
}

// TestOneKeyAtOnce has two hundred requests with one key, at two processes.
func TestOneKeyAtOnce(t *testing.T) {
	db := testenv.Postgres(t)
	srvs := []*httptest.Server{serve(t, db), serve(t, db)}
	body := signUp("ann@example.com", "Ann", password)
	codes, bodies := together(t, 200, func(i int) answer { return signUpWith(t, srvs[i%2], body, "k") })
	if codes["201"] < 1 || codes["201"]+codes["409 request_in_flight"] != 200 || len(bodies) != 1 {
		t.Errorf("answers = %v with %d bodies, want 201 with one body, and 409 request_in_flight", codes, len(bodies))
	}
	wantStored(t, db, 1, 1, 1)
	t.Log(codes)
}

// TestInFlight stops a sign-up in the middle. Another process reports that it is under way,
// and so does the same one.
func TestInFlight(t *testing.T) {
	db := testenv.Postgres(t)
	srv, other := serve(t, db), serve(t, db)
	body := signUp("ann@example.com", "Ann", password)
	gate := closeGate(t, db, "insert on users.users", "")
	first := make(chan answer)
	go func() { first <- signUpWith(t, srv, body, "k") }()
	gate.await()
	for _, s := range []*httptest.Server{srv, other} {
		a := signUpWith(t, s, body, "k")
		wantProblem(t, a, 409, "request_in_flight")
		if got := a.Header.Get("Retry-After"); got != "1" {
			t.Errorf("Retry-After = %q, want 1", got)
		}
	}
	gate.open()
	a := <-first
	if a.StatusCode != 201 {
		t.Fatalf("status = %d, want 201: %s", a.StatusCode, a.body)
	}
	wantReplay(t, signUpWith(t, other, body, "k"), a)
	wantStored(t, db, 1, 1, 1)
}

// A gate stops transactions that change a table, until it opens.
type gate struct {
	t  *testing.T
	db *pgxpool.Pool
	// open lets all transactions continue, from now on.
	open func()
}

// closeGate puts a gate at a change, such as "insert on users.users", or at its commit
// if at is "deferred".
func closeGate(t *testing.T, db *pgxpool.Pool, change, at string) gate {
	t.Helper()
	trigger := `create trigger gate after ` + change
	if at == "deferred" {
		trigger = `create constraint trigger gate after ` + change + ` deferrable initially deferred`
	}
	if _, err := db.Exec(t.Context(), `
		create function users.gate() returns trigger language plpgsql as $$
		begin perform pg_advisory_xact_lock_shared(4711); return null; end $$; `+trigger+` for each row execute function users.gate()`); err != nil {
		t.Fatal(err)
	}
	conn, err := db.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), `select pg_advisory_lock(4711)`); err != nil {
		t.Fatal(err)
	}
	open := sync.OnceFunc(func() {
		defer conn.Release()
		if _, err := conn.Exec(context.WithoutCancel(t.Context()), `select pg_advisory_unlock(4711)`); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(open)
	return gate{t, db, open}
}

// waiting returns how many transactions wait at the gate.
func (g gate) waiting() int {
	return count(g.t, g.db, `pg_locks where locktype = 'advisory' and not granted and objid = 4711
		and database = (select oid from pg_database where datname = current_database())`)
}

// await returns once a transaction waits at the gate.
func (g gate) await() {
	g.t.Helper()
	testenv.Eventually(g.t, 20*time.Second, "somebody waits at the gate", func() bool { return g.waiting() > 0 })
}

// proxied puts a proxy in front of db's server, and returns a pool that goes through it.
func proxied(t *testing.T, db *pgxpool.Pool) (*toxiproxy.Proxy, *pgxpool.Pool) {
	t.Helper()
	u, err := url.Parse(db.Config().ConnString())
	if err != nil {
		t.Fatal(err)
	}
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	p := toxiproxy.NewProxy(server, "proxy", "127.0.0.1:0", u.Host)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Stop)
	u.Host = p.Listen
	return p, connect(t, u.String())
}

// TestOutcomeUnknownThenCommitted cuts the connection while PostgreSQL commits; the commit
// succeeds later. With the key, the client gets the right answer whenever it asks: first
// under way, then the user.
func TestOutcomeUnknownThenCommitted(t *testing.T) {
	db := testenv.Postgres(t)
	proxy, far := proxied(t, db)
	tuning := patientTuning()
	tuning.PerAddress, tuning.PerAccount = 0, 0
	_, srv := serveTuned(t, far, tuning, testenv.Logger(t))
	listed := func(want int) {
		t.Helper()
		if n := len(list(t, srv, "").ids); n != want {
			t.Errorf("the list has %d users, want %d", n, want)
		}
	}
	body := signUp("ann@example.com", "Ann", password)
	listed(0) // which is kept
	gate := closeGate(t, db, "insert on users.users", "deferred")
	first := make(chan answer)
	go func() { first <- signUpWith(t, srv, body, "k") }()
	gate.await()
	proxy.Stop() // pgx considers a failure after this safe to retry
	wantUnavailable(t, <-first, "outcome_unknown")
	testenv.Eventually(t, 20*time.Second, "pgx gives up asking PostgreSQL to cancel", func() bool {
		far.Reset()
		return far.Stat().TotalConns() == 0
	})
	if err := proxy.Start(); err != nil {
		t.Fatal(err)
	}
	wantProblem(t, signUpWith(t, srv, body, "k"), 409, "request_in_flight")
	gate.open()
	testenv.Eventually(t, 20*time.Second, "PostgreSQL commits", func() bool { return count(t, db, "users.users") == 1 })
	listed(1)
	var again answer
	testenv.Eventually(t, 20*time.Second, "the key is free", func() bool {
		again = signUpWith(t, srv, body, "k")
		return again.StatusCode != 409
	})
	if again.StatusCode != 201 || again.Header.Get("Idempotent-Replayed") != "true" {
		t.Errorf("again: %d, Idempotent-Replayed = %q, want 201, true: %s", again.StatusCode, again.Header.Get("Idempotent-Replayed"), again.body)
	}
	if got := get(t, srv, again.Header.Get("Location")); !bytes.Equal(got.body, again.body) {
		t.Errorf("GET %s = %s, want %s", again.Header.Get("Location"), got.body, again.body)
	}
	wantStored(t, db, 1, 1, 1)
}

// TestOutcomeUnknownWithoutKey cuts the connection before the user is inserted. The commit
// was sent with the insert, so the outcome is unknown; here PostgreSQL stores the user.
func TestOutcomeUnknownWithoutKey(t *testing.T) {
	db := testenv.Postgres(t)
	proxy, far := proxied(t, db)
	srv := serve(t, far)
	if a := post(t, srv, signUp("bob@example.com", "Bob", password)); a.StatusCode != 201 { // the statements are prepared
		t.Fatalf("status = %d, want 201: %s", a.StatusCode, a.body)
	}
	gate := closeGate(t, db, "insert on users.users", "")
	first := make(chan answer)
	go func() { first <- post(t, srv, signUp("ann@example.com", "Ann", password)) }()
	gate.await()
	proxy.Stop()
	wantUnavailable(t, <-first, "outcome_unknown")
	gate.open()
	testenv.Eventually(t, 20*time.Second, "PostgreSQL commits", func() bool { return count(t, db, "users.users") == 2 })
	wantStored(t, db, 2, 2, 0)
}

// TestOutcomeUnknownThenRolledBack kills PostgreSQL's process while it commits: nothing was
// stored, and a request with the same key succeeds.
func TestOutcomeUnknownThenRolledBack(t *testing.T) {
	db := testenv.Postgres(t)
	srv := serve(t, connect(t, db.Config().ConnString()))
	body := signUp("ann@example.com", "Ann", password)
	gate := closeGate(t, db, "insert on users.users", "deferred")
	first := make(chan answer)
	go func() { first <- signUpWith(t, srv, body, "k") }()
	gate.await()
	if _, err := db.Exec(t.Context(), `
		select pg_terminate_backend(pid) from pg_stat_activity
		 where datname = current_database() and wait_event_type = 'Lock' and wait_event = 'advisory'`); err != nil {
		t.Fatal(err)
	}
	wantUnavailable(t, <-first, "outcome_unknown")
	gate.open()
	wantStored(t, db, 0, 0, 0)
	again := signUpWith(t, srv, body, "k")
	if again.StatusCode != 201 || again.Header.Get("Idempotent-Replayed") != "" {
		t.Errorf("again: %d, Idempotent-Replayed = %q, want 201, none: %s", again.StatusCode, again.Header.Get("Idempotent-Replayed"), again.body)
	}
	wantStored(t, db, 1, 1, 1)
}

// TestClientDisconnects has a client send its sign-up and go away. The sign-up is stored
// all the same, and with the key the client learns of it later.
func TestClientDisconnects(t *testing.T) {
	db := testenv.Postgres(t)
	users := producer.New(db, issuer, testenv.Logger(t))
	gone := make(chan struct{})
	noticed := sync.OnceFunc(func() { close(gone) })
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		context.AfterFunc(r.Context(), noticed)
		users.ServeHTTP(w, r)
	}))
	defer srv.Close()
	body := signUp("ann@example.com", "Ann", password)
	gate := closeGate(t, db, "insert on users.users", "")
	conn := dial(t, srv.Listener.Addr())
	fmt.Fprintf(conn, "POST /users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nIdempotency-Key: k\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	gate.await()
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-gone:
	case <-time.After(20 * time.Second):
		t.Fatal("the server has not noticed that its client left")
	}
	gate.open()
	testenv.Eventually(t, 20*time.Second, "the user is stored", func() bool { return count(t, db, "users.users") == 1 })
	var again answer
	testenv.Eventually(t, 20*time.Second, "the key is free", func() bool {
		again = signUpWith(t, srv, body, "k")
		return again.StatusCode != 409
	})
	if again.StatusCode != 201 || again.Header.Get("Idempotent-Replayed") != "true" {
		t.Errorf("again: %d, Idempotent-Replayed = %q, want 201, true: %s", again.StatusCode, again.Header.Get("Idempotent-Replayed"), again.body)
	}
	wantStored(t, db, 1, 1, 1)
}

// TestOddKeptAnswer: whatever the row of a kept answer contains, a repetition gets the
// answer of the sign-up or is refused. It never gets foreign content, nor a failure.
func TestOddKeptAnswer(t *testing.T) {
	db := testenv.Postgres(t)
	srv := serve(t, db)
	body := signUp("ann@example.com", "Ann", password)
	signUpWith(t, srv, body, "k")
	for _, change := range []string{
		`fingerprint = ''`, `fingerprint = decode(repeat('00', 100000), 'hex')`,
		`password = ''`, `password = 'x'`, `password = repeat('x', 1000000)`, `password = '$argon2id$v=19$m=4294967295,t=4294967295,p=255$AAAA$AAAA'`,
	} {
		run(t, db, `create table users.kept as table users.idempotency`)
		run(t, db, `update users.idempotency set `+change)
		wantProblem(t, signUpWith(t, srv, body, "k"), 422, "idempotency_mismatch")
		run(t, db, `delete from users.idempotency`)
		run(t, db, `insert into users.idempotency table users.kept`)
		run(t, db, `drop table users.kept`)
	}
	run(t, db, `alter table users.users drop constraint users_bounds`)
	run(t, db, `update users.users set created_at = 'infinity'`)
	if a := signUpWith(t, srv, body, "k"); a.StatusCode != 201 || !strings.Contains(string(a.body), `"9999-`) {
		t.Errorf("created at infinity: %d %s, want 201 with the nearest time", a.StatusCode, a.body)
	}
	wantStored(t, db, 1, 1, 1)
}
