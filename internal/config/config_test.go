package config_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgjet/pgjet/internal/config"
)

// secret is a password that must never be shown.
const secret = "s3cretpw"

type tuning struct {
	BatchSize int           `koanf:"batch_size" validate:"min=1,max=1000"`
	Share     float64       `koanf:"share" validate:"min=0,max=1"`
	Trials    uint          `koanf:"trials" validate:"min=1"`
	Successes uint          `koanf:"successes" validate:"min=1,max=9,ltefield=Trials"`
	URL       string        `koanf:"url" validate:"omitempty,http_url"`
	Cache     cache         `koanf:"cache"`
	Delay     time.Duration `koanf:"delay" validate:"min=0"`
}

type cache struct {
	Enabled bool          `koanf:"enabled"`
	TTL     time.Duration `koanf:"ttl" validate:"min=1ms,max=1h"`
}

func schema() *config.Schema {
	number := func(text string) (string, error) { n, err := strconv.Atoi(text); return strconv.Itoa(n), err }
	return config.NewSchema([]config.Key{
		{Name: "database_url", Secret: true, Used: true},
		{Name: "stream", Default: "EVENTS", Used: true, Usage: "name of the stream"},
		{Name: "port", Default: "7400", Want: "a whole number", Parse: number},
		{Name: "smtp_url", Secret: true},
		{Name: "log_level", Default: "info", Used: true, Live: true},
	},
		config.Section{Name: "users", Default: tuning{BatchSize: 100, Trials: 1, Successes: 1, Delay: time.Second, Cache: cache{true, 10 * time.Second}}},
		config.Section{Name: "services.billing", Default: cache{true, time.Second}},
		config.Section{Name: "flags", Default: map[string]bool{"profiles": true, "teams": false}},
	)
}

