package console

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// patience bounds every wait, even on a busy machine.
const patience = 45 * time.Second // an open page that took long rests for 20 s

// env is what all tests share: a pgjet dev, and a browser.
var env struct {
	binary  string
	Console string          `json:"console"`
	Users   string          `json:"users"`
	Inbox   string          `json:"inbox"`
	Billing string          `json:"billing"`
	NATS    string          `json:"nats"`
	DB      string          `json:"database"`
	browser context.Context // of chromedp, which keeps a browser there
}

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) (code int) {
	browser := chromium()
	if browser == "" {
		fmt.Println("no chromium: install it (apt-get install chromium), or name it by PGJET_CHROMIUM")
		if os.Getenv("CI") != "" {
			return 1
		}
		return 0
	}
	dir, err := os.MkdirTemp("", "pgjet-console-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // PostgreSQL may run as another user
		panic(err)
	}
	stop, err := start(dir)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer stop()
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(browser), chromedp.NoSandbox,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true))
	allocator, end := chromedp.NewExecAllocator(context.Background(), options...)
	defer end()
	env.browser, end = chromedp.NewContext(allocator)
	defer end()
	if err := chromedp.Do(env.browser); err != nil {
		fmt.Println("start the browser:", err)
		return 1
	}
	return m.Run()
}

// chromium returns the browser to use, "" if there is none.
func chromium() string {
	for _, name := range []string{os.Getenv("PGJET_CHROMIUM"), "chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); name != "" && err == nil {
			return path
		}
	}
	return ""
}

// start builds pgjet, and starts a pgjet dev with state in dir.
func start(dir string) (stop func(), err error) {
	env.binary = filepath.Join(dir, "pgjet")
	if out, err := exec.CommandContext(context.Background(), "go", "build", "-ldflags=-w", "-o", env.binary, "github.com/pgjet/pgjet/cmd/pgjet").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build pgjet: %w\n%s", err, out)
	}
	cmd := exec.CommandContext(context.Background(), env.binary, "dev", "--json", "--dir", filepath.Join(dir, "state"), "--port", strconv.Itoa(freePorts()), "--log-level", "warn")
	var logged strings.Builder
	cmd.Stderr, cmd.Cancel = &logged, func() error { return cmd.Process.Signal(os.Interrupt) }
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &env)
	}
	stop = func() {
		_ = cmd.Process.Signal(os.Interrupt) // it has ended otherwise
		_ = cmd.Wait()
	}
	if err != nil {
		stop()
		return nil, fmt.Errorf("pgjet dev says %q: %w\n%s", line, err, logged.String())
	}
	return stop, nil
}

// freePorts returns the first of ten free ports.
func freePorts() int {
	const block = 10
	for first := 22000 + os.Getpid()%1000*block; ; first += block {
		free := true
		for port := first; port < first+block; port++ {
			l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
			if err != nil {
				free = false
				break
			}
			l.Close()
		}
		if free {
			return first
		}
	}
}

// A tab is a tab of the browser that records the errors of its pages.
type tab struct {
	t    *testing.T
	ctx  context.Context
	base string

	expected string // messages of pages that are no fault
	errors   []string
}

// open opens a tab. What its pages report as an error or a warning fails the test.
func open(t *testing.T, base string, expected ...string) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(env.browser)
	b := &tab{t: t, ctx: ctx, base: strings.TrimSuffix(base, "/"), expected: strings.Join(expected, "")}
	messages := chromedp.Console(ctx)
	var reading sync.WaitGroup
	reading.Go(func() {
		for m, err := range messages {
			if err != nil {
				return
			}
			if b.expected != "" && strings.Contains(m.Text, b.expected) {
				continue
			}
			if m.Type == "error" || m.Type == "warning" || m.Type == chromedp.ConsoleException {
				b.errors = append(b.errors, m.Text+" "+m.URL)
			}
		}
	})
	t.Cleanup(func() {
		cancel()
		reading.Wait()
		for _, text := range b.errors {
			t.Error("the page reports: " + text)
		}
	})
	return b
}

// do runs actions, of which none may take long.
func (b *tab) do(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		b.t.Fatalf("%v, on %s:\n%s", err, b.url(), b.text())
	}
}

// visit opens a page of the console.
func (b *tab) visit(path string) {
	b.t.Helper()
	b.do(chromedp.Navigate(b.base+path), chromedp.WaitReady("#main"))
}

// click clicks the button or link with this text, and waits for the next page if there is one.
func (b *tab) click(text string) {
	b.t.Helper()
	b.do(chromedp.Click(fmt.Sprintf(`//main//*[self::button or self::a][normalize-space(.)=%q or @aria-label=%q]`, text, text)))
}

