//go:build unix

package guide_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pgjet/pgjet/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const (
	root     = "../../.."
	patience = 60 * time.Second
)

// TestGuide: from an empty folder and with the blocks of the guide alone, two services
// exchange events and test themselves.
func TestGuide(t *testing.T) {
	var all []block
	pages, err := filepath.Glob(root + "/docs/guide/[0-9]*.md")
	if err != nil || len(pages) == 0 {
		t.Fatalf("%d pages, %v", len(pages), err)
	}
	for _, page := range pages {
		all = append(all, blocksOf(t, page)...)
	}
	r := newReader(t)
	r.module = filepath.Join(r.dir, "shop")
	r.follow(t, all)
	everythingIsUsed(t, all)
	if out, err := exec.CommandContext(t.Context(), "gofmt", "-l", r.module).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("not formatted: %s%v", out, err)
	}
}

// TestOtherLanguages: a writer and a reader that do not use this module work as the page
// says.
func TestOtherLanguages(t *testing.T) {
	if _, err := exec.LookPath("python3"); err != nil && os.Getenv("CI") == "" {
		t.Skip("there is no python3")
	}
	all := blocksOf(t, root+"/docs/other-languages.md")
	r := newReader(t)
	r.build(t, "pgjet", "github.com/pgjet/pgjet/cmd/pgjet")
	r.do(t, block{at: "before", kind: terminal, text: "nats-server --jetstream --store_dir .nats --addr 127.0.0.1 --port 4222\n", want: []string{"…Server is ready"}})
	r.follow(t, all)
	everythingIsUsed(t, all)
}

// follow executes blocks, and ends the processes that they started.
func (r *reader) follow(t *testing.T, all []block) {
	t.Helper()
	for _, b := range all {
		began := time.Now()
		r.do(t, b)
		if t.Failed() {
			return
		}
		if b.kind != file {
			t.Logf("%s: %s", b.at, time.Since(began).Round(100*time.Millisecond))
		}
	}
	r.stop(t)
}

// A reader does what the guide says.
type reader struct {
	dir       string // where it starts
	module    string // where files are written
	tools     string // a directory in PATH
	env       []string
	state     string // the script that gives a further shell the state of the last one
	ports     *strings.Replacer
	terminals []*shell
}

// A shell runs a block.
type shell struct {
	b     block
	cmd   *exec.Cmd
	ended chan struct{}
	err   error
	mu    sync.Mutex
	out   bytes.Buffer
}

func (s *shell) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.Write(p)
}

func (s *shell) printed() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.String()
}

// newReader returns a reader with an empty folder and the requirements that the guide
// names. Its ports are free ones.
func newReader(t *testing.T) *reader {
	t.Helper()
	postgres := testenv.PostgresServer(t)
	server, err := url.Parse(postgres.URL())
	if err != nil {
		t.Fatal(err)
	}
	// A role named pgjet would make its tables in the schema pgjet.
	testenv.Exec(t, testenv.PoolAt(t, postgres.URL()), `create role owner superuser login password 'secret'`)
	t.Setenv("PATH", os.Getenv("PATH")+":"+postgres.Options().Bin) // the place of psql, unless packages put it into PATH
	for _, tool := range []string{"psql", "createdb", "curl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("the pages need %s: %v", tool, err)
		}
	}
	tools, dir := t.TempDir(), t.TempDir()
	var ports []string
	nats := ""
	for _, port := range []string{"4222", "7404", "7405", "7406", "7407", "8081", "8082"} {
		free := freePort(t)
		if ports = append(ports, port, free); port == "4222" {
			nats = free
		}
	}
	r := &reader{dir: dir, module: dir, tools: tools, state: filepath.Join(tools, "state"), ports: strings.NewReplacer(ports...)}
	r.env = append(os.Environ(),
		"PATH="+tools+":"+os.Getenv("PATH"), "PGUSER=owner", "PGPASSWORD=secret", "PGPORT="+server.Port(),
		"NATS_URL=nats://127.0.0.1:"+nats, "GOWORK=off", "GOSUMDB=off",
		"GOPROXY="+proxy(t),
		"GOFLAGS=-ldflags=-w", // without debug information each link takes a third less
	)
	r.build(t, "nats-server", "github.com/nats-io/nats-server/v2")
	if err := os.WriteFile(r.state, []byte("cd '"+dir+"'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, s := range r.terminals {
			syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
			<-s.ended
		}
	})
	return r
}

// build builds a program that the reader has.
func (r *reader) build(t *testing.T, name, pkg string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-ldflags=-w", "-o", filepath.Join(r.tools, name), pkg).CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, out)
	}
}

