package producer_test

import (
	"bytes"
	"context"
	"encoding/json"
	"html"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/producer"
)

// TestDocsPage: it shows every operation, parameter, answer and field of the document, and
// a browser that follows its policy loads nothing else.
func TestDocsPage(t *testing.T) {
	srv := serve(t, testenv.Postgres(t))
	a := get(t, srv, "/docs")
	page := string(a.body)
	if a.StatusCode != http.StatusOK || a.Header.Get("Content-Type") != "text/html; charset=utf-8" {
		t.Fatalf("GET /docs = %d %s", a.StatusCode, a.Header)
	}
	if csp := a.Header.Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'none'; ") || strings.Contains(csp, "script") {
		t.Errorf("Content-Security-Policy = %q, want nothing but the style in the page", csp)
	}
	if bad := regexp.MustCompile(`<script|\son[a-z]+=|https?://|src=|url\(`).FindString(page); bad != "" {
		t.Errorf("the page has %q", bad)
	}
	var doc struct {
		Paths map[string]map[string]struct {
			Summary    string
			Parameters []struct{ Name string }
			Responses  map[string]any
		}
		Components struct {
			Schemas map[string]struct{ Properties map[string]any }
		}
	}
	if err := json.Unmarshal(get(t, srv, "/openapi.json").body, &doc); err != nil {
		t.Fatal(err)
	}
	var want []string
	for path, operations := range doc.Paths {
		for method, op := range operations {
			want = append(want, strings.ToUpper(method)+" "+path+"</span> "+html.EscapeString(op.Summary))
			for _, p := range op.Parameters {
				want = append(want, "<code>"+p.Name+"</code>")
			}
			for status := range op.Responses {
				want = append(want, "<td>"+status+"</td>")
			}
		}
	}
	for name, schema := range doc.Components.Schemas {
		want = append(want, `id="schema-`+name+`"`)
		for field := range schema.Properties {
			want = append(want, "<code>"+field+"</code>")
		}
	}
	for _, w := range append(want, "<code>outcome_unknown</code>") {
		if !strings.Contains(page, w) {
			t.Errorf("the page lacks %s", w)
		}
	}
	for _, link := range regexp.MustCompile(`href="#([^"]+)"`).FindAllStringSubmatch(page, -1) {
		if !strings.Contains(page, `id="`+link[1]+`"`) {
			t.Errorf("the page links to %s, which it does not have", link[1])
		}
	}
}

// TestDocsInABrowser loads the page in a real browser, which loads nothing else and reports
// no error.
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
	if !slices.Equal(asked, []string{"GET /docs"}) {
		t.Errorf("the browser asked for %v, want the page alone", asked)
	}
	for _, want := range []string{"Sign up", "Problem codes", "password_too_short"} {
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
