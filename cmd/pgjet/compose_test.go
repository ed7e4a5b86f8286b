package main

import (
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// A composition is as much of compose.yaml as can be wrong here.
type composition struct {
	Services map[string]composeService `yaml:"services"`
	Volumes  map[string]any            `yaml:"volumes"`
	Configs  map[string]struct {
		Content string `yaml:"content"`
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
		Test []string `yaml:"test"`
	} `yaml:"healthcheck"`
}

// ownServices are those that run pgjet, and whether they go on running.
var ownServices = map[string]bool{"migrate": false, "stream": false, "users": true, "relay": true, "welcome-mailer": true, "directory": true, "onboarding": true, "profiles": true, "billing": true}

// TestComposeRunsEachConsumer: without one of them the others wait for what never comes.
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

// TestComposeAddresses: what our services are told to reach is there, at that port.
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
	database, err := url.Parse(c.Services["users"].Environment["PGJET_DATABASE_URL"])
	if err != nil {
		t.Fatal(err)
	}
	password, _ := database.User.Password()
	for variable, want := range map[string]string{
		"POSTGRES_USER": database.User.Username(), "POSTGRES_PASSWORD": password, "POSTGRES_DB": strings.TrimPrefix(database.Path, "/"),
	} {
		if got := c.Services["postgres"].Environment[variable]; got != want {
			t.Errorf("%s of postgres is %q, our services use %q", variable, got, want)
		}
	}
}

// shared reports whether all our services get the variable, those that do not need
// it, too.
func shared(c composition, variable string) bool {
	for name := range ownServices {
		if c.Services[name].Environment[variable] == "" {
			return false
		}
	}
	return true
}

// flagsOf returns the flags of the command that these words run.
func flagsOf(t *testing.T, service string, words []string) *pflag.FlagSet {
	t.Helper()
	cmd, rest, err := newRoot().Find(words)
	if err == nil {
		err = cmd.ParseFlags(rest)
	}
	if err == nil {
		err = cmd.ValidateArgs(cmd.Flags().Args())
	}
	if err != nil || cmd.HasSubCommands() && !cmd.LocalNonPersistentFlags().HasFlags() { // it only holds others
		t.Fatalf("%s runs pgjet %v, which is no command: %v", service, words, err)
	}
	return cmd.Flags()
}

func TestComposeWiring(t *testing.T) {
	c := readComposition(t)
	listens := map[string][]string{"mailpit": {"8025", "1025"}, "jaeger": {"16686"}}
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
			if c.Configs[config.Source].Content == "" || !strings.Contains(strings.Join(s.Command, " "), config.Target) {
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

// TestComposeNATS: what is acknowledged is on disk, and on a disk that stays.
func TestComposeNATS(t *testing.T) {
	c := readComposition(t)
	o := &server.Options{}
	if err := o.ProcessConfigString(c.Configs["nats"].Content); err != nil {
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

// TestComposeCollector: pipelines name what exists, and the exporters' addresses
// are services.
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
	if err := yaml.Unmarshal([]byte(c.Configs["collector"].Content), &config); err != nil {
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
	if base := regexp.MustCompile(`FROM golang:(\S+)`).FindStringSubmatch(text); base == nil || !strings.Contains(read(t, "go.mod"), "\ngo "+base[1]) {
		t.Errorf("the image builds with Go %v, go.mod wants another", base)
	}
}