// proxy returns the address of a Go module proxy: the configured one, except for pgjet,
// which is served from here only.
func proxy(t *testing.T) string {
	t.Helper()
	configured, err := exec.CommandContext(t.Context(), "go", "env", "GOPROXY").Output()
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(strings.TrimSpace(string(configured)), ",")
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/github.com/pgjet/") {
			http.NotFound(w, r)
			return
		}
		http.Redirect(w, r, strings.TrimSuffix(first, "/")+r.URL.RequestURI(), http.StatusFound)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// do executes a block.
func (r *reader) do(t *testing.T, b block) {
	t.Helper()
	b.text = r.ports.Replace(b.text)
	switch b.kind {
	case file:
		r.write(t, b)
	case terminal:
		s := r.start(t, b)
		r.terminals = append(r.terminals, s)
		testenv.Eventually(t, 2*patience, b.at+" prints what the guide says", func() bool {
			select {
			case <-s.ended:
				t.Fatalf("%s ended: %v\n%s", b.at, s.err, s.printed())
			default:
			}
			return missingLine(s.printed(), b.want) == ""
		})
	default:
		var s *shell
		for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
			s = r.start(t, b)
			<-s.ended
			if s.err == nil && missingLine(s.printed(), b.want) == "" {
				break
			}
			if b.kind == command || time.Now().After(deadline) {
				t.Fatalf("%s: %v, and does not print %q, but\n%s%s", b.at, s.err, missingLine(s.printed(), b.want), s.printed(), r.output())
			}
		}
		if strings.Contains(b.text, "go mod init") {
			r.replace(t)
		}
		if testing.Verbose() {
			t.Logf("%s$ %s\n%s", b.at, b.text, s.printed())
		}
	}
}

// output returns the output of the processes in terminals.
func (r *reader) output() string {
	var all strings.Builder
	for _, s := range r.terminals {
		fmt.Fprintf(&all, "%s$ %s%s", s.b.at, s.b.text, s.printed())
	}
	return all.String()
}

// write makes a file, which must be a new one.
func (r *reader) write(t *testing.T, b block) {
	t.Helper()
	path := filepath.Join(r.module, b.name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		t.Fatalf("%s: %v", b.at, err)
	}
	defer f.Close()
	if _, err := f.WriteString(b.text); err != nil {
		t.Fatal(err)
	}
}

// start runs a block in a process group of its own, in the folder and with the variables
// that the last one left.
func (r *reader) start(t *testing.T, b block) *shell {
	t.Helper()
	s := &shell{b: b, ended: make(chan struct{})}
	script := ". '" + r.state + "'\n" + b.text
	if b.kind != terminal {
		script += "export -p >'" + r.state + "'\necho \"cd '$PWD'\" >>'" + r.state + "'\n"
	}
	s.cmd = exec.CommandContext(context.WithoutCancel(t.Context()), "sh", "-ec", script)
	s.cmd.Env, s.cmd.Stdout, s.cmd.Stderr = r.env, s, s
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(s.ended)
		s.err = s.cmd.Wait()
	}()
	return s
}

// stop types Ctrl-C in each terminal, the last one first.
func (r *reader) stop(t *testing.T) {
	t.Helper()
	for _, s := range slices.Backward(r.terminals) {
		if err := syscall.Kill(-s.cmd.Process.Pid, syscall.SIGINT); err != nil {
			t.Errorf("%s: %v", s.b.at, err)
		}
		select {
		case <-s.ended:
		case <-time.After(patience):
			t.Errorf("%s does not end after Ctrl-C:\n%s", s.b.at, s.printed())
		}
	}
}

// replace makes the module use this checkout.
func (r *reader) replace(t *testing.T) {
	t.Helper()
	here, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "mod", "edit", "-replace=github.com/pgjet/pgjet="+here)
	cmd.Dir, cmd.Env = r.module, r.env
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go mod edit: %v\n%s", err, out)
	}
}

// everythingIsUsed: each file is compiled, embedded, or named in a command; protobuf is the
// source of its generated code.
func everythingIsUsed(t *testing.T, all []block) {
	t.Helper()
	var commands, generated strings.Builder
	for _, b := range all {
		if b.kind != file {
			commands.WriteString(b.text)
		}
		if strings.HasSuffix(b.name, ".pb.go") {
			generated.WriteString(b.text)
		}
	}
	for _, b := range all {
		switch {
		case b.kind != file, strings.HasSuffix(b.name, ".go"), strings.Contains(commands.String(), b.name):
		case strings.HasSuffix(b.name, ".proto"):
			for _, m := range regexp.MustCompile(`(?m)^  \w+ (\w+) = (\d+);`).FindAllStringSubmatch(b.text, -1) {
				if !regexp.MustCompile(`protobuf:"\w+,` + m[2] + `,opt,name=` + m[1] + `,`).MatchString(generated.String()) {
					t.Errorf("%s: the generated code has no field %s = %s", b.at, m[1], m[2])
				}
			}
		default:
			t.Errorf("%s: nothing uses %s", b.at, b.name)
		}
	}
}
