package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pgjet/pgjet/internal/testenv"
)

// TestComposeRun runs compose.yaml on a Docker engine, as a project of its own: it starts,
// signs people up, kills each service, lets PostgreSQL hang, stops, and leaves nothing behind.
// make compose-test runs it.
func TestComposeRun(t *testing.T) {
	if os.Getenv("PGJET_COMPOSE") == "" {
		t.Skip("needs a Docker engine: make compose-test")
	}
	if out, err := try(10*time.Second, "docker", "version", "--format", "{{.Server.Version}}"); err != nil {
		t.Skipf("NOTHING WAS TESTED: no Docker engine answers: %s", out)
	}
	c := newComposed(t)
	c.images()
	c.tidy()
	c.compose(20*time.Minute, "build")
	c.compose(5*time.Minute, "up", "--detach", "--wait")
	c.quiet()
	c.flows("it has started")
	c.compose(3*time.Minute, "up", "--detach", "--wait", "--scale", "relay=2")
	c.operates()
	c.keeps()
	for _, name := range slices.Sorted(maps.Keys(c.file.Services)) {
		if c.file.Services[name].Restart == "unless-stopped" {
			c.dies(name)
			c.flows(name + " was killed")
		}
	}
	c.hangs()
	c.stops()
}

// A composed is compose.yaml as a project of its own on an engine.
type composed struct {
	t       *testing.T
	file    composition
	words   []string          // docker compose, and how it finds the project
	project string            // its name, and that of its image
	ports   map[string]string // the published addresses, by service
	people  int               // that signed up
	before  person            // the first of them
}

type person struct{ id, email, token string }

