package main

import (
	"cmp"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/pgjet/pgjet/internal/supervisor"
)

// A composition is the part of compose.yaml that the tests check.
type composition struct {
	Services map[string]composeService `yaml:"services"`
	Volumes  map[string]any            `yaml:"volumes"`
	Configs  map[string]struct {
		Content string `yaml:"content"`
		File    string `yaml:"file"`
	} `yaml:"configs"`
}

type composeService struct {
	Image       string            `yaml:"image"`
	Build       string            `yaml:"build"`
	Command     []string          `yaml:"command"`
	Environment map[string]string `yaml:"environment"`
	Ports       []string          `yaml:"ports"`
	Volumes     []string          `yaml:"volumes"`
	Configs     []struct {
		Source string `yaml:"source"`
		Target string `yaml:"target"`
	} `yaml:"configs"`
	DependsOn map[string]struct {
		Condition string `yaml:"condition"`
	} `yaml:"depends_on"`
	Healthcheck struct {
		Test        []string      `yaml:"test"`
		Interval    time.Duration `yaml:"interval"`
		Timeout     time.Duration `yaml:"timeout"`
		Retries     int           `yaml:"retries"`
		StartPeriod time.Duration `yaml:"start_period"`
	} `yaml:"healthcheck"`
	Restart     string        `yaml:"restart"`
	StopGrace   time.Duration `yaml:"stop_grace_period"`
	PullPolicy  string        `yaml:"pull_policy"`
	ReadOnly    bool          `yaml:"read_only"`
	CapDrop     []string      `yaml:"cap_drop"`
	SecurityOpt []string      `yaml:"security_opt"`
	MemLimit    string        `yaml:"mem_limit"`
	Profiles    []string      `yaml:"profiles"`
}

// config returns the text of a config.
func (c composition) config(t *testing.T, name string) string {
	t.Helper()
	if file := c.Configs[name].File; file != "" {
		return read(t, file)
	}
	return c.Configs[name].Content
}

// ownServices are the services that run pgjet, and whether they keep running.
var ownServices = map[string]bool{"migrate": false, "stream": false, "durables": false, "key": false, "operator": false, "users": true, "relay": true, "welcome-mailer": true, "directory": true, "onboarding": true, "profiles": true, "billing": true}

// TestComposeRunsEachConsumer: all consumers run, because others wait for what each of them does.
func TestComposeRunsEachConsumer(t *testing.T) {
	c := readComposition(t)
	for name := range ownConsumers {
		if got := c.Services[name].Command; !slices.Equal(got, []string{"consume", name}) || !ownServices[name] {
			t.Errorf("service %s of compose.yaml runs %q", name, got)
		}
	}
}

