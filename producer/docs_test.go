package producer_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/producer"
)

// TestDocsPage: the page shows the problem codes, lets a browser load nothing from elsewhere, and each file that it loads is there,
// also for a client that unpacks nothing.
func TestDocsPage(t *testing.T) {
	srv := serve(t, testenv.Postgres(t))
	a := get(t, srv, "/docs")
	page := string(a.body)
	if a.StatusCode != http.StatusOK || a.Header.Get("Content-Type") != "text/html; charset=utf-8" {
		t.Fatalf("GET /docs = %d %s", a.StatusCode, a.Header)
	}
	csp := a.Header.Get("Content-Security-Policy")
	if !strings.HasPrefix(csp, "default-src 'none'; script-src 'self'; ") || strings.Contains(csp, "unsafe-eval") || strings.Contains(csp, "http") {
		t.Errorf("Content-Security-Policy = %q, want this service alone", csp)
	}
	if bad := regexp.MustCompile(`<script>|<style|\son[a-z]+=|https?://|url\(`).FindString(page); bad != "" {
		t.Errorf("the page has %q", bad)
	}
	if !strings.Contains(page, "<code>outcome_unknown</code>") {
		t.Error("the page lacks the problem codes")
	}
	loaded := regexp.MustCompile(`(?:src|href)="(docs/[^"]+)"`).FindAllStringSubmatch(page, -1)
	if len(loaded) != 4 {
		t.Errorf("the page loads %q, want 4 files", loaded)
	}
	for _, file := range loaded {
		for _, encoding := range []string{"gzip", "identity"} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+"/"+file[1], nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Accept-Encoding", encoding)
			resp, err := srv.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body := io.Reader(resp.Body)
			packed := resp.Header.Get("Content-Encoding") == "gzip"
			if packed {
				if body, err = gzip.NewReader(resp.Body); err != nil {
					t.Fatal(err)
				}
			}
			text, err := io.ReadAll(body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != http.StatusOK || !utf8.Valid(text) || len(text) < 100 || packed && encoding != "gzip" {
				t.Errorf("GET /%s as %s: %d, %d bytes, packed: %t, %v", file[1], encoding, resp.StatusCode, len(text), packed, err)
			}
		}
	}
}

// TestVendored: the files of the viewer are those whose sums are recorded.
func TestVendored(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "sha256sum", "--check", "--strict", "SHA256SUMS")
	cmd.Dir = "docs/vendor"
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	files, err := os.ReadDir("docs/vendor")
	if err != nil || len(files) != 4 {
		t.Errorf("docs/vendor has %v, %v, want 3 files and their sums", files, err)
	}
}

// TestDocsInABrowser loads the page in a real browser, which loads what the page needs from this service alone, shows every operation,
// and reports no error.
func TestDocsInABrowser(t *testing.T) {
	browser, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("there is no chromium on this machine")
	}
	api := producer.New(testenv.Postgres(t), issuer, testenv.Logger(t))
	defer api.Close()
	var mu sync.Mutex
	var asked []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked = append(asked, r.Method+" "+r.URL.Path)
		mu.Unlock()
		api.ServeHTTP(w, r)
	}))
	defer srv.Close()

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
		"--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
		"--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
		"--user-data-dir="+t.TempDir(), "--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom", srv.URL+"/docs")
	var dom, console bytes.Buffer
	cmd.Stdout, cmd.Stderr = &dom, &console
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, &console)
	}
	mu.Lock()
	defer mu.Unlock()
	slices.Sort(asked)
	if want := []string{"GET /docs", "GET /docs/page.css", "GET /docs/page.js", "GET /docs/swagger-ui-bundle.js", "GET /docs/swagger-ui.css", "GET /openapi.json"}; !slices.Equal(asked, want) {
		t.Errorf("the browser asked for %v, want %v", asked, want)
	}
	for _, want := range []string{"Sign up", "Log in", "Authorize", "/users/{id}", "Problem codes", "password_too_short"} {
		if !strings.Contains(dom.String(), want) {
			t.Errorf("the page lacks %s:\n%s", want, &dom)
		}
	}
	for line := range strings.Lines(console.String()) {
		if strings.Contains(line, "CONSOLE") {
			t.Errorf("the browser complains: %s", line)
		}
	}
}