func newComposed(t *testing.T) *composed {
	t.Helper()
	c := &composed{t: t, file: readComposition(t), project: fmt.Sprintf("pgjet-test-%d", os.Getpid()), ports: make(map[string]string)}
	var override strings.Builder
	override.WriteString("services:\n")
	for name, s := range c.file.Services {
		_, own := ownServices[name]
		if !own && len(s.Ports) == 0 {
			continue
		}
		fmt.Fprintf(&override, "  %s:\n", name)
		if own {
			fmt.Fprintf(&override, "    image: %s\n", c.project)
		}
		for _, published := range s.Ports {
			c.ports[name] = freeAddress(t)
			fmt.Fprintf(&override, "    ports: !override [\"%s:%s\"]\n", c.ports[name], published[strings.LastIndex(published, ":")+1:])
		}
	}
	path := filepath.Join(t.TempDir(), "override.yaml")
	if err := os.WriteFile(path, []byte(override.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	c.words = append(composeProgram(t), "--project-name", c.project, "--file", filepath.Join(root, "compose.yaml"), "--file", path)
	return c
}

// tidy removes at the end what the engine has created, and shows the logs if the test failed.
func (c *composed) tidy() {
	c.t.Helper()
	c.t.Cleanup(func() {
		if c.t.Failed() {
			logs, _ := try(time.Minute, append(slices.Clone(c.words), "logs", "--no-color", "--tail", "40")...)
			c.t.Logf("the last lines of each service:\n%s", logs)
		}
		c.compose(3*time.Minute, "down", "--volumes", "--remove-orphans")
		c.docker(time.Minute, "image", "rm", "--force", c.project)
	})
}

// freeAddress returns a free address of this machine.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", anyPort)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// composeProgram returns the command of Docker Compose. It builds Compose if it is missing.
func composeProgram(t *testing.T) []string {
	t.Helper()
	for _, words := range [][]string{{"docker", "compose"}, {"docker-compose"}} {
		if _, err := try(10*time.Second, append(words, "version")...); err == nil {
			return words
		}
	}
	t.Log("Docker Compose is missing here, and is built")
	out, err := try(20*time.Minute, standins, "compose")
	if err != nil {
		t.Fatalf("build Docker Compose: %v\n%s", err, out)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	return lines[len(lines)-1:]
}

// standins builds images that no registry has for this machine.
const standins = root + ".ci/standins"

// images pulls the images that compose.yaml and the Dockerfile name.
func (c *composed) images() {
	c.t.Helper()
	wanted := regexp.MustCompile(`(?m)^FROM (\S+)`).FindAllStringSubmatch(read(c.t, "Dockerfile"), -1)
	for _, s := range c.file.Services {
		wanted = append(wanted, []string{"", s.Image})
	}
	var missing []string
	for _, w := range wanted {
		if _, err := try(time.Minute, "docker", "image", "inspect", w[1]); err != nil && w[1] != "pgjet" && !slices.Contains(missing, w[1]) {
			missing = append(missing, w[1])
		}
	}
	for len(missing) > 0 {
		if out, err := try(10*time.Minute, "docker", "pull", "--quiet", missing[0]); err != nil {
			c.t.Logf("cannot pull %s: %s", missing[0], out)
			break
		}
		missing = missing[1:]
	}
	if len(missing) == 0 {
		return
	}
	c.t.Logf("stand-ins are built for %v", missing)
	c.t.Cleanup(func() { c.docker(time.Minute, append([]string{"image", "rm", "--force"}, missing...)...) })
	if out, err := try(30*time.Minute, append([]string{standins}, missing...)...); err != nil {
		c.t.Fatalf("build stand-ins for images: %v\n%s", err, out)
	}
}

// try runs a program and returns what it wrote.
func try(within time.Duration, words ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		err = fmt.Errorf("not done after %s", within)
	}
	return string(bytes.TrimSpace(out)), err
}

func (c *composed) run(within time.Duration, words ...string) string {
	c.t.Helper()
	out, err := try(within, words...)
	if err != nil {
		c.t.Fatalf("%s: %v\n%s", strings.Join(words, " "), err, out)
	}
	return out
}

func (c *composed) docker(within time.Duration, words ...string) string {
	c.t.Helper()
	return c.run(within, append([]string{"docker"}, words...)...)
}

func (c *composed) compose(within time.Duration, words ...string) string {
	c.t.Helper()
	begun := time.Now()
	out := c.run(within, append(slices.Clone(c.words), words...)...)
	if took := time.Since(begun); took > time.Second {
		c.t.Logf("compose %s: %.1f s", strings.Join(words, " "), took.Seconds())
	}
	return out
}

// state is the engine's state of a container.
type state struct {
	Status    string
	Pid       int
	ExitCode  int
	OOMKilled bool
	StartedAt time.Time
	Health    *struct{ Status string }
}

func (c *composed) container(service string) string {
	return c.project + "-" + service + "-1"
}

func (c *composed) state(service string) (s state) {
	c.t.Helper()
	if err := json.Unmarshal([]byte(c.docker(time.Minute, "inspect", "--format", "{{json .State}}", c.container(service))), &s); err != nil {
		c.t.Fatal(err)
	}
	return s
}

// quiet checks that none of our services logs a warning at the start.
func (c *composed) quiet() {
	c.t.Helper()
	for name := range ownServices {
		if name == "operator" {
			continue
		}
		for line := range strings.Lines(c.docker(time.Minute, "logs", c.container(name))) {
			if strings.Contains(line, "have no authentication") {
				continue // other machines can reach the pages, but only in a network of their own
			}
			if strings.Contains(line, `"level":"WARN"`) || strings.Contains(line, `"level":"ERROR"`) {
				c.t.Errorf("%s says at its start: %s", name, line)
			}
		}
	}
}

func (c *composed) url(service string) string { return "http://" + c.ports[service] }

// flows checks that a user who signs up gets a mail, an account and an entry in the directory.
func (c *composed) flows(after string) {
	c.t.Helper()
	begun := time.Now()
	c.people++
	p := person{email: fmt.Sprintf("ann%d@example.com", c.people)}
	wait := func(what string, cond func() bool) {
		c.t.Helper()
		testenv.Eventually(c.t, 90*time.Second, after+": "+what, func() bool {
			ok := cond()
			if !ok {
				time.Sleep(100 * time.Millisecond) // log-ins are limited
			}
			return ok
		})
	}
	wait("a sign-up is taken", func() bool {
		p.id = c.ask("/users", signUpBody(p.email), p.email).ID
		return p.id != ""
	})
	wait("a log-in is taken", func() bool {
		p.token = c.ask("/sessions", fmt.Sprintf(`{"email":%q,"password":"correct horse battery"}`, p.email), "").Token
		return p.token != ""
	})
	wait("the saga makes the user active", func() bool {
		_, body := getAs(c.t, p.token, c.url("users")+"/users/"+p.id)
		return strings.Contains(body, `"state":"active"`)
	})
	wait("the mail arrives", func() bool {
		_, body := get(c.t, c.url("mailpit")+"/api/v1/search?query=to:"+p.email)
		return strings.Contains(body, "Welcome")
	})
	wait("the directory knows", func() bool {
		_, body := get(c.t, c.url("directory")+"/directory?q="+p.email)
		return strings.Contains(body, p.id)
	})
	if c.before.id == "" {
		c.before = p
	}
	c.t.Logf("%s: all went its way after %.1f s", after, time.Since(begun).Seconds())
}

type answer struct{ ID, Token string }

// ask returns the user service's answer to a POST, or nothing if that fails.
func (c *composed) ask(path, body, key string) (a answer) {
	c.t.Helper()
	header := map[string]string{"Content-Type": "application/json"}
	if key != "" {
		header["Idempotency-Key"] = key // an earlier answer may have been lost
	}
	if status, _, got := request(c.t, http.MethodPost, c.url("users")+path, body, header); status == http.StatusCreated {
		_ = json.Unmarshal([]byte(got), &a)
	}
	return a
}

// operates checks that the operator sees every process, and may do what the documents say.
func (c *composed) operates() {
	c.t.Helper()
	operator := func(words ...string) string {
		return c.compose(2*time.Minute, append([]string{"run", "--rm", "--no-TTY", "operator"}, words...)...)
	}
	services := operator("services", "ls")
	for _, name := range []string{"pgjet-users", "pgjet-relay", "pgjet-welcome-mailer", "pgjet-directory", "pgjet-onboarding", "profiles", "billing"} {
		if !regexp.MustCompile(`(?m)^` + name + ` .* ready `).MatchString(services) {
			c.t.Errorf("the operator does not see that %s is ready:\n%s", name, services)
		}
	}
	operator("users", "grant", c.before.email, "admin", "--reason", "bootstrap")
	for _, words := range [][]string{{"relay", "status"}, {"consumer", "ls"}, {"saga", "ls"}, {"outbox", "status"}, {"dead", "ls"}, {"replay", "directory", "--all", "--dry-run"}} {
		operator(words...)
	}
}

// keeps checks that a new container of a service has the data of the one before.
func (c *composed) keeps() {
	c.t.Helper()
	c.compose(3*time.Minute, "up", "--detach", "--wait", "--no-deps", "--force-recreate", "users", "profiles", "billing", "mailpit")
	if status, body := getAs(c.t, c.before.token, c.url("users")+"/users/"+c.before.id); status != http.StatusOK {
		c.t.Errorf("a token from before users was made anew: %d %s, want 200", status, body)
	}
	for service, path := range map[string]string{
		"profiles": "/profiles/" + c.before.id, "billing": "/accounts?user_id=" + c.before.id, "mailpit": "/api/v1/search?query=to:" + c.before.email,
	} {
		testenv.Eventually(c.t, patience, service+" answers", func() bool { status, _ := get(c.t, c.url(service)+path); return status != 0 })
		if status, body := get(c.t, c.url(service)+path); status != http.StatusOK || !strings.Contains(body, c.before.id) && !strings.Contains(body, c.before.email) {
			c.t.Errorf("%s was made anew and has forgotten: %d %s", service, status, body)
		}
	}
}

// dies kills the process of a service, and waits until it is back.
func (c *composed) dies(service string) {
	c.t.Helper()
	begun, was := time.Now(), c.state(service)
	// From a container, because the engine may run on another machine.
	c.docker(time.Minute, "run", "--rm", "--pid", "host", "--user", "0", "--entrypoint", "/bin/sh", c.file.Services["postgres"].Image, "-c", "kill -9 "+strconv.Itoa(was.Pid))
	testenv.Eventually(c.t, 90*time.Second, service+" comes back", func() bool {
		is := c.state(service)
		return is.StartedAt.After(was.StartedAt) && is.Status == "running" && (is.Health == nil || is.Health.Status == "healthy")
	})
	c.t.Logf("%s was killed and is back after %.1f s", service, time.Since(begun).Seconds())
}

// hangs freezes PostgreSQL. The services report it within seconds, and end by themselves when they
// are stopped.
func (c *composed) hangs() {
	c.t.Helper()
	c.docker(time.Minute, "pause", c.container("postgres"))
	begun := time.Now()
	all := []string{"users", "relay", "welcome-mailer", "directory", "onboarding"}
	for _, service := range all {
		testenv.Eventually(c.t, time.Minute, service+" is unhealthy", func() bool { return c.state(service).Health.Status == "unhealthy" })
		c.t.Logf("PostgreSQL hangs: %s is unhealthy after %.1f s", service, time.Since(begun).Seconds())
	}
	if took := time.Since(begun); took > 40*time.Second {
		c.t.Errorf("the outage was seen after %s, want some 15 s", took)
	}
	begun = time.Now()
	c.compose(2*time.Minute, append([]string{"stop"}, all...)...)
	if took := time.Since(begun); took > 20*time.Second {
		c.t.Errorf("stopping took %s while PostgreSQL hangs, want seconds", took)
	}
	for _, service := range all {
		if s := c.state(service); s.ExitCode != 0 || s.OOMKilled {
			c.t.Errorf("%s was stopped while PostgreSQL hangs: exit code %d, want 0", service, s.ExitCode)
		}
	}
	c.docker(time.Minute, "unpause", c.container("postgres"))
	testenv.Eventually(c.t, time.Minute, "postgres is healthy", func() bool { return c.state("postgres").Health.Status == "healthy" })
	c.compose(3*time.Minute, "up", "--detach", "--wait")
	c.flows("PostgreSQL hung")
}

// stops ends everything, and checks that nothing was killed and nothing is left.
func (c *composed) stops() {
	c.t.Helper()
	c.compose(3*time.Minute, "stop")
	for name, runs := range ownServices {
		if !runs {
			continue // it ended long ago
		}
		if s := c.state(name); s.ExitCode != 0 || s.OOMKilled {
			c.t.Errorf("%s was stopped: exit code %d, out of memory %t; want 0", name, s.ExitCode, s.OOMKilled)
		}
	}
	for _, name := range []string{"postgres", "nats"} {
		if s := c.state(name); s.ExitCode == 137 {
			c.t.Errorf("%s was killed, it did not stop in time", name)
		}
	}
	c.compose(3*time.Minute, "down", "--volumes")
	label := "label=com.docker.compose.project=" + c.project
	for _, left := range []string{c.docker(time.Minute, "ps", "--all", "--quiet", "--filter", label), c.docker(time.Minute, "volume", "ls", "--quiet", "--filter", label)} {
		if left != "" {
			c.t.Errorf("left behind: %s", left)
		}
	}
}