func readComposition(t *testing.T) composition {
	t.Helper()
	var c composition
	if err := yaml.Unmarshal([]byte(read(t, "compose.yaml")), &c); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestComposeRunsOurCommands(t *testing.T) {
	c := readComposition(t)
	for name := range ownServices {
		s, ok := c.Services[name]
		if !ok || s.Image != "pgjet" {
			t.Errorf("service %s runs the image %q, want pgjet", name, s.Image)
			continue
		}
		flags := flagsOf(t, name, s.Command)
		for variable, value := range s.Environment {
			flag, ours := strings.CutPrefix(variable, "PGJET_")
			if !ours {
				continue
			}
			flag = strings.ToLower(strings.ReplaceAll(flag, "_", "-"))
			f := flags.Lookup(flag)
			if f == nil {
				if !shared(c, variable) {
					t.Errorf("%s sets %s, but %v has no --%s", name, variable, s.Command, flag)
				}
			} else if err := f.Value.Set(value); err != nil {
				t.Errorf("%s: %s=%s: %v", name, variable, value, err)
			}
		}
	}
	for name := range ownConsumers {
		if !slices.Equal(c.Services[name].Command, []string{"consume", name}) {
			t.Errorf("nothing runs the consumer %s", name)
		}
	}
	if c.Services["migrate"].Build != "." {
		t.Error("nobody builds the image before it is used")
	}
}

// TestComposeAddresses: the addresses that our services are given exist, with those ports.
func TestComposeAddresses(t *testing.T) {
	c := readComposition(t)
	ports := map[string]string{"postgres": "5432", "nats": "4222", "mailpit": "1025", "collector": "4318"}
	for name := range ownServices {
		for variable, value := range c.Services[name].Environment {
			u, err := url.Parse(value)
			if err != nil || u.Host == "" {
				continue // no URL
			}
			if _, ok := c.Services[u.Hostname()]; !ok || u.Port() != ports[u.Hostname()] {
				t.Errorf("%s of %s leads to %s, where nobody listens", variable, name, u.Host)
			}
		}
	}
}

// TestComposeRoles: each service has a user of its own in PostgreSQL, and none is a superuser.
func TestComposeRoles(t *testing.T) {
	c := readComposition(t)
	sql := c.config(t, "roles")
	created := regexp.MustCompile(`login password.*\n +from unnest\(array\[(.*)\]`).FindStringSubmatch(sql)
	if created == nil {
		t.Fatal("roles.sql creates no roles that may log in")
	}
	users := make(map[string]string)
	for name, s := range c.Services {
		text, ok := s.Environment["PGJET_DATABASE_URL"]
		if !ok {
			continue
		}
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		user := u.User.Username()
		if password, _ := u.User.Password(); password != user || !strings.Contains(created[1], "'"+user+"'") {
			t.Errorf("%s connects as %s with the password %q, but roles.sql creates %s, each with its name as password", name, user, password, created[1])
		}
		if other := users[user]; other != "" && user != "operator" { // also runs the commands that prepare the rest
			t.Errorf("%s and %s are both %s", name, other, user)
		}
		users[user] = name
		if database := strings.TrimPrefix(u.Path, "/"); !strings.Contains(sql, "create database "+database+" ") {
			t.Errorf("%s uses the database %s, which roles.sql does not create", name, database)
		}
	}
	if super := cmp.Or(c.Services["postgres"].Environment["POSTGRES_USER"], "postgres"); users[super] != "" {
		t.Errorf("%s connects as superuser", users[super])
	}
}

// TestComposeGrants: only the services that need them can use the tables of the user service.
func TestComposeGrants(t *testing.T) {
	c := readComposition(t)
	for _, table := range []string{"users.users to onboarding", "users.users to operator", "all tables in schema users to users"} {
		if !strings.Contains(c.config(t, "grants"), table) {
			t.Errorf("grants.sql gives nothing on %s", table)
		}
	}
	// As docs/cli.md says it.
	if line := "grant select (id, email, name, state, version), update (state, reason, version) on users.users to onboarding;"; !strings.Contains(c.config(t, "grants"), line) || !strings.Contains(read(t, "docs/cli.md"), line) {
		t.Errorf("grants.sql and docs/cli.md do not both say: %s", line)
	}
}

// shared reports whether all our services get the variable, even those that do not need it.
func shared(c composition, variable string) bool {
	for name := range ownServices {
		if c.Services[name].Environment[variable] == "" {
			return false
		}
	}
	return true
}

// flagsOf returns the flags of a command.
func flagsOf(t *testing.T, service string, words []string) *pflag.FlagSet {
	t.Helper()
	cmd, rest, err := newRoot().Find(words)
	if err == nil {
		err = cmd.ParseFlags(rest)
	}
	if err == nil {
		err = cmd.ValidateArgs(cmd.Flags().Args())
	}
	if err != nil || cmd.HasSubCommands() && !cmd.LocalNonPersistentFlags().HasFlags() { // a group of commands
		t.Fatalf("%s runs pgjet %v, which is no command: %v", service, words, err)
	}
	return cmd.Flags()
}

func TestComposeWiring(t *testing.T) {
	c := readComposition(t)
	listens := map[string][]string{"mailpit": {"8025", "1025"}, "jaeger": {"16686"}, "prometheus": {"9090"}, "grafana": {"3000"}}
	for name := range ownServices {
		for _, variable := range []string{"PGJET_ADDR", "PGJET_ADMIN_ADDR"} {
			if _, port, err := net.SplitHostPort(c.Services[name].Environment[variable]); err == nil {
				listens[name] = append(listens[name], port)
			}
		}
	}
	for name, s := range c.Services {
		for _, published := range s.Ports {
			parts := strings.Split(published, ":")
			if len(parts) != 3 || parts[0] != "127.0.0.1" || !slices.Contains(listens[name], parts[2]) {
				t.Errorf("%s publishes %s, want 127.0.0.1:PORT: and one of %v", name, published, listens[name])
			}
		}
		for other, d := range s.DependsOn {
			on, ok := c.Services[other]
			switch {
			case !ok:
				t.Errorf("%s depends on %s, which is no service", name, other)
			case d.Condition == "service_healthy" && len(on.Healthcheck.Test) == 0:
				t.Errorf("%s waits until %s is healthy, which has no healthcheck", name, other)
			case d.Condition == "service_completed_successfully" && ownServices[other]:
				t.Errorf("%s waits until %s has ended, which runs for ever", name, other)
			}
		}
		for _, config := range s.Configs {
			if name == "prometheus" || name == "grafana" { // see TestComposeIsWatched
				continue
			}
			if c.config(t, config.Source) == "" || !strings.Contains(strings.Join(s.Command, " "), config.Target) {
				t.Errorf("%s mounts the config %s at %s: it is empty, or the command %v does not read it", name, config.Source, config.Target, s.Command)
			}
		}
		for _, v := range s.Volumes {
			if volume, _, _ := strings.Cut(v, ":"); !declared(c, volume) {
				t.Errorf("%s uses the volume %s, which is not declared", name, volume)
			}
		}
	}
	for name, runs := range ownServices {
		check := c.Services[name].Healthcheck.Test
		if want := []string{"CMD", "/pgjet", "ready"}; runs && !slices.Equal(check, want) {
			t.Errorf("healthcheck of %s is %v, want %v", name, check, want)
		}
	}
	for _, name := range []string{"postgres", "nats"} {
		if len(c.Services[name].Healthcheck.Test) < 2 {
			t.Errorf("%s has no healthcheck", name)
		}
	}
}

func declared(c composition, volume string) bool {
	_, ok := c.Volumes[volume]
	return ok
}

// TestComposeNATS: acknowledged messages are on disk, on a volume that is kept.
func TestComposeNATS(t *testing.T) {
	c := readComposition(t)
	o := &server.Options{}
	if err := o.ProcessConfigString(c.config(t, "nats")); err != nil {
		t.Fatal(err)
	}
	if !o.JetStream || !o.SyncAlways || o.HTTPPort == 0 {
		t.Errorf("JetStream %t, sync always %t, monitoring port %d, want all", o.JetStream, o.SyncAlways, o.HTTPPort)
	}
	if want := "nats:" + o.StoreDir; !slices.Contains(c.Services["nats"].Volumes, want) {
		t.Errorf("JetStream stores in %s, volumes are %v", o.StoreDir, c.Services["nats"].Volumes)
	}
	if check := strings.Join(c.Services["nats"].Healthcheck.Test, " "); !strings.Contains(check, ":8222/") || o.HTTPPort != 8222 {
		t.Errorf("healthcheck is %s, the monitoring port %d", check, o.HTTPPort)
	}
}

// TestComposeNATSUsers: each service has an account of its own, as pgjet nats accounts prints
// it. PGJET_UPDATE=1 writes the file again.
func TestComposeNATSUsers(t *testing.T) {
	c := readComposition(t)
	passwords := make(map[string]string)
	var variables strings.Builder
	for _, a := range printedAccounts(t) {
		if a.User != "" {
			passwords[a.User] = a.User
			fmt.Fprintf(&variables, "%s: %s\n", a.variable(), a.User)
		}
	}
	head, _, found := strings.Cut(c.config(t, "nats"), natsAccountsBegin)
	text := head + natsAccountsBegin + variables.String() + must(t, exitOK, "nats", "accounts")
	if os.Getenv("PGJET_UPDATE") != "" {
		if err := os.WriteFile(filepath.Join(root, c.Configs["nats"].File), []byte(text), 0o644); err != nil { //nolint:gosec // the container's user reads it
			t.Fatal(err)
		}
	} else if !found || c.config(t, "nats") != text {
		t.Errorf("%s is not what pgjet nats accounts prints; run: PGJET_UPDATE=1 go test -run TestComposeNATSUsers ./cmd/pgjet", c.Configs["nats"].File)
	}
	taken := map[string]string{}
	for name := range ownServices {
		text := c.Services[name].Environment["PGJET_NATS_URL"]
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if text == "" {
			continue
		}
		user := u.User.Username()
		if password, _ := u.User.Password(); password != passwords[user] || password == "" {
			t.Errorf("%s connects to NATS as %q, which is no user of it", name, user)
		}
		if other := taken[user]; other != "" && user != "operator" {
			t.Errorf("%s and %s are both %s", name, other, user)
		}
		taken[user] = name
		if domain := c.Services[name].Environment["PGJET_NATS_DOMAIN"]; domain != accountsDomain {
			t.Errorf("%s looks for the stream in the domain %q, want %s", name, domain, accountsDomain)
		}
	}
}

const natsAccountsBegin = "# The passwords of the users below are examples.\n"

// TestComposeSurvives: a service that ends is restarted, one that stops gets the time it needs, and
// an outage shows soon.
func TestComposeSurvives(t *testing.T) {
	for name, s := range readComposition(t).Services {
		runs, own := ownServices[name]
		oneShot := own && !runs || slices.Contains([]string{"roles", "grants"}, name)
		switch {
		case name == "operator":
		case oneShot && !strings.HasPrefix(s.Restart, "on-failure:"):
			t.Errorf("%s runs once; if it fails, restart is %q, want some tries", name, s.Restart)
		case !oneShot && s.Restart != "unless-stopped":
			t.Errorf("restart of %s is %q", name, s.Restart)
		}
		if runs {
			const attempt, requests, traces = 20 * time.Second, supervisor.Grace, 5 * time.Second
			if s.StopGrace < attempt+requests+traces {
				t.Errorf("%s is killed after %s, and may take %s to stop", name, s.StopGrace, attempt+requests+traces)
			}
		}
		if h := s.Healthcheck; len(h.Test) > 0 {
			if h.Retries != 3 || h.Interval < time.Second || 3*h.Interval > 15*time.Second || h.StartPeriod < 10*time.Second || h.Timeout < 5*time.Second {
				t.Errorf("the health check of %s is %+v: it shows an outage late, or does not wait for the start", name, h)
			}
		}
	}
}

// TestComposeHardened: our services have the least rights on the machine, and one of them builds
// the image, once.
func TestComposeHardened(t *testing.T) {
	c := readComposition(t)
	for name, runs := range ownServices {
		s := c.Services[name]
		if !s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) || !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
			t.Errorf("%s: read_only %t, cap_drop %v, security_opt %v", name, s.ReadOnly, s.CapDrop, s.SecurityOpt)
		}
		if runs && s.MemLimit == "" {
			t.Errorf("%s may take all of the machine's memory", name)
		}
		if s.PullPolicy != "never" || (s.Build != "") != (name == "migrate") {
			t.Errorf("%s: pull_policy %q, build %q: want one service, migrate, to build the image, and nobody to fetch it", name, s.PullPolicy, s.Build)
		}
		if name != "migrate" && name != "operator" && !waitsFor(c, name, "migrate") {
			t.Errorf("%s does not wait for migrate, which builds its image", name)
		}
	}
}

