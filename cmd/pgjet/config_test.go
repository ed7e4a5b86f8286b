//go:build unix

package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/open-feature/go-sdk/openfeature"

	"github.com/pgjet/pgjet/internal/auth"
	"github.com/pgjet/pgjet/internal/config"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/producer"
)

// configFileOf writes a configuration file.
func configFileOf(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	rewrite(t, path, text)
	return path
}

func rewrite(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// shownConfig is what pgjet config show -o json says.
type shownConfig struct {
	File, Hash string
	Keys       []struct{ Key, Value, Origin string }
}

func showConfigOf(t *testing.T, vars env, args ...string) (all map[string][2]string, hash string) {
	t.Helper()
	code, p := runProcess(t, vars, append([]string{"config", "show", "-o", "json"}, args...)...)
	var c shownConfig
	if err := json.Unmarshal([]byte(p.stdout.String()), &c); code != exitOK || err != nil {
		t.Fatalf("exit code %d, %v, of %s", code, err, p)
	}
	all = make(map[string][2]string)
	for _, k := range c.Keys {
		all[k.Key] = [2]string{k.Value, k.Origin}
	}
	return all, c.Hash
}

// TestConfigShow: each value with where it comes from, secrets masked.
func TestConfigShow(t *testing.T) {
	t.Parallel()
	file := configFileOf(t, "a.yaml", "stream: FILE\nretention: 24h\nlog_level: WARN\nmail_rate: 0.5\nusers:\n  cache:\n    ttl: 1m\n")
	password := configFileOf(t, "url", "smtp://ann:"+secret+"@host\n")
	vars := env{
		"PGJET_CONFIG": file, "PGJET_DATABASE_URL": "postgres://ann:" + secret + "@host/x", "PGJET_SMTP_URL_FILE": password,
		"PGJET_USERS__REQUESTS": "7", "PGJET_RETENTION": "48h",
		"PGJET_TRUSTED_PROXIES": "10.0.0.0/8,192.168.0.0/16",
		"PGJET_TOKEN_JWKS_URL":  "https://ann:" + secret + "@host/keys", "PGJET_BILLING_URL": "https://ann:" + secret + "@host",
	}
	all, hash := showConfigOf(t, vars, "--stream", "FLAG")
	for key, want := range map[string][2]string{
		"stream":          {"FLAG", "--stream"},
		"retention":       {"48h0m0s", "PGJET_RETENTION"},
		"log_level":       {"warn", file + ":3"},
		"mail_rate":       {"0.5", file + ":4"},
		"users.cache.ttl": {"1m0s", file + ":7"},
		"users.requests":  {"7", "PGJET_USERS__REQUESTS"},
		"database_url":    {"****", "PGJET_DATABASE_URL"},
		"smtp_url":        {"****", "PGJET_SMTP_URL_FILE"},
		"admin_addr":      {"127.0.0.1:7404", "default"},
		"token_jwks_url":  {"****", "PGJET_TOKEN_JWKS_URL"},
		"billing_url":     {"****", "PGJET_BILLING_URL"},
		"flags.profiles":  {"true", "default"},
		"trusted_proxies": {"10.0.0.0/8,192.168.0.0/16", "PGJET_TRUSTED_PROXIES"},
	} {
		if all[key] != want {
			t.Errorf("%s is %q, want %q", key, all[key], want)
		}
	}
	if addr := all["addr"][1]; !strings.Contains(addr, "users: 127.0.0.1:7400") {
		t.Errorf("addr is by %q, want it to say what it is for users", addr)
	}
	code, p := runProcess(t, vars, "config", "show", "--origin", "--stream", "FLAG")
	if out := p.stdout.String(); code != exitOK || !regexp.MustCompile(`users\.cache\.ttl +1m0s +`+regexp.QuoteMeta(file)+":7\n").MatchString(out) || !strings.Contains(out, "hash "+hash) {
		t.Errorf("exit code %d, want the same in a table, of %s", code, p)
	}
}

// TestConfigValidate says all that is wrong, and so does every other command.
func TestConfigValidate(t *testing.T) {
	t.Parallel()
	good := configFileOf(t, "a.toml", "stream = \"A\"\n[users.cache]\nttl = \"1m\"\n")
	if out := must(t, exitOK, "config", "validate", good); !strings.Contains(out, good+" is valid") {
		t.Errorf("it says %q", out)
	}
	bad := configFileOf(t, "b.yaml", "database_rul: postgres://ann:"+secret+"@h/x\nretention: 3 days\nreason: x\nusers:\n  cache:\n    ttl: 1\nlog_level: loud\n")
	says := []string{
		bad + `:1: unknown key "database_rul", did you mean database_url?`, bad + `:2: retention is "3 days", want a duration such as 500ms`,
		bad + `:3: unknown key "reason"`, bad + ":6: users.cache.ttl", bad + `:7: log_level is "loud", want debug, info, warn or error`,
	}
	refused(t, exitUsage, []string{"config", "validate", bad}, says...)
	refused(t, exitUsage, []string{"config", "validate", "--config", bad}, says...)
	refused(t, exitUsage, []string{"config", "show", "--config", bad}, says...)
	refused(t, exitUsage, []string{"migrate", "status", "--config", bad}, says...)
	refused(t, exitUsage, []string{"users", "--config", "none.yaml"}, "none.yaml", "no such file")
	refused(t, exitUsage, []string{"config", "validate"}, "--config", "PGJET_CONFIG")
	code, p := runProcess(t, env{"PGJET_USERS__CACHE__TTL": "soon"}, "users")
	if code != exitUsage || !strings.Contains(p.stderr.String(), "PGJET_USERS__CACHE__TTL") {
		t.Errorf("exit code %d, want 2 and the variable, of %s", code, p)
	}
	code, p = runProcess(t, env{"PGJET_DATABASE_URL": "x", "PGJET_DATABASE_URL_FILE": good}, "users")
	if code != exitUsage || !strings.Contains(p.stderr.String(), "both given") {
		t.Errorf("exit code %d, want 2 and the reason, of %s", code, p)
	}
}

// TestConfigInit prints a file that is valid and says what holds anyway.
func TestConfigInit(t *testing.T) {
	t.Parallel()
	file := configFileOf(t, "a.yaml", must(t, exitOK, "config", "init"))
	want, hash := showConfigOf(t, nil)
	got, _ := showConfigOf(t, nil, "--config", file)
	for key := range want {
		if got[key][0] != want[key][0] {
			t.Errorf("%s is %q, want %q", key, got[key][0], want[key][0])
		}
	}
	if out := must(t, exitOK, "config", "validate", file); !strings.Contains(out, "is valid") || hash == "" {
		t.Errorf("it says %q", out)
	}
}

// TestOneFileForAll: a command takes from the file what it has a flag for, also a secret
// from a file of its own.
func TestOneFileForAll(t *testing.T) {
	t.Parallel()
	url := configFileOf(t, "url", testenv.DatabaseURL(t)+"\n")
	file := configFileOf(t, "a.yaml", "database_url_file: "+url+"\nsmtp_url_file: /not/mounted/here\nnats_url: nats://"+nowhere+"\nmail_rate: 5\n")
	if out := must(t, exitOK, "migrate", "status", "--config", file); !strings.HasPrefix(out, "SCHEMA") {
		t.Errorf("it says %q", out)
	}
	refused(t, exitUnreachable, []string{"consumer", "ensure", "directory", "--config", file}, "NATS")
	refused(t, exitUsage, []string{"consume", "welcome-mailer", "--config", file}, file+":2", "/not/mounted/here")
}

// TestUsersFollowTheirConfiguration: log level and hash change, what needs a restart is
// refused, and SIGHUP is heard.
func TestUsersFollowTheirConfiguration(t *testing.T) {
	t.Parallel()
	text := "addr: " + anyPort + "\nadmin_addr: " + anyPort + "\nlog_level: info\n"
	file := configFileOf(t, "a.yaml", text)
	p := start(t, env{"PGJET_DATABASE_URL": testenv.DatabaseURL(t)}, "users", "--config", file)
	admin := p.logged("starting", "admin")
	p.ready(admin)
	metric := func(pattern string) bool {
		_, body := get(t, admin+"/metrics")
		return regexp.MustCompile(pattern).MatchString(body)
	}
	_, hash := showConfigOf(t, env{"PGJET_DATABASE_URL": "x"}, "--config", file)
	if !metric(`(?m)^pgjet_config\{hash="`+hash+`"\} 1$`) || !metric(`(?m)^pgjet_config_loaded_seconds \d`) || !metric(`(?m)^pgjet_config_reload_failures_total 0$`) {
		_, body := get(t, admin+"/metrics")
		t.Errorf("/metrics has not the hash %s, or no time or failures: %s", hash, body)
	}
	rewrite(t, file, strings.Replace(text, "info", "loud", 1)+"stream: OTHER\n")
	p.logged("the configuration was not changed, the last good one stays", "err")
	rewrite(t, file, text+"stream: OTHER\nusers:\n  requests: 5\n")
	p.eventually(patience, "it needs a restart", func() bool { return strings.Contains(p.stderr.String(), "restart it") })
	if !metric(`(?m)^pgjet_config_reload_failures_total 2$`) || !metric(hash) {
		t.Error("/metrics has not 2 failures and the old hash")
	}
	rewrite(t, file, strings.Replace(text, "info", "error", 1))
	p.eventually(patience, "another hash", func() bool { return !metric(hash) })
	lines := len(p.log(""))
	rewrite(t, file, strings.Replace(text, "info", "debug", 1))
	if got := p.logged("configuration changed", "keys"); got != "log_level" {
		t.Errorf("keys = %s, want log_level", got)
	}
	if got := p.log("")[lines:]; len(got) != 1 {
		t.Errorf("with log_level error it logged %v", got[:len(got)-1])
	}
	p.signal(syscall.SIGHUP)
	p.logged("configuration read again, no value has changed", "hash")
	if status, _ := get(t, admin+"/livez"); status != http.StatusOK {
		t.Errorf("/livez = %d after SIGHUP", status)
	}
}

// TestLogLevelIsForgotten: without the key the default holds again, though the process
// began with another level.
func TestLogLevelIsForgotten(t *testing.T) {
	t.Parallel()
	text := "addr: " + anyPort + "\nadmin_addr: " + anyPort + "\n"
	file := configFileOf(t, "a.yaml", text+"log_level: debug\n")
	p := start(t, env{"PGJET_DATABASE_URL": testenv.DatabaseURL(t)}, "users", "--config", file)
	addr := p.logged("serving the API", "addr")
	refusal := func() {
		request(t, http.MethodGet, addr+"/users", "", map[string]string{"Authorization": "Bearer none"})
	}
	details := func() int { return strings.Count(p.stderr.String(), `"level":"DEBUG"`) }
	refusal()
	p.eventually(patience, "a line at level debug", func() bool { return details() > 0 })
	rewrite(t, file, text)
	p.logged("configuration changed", "keys")
	before := details()
	refusal()
	p.signal(syscall.SIGHUP)
	p.logged("configuration read again, no value has changed", "hash") // so all before was read, too
	if after := details(); after != before {
		t.Errorf("%d lines at level debug, %d when the configuration had changed: %s", after, before, p)
	}
}

// TestFeatureFlagsFollow: who asks OpenFeature gets what the configuration says now.
func TestFeatureFlagsFollow(t *testing.T) {
	file := configFileOf(t, "a.yaml", "")
	log := slog.New(slog.DiscardHandler)
	s := followed(t, file, log)
	issuer, err := auth.Generate()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.tune(producer.New(openDB(t, testenv.DatabaseURL(t)), issuer, log)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.configPart().run(ctx) }()
	profiles := func() bool {
		on, err := openfeature.NewClient("pgjet").BooleanValue(ctx, "profiles", true, openfeature.EvaluationContext{})
		if err != nil {
			t.Fatal(err)
		}
		return on
	}
	if !profiles() {
		t.Error("profiles is off, want the default")
	}
	rewrite(t, file, "flags:\n  profiles: false\n")
	testenv.Eventually(t, patience, "profiles is off", func() bool { return !profiles() })
	rewrite(t, file, "log_level: info\n")
	testenv.Eventually(t, patience, "profiles is on", profiles)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestFlagWinsOverReload: what a flag or variable sets, the file cannot change.
func TestFlagWinsOverReload(t *testing.T) {
	t.Parallel()
	text := "flags:\n  profiles: true\ntrusted_proxies: 10.0.0.0/8,192.168.0.0/16\n"
	file := configFileOf(t, "a.yaml", text)
	p := start(t, env{"PGJET_ADDR": anyPort}, "users", "--database-url", testenv.DatabaseURL(t), "--admin-addr", anyPort, "--log-level", "info", "--config", file)
	p.ready(p.logged("starting", "admin"))
	rewrite(t, file, strings.Replace(text, "true", "false", 1)+"log_level: error\naddr: 127.0.0.1:1\n")
	if got := p.logged("configuration changed", "keys"); got != "flags.profiles" {
		t.Errorf("keys = %s, want flags.profiles", got)
	}
}

// TestDevFollowsItsConfiguration: it writes a file, and keeps what one makes of it.
func TestDevFollowsItsConfiguration(t *testing.T) {
	t.Parallel()
	n := testenv.NATS(t)
	dir, port, database := stateDir(t), freePorts(t), testenv.EmptyDatabaseURL(t)
	r := startDev(t, dir, port, "--database-url", database, "--nats-url", n.URL())
	file := filepath.Join(dir, "pgjet.yaml")
	b, err := os.ReadFile(file)
	if err != nil || !strings.Contains(r.stdout.String(), `"config":"`+file+`"`) {
		t.Fatalf("%v, and it says %s", err, r.stdout.String())
	}
	text := string(b)
	for _, want := range []string{"log_level: debug", "\nusers:\n", "\nflags:\n  profiles: true"} {
		if !strings.Contains(text, want) {
			t.Errorf("the file is\n%s\nwant %q", text, want)
		}
	}
	text = strings.Replace(text, "profiles: true", "profiles: false", 1)
	rewrite(t, file, text)
	r.eventually(patience, "it takes effect", func() bool { return strings.Contains(r.stderr.String(), "keys=flags.profiles") })
	r.stop()
	r = startDev(t, dir, port, "--database-url", database, "--nats-url", n.URL())
	if b, err := os.ReadFile(file); err != nil || string(b) != text {
		t.Errorf("the file is now\n%s\n%v", b, err)
	}
	r.stop()
	rewrite(t, file, "users:\n  request: 5\n")
	refused(t, exitUsage, devArgs(dir, port), file+":2", "did you mean users.requests?")
	if err := os.Rename(file, file+".mine"); err != nil {
		t.Fatal(err)
	}
	own := configFileOf(t, "own.yaml", "database_url: "+database+"\nnats_url: "+n.URL()+"\n")
	r = startDev(t, dir, port, "--config", own)
	if _, err := os.Stat(file); err == nil || !strings.Contains(r.stdout.String(), own) {
		t.Errorf("it wrote %s (%v), or does not say %s: %s", file, err, own, r.stdout.String())
	}
}

// followed returns the settings of a process that follows a configuration file.
func followed(t *testing.T, file string, log *slog.Logger) *settings {
	t.Helper()
	c := &configuration{schema: config.NewSchema(processKeys(newRoot()), sections(newRoot())...), file: file}
	var err error
	if c.first, err = c.load(); err != nil {
		t.Fatal(err)
	}
	s := &settings{}
	s.follow(c, log)
	return s
}
