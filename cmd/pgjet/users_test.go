package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pgjet/pgjet/internal/auth"
	"github.com/pgjet/pgjet/internal/testenv"
)

// keyFile returns the name of a file with a new key.
func keyFile(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), keyName)
	if _, err := keepKey(path); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestKeyFile: two processes with one key accept each other's tokens.
func TestKeyFile(t *testing.T) {
	t.Parallel()
	database, key := testenv.DatabaseURL(t), filepath.Join(t.TempDir(), keyName)
	if err := os.WriteFile(key, []byte(must(t, exitOK, "users", "key")), 0o600); err != nil {
		t.Fatal(err)
	}
	flags := []string{"users", "--database-url", database, "--addr", anyPort}
	one := startService(t, append(flags, "--token-key-file", key)...)
	two := startService(t, append(flags, "--token-key-file", key)...)
	third := startService(t, flags...)
	id := signUp(t, one.Logged("serving the API", "addr"), "ann@example.com")
	token := logIn(t, one.Logged("serving the API", "addr"), "ann@example.com")
	if status, body := getAs(t, token, two.Logged("serving the API", "addr")+"/users/"+id); status != http.StatusOK {
		t.Errorf("with the same key: %d %s, want 200", status, body)
	}
	if status, body := getAs(t, token, third.Logged("serving the API", "addr")+"/users/"+id); status != http.StatusUnauthorized {
		t.Errorf("with a key in memory: %d %s, want 401", status, body)
	}
	if strings.Contains(one.Stderr.String(), `"WARN"`) || !strings.Contains(third.Stderr.String(), "--token-key-file") {
		t.Errorf("want a warning of the process without a key file alone, of %s and %s", one, third)
	}
	secret := readFile(t, key)
	if strings.Contains(one.Stderr.String(), secret) || strings.Contains(one.Stderr.String(), token) {
		t.Errorf("the log holds the key or the token, of %s", one)
	}

	if err := os.Chmod(key, 0o640); err != nil {
		t.Fatal(err)
	}
	open := startService(t, append(flags, "--token-key-file", key)...)
	if !strings.Contains(open.Stderr.String(), "others may read") || !strings.Contains(open.Stderr.String(), key) {
		t.Errorf("no warning of a key that others may read, of %s", open)
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// TestUsersOfALockedTable: while a table that each sign-up needs is locked, the user service is not
// ready, and names the session that holds the lock.
func TestUsersOfALockedTable(t *testing.T) {
	t.Parallel()
	database := testenv.DatabaseURL(t)
	users := startService(t, "users", "--database-url", database, "--addr", anyPort)
	db := openDB(t, database)
	for _, table := range []string{"users.users", "pgjet.outbox"} {
		users.Ready(users.Admin)
		tx, err := db.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(context.Background())
		if _, err := tx.Exec(t.Context(), `lock table `+table+` in share mode`); err != nil {
			t.Fatal(err)
		}
		users.NotReady(users.Admin, fmt.Sprintf("database_timeout: the lock on table %s is held by process %d of the server", table, tx.Conn().PgConn().PID()))
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	users.Ready(users.Admin)
}

// TestRemoteKeys: a process accepts the tokens of another one whose keys it reads from
// --token-jwks-url. At first nothing answers there.
func TestRemoteKeys(t *testing.T) {
	t.Parallel()
	issuer, err := auth.ReadIssuer(keyFile(t))
	if err != nil {
		t.Fatal(err)
	}
	away := make(chan struct{})
	keys := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		select {
		case <-away:
			_, _ = w.Write(issuer.JWKS())
		default:
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer keys.Close()
	users := startService(t, "users", "--database-url", testenv.DatabaseURL(t), "--addr", anyPort, "--token-jwks-url", keys.URL)
	addr := users.Logged("serving the API", "addr")
	users.Ready(users.Admin)
	id := signUp(t, addr, "ann@example.com")
	token, _, err := issuer.Issue(auth.Identity{Subject: id}, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if status, body := getAs(t, token, addr+"/users/"+id); status != http.StatusServiceUnavailable || !strings.Contains(body, "keys_unavailable") {
		t.Errorf("with nobody there: %d %s, want 503 keys_unavailable", status, body)
	}
	if status, body := getAs(t, logIn(t, addr, "ann@example.com"), addr+"/users/"+id); status != http.StatusOK {
		t.Errorf("own token: %d %s, want 200", status, body)
	}
	close(away)
	users.Eventually(patience, "the keys are fetched", func() bool {
		status, _ := getAs(t, token, addr+"/users/"+id)
		return status == http.StatusOK
	})
}

// TestKeepKey: a key is created once, readable by its owner only.
func TestKeepKey(t *testing.T) {
	path := keyFile(t)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode = %v (%v), want 0600", info.Mode(), err)
	}
	first := readFile(t, path)
	if out := must(t, exitOK, "users", "key", "--file", path); !strings.Contains(out, "stays as it is") || readFile(t, path) != first {
		t.Errorf("the key was made again, %q", out)
	}
	other := filepath.Join(t.TempDir(), "other.jwk")
	if out := must(t, exitOK, "users", "key", "--file", other); !strings.Contains(out, other) || readFile(t, other) == first {
		t.Errorf("%q, want a key of its own in %s", out, other)
	}
	if _, err := keepKey(filepath.Join(path, "below")); err == nil {
		t.Error("no error for a key that cannot be kept")
	}
}

// TestMountedKey: a container's user reads a key that belongs to root by its group, as
// Kubernetes mounts one, without a warning; if it may not, the error says which user it is.
func TestMountedKey(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root gives a file to others, and runs a process as another user")
	}
	t.Parallel()
	const uid = 65532
	dir, err := os.MkdirTemp("", "pgjet-test-key-") //nolint:usetesting // another user must be able to enter it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	key := filepath.Join(dir, "users.jwk")
	if err := os.WriteFile(key, []byte(must(t, exitOK, "users", "key")), 0o440); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chown(key, 0, uid)); err != nil {
		t.Fatal(err)
	}
	run := func() *process {
		p := command(t, nil, "users", "--database-url", testenv.DatabaseURL(t), "--addr", anyPort, "--admin-addr", anyPort, "--token-key-file", key)
		p.Cmd.Dir = "/"
		p.Cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		p.Begin()
		return p
	}
	reads := run()
	t.Cleanup(reads.Stop)
	reads.Logged("serving the API", "addr")
	if strings.Contains(reads.Stderr.String(), "others may read") {
		t.Errorf("a warning of the group that needs the key, of %s", reads)
	}
	if err := os.Chown(key, 0, 0); err != nil {
		t.Fatal(err)
	}
	refused := run()
	if code := refused.Wait(patience); code != exitUsage || !strings.Contains(refused.Stderr.String(), "permission denied") || !strings.Contains(refused.Stderr.String(), strconv.Itoa(uid)) {
		t.Errorf("exit code %d, want 2, and the number of the user, of %s", code, refused)
	}
}

func TestRoles(t *testing.T) {
	t.Parallel()
	database := testenv.DatabaseURL(t)
	users := startUsers(t, database)
	ann, bob := signUp(t, users.Addr, "ann@example.com"), signUp(t, users.Addr, "bob@example.com")
	sees := func(want int) {
		t.Helper()
		if status, body := getAs(t, logIn(t, users.Addr, "ann@example.com"), users.Addr+"/users/"+bob); status != want {
			t.Errorf("ann asks for bob: %d %s, want %d", status, body, want)
		}
	}
	change := func(verb, user, says string) {
		t.Helper()
		out := must(t, exitOK, "users", verb, user, "admin", "--reason", "she is on call", "--database-url", database)
		if !strings.HasPrefix(out, ann) || !strings.Contains(out, says) || strings.Contains(out, "@") {
			t.Errorf("users %s says %q, want %s and %q", verb, out, ann, says)
		}
	}
	sees(http.StatusNotFound)
	change("grant", "ANN@example.com", "from the next log-in on")
	sees(http.StatusOK)
	change("grant", ann, "already")
	change("revoke", ann, "no longer has the role")
	sees(http.StatusNotFound)
	change("revoke", "ann@example.com", "does not have")
	for _, user := range []string{"carl@example.com", uuid.NewString(), "%", ""} {
		refused(t, exitNotFound, []string{"users", "grant", user, "admin", "--reason", "x", "--database-url", database}, "no user")
	}

	db := openDB(t, database)
	got := query[string](t, db, `select string_agg(concat_ws(' ', kind, target, reason, detail, by like '%@%'), '; ' order by id) from pgjet.operation`)
	want := `user.grant ` + ann + ` she is on call {"role": "admin"} t; user.revoke ` + ann + ` she is on call {"role": "admin"} t`
	if got != want || strings.Contains(got, "example.com") {
		t.Errorf("operations are %q, want %q", got, want)
	}
	if version := query[int](t, db, `select version from users.users where id = '`+ann+`'`); version != 3 {
		t.Errorf("version = %d, want 3 after two changes", version)
	}
}
