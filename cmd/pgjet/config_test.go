//go:build unix

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"github.com/pgjet/pgjet/internal/testenv"
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

// shownConfig is the output of pgjet config show -o json.
type shownConfig struct {
	File, Hash string
	Keys       []struct{ Key, Value, Origin string }
}

func showConfigOf(t *testing.T, vars env, args ...string) (all map[string][2]string, hash string) {
	t.Helper()
	code, p := runProcess(t, vars, append([]string{"config", "show", "-o", "json"}, args...)...)
	var c shownConfig
	if err := json.Unmarshal([]byte(p.Stdout.String()), &c); code != exitOK || err != nil {
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
	if out := p.Stdout.String(); code != exitOK || !regexp.MustCompile(`users\.cache\.ttl +1m0s +`+regexp.QuoteMeta(file)+":7\n").MatchString(out) || !strings.Contains(out, "hash "+hash) {
		t.Errorf("exit code %d, want the same in a table, of %s", code, p)
	}
}

// TestEveryTuningIsDocumented: each key that may change while a process runs.
func TestEveryTuningIsDocumented(t *testing.T) {
	all, _ := showConfigOf(t, nil)
	for key := range all {
		doc, name := "docs/configuration.md", key
		if section, ok := strings.CutPrefix(key, "services."); ok {
			_, name, _ = strings.Cut(section, ".")
			doc = "docs/services.md"
		} else if flag, ok := strings.CutPrefix(key, "flags."); ok {
			name = flag
		} else if !strings.Contains(key, ".") {
			continue // a flag of the command line
		}
		if !strings.Contains(read(t, doc), "\n| `"+name+"` |") {
			t.Errorf("%s does not explain %s", doc, key)
		}
	}
}

// TestConfigValidate: the command reports everything that is wrong, and so does every other
// command.
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
	if code != exitUsage || !strings.Contains(p.Stderr.String(), "PGJET_USERS__CACHE__TTL") {
		t.Errorf("exit code %d, want 2 and the variable, of %s", code, p)
	}
	code, p = runProcess(t, env{"PGJET_DATABASE_URL": "x", "PGJET_DATABASE_URL_FILE": good}, "users")
	if code != exitUsage || !strings.Contains(p.Stderr.String(), "both given") {
		t.Errorf("exit code %d, want 2 and the reason, of %s", code, p)
	}
}

// TestConfigInit: the printed file is valid and contains the defaults.
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

// TestOneFileForAll: a command uses the keys of a file for which it has flags. A secret may be in a
// file of its own.
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

// TestParsingAKeyLeavesItsFlag: a file is read again while a process runs, and must not change what the process uses. Each
// default is a valid value.
func TestParsingAKeyLeavesItsFlag(t *testing.T) {
	t.Parallel()
	root := newRoot()
	values := func() (all []string) {
		visitKeys(root, func(process string, f *pflag.Flag) { all = append(all, process+" --"+f.Name+" "+f.Value.String()) })
		return all
	}
	before := values()
	for _, k := range processKeys(root) {
		if k.Name == "stream" {
			if text, err := k.Parse("OTHER"); text != "OTHER" || err != nil {
				t.Errorf("parsed %q (%v), want OTHER", text, err)
			}
		} else if text, err := k.Parse(k.Default); k.Default != "" && (text != k.Default || err != nil) {
			t.Errorf("%s: the default %q is parsed as %q (%v)", k.Name, k.Default, text, err)
		}
	}
	if diff := cmp.Diff(before, values()); diff != "" {
		t.Errorf("flags changed:\n%s", diff)
	}
}