// sees waits until the page shows all texts.
func (b *tab) sees(texts ...string) {
	b.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		missing := ""
		said := b.text()
		for _, text := range texts {
			if !strings.Contains(said, text) {
				missing = text
			}
		}
		if missing == "" {
			return
		}
		if time.Now().After(end) {
			b.t.Fatalf("%s does not say %q:\n%s", b.url(), missing, said)
		}
	}
}

// text returns the text of the page; "" while it changes to another.
func (b *tab) text() string {
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	text, _ := chromedp.Run(ctx, chromedp.Evaluate[string](`document.querySelector("main")?.innerText ?? ""`))
	return text
}

func (b *tab) url() string {
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	url, _ := chromedp.Run(ctx, chromedp.Location())
	return url
}

// eval returns the result of a script.
func eval[T any](b *tab, script string) T {
	b.t.Helper()
	return get(b, chromedp.Evaluate[T](script, chromedp.EvalAwaitPromise))
}

// get returns the result of an action.
func get[T any](b *tab, action chromedp.Action[T]) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	v, err := chromedp.Run(ctx, action)
	if err != nil {
		b.t.Fatalf("%v, on %s", err, b.url())
	}
	return v
}

// request sends a request that must succeed, and returns the answer.
func request(t *testing.T, method, url, body string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(context.WithoutCancel(t.Context()), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if strings.HasPrefix(url, env.Console) { // as a form of its pages
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("Sec-Fetch-Site", "same-origin")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode >= http.StatusBadRequest {
		t.Fatalf("%s %s: %s %s, %v", method, url, resp.Status, answer, err)
	}
	return string(answer)
}

// post sends a form of the console, and returns where that leads.
func post(t *testing.T, path, form string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(context.WithoutCancel(t.Context()), http.MethodPost, env.Console+path, strings.NewReader(form))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Sec-Fetch-Site", "same-origin")
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode >= http.StatusBadRequest {
		t.Fatalf("POST %s: %s", path, resp.Status)
	}
	return resp
}

// mails returns how many mails somebody got.
func mails(t *testing.T, to string) int {
	t.Helper()
	var all []json.RawMessage
	if err := json.Unmarshal([]byte(request(t, http.MethodGet, env.Inbox+"/api/messages?to="+to, "")), &all); err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not in time: " + what)
		}
	}
}

// people counts the users of tests: a test may run more than once.
var people atomic.Int64

// somebody returns a new mail address.
func somebody() string { return fmt.Sprintf("person%d@example.com", people.Add(1)) }

// pgjet runs a command on the database of the pgjet dev.
func pgjet(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), env.binary, append(args, "--database-url", env.DB)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("pgjet %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// typed runs a command as a page shows it. It may find that something is wrong.
func typed(t *testing.T, command string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", command) //nolint:gosec // it comes from the console that is tested
	cmd.Dir = filepath.Dir(env.binary)
	cmd.Env = append(os.Environ(), "PATH="+cmd.Dir+":"+os.Getenv("PATH"), "PGJET_DATABASE_URL="+env.DB, "PGJET_NATS_URL="+env.NATS)
	const unhealthy = 6
	if out, err := cmd.CombinedOutput(); err != nil && cmd.ProcessState.ExitCode() != unhealthy {
		t.Errorf("%s: %v\n%s", command, err, out)
	}
}

// signUp signs a user up.
func signUp(t *testing.T, email string) {
	t.Helper()
	request(t, http.MethodPost, env.Users+"/users", fmt.Sprintf(`{"email":%q,"name":"Ann","password":"correct horse battery"}`, email))
}

// breakMail makes the mail server answer with a code, or work if that is 0.
func breakMail(t *testing.T, code int) {
	t.Helper()
	if code == 0 {
		request(t, http.MethodDelete, env.Inbox+"/fault", "")
		return
	}
	request(t, http.MethodPut, env.Inbox+"/fault", fmt.Sprintf(`{"status":%d}`, code))
}

// console starts a pgjet console with these flags, and returns its address.
func console(t *testing.T, flags ...string) string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, env.binary, append([]string{"console", "--listen", "127.0.0.1:0", "--nats-url", env.NATS}, flags...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	out, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := cmd.Wait(); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("pgjet console ends with %v", err)
		}
	})
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		var line struct{ Msg, Addr string }
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "serving the console" {
			go func() { _, _ = io.Copy(io.Discard, out) }()
			return line.Addr
		}
	}
	t.Fatal("pgjet console does not say where it serves")
	return ""
}