// waitsFor reports whether a service depends on another one, directly or not.
func waitsFor(c composition, name, other string) bool {
	for on := range c.Services[name].DependsOn {
		if on == other || waitsFor(c, on, other) {
			return true
		}
	}
	return false
}

// TestComposeCollector: pipelines refer to what exists, and the addresses of the exporters are
// services.
func TestComposeCollector(t *testing.T) {
	c := readComposition(t)
	var config struct {
		Receivers map[string]any `yaml:"receivers"`
		Exporters map[string]struct {
			Endpoint string `yaml:"endpoint"`
		} `yaml:"exporters"`
		Service struct {
			Pipelines map[string]struct {
				Receivers []string `yaml:"receivers"`
				Exporters []string `yaml:"exporters"`
			} `yaml:"pipelines"`
		} `yaml:"service"`
	}
	if err := yaml.Unmarshal([]byte(c.config(t, "collector")), &config); err != nil {
		t.Fatal(err)
	}
	for _, signal := range []string{"traces", "metrics"} {
		p := config.Service.Pipelines[signal]
		if len(p.Receivers) == 0 || len(p.Exporters) == 0 {
			t.Errorf("%s go from %v to %v", signal, p.Receivers, p.Exporters)
		}
		for _, name := range p.Receivers {
			if _, ok := config.Receivers[name]; !ok {
				t.Errorf("%s come from %s, which is no receiver", signal, name)
			}
		}
		for _, name := range p.Exporters {
			e, ok := config.Exporters[name]
			host, _, _ := net.SplitHostPort(e.Endpoint)
			if _, service := c.Services[host]; !ok || host != "" && !service {
				t.Errorf("%s go to %s at %q, which is no exporter or no service", signal, name, e.Endpoint)
			}
		}
	}
	for name, runs := range ownServices {
		if got := c.Services[name].Environment["OTEL_EXPORTER_OTLP_ENDPOINT"]; runs && got != "http://collector:4318" {
			t.Errorf("%s sends its traces to %q", name, got)
		}
	}
}

