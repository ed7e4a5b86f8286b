//go:build unix

package main

import (
	"context"
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

// TestUsersFollowTheirConfiguration: log level and hash change, changes that need a restart are
// refused, and SIGHUP reloads.
func TestUsersFollowTheirConfiguration(t *testing.T) {
	t.Parallel()
	text := "addr: " + anyPort + "\nadmin_addr: " + anyPort + "\nlog_level: info\n"
	file := configFileOf(t, "a.yaml", text)
	p := start(t, env{"PGJET_DATABASE_URL": testenv.DatabaseURL(t)}, "users", "--config", file)
	admin := p.Logged("starting", "admin")
	p.Ready(admin)
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
	p.Logged("the configuration was not changed, the last good one stays", "err")
	rewrite(t, file, text+"stream: OTHER\nusers:\n  requests: 5\n")
	p.Eventually(patience, "it needs a restart", func() bool { return strings.Contains(p.Stderr.String(), "restart it") })
	if !metric(`(?m)^pgjet_config_reload_failures_total 2$`) || !metric(hash) {
		t.Error("/metrics has not 2 failures and the old hash")
	}
	rewrite(t, file, strings.Replace(text, "info", "error", 1))
	p.Eventually(patience, "another hash", func() bool { return !metric(hash) })
	lines := len(p.Log(""))
	rewrite(t, file, strings.Replace(text, "info", "debug", 1))
	if got := p.Logged("configuration changed", "keys"); got != "log_level" {
		t.Errorf("keys = %s, want log_level", got)
	}
	if got := p.Log("")[lines:]; len(got) != 1 {
		t.Errorf("with log_level error it logged %v", got[:len(got)-1])
	}
	p.Signal(syscall.SIGHUP)
	p.Logged("configuration read again, no value has changed", "hash")
	if status, _ := get(t, admin+"/livez"); status != http.StatusOK {
		t.Errorf("/livez = %d after SIGHUP", status)
	}
}

// TestLogLevelIsForgotten: when the key is removed, the default applies again, although the process
// began with another level.
func TestLogLevelIsForgotten(t *testing.T) {
	t.Parallel()
	text := "addr: " + anyPort + "\nadmin_addr: " + anyPort + "\n"
	file := configFileOf(t, "a.yaml", text+"log_level: debug\n")
	p := start(t, env{"PGJET_DATABASE_URL": testenv.DatabaseURL(t)}, "users", "--config", file)
	addr := p.Logged("serving the API", "addr")
	refusal := func() {
		request(t, http.MethodGet, addr+"/users", "", map[string]string{"Authorization": "Bearer none"})
	}
	details := func() int { return strings.Count(p.Stderr.String(), `"level":"DEBUG"`) }
	refusal()
	p.Eventually(patience, "a line at level debug", func() bool { return details() > 0 })
	rewrite(t, file, text)
	p.Logged("configuration changed", "keys")
	before := details()
	refusal()
	p.Signal(syscall.SIGHUP)
	p.Logged("configuration read again, no value has changed", "hash") // so all earlier changes were read, too
	if after := details(); after != before {
		t.Errorf("%d lines at level debug, %d when the configuration had changed: %s", after, before, p)
	}
}

// TestFeatureFlagsFollow: OpenFeature returns what the configuration says now.
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
	go func() { ended <- s.configPart().Run(ctx) }()
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
	p.Ready(p.Logged("starting", "admin"))
	rewrite(t, file, strings.Replace(text, "true", "false", 1)+"log_level: error\naddr: 127.0.0.1:1\n")
	if got := p.Logged("configuration changed", "keys"); got != "flags.profiles" {
		t.Errorf("keys = %s, want flags.profiles", got)
	}
}

// TestDevFollowsItsConfiguration: pgjet dev writes a file, and keeps changes to it.
func TestDevFollowsItsConfiguration(t *testing.T) {
	t.Parallel()
	n := testenv.NATS(t)
	dir, port, database := stateDir(t), freePorts(t), testenv.EmptyDatabaseURL(t)
	r := startDev(t, dir, port, "--database-url", database, "--nats-url", n.URL())
	file := filepath.Join(dir, "pgjet.yaml")
	b, err := os.ReadFile(file)
	if err != nil || !strings.Contains(r.Stdout.String(), `"config":"`+file+`"`) {
		t.Fatalf("%v, and it says %s", err, r.Stdout.String())
	}
	text := string(b)
	for _, want := range []string{"log_level: debug", "\nusers:\n", "\nflags:\n  profiles: true"} {
		if !strings.Contains(text, want) {
			t.Errorf("the file is\n%s\nwant %q", text, want)
		}
	}
	text = strings.Replace(text, "profiles: true", "profiles: false", 1)
	rewrite(t, file, text)
	r.Eventually(patience, "it takes effect", func() bool { return strings.Contains(r.Stderr.String(), "keys=flags.profiles") })
	r.Stop()
	r = startDev(t, dir, port, "--database-url", database, "--nats-url", n.URL())
	if b, err := os.ReadFile(file); err != nil || string(b) != text {
		t.Errorf("the file is now\n%s\n%v", b, err)
	}
	r.Stop()
	rewrite(t, file, "users:\n  request: 5\n")
	refused(t, exitUsage, devArgs(dir, port), file+":2", "did you mean users.requests?")
	if err := os.Rename(file, file+".mine"); err != nil {
		t.Fatal(err)
	}
	own := configFileOf(t, "own.yaml", "database_url: "+database+"\nnats_url: "+n.URL()+"\n")
	r = startDev(t, dir, port, "--config", own)
	if _, err := os.Stat(file); err == nil || !strings.Contains(r.Stdout.String(), own) {
		t.Errorf("it wrote %s (%v), or does not say %s: %s", file, err, own, r.Stdout.String())
	}
}

// followed returns the settings of a process that follows a configuration file.
func followed(t *testing.T, file string, log *slog.Logger) *processSettings {
	t.Helper()
	c := &configuration{schema: config.NewSchema(processKeys(newRoot()), sections(newRoot())...), file: file}
	var err error
	if c.first, err = c.load(); err != nil {
		t.Fatal(err)
	}
	s := &processSettings{}
	s.follow(c, log)
	return s
}