// file writes a file that only its owner can read.
func file(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	write(t, path, text)
	return path
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func load(t testing.TB, path string, environ ...string) *config.Config {
	t.Helper()
	c, err := schema().Load(path, environ, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// value returns the value of a key as config show has it.
func value(t testing.TB, c *config.Config, key string) config.Value {
	t.Helper()
	all := c.Values()
	i := slices.IndexFunc(all, func(v config.Value) bool { return v.Key == key })
	if i < 0 {
		t.Fatalf("there is no key %s", key)
	}
	return all[i]
}

// TestLayersWinInOrder: default, file, variable, flag, for each key separately.
func TestLayersWinInOrder(t *testing.T) {
	for name, text := range map[string]string{
		"pgjet.yaml": "port: 1\nstream: FILE\nlog_level: warn\nusers:\n  batch_size: 7\n  share: 0.5\n  trials: 2\n  cache:\n    ttl: 60s\n",
		"pgjet.toml": "port = 1\nstream = \"FILE\"\nlog_level = \"warn\"\n[users]\nbatch_size = 7\nshare = 0.5\ntrials = 2\n[users.cache]\nttl = \"60s\"\n",
	} {
		t.Run(name, func(t *testing.T) {
			path := file(t, name, text)
			environ := []string{"PGJET_USERS__BATCH_SIZE=8", "PGJET_FLAGS__TEAMS=true", "PGJET_USERS__SHARE=", "OTHER__KEY=1", "PGJET_USERS_PORT=tcp://10.0.0.1:80"}
			c, err := schema().Load(path, environ, []config.Value{{Key: "stream", Text: "FLAG", Origin: "--stream"}, {Key: "reason", Text: "x", Origin: "--reason"}})
			if err != nil {
				t.Fatal(err)
			}
			for key, want := range map[string][2]string{
				"smtp_url":         {"", "default"},
				"port":             {"1", path + ":1"},
				"log_level":        {"warn", path + ":3"},
				"stream":           {"FLAG", "--stream"},
				"users.batch_size": {"8", "PGJET_USERS__BATCH_SIZE"},
				"users.share":      {"0.5", path + ":6"},
				"users.delay":      {"1s", "default"},
				"users.cache.ttl":  {"1m0s", path + map[string]string{"pgjet.yaml": ":9", "pgjet.toml": ":9"}[name]},
				"flags.teams":      {"true", "PGJET_FLAGS__TEAMS"},
			} {
				if got := value(t, c, key); got.Text != want[0] || got.Origin != want[1] {
					t.Errorf("%s = %q from %q, want %q from %q", key, got.Text, got.Origin, want[0], want[1])
				}
			}
			want := tuning{BatchSize: 8, Share: 0.5, Trials: 2, Successes: 1, Delay: time.Second, Cache: cache{true, time.Minute}}
			if got := config.Get[tuning](c, "users"); got != want {
				t.Errorf("users = %+v, want %+v", got, want)
			}
			if got := config.Get[map[string]bool](c, "flags"); !got["teams"] || !got["profiles"] || len(got) != 2 {
				t.Errorf("flags = %v, want both", got)
			}
			if got := config.Get[cache](c, "services.billing"); got != (cache{true, time.Second}) {
				t.Errorf("services.billing = %+v, want the default", got)
			}
		})
	}
}

// TestBadFiles: the error says what is wrong, where, and what is valid.
func TestBadFiles(t *testing.T) {
	bomb := "a: &a [x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c < 'z'; c++ {
		bomb += fmt.Sprintf("%c: &%c [*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c]\n", c, c, c-1, c-1, c-1, c-1, c-1, c-1, c-1, c-1)
	}
	for _, row := range []struct {
		name, text string
		says       []string
	}{
		{"unknown.yaml", "users:\n  batch_szie: 5\n", []string{":2: unknown key \"users.batch_szie\", did you mean users.batch_size?"}},
		{"unknown.toml", "[users]\nbatch_szie = 5\n", []string{":2: unknown key \"users.batch_szie\", did you mean users.batch_size?"}},
		{"flagstyle.yaml", "database-url: postgres://h\n", []string{`unknown key "database-url", did you mean database_url?`}},
		{"unknownsection.yaml", "userz:\n  batch_size: 5\n  x: 1\n", []string{`:1: unknown key "userz", did you mean users?`}},
		{"unknownservice.yaml", "services:\n  biling:\n    ttl: 5s\n", []string{`:2: unknown key "services.biling", did you mean services.billing?`}},
		{"misplaced.yaml", "batch_size: 5\n", []string{`"batch_size", did you mean users.batch_size?`}},
		{"strange.yaml", "completely_different_thing: 5\n", []string{`unknown key "completely_different_thing"`}},
		{"unknownflag.yaml", "flags:\n  profile: true\n", []string{"did you mean flags.profiles?"}},
		{"dotted.yaml", "users.batch_size: 5\nusers:\n  batch_size: 6\n", []string{"users.batch_size is set already in line 1"}},
		{"number.yaml", "users:\n  cache:\n    ttl: 10\n", []string{`:3: users.cache.ttl is "10", want a duration such as 500ms, from 1ms to 1h`}},
		{"parsecs.yaml", "users: {cache: {ttl: 10 parsecs}}\n", []string{`is "10 parsecs", want a duration such as 500ms`}},
		{"bool.yaml", "flags:\n  profiles: yes\n", []string{`flags.profiles is "yes", want true or false`}},
		{"zero.yaml", "users:\n  batch_size: 0\n", []string{`:2: users.batch_size is "0", want a whole number, from 1 to 1000`}},
		{"negative.yaml", "users:\n  delay: -1s\n  trials: -1\n", []string{`users.trials is "-1", want a whole number, 1 or more`}},
		{"negativedelay.yaml", "users:\n  delay: -1s\n", []string{`users.delay is "-1s", want a duration such as 500ms, 0 or more`}},
		{"exponent.yaml", "users:\n  batch_size: 1e12\n", []string{`"1e12", want a whole number`}},
		{"overflow.toml", "users.batch_size = 9223372036854775808\n", []string{":1: not TOML"}},
		{"huge.yaml", "users:\n  batch_size: 99999999999999999999\n", []string{"want a whole number, from 1 to 1000"}},
		{"nan.yaml", "users:\n  share: NaN\n", []string{`users.share is "NaN", want a number, from 0 to 1`}},
		{"url.yaml", "users:\n  url: billing:80\n", []string{`users.url is "billing:80", want text such as http://host:8080`}},
		{"passwordinurl.yaml", "users:\n  url: ftp://ann:" + secret + "@host\n", []string{`users.url is "****", want`}},
		{"both.yaml", "users:\n  successes: 3\n  trials: 2\n", []string{`users.successes is "3", want a whole number, from 1 to 9, at most trials`}},
		{"text.yaml", "port: http\n", []string{`:1: port is "http", want a whole number`}},
		{"variable.yaml", "port: ${UNSET}\n", []string{`port is "${UNSET}" (there are no variables in a file)`}},
		{"list.yaml", "stream: [A, B]\n", []string{":1: stream is a section or a list, want a single value"}},
		{"list.toml", "stream = [\"A\"]\n", []string{":1: stream is a section or a list"}},
		{"sectionforvalue.yaml", "stream:\n  name: A\n", []string{":1: stream is a section or a list"}},
		{"valueforsection.yaml", "users: 5\n", []string{":1: users is a section, want keys below it"}},
		{"listforsection.yaml", "users: [1]\n", []string{":1: users is a section, want keys below it"}},
		{"twice.yaml", "stream: A\nport: 1\nstream: B\n", []string{":3: stream is set already in line 1"}},
		{"twice.toml", "stream = \"A\"\nstream = \"B\"\n", []string{"not TOML: key stream is already defined"}},
		{"tab.yaml", "users:\n\tbatch_size: 5\n", []string{"not YAML: line 2", "indent with spaces"}},
		{"syntax.yaml", "users: [1\nstream: \"" + secret + "\n", []string{"not YAML: line"}},
		{"syntax.toml", "database_url = postgres://ann:" + secret + "@host\n", []string{":1: not TOML"}},
		{"anchor.yaml", "database_url: *" + secret + "\n", []string{"not YAML"}},
		{"alias.yaml", "stream: &s A\nlog_level: *s\n", []string{":2: log_level is an alias, which is not allowed"}},
		{"bomb.yaml", bomb, []string{`:1: unknown key "a"`, `:25: unknown key "y"`}},
		{"merge.yaml", "users: &u\n  batch_size: 5\nservices:\n  billing:\n    <<: *u\n", []string{":5: services.billing.<< is an alias"}},
		{"two.yaml", "stream: A\n---\nstream: B\n", []string{"more than one document"}},
		{"word.yaml", "users\n", []string{":1: not keys and values"}},
		{"latin1.yaml", "stream: \xe9\n", []string{"is not UTF-8"}},
		{"utf16.yaml", "\xff\xfes\x00\n\x00", []string{"is not UTF-8"}},
		{"json.json", `{"stream":"A"}`, []string{"neither .yaml nor .yml nor .toml"}},
		{"large.yaml", strings.Repeat("#", 1<<20) + "\n", []string{"more than 1048576 bytes"}},
		{"deep.yaml", strings.Repeat("{a: ", 9000) + "1" + strings.Repeat("}", 9000), []string{`unknown key "a"`}},
		{"long.toml", strings.Repeat("x", 900_000) + " = 1\n", []string{`unknown key "xxx`, "…"}},
		{"many.yaml", "s" + strings.Repeat(": 1\ns", 20_000) + ": 1\n", []string{":100: s is set already", "and 19901 more"}},
		{"tooDeep.yaml", strings.Repeat("[", 200_000), []string{"not YAML"}},
		{
			"all.yaml", "stream: A\nusers:\n  batch_size: 0\n  cache:\n    ttl: soon\nport: x\nnonsense: 1\n",
			[]string{":3: users.batch_size", ":5: users.cache.ttl", ":6: port", `:7: unknown key "nonsense"`},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			path, begun := file(t, row.name, row.text), time.Now()
			c, err := schema().Load(path, nil, nil)
			if err == nil {
				t.Fatalf("Load() = %v, want an error", c.Values())
			}
			if took := time.Since(begun); took > 15*time.Second { // at most a quarter of a second without the race detector
				t.Errorf("it took %s", took)
			}
			check(t, err, append(row.says, path)...)
		})
	}
}

// check fails the test unless err says all of this, in lines without a secret.
func check(t *testing.T, err error, says ...string) {
	t.Helper()
	text := fmt.Sprint(err)
	if strings.Contains(text, secret) {
		t.Errorf("the error shows the secret: %s", text)
	}
	for _, w := range says {
		if !strings.Contains(text, w) {
			t.Errorf("the error is\n%.2000s\nwant it to say\n%s", text, w)
		}
	}
}

// TestGoodFiles: unusual but valid forms of files.
func TestGoodFiles(t *testing.T) {
	for name, row := range map[string]struct{ file, text, stream string }{
		"empty":           {"a.yaml", "", "EVENTS"},
		"empty TOML":      {"a.toml", "", "EVENTS"},
		"comments":        {"a.yaml", "# stream: A\n", "EVENTS"},
		"null":            {"a.yaml", "~\n", "EVENTS"},
		"no values":       {"a.yml", "users:\n  cache:\nstream:\n", "EVENTS"},
		"byte order mark": {"a.yaml", "\ufeffstream: A\n", "A"},
		"BOM in TOML":     {"a.toml", "\ufeffstream = 'A'\n", "A"},
		"CRLF":            {"a.yaml", "port: 1\r\nstream: A\r\n", "A"},
		"as it stands":    {"a.yaml", "stream: 007\n", "007"},
		"no variables":    {"a.yaml", "stream: ${UNSET}\n", "${UNSET}"},
		"one document":    {"a.yaml", "---\nstream: A\n...\n", "A"},
		"extension":       {"a.YAML", "stream: A\n", "A"},
		"braces":          {"a.yaml", "{}", "EVENTS"},
		"empty texts":     {"a.yaml", "stream: \"\"\nport: ''\nusers: ''\ndatabase_url_file: ''\n", "EVENTS"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := value(t, load(t, file(t, row.file, row.text)), "stream").Text; got != row.stream {
				t.Errorf("stream = %q, want %q", got, row.stream)
			}
		})
	}
	path := file(t, "real.yaml", "stream: A\n")
	link := filepath.Join(t.TempDir(), "link.yaml")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if got := value(t, load(t, link), "stream"); got.Text != "A" || got.Origin != link+":1" {
		t.Errorf("through a link stream = %v", got)
	}
}