func TestDockerfile(t *testing.T) {
	text := read(t, "Dockerfile")
	built := regexp.MustCompile(`go build .*-o (\S+) (\S+)`).FindStringSubmatch(text)
	if built == nil {
		t.Fatal("the Dockerfile does not build anything")
	}
	if _, err := os.Stat(filepath.Join(root, built[2], "main.go")); err != nil {
		t.Error(err)
	}
	for _, want := range []string{
		`COPY --from=build ` + built[1] + " " + built[1],
		`ENTRYPOINT ["` + built[1] + `"]`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the Dockerfile lacks %s", want)
		}
	}
	user := regexp.MustCompile(`(?m)^USER (\S+)`).FindStringSubmatch(text)
	if user == nil || slices.Contains([]string{"root", "0"}, user[1]) {
		t.Errorf("the user is %v, want one that is not root", user)
	}
	if user == nil || !regexp.MustCompile(`^[1-9][0-9]*:[1-9][0-9]*$`).MatchString(user[1]) || !strings.Contains(text, "--chown="+user[1]+" ") {
		t.Errorf("the user is %v, want a number, as Kubernetes' runAsNonRoot does, who owns the directory for state", user)
	}
	for _, cache := range []string{"/go/pkg/mod", "/root/.cache/go-build"} {
		if !strings.Contains(text, "--mount=type=cache,target="+cache) {
			t.Errorf("the image is built without a cache for %s", cache)
		}
	}
	if base := regexp.MustCompile(`FROM golang:(\S+)`).FindStringSubmatch(text); base == nil || !strings.Contains(read(t, "go.mod"), "\ngo "+base[1]) {
		t.Errorf("the image builds with Go %v, go.mod wants another", base)
	}
}
