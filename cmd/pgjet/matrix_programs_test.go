package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pgjet/pgjet/internal/devserver"
	"github.com/pgjet/pgjet/internal/testenv"
)

// Programs that the matrix runs are kept in the user's cache directory.
const (
	natsOld     = "v2.14.10"
	natsNew     = "v2.15.3"
	natsRefused = "v2.12.15"
	natsCLI     = "v0.5.0"
	natsNode    = "3.4.0"
)

// fetching allows one row at a time to fetch something.
var fetching sync.Mutex

// fetched returns the directory name in the cache. If it does not exist, fetch fills it, completely
// or not at all. If that fails, the row is skipped.
func fetched(m *trial, name string, fetch func(dir string) *exec.Cmd) string {
	m.Helper()
	fetching.Lock()
	defer fetching.Unlock()
	cache, err := os.UserCacheDir()
	if err != nil {
		m.Fatal(err)
	}
	cache = filepath.Join(cache, "pgjet")
	dir := filepath.Join(cache, name)
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		m.Fatal(err)
	}
	fresh, err := os.MkdirTemp(cache, "fetch-")
	if err != nil {
		m.Fatal(err)
	}
	defer os.RemoveAll(fresh)
	if out, err := fetch(fresh).CombinedOutput(); err != nil {
		m.skip("cannot fetch %s: %v: %s", name, err, lastOf(out))
	}
	if err := os.Rename(fresh, dir); err != nil {
		m.Fatal(err)
	}
	return dir
}

func lastOf(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1]
}

// goProgram returns a program of a Go module at some version, such as
// github.com/nats-io/nats-server/v2.
func goProgram(m *trial, pkg, version string) string {
	m.Helper()
	name := filepath.Base(strings.TrimSuffix(pkg, "/v2"))
	dir := fetched(m, name+"-"+version, func(dir string) *exec.Cmd {
		cmd := exec.CommandContext(m.Context(), "go", "install", pkg+"@"+version)
		cmd.Dir = dir // outside our module
		cmd.Env = append(os.Environ(), "GOBIN="+dir)
		return cmd
	})
	return filepath.Join(dir, name)
}

// A natsProgram is a nats-server of some version.
type natsProgram struct {
	natsProcess
	program string
	config  string // its file
}

// startNATSProgram starts a nats-server of that version, and ends it at cleanup.
func startNATSProgram(m *trial, version string) *natsProgram {
	m.Helper()
	n := &natsProgram{program: goProgram(m, "github.com/nats-io/nats-server/v2", version)}
	n.T, n.Options.Port = m, freePort(m)
	n.config = write(m, "nats.conf", fmt.Sprintf("server_name: test\nlisten: %q\njetstream { store_dir: %q, sync_interval: always }\n",
		local(n.Options.Port), m.TempDir()))
	n.Start()
	m.Cleanup(n.Kill)
	return n
}

// start starts it, again after kill, and waits until it is ready.
func (n *natsProgram) Start() {
	n.T.Helper()
	starts := strings.Count(n.Stderr.String(), "Server is ready")
	n.Cmd = exec.Command(n.program, "-c", n.config)
	n.Cmd.Stderr = &n.Stderr
	n.Cmd.SysProcAttr = ours()
	if err := n.Run(); err != nil {
		n.T.Fatal(err)
	}
	testenv.Eventually(n.T, patience, "nats-server is ready", func() bool {
		return strings.Count(n.Stderr.String(), "Server is ready") > starts
	})
}

// withReaders reads the stream with other client libraries: each sees what is stored, in order.
func withReaders(m *trial) {
	server := testenv.NATS(m)
	p := walk(m, site{database: testenv.EmptyDatabaseURL(m), nats: server.URL()}, nil)
	var want []string
	for _, msg := range readStream(m, p.js, "EVENTS") {
		want = append(want, msg.ID)
	}
	for _, r := range []struct {
		name string
		read func(m *trial, server *devserver.NATS, count int) []string
	}{
		{"natscli " + natsCLI, readWithCLI},
		{"Node.js client " + natsNode, readWithNode},
	} {
		m.Run(r.name, func(t *testing.T) {
			reader := &trial{T: t, name: r.name}
			got := r.read(reader, server, len(want))
			if !slices.Equal(got, want) {
				m.note(fmt.Sprintf("%s reads %d events that differ from the %d of the stream", r.name, len(got), len(want)))
				t.Errorf("it reads %d events that differ from the %d of the stream", len(got), len(want))
			}
			m.checked += r.name + " sees exactly the events; "
		})
	}
}

// ids returns the ids in lines of the form "ce-id: …".
func ids(out string) (all []string) {
	for line := range strings.Lines(out) {
		if id, ok := strings.CutPrefix(strings.TrimSpace(line), "ce-id:"); ok {
			all = append(all, strings.TrimSpace(id))
		}
	}
	return all
}

func readWithCLI(m *trial, server *devserver.NATS, count int) []string {
	program := goProgram(m, "github.com/nats-io/natscli/nats", natsCLI)
	cmd := exec.CommandContext(m.Context(), program, "--server", server.URL(), "sub", "--stream", "EVENTS", "--all", "--count", fmt.Sprint(count))
	return ids(outputOf(m, cmd))
}

func outputOf(m *trial, cmd *exec.Cmd) string {
	m.Helper()
	cmd.Env = append(os.Environ(), "HOME="+m.TempDir(), "XDG_CONFIG_HOME="+m.TempDir())
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		m.Fatalf("%v: %v: %s", cmd.Args, err, lastOf(out))
	}
	return string(out)
}

// nodeReader prints the ids of a stream's first messages.
const nodeReader = `
import { connect } from "@nats-io/transport-node";
import { jetstream } from "@nats-io/jetstream";
const nc = await connect({ servers: process.argv[2] });
const consumer = await jetstream(nc).consumers.get("EVENTS");
let left = Number(process.argv[3]);
for await (const m of await consumer.consume()) {
  console.log("ce-id: " + m.headers.get("ce-id"));
  if (--left === 0) break;
}
await nc.close();
`

func readWithNode(m *trial, server *devserver.NATS, count int) []string {
	node, err := exec.LookPath("node")
	if err != nil {
		m.skip("no Node.js is installed")
	}
	dir := fetched(m, "nats-node-"+natsNode, func(dir string) *exec.Cmd {
		return exec.CommandContext(m.Context(), "npm", "install", "--silent", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", dir,
			"@nats-io/transport-node@"+natsNode, "@nats-io/jetstream@"+natsNode)
	})
	script := filepath.Join(dir, "reader.mjs")
	if err := os.WriteFile(script, []byte(nodeReader), 0o600); err != nil {
		m.Fatal(err)
	}
	return ids(outputOf(m, exec.CommandContext(m.Context(), node, script, server.URL(), fmt.Sprint(count))))
}
