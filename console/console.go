// Package console is a web page for operators: what is wrong, what happened to an event, and how to repair it. It shows both
// sides of the broker: outbox, relay, stream, consumers, retries, dead letters.
//
// [New] returns an [http.Handler] that any program may mount. It needs a pool of the database, and
// NATS for what JetStream knows. If one of them does not answer, the console shows what the other
// knows, and says what is missing and why.
//
// One console may show several databases, each below a path of its own: see [Config].
//
// # Who may do what
//
// The database decides what can be changed, by the rights of the pool's user. With those of
// pgjet_operator it is everything that the command pgjet changes; with read access only, nothing. A
// change that is not allowed has no button, and is refused. Every change is recorded in
// pgjet.operation, with who made it and why, like one from the command line.
//
// The console does not authenticate: mount it behind something that does, or use [Console.Token] or
// [Console.Header]. On a loopback address it refuses a Host that is not this machine. It refuses
// changes that come from a page of another origin. Its pages load nothing from elsewhere, and run
// no inline code.
//
// Payloads, the values of headers that a producer chose, and what looks like a mail address are
// hidden. Revealing them is recorded as an operation.
//
// # Files
//
// The package is large because it has many pages. A page is a file and a template of the same name,
// such as dead.go and dead.html, and asks internal/operate for what it shows.
//
//   - routes.go lists the pages and the changes, frame.go is what surrounds each page, text.go has
//     the functions of templates, live.go updates open pages, flow.go and tracks.go draw.
//   - guard.go and login.go decide who may look, board.go what may be changed; work.go makes changes.
//   - several.go is for more than one database, dev.go for pgjet dev.
package console

import (
	"context"
	"html/template"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/attempt"
	"github.com/pgjet/pgjet/internal/operate"
	"github.com/pgjet/pgjet/internal/operation"
	"github.com/pgjet/pgjet/internal/web"
)

// A Config describes a console. It needs DB.
type Config struct {
	DB     *pgxpool.Pool
	NATS   *nats.Conn          // nil: pages lack what NATS knows
	JS     jetstream.JetStream // nil is the default of NATS
	Stream string              // the stream if no relay has ever run; "" is [events.DefaultStream]

	Name     string                     // shown to people who use several consoles; "" is the name of the database
	Path     string                     // where the console is mounted, such as /pgjet; "" is the root
	Hosts    []string                   // further names accepted as Host on a loopback address, such as those that a proxy passes on
	ReadOnly bool                       // refuse all changes, whatever the database allows
	User     func(*http.Request) string // who makes a request, for pgjet.operation; nil is the user who runs this process
	Own      func(consumer string) bool // whether the command pgjet can run this consumer; nil: it can run none
	Dev      *Dev                       // additions of a development set-up; may be nil
	Also     []Database                 // further databases, each with pages of its own
	Log      *slog.Logger               // nil discards
}

// A Console is an [http.Handler]. It is safe for concurrent use.
type Console struct {
	config Config
	source operate.Source
	log    *slog.Logger
	board  board
	shared shared
	work   work

	problems problems

	pages map[string]*template.Template
	mux   http.Handler

	first  *Console   // the console that this one belongs to; nil if this is the first
	others []*Console // of the further databases

	ended context.Context //nolint:containedctx // ends tasks and live pages
	end   context.CancelFunc
	tasks sync.WaitGroup

	closing sync.Mutex // no task begins once the console is closed
}

// New returns a console. It connects to nothing, and starts nothing until the first request. Call
// [Console.Close] before DB and NATS are closed.
func New(config Config) *Console {
	c := &Console{config: config, log: config.Log, source: operate.Source{DB: config.DB, NATS: config.NATS, JS: config.JS, Stream: config.Stream, Own: config.Own, Rows: lookRows}}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if c.source.Stream == "" {
		c.source.Stream = events.DefaultStream
	}
	if config.NATS != nil && config.JS == nil {
		c.source.JS, _ = jetstream.New(config.NATS) // fails only for wrong options
	}
	if c.config.Name == "" && config.DB != nil {
		c.config.Name = config.DB.Config().ConnConfig.Database
	}
	if c.config.User == nil {
		c.config.User = func(*http.Request) string { return operation.Actor() }
	}
	c.config.Path = strings.TrimSuffix(config.Path, "/")
	c.ended, c.end = context.WithCancel(context.Background())
	c.board.console, c.shared.console = c, c
	c.pages = c.parse()
	c.addOthers()
	c.mux = guard(web.Guard(http.StripPrefix(c.config.Path, c.routes()), config.Hosts...))
	return c
}

// ServeHTTP serves the pages.
func (c *Console) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if other := c.other(r); other != nil {
		c = other
	}
	c.mux.ServeHTTP(w, r)
}

// Close ends live pages and running changes, and waits for both. What is not changed by then stays
// as it is. It may be called twice.
func (c *Console) Close() {
	c.closing.Lock()
	c.end()
	c.closing.Unlock()
	for _, other := range c.others {
		other.Close()
	}
	c.tasks.Wait()
}

// changed makes the next pages show a change.
func (c *Console) changed() {
	c.board.forget()
	c.shared.forget()
}

// begin runs fn in the background. It returns false if the console is closed.
func (c *Console) begin(fn func()) bool {
	c.closing.Lock()
	defer c.closing.Unlock()
	if c.ended.Err() != nil {
		return false
	}
	c.tasks.Go(fn)
	return true
}

// guarded calls fn, and returns a panic as an error. Background work must not crash the program in
// which the console is mounted.
func guarded(what string, fn func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = attempt.Recovered(what, p)
		}
	}()
	return fn()
}

// facts returns the sources of facts. It leaves out NATS while that is not connected, so that no
// page waits for it.
func (c *Console) facts() operate.Source {
	s := c.source
	switch {
	case s.NATS == nil:
		s.JS, s.NATSErr = nil, errNoNATS
	case !s.NATS.IsConnected():
		s.NATSErr = nats.ErrDisconnected
		if err := s.NATS.LastError(); err != nil {
			s.NATSErr = err
		}
		s.NATS, s.JS = nil, nil
	}
	return s
}

// Limits of the cost of a page.
const (
	pageTime   = 10 * time.Second        // for one page
	rightsFor  = 5 * time.Second         // the age of cached rights
	statusFor  = 1500 * time.Millisecond // the age of a cached status
	staleAfter = 200 * time.Millisecond  // a page waits for a status that is being read
	liveEvery  = 2 * time.Second         // the interval of a live page
	writeTime  = 10 * time.Second        // for a client to read what is sent
	mostBodies = 64 << 10                // bytes of a form
)

// lookRows is how many rows of the outbox a page searches if no index helps. The next page
// continues.
const lookRows = 50_000
