package devmail_test

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wneessen/go-mail"
)

// TestPageInABrowser loads the page in a real browser and runs its script: a mail that
// comes while the page is open appears, and nothing is blocked or fails.
func TestPageInABrowser(t *testing.T) {
	browser, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("there is no chromium on this machine")
	}
	s := start(t, "")
	first := welcome(t, "ann@example.com")
	first.AddAlternativeString(mail.TypeTextHTML, "<h1>Hello</h1><script>document.title='run'</script>")
	s.send(t, first)
	second := sync.OnceFunc(func() { s.send(t, welcome(t, "bert@example.com")) })
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead { // the script looks for news
			second()
		}
		s.Handler().ServeHTTP(w, r)
	}))
	defer web.Close()

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
		"--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
		"--user-data-dir="+t.TempDir(), "--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom",
		web.URL+"/messages/"+s.mails(t)[0].ID)
	var dom, console bytes.Buffer
	cmd.Stdout, cmd.Stderr = &dom, &console
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, &console)
	}
	for _, want := range []string{"ann@example.com", "bert@example.com", "<iframe", `sandbox=""`} {
		if !strings.Contains(dom.String(), want) {
			t.Errorf("the page lacks %s:\n%s", want, &dom)
		}
	}
	if strings.Contains(dom.String(), "<title>run") {
		t.Error("a script in a mail ran")
	}
	for line := range strings.Lines(console.String()) {
		if strings.Contains(line, "CONSOLE") && !strings.Contains(line, "sandboxed") { // the mail's script was blocked
			t.Errorf("the browser complains: %s", line)
		}
	}
}
