package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pgjet/pgjet/internal/testenv"
)

// TestClientsMakeNoMetrics sends requests with thousands of hosts, methods, paths, versions and agents
// to every listener of users, directory and a stand-in. The metrics stay as small as they were.
func TestClientsMakeNoMetrics(t *testing.T) {
	t.Parallel()
	database, n := testenv.DatabaseURL(t), testenv.NATS(t)
	ensureStream(t, n.URL())
	users, directory := startUsers(t, database, "--nats-url", n.URL()), startDirectory(t, database, n.URL())
	billing := startService(t, "standin", "billing", "--addr", anyPort, "--nats-url", n.URL())
	billing.Addr = billing.Logged("serving the API", "addr")
	for _, s := range []*service{users, directory, billing} {
		s.Ready(s.Admin)
		one := []string{"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", "GET /users HTTP/1.1\r\nHost: x\r\n\r\n"}
		pipeline(t, s.Addr, one)
		pipeline(t, s.Admin, one)
		_, before := get(t, s.Admin+"/metrics")
		logged := len(s.Stderr.String())
		const many = 5000
		var hostile []string
		long := strings.Repeat("a", 2000)
		for i := range many {
			hostile = append(hostile,
				fmt.Sprintf("GET /nothing HTTP/1.1\r\nHost: h%d.%s\r\n\r\n", i, long),
				fmt.Sprintf("GET /users HTTP/1.1\r\nHost: h%d:%d\r\nUser-Agent: a%d\r\nX-Forwarded-For: 10.0.%d.%d\r\n\r\n", i, i+1, i, i/256, i%256),
				fmt.Sprintf("M%d /users HTTP/1.%d\r\nHost: x\r\n\r\n", i, i%10),
				fmt.Sprintf("GET /users/%d?x=%d HTTP/1.1\r\nHost: x\r\nX-Forwarded-Proto: p%d\r\n\r\n", i, i, i),
				fmt.Sprintf("GET /p%d/%s HTTP/1.1\r\nHost: x\r\n\r\n", i, long),
			)
		}
		var both sync.WaitGroup
		for _, addr := range []string{s.Addr, s.Admin} {
			both.Go(func() { pipeline(t, addr, hostile) })
		}
		both.Wait()
		_, after := get(t, s.Admin+"/metrics")
		if series := strings.Count(after, "\n") - strings.Count(before, "\n"); series > 300 {
			t.Errorf("%d more lines of metrics after hostile requests, want at most those of a few known routes and methods, of %s", series, s)
		}
		if len(after) > 200_000 || strings.Contains(after, "otel_metric_overflow") || strings.Contains(after, "aaaa") {
			t.Errorf("the page of metrics has %d bytes after hostile requests, of %s", len(after), s)
		}
		if grown := len(s.Stderr.String()) - logged; grown > 4000 {
			t.Errorf("the log grew by %d bytes, of %s", grown, s)
		}
	}
}

// pipeline sends requests to an address, some hundred over one connection, and reads every answer.
func pipeline(t *testing.T, addr string, requests []string) {
	t.Helper()
	for len(requests) > 0 {
		some := requests[:min(200, len(requests))]
		conn, err := net.Dial("tcp", strings.TrimPrefix(addr, "http://"))
		if err != nil {
			t.Error(err)
			return
		}
		_ = conn.SetDeadline(time.Now().Add(patience))
		go func() { _, _ = io.WriteString(conn, strings.Join(some, "")) }() // fails when the server closes the connection
		in, answered := bufio.NewReader(conn), 0
		for range some {
			res, err := http.ReadResponse(in, nil)
			if err != nil {
				break
			}
			answered++
			_, err = io.Copy(io.Discard, res.Body)
			if res.Body.Close(); err != nil || res.Close {
				break
			}
		}
		conn.Close()
		if answered == 0 {
			t.Errorf("no answer from %s to %.60q", addr, some[0])
			return
		}
		requests = requests[answered:]
	}
}