// TestNoFile: files that cannot be read at all.
func TestNoFile(t *testing.T) {
	dir := t.TempDir()
	pipe, closed := filepath.Join(dir, "pipe.yaml"), filepath.Join(dir, "closed.yaml")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	write(t, closed, "")
	if err := os.Chmod(closed, 0); err != nil {
		t.Fatal(err)
	}
	for path, says := range map[string]string{
		filepath.Join(dir, "none.yaml"): "no such file or directory",
		dir:                             "is a directory, want a regular file",
		pipe:                            "is a pipe, want a regular file",
		os.DevNull:                      "is a device or socket",
		closed:                          "permission denied",
	} {
		if path == closed && os.Getuid() == 0 {
			continue // root may read everything
		}
		_, err := schema().Load(path, nil, nil)
		check(t, err, path, says)
	}
}

func TestBadVariables(t *testing.T) {
	for _, row := range []struct{ variable, says string }{
		{"PGJET_USERS__CACHE__TTL=soon", `PGJET_USERS__CACHE__TTL: users.cache.ttl is "soon", want a duration such as 500ms`},
		{"PGJET_USERS__BATCH_SIZE=0", `PGJET_USERS__BATCH_SIZE: users.batch_size is "0", want a whole number, from 1 to 1000`},
		{"PGJET_USERS__CACHE__TLL=1s", "environment variable PGJET_USERS__CACHE__TLL: unknown key \"users.cache.tll\", did you mean users.cache.ttl?"},
		{"PGJET_USERS_BATCH_SIZE=7", "did you mean PGJET_USERS__BATCH_SIZE?"},
		{"PGJET_SERVICES__BILLING__ENABLED=maybe", "want true or false"},
	} {
		_, err := schema().Load("", []string{row.variable}, nil)
		check(t, err, row.says)
	}
}

