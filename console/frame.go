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

// A page is what a URL shows.
type page struct {
	Title    string
	Template string // in web
	Command  string // that shows the same in a terminal
	Content  any
	Status   int  // 0 is 200
	Still    bool // it does not change by itself
}

// A frame is what stands around a page.
type frame struct {
	page
	Path   string
	Name   string
	Active string // the entry of the menu
	URL    string // of the page itself
	Live   string // where its changes come from; "" is nowhere
	Dead   int64  // letters that wait for a decision, as far as is known
	Rights operate.Rights
	Others []databaseLink // databases that can be chosen
	Dev    *Dev
	Notice string    // what the last change came to
	Stale  time.Time // of when what the servers say is; zero is now
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

// A maker makes the page that a request asks for.
type maker func(ctx context.Context, r *http.Request) (page, error)

// show answers with a page, or its changes.
func (c *Console) show(active string, produce maker) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if wantsLive(r) {
			c.live(w, r, func(ctx context.Context) (int, []byte) {
				f := c.frame(ctx, r, active, produce)
				var out bytes.Buffer
				_ = c.pages[f.Template].ExecuteTemplate(&out, "content", f) // its error is in the page
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

// frame makes a page. If that fails, it shows why.
func (c *Console) frame(ctx context.Context, r *http.Request, active string, produce maker) frame {
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

// address returns a path of this console.
func (c *Console) address(path string, query url.Values) string {
	path = c.config.Path + path
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	return path
}

// A failure is shown instead of what could not be found out.
type failure struct {
	Code string
	Text string
	Next string
}

// problem returns the page that says why there is none.
func (c *Console) problem(ctx context.Context, p page, err error) page {
	p.Template, p.Status = "problem.html", http.StatusServiceUnavailable
	f := explain(err)
	switch {
	case isAbsent(err):
		p.Status, f.Code, p.Title = http.StatusNotFound, "not_found", "Not found"
	case isWrong(err):
		p.Status, f.Code, p.Title = http.StatusBadRequest, "wrong_address", "No such view"
	default:
		c.complain(ctx, p.Title, f, err)
	}
	p.Title = cmp.Or(p.Title, "Not known now")
	p.Content = f
	return p
}

// complaints is what was logged last: live pages fail again and again.
type complaints struct {
	mu   sync.Mutex
	code string
	at   time.Time
}

// complainEvery bounds how often the same reason is logged.
const complainEvery = time.Minute

// complain logs that a page cannot be made, but not for each that fails for one reason.
func (c *Console) complain(ctx context.Context, title string, f failure, err error) {
	c.complaints.mu.Lock()
	defer c.complaints.mu.Unlock()
	if f.Code == c.complaints.code && time.Since(c.complaints.at) < complainEvery {
		return
	}
	c.complaints.code, c.complaints.at = f.Code, time.Now()
	log := c.log
	if p, ok := errors.AsType[*attempt.Panic](err); ok {
		log = log.With("stack", string(p.Stack))
	}
	log.WarnContext(ctx, "a page of the console cannot be made", "page", title, "reason", f.Code, "err", f.Text)
}

// explain says why something is not known, with what to do.
func explain(err error) failure {
	code := string(sqlstate.Of(err))
	if code == "" && errors.Is(err, context.DeadlineExceeded) {
		code = string(sqlstate.Timeout)
	}
	f := failure{Code: cmp.Or(code, "error"), Text: inbox.Mask(strings.TrimPrefix(err.Error(), code+": "))}
	if code != "" {
		f.Next = "pgjet explain " + code
	}
	return f
}

// A wrongError says that an address or a form is not one of this console.
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
	_, _ = out.WriteTo(w) // a reader who has left needs no answer
}

const noticeCookie = "pgjet_notice"

// leaveNotice has the next page say what a change came to.
func (c *Console) leaveNotice(w http.ResponseWriter, r *http.Request, text string) {
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
