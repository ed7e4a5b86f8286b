// Package console is a web page for operators: what is wrong, what happened to an event, and how to put it right. It shows both
// sides of the broker: outbox, relay, stream, consumers, retries, dead letters.
//
// [New] returns an [http.Handler] that any program may mount. It needs a pool of the database, and NATS for what JetStream knows.
// If one of them does not answer, what the other knows is shown, and what is missing and why is said.
//
// One console may show several databases, each below a path of its own: see [Config].
//
// # Who may do what
//
// What can be changed is what the database lets the user of the pool change: with the rights of pgjet_operator everything that the
// command pgjet changes, with a user who may only read, nothing. What is not allowed has no button, and is refused. Every change is an
// operation in pgjet.operation, as one from the command line is, with who made it and why.
//
// The console does not ask who calls, unless Config.User says so: mount it behind whatever does, or wrap it in [Token] or [Header]. It
// refuses a Host that is not this machine on a loopback address, and changes that a page of another origin asks for. Its pages
// load nothing from elsewhere, and run no inline code.
//
// Payloads, the values of headers that a producer chose, and what looks like a mail address are hidden until somebody reveals them, which is an
// operation, too.
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

// A Config says what a console shows. It needs DB.
type Config struct {
	DB     *pgxpool.Pool
	NATS   *nats.Conn          // nil: what NATS knows is missing
	JS     jetstream.JetStream // of NATS; nil is its default
	Stream string              // that is meant if no relay has ever run; "" is [events.DefaultStream]

	Name     string                     // of what is shown, for people who see several; "" is the name of the database
	Path     string                     // where the console is mounted, such as /pgjet; "" is the root
	Hosts    []string                   // further names under which it is asked for on a loopback address, such as those that a proxy passes on
	ReadOnly bool                       // nothing can be changed, whatever the database allows
	User     func(*http.Request) string // who calls, for pgjet.operation; nil is who runs this process
	Own      func(consumer string) bool // whether the command pgjet can run this consumer; nil: it can run none
	Dev      *Dev                       // what a development set-up adds; nil is nothing
	Also     []Database                 // further databases, which are shown on pages of their own
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

	complaints complaints

	pages map[string]*template.Template
	mux   http.Handler

	first  *Console   // of which this one shows a further database; nil if none
	others []*Console // of the further databases

	ended context.Context //nolint:containedctx // it ends what goes on after a request, or keeps one open
	end   context.CancelFunc
	tasks sync.WaitGroup

	closing sync.Mutex // no task begins while it ends
}

// New returns a console. It starts nothing and connects to nothing yet. [Console.Close] it before DB and NATS.
func New(config Config) *Console {
	c := &Console{config: config, log: config.Log, source: operate.Source{DB: config.DB, NATS: config.NATS, JS: config.JS, Stream: config.Stream, Own: config.Own, Rows: lookRows}}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if c.source.Stream == "" {
		c.source.Stream = events.DefaultStream
	}
	if config.NATS != nil && config.JS == nil {
		c.source.JS, _ = jetstream.New(config.NATS) // fails for bad options only, and there are none
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

// ServeHTTP answers a request for a page.
func (c *Console) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if other := c.other(r); other != nil {
		c = other
	}
	c.mux.ServeHTTP(w, r)
}

// Close ends live pages and what is being changed, of which the rest stays as it is. It waits for both, and may be called twice.
func (c *Console) Close() {
	c.closing.Lock()
	c.end()
	c.closing.Unlock()
	for _, other := range c.others {
		other.Close()
	}
	c.tasks.Wait()
}

// changed has the next pages show what was changed.
func (c *Console) changed() {
	c.board.forget()
	c.shared.forget()
}

// begin runs fn beside requests, and reports whether it does: a console that was closed does not.
func (c *Console) begin(fn func()) bool {
	c.closing.Lock()
	defer c.closing.Unlock()
	if c.ended.Err() != nil {
		return false
	}
	c.tasks.Go(fn)
	return true
}

// guarded calls fn, and makes its panic an error. What goes on beside requests must not end the program in which the console is mounted.
func guarded(what string, fn func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = attempt.Recovered(what, p)
		}
	}()
	return fn()
}

// asked returns where facts come from now: without NATS while that is not connected, so that nobody waits for it.
func (c *Console) asked() operate.Source {
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

// Times that bound what a page costs.
const (
	pageTime   = 10 * time.Second        // for one page
	rightsFor  = 5 * time.Second         // what the database allows may be so old
	statusFor  = 1500 * time.Millisecond // and so may the status be
	staleAfter = 200 * time.Millisecond  // for a status that is on its way
	liveEvery  = 2 * time.Second         // how often a live page is looked at
	writeTime  = 10 * time.Second        // for a client to take what is sent
	mostBodies = 64 << 10                // bytes of a form
)

// lookRows is how many rows of the outbox one page looks through for what no index has. The next page goes on.
const lookRows = 50_000