// TestSecretsFromFiles: the secret is the content of the file that the winning layer names.
func TestSecretsFromFiles(t *testing.T) {
	url := "postgres://ann:" + secret + "@host/x"
	from, other := file(t, "url", "\n "+url+"\n"), file(t, "other", "postgres://other/x")
	named := file(t, "a.yaml", "database_url_file: "+from+"\nsmtp_url_file: /not/of/this/process\n")
	for _, row := range []struct {
		name, path   string
		environ      []string
		given        []config.Value
		want, origin string
	}{
		{"by file", named, nil, nil, url, named + ":1"},
		{"by variable", "", []string{"PGJET_DATABASE_URL_FILE=" + from}, nil, url, "PGJET_DATABASE_URL_FILE"},
		{"variable over file", named, []string{"PGJET_DATABASE_URL_FILE=" + other}, nil, "postgres://other/x", "PGJET_DATABASE_URL_FILE"},
		{
			"variable over a value", file(t, "b.yaml", "database_url: postgres://b\n"), []string{"PGJET_DATABASE_URL_FILE=" + from},
			nil, url, "PGJET_DATABASE_URL_FILE",
		},
		{
			"flag over a file that is not there", "", []string{"PGJET_DATABASE_URL_FILE=/not/there"},
			[]config.Value{{Key: "database_url", Text: "postgres://c", Origin: "--database-url"}}, "postgres://c", "--database-url",
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			c, err := schema().Load(row.path, row.environ, row.given)
			if err != nil {
				t.Fatal(err)
			}
			if got, _ := c.Lookup("database_url"); got.Text != row.want || got.Origin != row.origin {
				t.Errorf("database_url is from %q, want it from %q, and right", got.Origin, row.origin)
			}
			if strings.Contains(fmt.Sprint(c.Values(), c.Warnings()), secret) {
				t.Errorf("the secret is shown: %v %v", c.Values(), c.Warnings())
			}
		})
	}
	for _, row := range []struct {
		path    string
		environ []string
		says    []string
	}{
		{file(t, "c.yaml", "database_url: "+url+"\ndatabase_url_file: "+from+"\n"), nil, []string{"c.yaml:2", "database_url and database_url_file are both given"}},
		{"", []string{"PGJET_DATABASE_URL=x", "PGJET_DATABASE_URL_FILE=" + from}, []string{"PGJET_DATABASE_URL and PGJET_DATABASE_URL_FILE are both given"}},
		{"", []string{"PGJET_DATABASE_URL_FILE=/not/there"}, []string{"PGJET_DATABASE_URL_FILE: ", "/not/there", "no such file"}},
		{"", []string{"PGJET_DATABASE_URL_FILE=" + file(t, "void", "\n")}, []string{"is empty, want the value of database_url"}},
		{file(t, "d.yaml", "stream_file: x\n"), nil, []string{`unknown key "stream_file"`}},
	} {
		_, err := schema().Load(row.path, row.environ, nil)
		check(t, err, row.says...)
	}
}

