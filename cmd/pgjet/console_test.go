package main

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pgjet/pgjet/internal/testenv"
)

// TestConsole: a console needs no token on this machine, and one for others. It stops although
// pages are open.
func TestConsole(t *testing.T) {
	t.Parallel()
	database, n := testenv.DatabaseURL(t), testenv.NATS(t)
	const token = "a-token-of-some-length"
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	flags := []string{"console", "--database-url", database, "--nats-url", n.URL()}
	own := start(t, nil, append(flags, "--listen", anyPort, "--also", "billing="+testenv.DatabaseURL(t))...)
	if status, page := get(t, own.Logged("serving the console", "addr")+"/"); status != http.StatusOK || !strings.Contains(page, "no relay has ever run") {
		t.Errorf("GET / = %d %s, want what is wrong", status, page)
	}
	if status, page := get(t, own.Logged("serving the console", "addr")+"/db/billing/dead"); status != http.StatusOK || !strings.Contains(page, `href="/db/billing/events"`) {
		t.Errorf("GET /db/billing/dead = %d %s, want a page of the further database", status, page)
	}
	refused(t, exitUsage, append(flags, "--listen", anyPort, "--also", database), "NAME=URL")
	public := start(t, nil, append(flags, "--listen", "0.0.0.0:0", "--token-file", file)...)
	addr := strings.Replace(public.Logged("serving the console", "addr"), "[::]", "127.0.0.1", 1)
	if status, page := get(t, addr+"/"); status != http.StatusUnauthorized || !strings.Contains(page, "Log in") {
		t.Errorf("GET / of a public console = %d %s, want that one logs in", status, page)
	}
	if status, page := getAs(t, token, addr+"/"); status != http.StatusOK {
		t.Errorf("GET / with the token = %d %s", status, page)
	}

	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, own.Logged("serving the console", "addr")+"/?live=", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "text/event-stream")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	begun := time.Now()
	for _, p := range []*process{own, public} {
		p.Signal(os.Interrupt)
		if code := p.Wait(patience); code != exitOK {
			t.Errorf("exit code %d after an interrupt, want 0, of %s", code, p)
		}
	}
	if took := time.Since(begun); took > 8*time.Second {
		t.Errorf("it took %s to stop", took)
	}
}
