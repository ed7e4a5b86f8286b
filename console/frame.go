package console

import (
	"bytes"
	"cmp"
	"context"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/saga"
	"github.com/pgjet/pgjet/internal/attempt"
	"github.com/pgjet/pgjet/internal/operate"
	"github.com/pgjet/pgjet/internal/sqlstate"
	"github.com/pgjet/pgjet/relay"
)

//go:embed web
var files embed.FS

// A page is the result of a request.
type page struct {
	Title    string
	Template string // in web
	Command  string // the command that shows the same
	Content  any
	Status   int  // 0 is 200
	Still    bool // it is not live
}

// A frame is a page with what every page shows.
type frame struct {
	page
	Path   string
	Name   string
	Active string // the entry of the menu
	URL    string // of the page
	Live   string // URL of its changes; "" if it is not live
	Dead   int64  // dead letters that wait for a decision, if known
	Rights operate.Rights
	Others []databaseLink // the databases to choose from
	Dev    *Dev
	Notice string    // the result of the last change
	Stale  time.Time // the age of an old status; zero if it is fresh
	Now    time.Time
}

// parse returns the templates of the pages.
func (c *Console) parse() map[string]*template.Template {
	all := make(map[string]*template.Template)
	entries, err := files.ReadDir("web")
	if err != nil {
		panic(err) // it is embedded
	}
	for _, e := range entries {
		if name := e.Name(); strings.HasSuffix(name, ".html") && name != "layout.html" {
			all[name] = template.Must(template.New("layout.html").Funcs(c.funcs()).ParseFS(files, "web/layout.html", "web/"+name))
		}
	}
	return all
}

// A pageFunc makes the page for a request.
type pageFunc func(ctx context.Context, r *http.Request) (page, error)

// show serves a page, or its changes.
func (c *Console) show(active string, produce pageFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if wantsLive(r) {
			c.live(w, r, func(ctx context.Context) (int, []byte) {
				f := c.frame(ctx, r, active, produce)
				var out bytes.Buffer
				_ = c.pages[f.Template].ExecuteTemplate(&out, "content", f) // an error shows in the page
				return f.Status, out.Bytes()
			})
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), pageTime)
		defer cancel()
		f := c.frame(ctx, r, active, produce)
		f.Notice = takeNotice(w, r)
		c.write(w, f.Status, f.Template, f)
	}
}

// frame makes a page. If that fails, the page shows why.
func (c *Console) frame(ctx context.Context, r *http.Request, active string, produce pageFunc) frame {
	f := frame{Path: c.config.Path, Name: c.config.Name, Active: active, Dev: c.config.Dev, Rights: c.board.Rights(ctx), Others: c.databases(r), Now: time.Now()}
	var p page
	err := guarded("the page", func() (err error) {
		p, err = produce(ctx, r)
		return err
	})
	if err != nil {
		p = c.problem(ctx, p, err)
	}
	f.page = p
	f.Status = max(f.Status, http.StatusOK)
	query := r.URL.Query()
	query.Del("live")
	f.URL = c.address(r.URL.EscapedPath(), query)
	if !p.Still && r.Method == http.MethodGet {
		query.Set("live", "")
		f.Live = c.address(r.URL.EscapedPath(), query)
	}
	f.Dead = c.board.dead()
	if slices.Contains([]string{"now.html", "consumers.html", "consumer.html", "relay.html", "processes.html", "audit.html"}, p.Template) {
		f.Stale = c.board.stale()
	}
	return f
}

// address returns a URL of this console.
func (c *Console) address(path string, query url.Values) string {
	path = c.config.Path + path
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	return path
}

// A failure is shown in place of what could not be read.
type failure struct {
	Code string
	Text string
	Next string
}

// problem returns a page that shows an error.
func (c *Console) problem(ctx context.Context, p page, err error) page {
	p.Template, p.Status = "problem.html", http.StatusServiceUnavailable
	f := failureOf(err)
	switch {
	case isAbsent(err):
		p.Status, f.Code, p.Title = http.StatusNotFound, "not_found", "Not found"
	case isWrong(err):
		p.Status, f.Code, p.Title = http.StatusBadRequest, "wrong_address", "No such view"
	default:
		c.logProblem(ctx, p.Title, f, err)
	}
	p.Title = cmp.Or(p.Title, "Not known now")
	p.Content = f
	return p
}