// TestMask: an address is shown if it cannot hold a password.
func TestMask(t *testing.T) {
	for text, shown := range map[string]bool{
		"postgres://db.example:5432/users":  true,
		"nats://a:4222,nats://[::1]:4222":   true,
		"postgres://ann:" + secret + "@h/x": false,
		"postgres://ann:" + secret + "/x":   false,
		"postgres://h/x?password=" + secret: false,
		"host=h password=" + secret:         false,
		"nats://a,nats://" + secret + "@b":  false,
		secret:                              false,
	} {
		c, err := schema().Load("", nil, []config.Value{{Key: "database_url", Text: text, Origin: "--database-url"}})
		if err != nil {
			t.Fatal(err)
		}
		want := "****"
		if shown {
			want = text
		}
		if got := value(t, c, "database_url").Text; got != want {
			t.Errorf("%q is shown as %q, want %q", text, got, want)
		}
	}
	for text, want := range map[string]string{
		"https://ann:" + secret + "@h/x": "****", // of whichever key
		"https://h/x?y=z":                "https://h/x?y=z",
		"pgjet <ann@example.com>":        "pgjet <ann@example.com>",
	} {
		if got := value(t, load(t, file(t, "a.yaml", "stream: "+text+"\n")), "stream").Text; got != want {
			t.Errorf("%q is shown as %q, want %q", text, got, want)
		}
	}
}