// TestFewDescriptors opens more connections than the process has descriptors, to its API and to its
// admin pages. Both still answer, the database is reached, and the log reports it once.
func TestFewDescriptors(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("there is no ulimit")
	}
	t.Parallel()
	shell, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	config := configFileOf(t, "pgjet.yaml", "users:\n  per_address: 0\n")
	users := limited(t, shell, 1024, "users", "--config", config, "--database-url", testenv.DatabaseURL(t), "--addr", anyPort, "--admin-addr", anyPort)
	users.Admin = users.Logged("starting", "admin")
	users.Addr = users.Logged("serving the API", "addr")
	users.Ready(users.Admin)
	for i := range 1500 {
		to := users.Addr
		if i%5 == 0 {
			to = users.Admin
		}
		conn, err := net.Dial("tcp", strings.TrimPrefix(to, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		switch i % 3 {
		case 0:
			fmt.Fprint(conn, "POST /users HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Half: ")
		case 1:
			fmt.Fprint(conn, "POST /users HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
		}
	}
	for range 20 {
		begun := time.Now()
		for _, page := range []string{"/livez", "/readyz", "/metrics"} {
			if status, body := get(t, users.Admin+page); status != http.StatusOK {
				t.Errorf("GET %s = %d %.200s, want 200", page, status, body)
			}
		}
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("the admin pages took %s", took)
		}
	}
	signUp(t, users.Addr, "ann@example.com")
	near := 0
	for _, l := range users.Log("WARN") {
		if strings.Contains(fmt.Sprint(l["msg"]), "nearly as many connections") && l["listener"] == "users" {
			near++
		}
	}
	if near != 1 {
		t.Errorf("%d warnings that the limit is near, want 1, of %s", near, users)
	}
}

// TestDevWithManyClientsOfNATS: the clients of the NATS server of pgjet dev cannot use up the descriptors of its
// process.
func TestDevWithManyClientsOfNATS(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("there is no ulimit")
	}
	t.Parallel()
	shell, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	dir, port := stateDir(t), freePorts(t)
	dev := waitDev(limited(t, shell, 1024, devArgs(dir, port)...).Process, dir, port)
	for n := 1; ; n++ {
		nc, err := nats.Connect(dev.NATS, nats.NoReconnect(), nats.Timeout(patience))
		if err != nil { // how it fails depends on when the client notices
			break
		}
		defer nc.Close()
		if n > 200 {
			t.Fatalf("NATS lets %d clients in, want its share of 1024 descriptors", n)
		}
	}
	signUp(t, dev.Users, "ann@example.com")
}

// limited starts a pgjet with a limit of open descriptors.
func limited(t *testing.T, shell string, descriptors int, args ...string) *service {
	t.Helper()
	p := command(t, nil, args...)
	p.Cmd.Args = append([]string{"sh", "-c", fmt.Sprintf(`ulimit -n %d && exec "$0" "$@"`, descriptors), binary()}, args...)
	p.Cmd.Path = shell
	p.Begin()
	t.Cleanup(p.Stop)
	return &service{Process: p}
}

// TestPublicPages: a process warns if other machines can reach pages without authentication. On a
// loopback address the pages require the Host of this machine, or of --advertise.
func TestPublicPages(t *testing.T) {
	t.Parallel()
	database, n := testenv.DatabaseURL(t), testenv.NATS(t)
	public := &service{Process: start(t, nil, "consume", "directory", "--database-url", database, "--nats-url", n.URL(), "--addr", "0.0.0.0:0", "--admin-addr", ":0")}
	public.Logged("starting", "admin")
	for _, pages := range []string{"admin", "directory"} {
		if !slices.ContainsFunc(public.Log("WARN"), func(l logLine) bool { return l["pages"] == pages }) {
			t.Errorf("nothing warns that %s is public, of %s", pages, public)
		}
	}
	local := startService(t, "consume", "directory", "--database-url", database, "--nats-url", n.URL(), "--addr", anyPort, "--advertise", "directory.example")
	local.Addr = local.Logged("serving the API", "addr")
	if slices.ContainsFunc(local.Log("WARN"), func(l logLine) bool { return l["pages"] != nil }) {
		t.Errorf("a warning about pages on loopback, of %s", local)
	}
	for _, page := range []string{local.Addr + "/openapi.json", local.Admin + "/livez", local.Admin + "/metrics"} {
		for host, want := range map[string]int{"": 200, "localhost:1": 200, "directory.example": 200, "evil.example": 421} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, page, nil)
			if err != nil {
				t.Fatal(err)
			}
			if host != "" {
				req.Host = host
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != want {
				t.Errorf("GET %s with Host %q = %d, want %d", page, host, resp.StatusCode, want)
			}
		}
	}
}

// TestScrapesAreBounded: of many scrapes at a time, some get the page and the others a quick
// refusal.
func TestScrapesAreBounded(t *testing.T) {
	t.Parallel()
	users := startUsers(t, testenv.DatabaseURL(t))
	var all sync.WaitGroup
	var pages atomic.Int32
	for range 40 {
		all.Go(func() {
			switch status, body := get(t, users.Admin+"/metrics"); status {
			case http.StatusOK:
				pages.Add(1)
			case http.StatusServiceUnavailable:
			default:
				t.Errorf("GET /metrics = %d %.200s, want 200 or 503", status, body)
			}
		})
	}
	all.Wait()
	if pages.Load() == 0 {
		t.Error("no scrape got the page")
	}
}