// problems remembers what was logged last: live pages fail again and again.
type problems struct {
	mu   sync.Mutex
	code string
	at   time.Time
}

// problemEvery bounds how often the same reason is logged.
const problemEvery = time.Minute

// logProblem logs that a page cannot be made. It logs the same reason at most once in a while.
func (c *Console) logProblem(ctx context.Context, title string, f failure, err error) {
	c.problems.mu.Lock()
	defer c.problems.mu.Unlock()
	if f.Code == c.problems.code && time.Since(c.problems.at) < problemEvery {
		return
	}
	c.problems.code, c.problems.at = f.Code, time.Now()
	log := c.log
	if p, ok := errors.AsType[*attempt.Panic](err); ok {
		log = log.With("stack", string(p.Stack))
	}
	log.WarnContext(ctx, "a page of the console cannot be made", "page", title, "reason", f.Code, "err", f.Text)
}

// failureOf describes an error, with what to do.
func failureOf(err error) failure {
	code := string(sqlstate.Of(err))
	if code == "" && errors.Is(err, context.DeadlineExceeded) {
		code = string(sqlstate.Timeout)
	}
	if m, ok := errors.AsType[*missingError](err); ok {
		code = m.Code
	}
	f := failure{Code: cmp.Or(code, "error"), Text: inbox.Mask(strings.TrimPrefix(err.Error(), code+": "))}
	if code != "" {
		f.Next = "pgjet explain " + code
	}
	return f
}

// A wrongError is the error of a wrong URL or form.
type wrongError struct{ text string }

func (e *wrongError) Error() string { return e.text }

func wrongf(format string, args ...any) error { return &wrongError{fmt.Sprintf(format, args...)} }

func isWrong(err error) bool {
	_, wrong := errors.AsType[*wrongError](err)
	_, cursor := errors.AsType[*operate.CursorError](err)
	_, state := errors.AsType[*operate.StateError](err)
	return wrong || cursor || state || errors.Is(err, relay.ErrLeadChanged) || errors.Is(err, relay.ErrNothingToAdopt) || errors.Is(err, operate.ErrPlanChanged)
}

func isAbsent(err error) bool {
	_, event := errors.AsType[*operate.NotFoundError](err)
	_, letter := errors.AsType[*inbox.NotFoundError](err)
	_, consumer := errors.AsType[*inbox.UnknownError](err)
	_, of := errors.AsType[*saga.NotFoundError](err)
	return event || letter || consumer || of
}

// write answers with a whole page.
func (c *Console) write(w http.ResponseWriter, status int, name string, f frame) {
	var out bytes.Buffer
	if err := c.pages[name].Execute(&out, f); err != nil {
		c.log.Error("a page of the console cannot be written", "page", name, "err", err)
		http.Error(w, "This page cannot be written. The log of the console says why.", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = out.WriteTo(w) // the client has closed the connection
}

const noticeCookie = "pgjet_notice"

// mostNotice is how many bytes of a notice are kept: escaped, a byte may become three, and browsers
// drop cookies above 4096 bytes.
const mostNotice = 1200

// leaveNotice makes the next page show the result of a change.
func (c *Console) leaveNotice(w http.ResponseWriter, r *http.Request, text string) {
	text = inbox.Mask(text)
	text = strings.ToValidUTF8(text[:min(len(text), mostNotice)], "")
	http.SetCookie(w, &http.Cookie{Name: noticeCookie, Value: url.QueryEscape(text), Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode, MaxAge: 30, Secure: r.TLS != nil})
}

func takeNotice(w http.ResponseWriter, r *http.Request) string {
	cookie, err := r.Cookie(noticeCookie)
	if err != nil {
		return ""
	}
	http.SetCookie(w, &http.Cookie{Name: noticeCookie, Path: "/", MaxAge: -1})
	text, _ := url.QueryUnescape(cookie.Value)
	return text
}
