//go:build unix

package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/nats-io/nats.go"
)

// names returns the names in a directory.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func TestDevGuardsItsState(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	r := startDev(t, dir, freePorts(t))
	pid := fmt.Sprintf("pid %d", r.Cmd.Process.Pid)
	refused(t, exitUnreachable, devArgs(dir, freePorts(t)), dir, pid, "--dir")
	refused(t, exitUnreachable, []string{"dev", "reset", "--yes", "--dir", dir}, pid)
	if status, _ := get(t, r.Admin+"/readyz"); status != 200 {
		t.Error("the running one is not ready any more")
	}
	env := must(t, exitOK, "dev", "env", "--dir", dir)
	if want := fmt.Sprintf("export PGJET_DATABASE_URL='%s'\nexport PGJET_NATS_URL='%s'\nexport PGJET_CONFIG='%s'\n", r.Database, r.NATS, filepath.Join(dir, "pgjet.yaml")); env != want {
		t.Errorf("dev env prints %q, want %q", env, want)
	}
	checkStrangers(t, r)
	r.Stop()
	refused(t, exitNotFound, []string{"dev", "env", "--dir", dir}, "no pgjet dev runs")

	mine := filepath.Join(dir, "notes.txt")
	if err := os.WriteFile(mine, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused(t, exitUsage, []string{"dev", "reset", "--dir", dir}, "--yes")
	if got := names(t, dir); !slices.Contains(got, "postgres") {
		t.Errorf("a refused reset left %v", got)
	}
	must(t, exitOK, "dev", "reset", "--yes", "--dir", dir)
	if got, want := names(t, dir), []string{"notes.txt"}; !slices.Equal(got, want) {
		t.Errorf("reset left %v, want %v", got, want)
	}
	if out := must(t, exitOK, "dev", "reset", "--yes", "--dir", dir); !strings.Contains(out, "nothing to remove") {
		t.Errorf("a second reset says %q", out)
	}
}

// checkStrangers tries what other users of the machine, and pages in the user's browser, may not do.
func checkStrangers(t *testing.T, r *running) {
	t.Helper()
	for _, name := range []string{passwordName, keyName, "ready.json"} {
		if info, err := os.Stat(filepath.Join(r.dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has the mode %v (%v), want 0600", name, info.Mode(), err)
		}
	}
	for _, role := range []string{"pgjet", "postgres"} {
		_, err := pgx.Connect(t.Context(), fmt.Sprintf("postgres://%s@%s/pgjet", role, local(r.port+postgresPort)))
		if refused, ok := errors.AsType[*pgconn.PgError](err); !ok || refused.Code != "28P01" {
			t.Errorf("%s connects to PostgreSQL without a password: %v, want 28P01", role, err)
		}
	}
	if _, err := nats.Connect(local(r.port + natsPort)); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("connecting to NATS without a password: %v, want %v", err, nats.ErrAuthorization)
	}
	for _, try := range [][2]string{
		{"GET", r.Admin + "/readyz"}, {"GET", r.Admin + "/metrics"}, {"GET", r.Users + "/docs"}, {"GET", r.Directory + "/directory"},
		{"DELETE", r.Inbox + "/api/messages"}, {"PUT", r.Inbox + "/fault"}, {"GET", r.Inbox + "/"},
		{"PUT", r.Profiles + "/fault"}, {"DELETE", r.Billing + "/fault"},
	} {
		for _, header := range []map[string]string{{"Origin": "http://evil.example"}, {}} {
			req, err := http.NewRequestWithContext(t.Context(), try[0], try[1], strings.NewReader(`{}`))
			if err != nil {
				t.Fatal(err)
			}
			req.Host = "evil.example"
			for name, value := range header {
				req.Header.Set(name, value)
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusMisdirectedRequest {
				t.Errorf("%s %s with Host evil.example and %v = %d, want 421", try[0], try[1], header, resp.StatusCode)
			}
		}
		status, _, body := request(t, try[0], try[1], `{}`, map[string]string{"Origin": "http://evil.example"})
		if try[0] != "GET" && status != http.StatusForbidden {
			t.Errorf("%s %s from another origin = %d %s, want 403", try[0], try[1], status, body)
		}
	}
}

func TestDevNamesBusyPorts(t *testing.T) {
	t.Parallel()
	port := freePorts(t)
	for _, taken := range []int{port + inboxPort, port + smtpPort} {
		l, err := net.Listen("tcp", local(taken))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	dir := stateDir(t)
	refused(t, exitUnreachable, devArgs(dir, port),
		fmt.Sprintf("port %d (inbox)", port+inboxPort), fmt.Sprintf("port %d (SMTP)", port+smtpPort), "--port")
	if got, want := names(t, dir), []string{"lock"}; !slices.Equal(got, want) {
		t.Errorf("%s holds %v, want %v", dir, got, want)
	}
}

// TestDevAsAnotherUser: a user other than root needs only a directory.
func TestDevAsAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the other tests do not run as root either")
	}
	t.Parallel()
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	uid, err1 := strconv.ParseUint(nobody.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(nobody.Gid, 10, 32)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	dir, port := stateDir(t), freePorts(t)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, int(uid), int(gid)); err != nil {
		t.Fatal(err)
	}
	p := command(t, env{"HOME": dir}, devArgs(dir, port)...)
	p.Cmd.Dir = dir
	p.Cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	p.Begin()
	t.Cleanup(p.Stop)
	r := waitDev(p, dir, port)
	signUp(t, r.Users, "ann@example.com")
	oneMail(t, r.Inbox, "ann@example.com")
}

// TestDevInPrivateDirectory: root runs PostgreSQL as another user, who cannot enter root's private
// directories.
func TestDevInPrivateDirectory(t *testing.T) {
	t.Parallel()
	private := t.TempDir()
	if err := os.Chmod(private, 0o700); err != nil {
		t.Fatal(err)
	}
	dir, port := filepath.Join(private, "state"), freePorts(t)
	p := command(t, nil, devArgs(dir, port)...)
	p.Begin()
	t.Cleanup(p.Stop)
	p.Eventually(patience, "it is ready or says why not", func() bool { return p.Stdout.String() != "" || p.Ended() })
	if p.Ended() { // a container that does not allow user namespaces
		p.Killed = true
		if code := p.Wait(patience); code != exitUnreachable || !strings.Contains(p.Stderr.String(), "--dir") {
			t.Errorf("exit code %d, want 5 and a hint at --dir, of %s", code, p)
		}
		return
	}
	oneUser := waitDev(p, dir, port)
	signUp(t, oneUser.Users, "ann@example.com")
	if info, err := os.Stat(private); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory is %v (%v), want it left at 0700", info.Mode(), err)
	}
}