// TestWarnsOfOpenSecrets: one warning, with the key and without the value.
func TestWarnsOfOpenSecrets(t *testing.T) {
	for _, row := range []struct {
		text string
		mode os.FileMode
		want int
	}{
		{"database_url: postgres://ann:" + secret + "@h/x\n", 0o644, 1},
		{"database_url: postgres://ann:" + secret + "@h/x\n", 0o640, 1},
		{"database_url: postgres://ann:" + secret + "@h/x\n", 0o600, 0},
		{"database_url: postgres://h/x\n", 0o644, 0},
		{"database_url_file: /run/secrets/url\n", 0o644, 0},
	} {
		path := file(t, "a.yaml", row.text)
		if err := os.Chmod(path, row.mode); err != nil {
			t.Fatal(err)
		}
		c, err := config.NewSchema([]config.Key{{Name: "database_url", Secret: true}}).Load(path, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		w := c.Warnings()
		if len(w) != row.want || row.want > 0 && (!strings.Contains(w[0], "database_url") || !strings.Contains(w[0], path)) {
			t.Errorf("with mode %o: warnings are %q, want %d", row.mode, w, row.want)
		}
		check(t, errors.New(strings.Join(w, "")))
	}
}

// TestHash: it changes with a value, and not with a secret, a comment or the form of a value.
func TestHash(t *testing.T) {
	hash := func(text string) string { return load(t, file(t, "a.yaml", text)).Hash() }
	base := hash("users:\n  cache:\n    ttl: 1m\n")
	if other := hash("# a comment\nusers: {cache: {ttl: 60s}}\ndatabase_url: postgres://h\n"); other != base {
		t.Errorf("the hash is %s, want %s as before", other, base)
	}
	for _, text := range []string{"users: {cache: {ttl: 61s}}\n", "users: {cache: {ttl: 1m}}\nstream: A\n"} {
		if hash(text) == base {
			t.Errorf("the hash does not change with %q", text)
		}
	}
}

// TestWrite: the output of Write is valid, and changes nothing.
func TestWrite(t *testing.T) {
	var b strings.Builder
	if err := schema().Write(&b); err != nil {
		t.Fatal(err)
	}
	c := load(t, file(t, "a.yaml", b.String()))
	if got, want := c.Hash(), load(t, "").Hash(); got == want {
		t.Errorf("log_level is not set by\n%s", b.String())
	}
	plain := load(t, "")
	for _, v := range c.Values() {
		if want := value(t, plain, v.Key); v.Text != want.Text {
			t.Errorf("%s = %q, want %q", v.Key, v.Text, want.Text)
		}
	}
	for _, want := range []string{"\n# stream: EVENTS", "\nservices:\n  billing:\n    enabled: true ", "\n  cache:\n    enabled: true ", "\n  delay: 1s ", "\n  teams: false "} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("it writes\n%s\nwant %q in it", b.String(), want)
		}
	}
}

// FuzzConfig: any file is valid as a whole, or gives an error that names it; a valid one
// keeps the rules.
func FuzzConfig(f *testing.F) {
	for _, seed := range []string{
		"", "users:\n  batch_size: 5\n", "users: {cache: {ttl: 10s}}", "[users]\nbatch_size = 5", "a: &a [*a]", "\t", "{", "- a", "? [a]\n: b",
		"users:\n  <<: {batch_size: 0}", "'users': ~", "flags.profiles = false", "stream: !!binary aGk=", "---\n---\n", "\ufeff", "users.cache.ttl = 1979-05-27",
	} {
		f.Add(seed, true)
		f.Add(seed, false)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text string, asTOML bool) {
		path := filepath.Join(dir, map[bool]string{true: "a.toml", false: "a.yaml"}[asTOML])
		write(t, path, text)
		c, err := schema().Load(path, nil, nil)
		if err != nil {
			if !strings.Contains(err.Error(), path) {
				t.Errorf("Load() = %v, want an error that names the file", err)
			}
			return
		}
		u := config.Get[tuning](c, "users")
		if u.BatchSize < 1 || u.BatchSize > 1000 || u.Cache.TTL < time.Millisecond || u.Cache.TTL > time.Hour || u.Delay < 0 || !(u.Share >= 0 && u.Share <= 1) || u.Trials < 1 {
			t.Errorf("users = %+v breaks the rules, from %q", u, text)
		}
		for _, v := range c.Values() {
			if v.Origin == "" {
				t.Errorf("%s has no origin", v.Key)
			}
		}
	})
}
