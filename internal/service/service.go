// Package service makes HTTP calls to another service. A [Client] turns requests for
// http://NAME/path into requests to a live instance of that service, with what keeps
// the trouble of one service from becoming everybody's:
//
//   - a bulkhead: only so many calls at a time, one more is refused at once;
//   - a breaker: a service that fails is left alone for a while;
//   - a timeout for each try, until the body of the answer has been read;
//   - retries, with growing pauses and within the request's deadline, of requests that
//     may be repeated: those with an idempotent method or an Idempotency-Key, whose
//     body can be read again. A Retry-After is honoured, unless it is too long to wait;
//   - instances take turns, and one that has just failed is avoided.
//
// A failure of the service is that it cannot be reached, sends no header in time, or
// answers 5xx or 429. Any other answer is one.
//
// Calls carry the trace. Redirects are answers: nobody is sent elsewhere.
package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/pgjet/pgjet/internal/breaker"
)

// ErrUnavailable says that the service cannot answer now. The request may have reached
// it, unless nothing was tried. Later it may work.
var ErrUnavailable = errors.New("service unavailable")

// A Finder returns the addresses of the live instances of the service of that name,
// such as http://10.0.0.1:8080. With an error it may return those it knew last.
type Finder func(ctx context.Context, name string) ([]string, error)

// Tuning is what may change while the process runs. The tags name the keys in the
// section services.NAME of the configuration, and the limits of their values.
type Tuning struct {
	URL         string        `koanf:"-"`                                                   // where it is if no instance is known
	Timeout     time.Duration `koanf:"timeout" validate:"min=1ms,max=1m"`                   // of one try
	Concurrency int           `koanf:"concurrency" validate:"min=1"`                        // calls at a time
	Failures    uint          `koanf:"failures" validate:"min=1,max=1000"`                  // in a row, which open the breaker
	Delay       time.Duration `koanf:"delay" validate:"min=1ms,max=1h"`                     // for which it is open
	Trials      uint          `koanf:"trials" validate:"min=1,max=1000"`                    // calls let through then
	Successes   uint          `koanf:"successes" validate:"min=1,max=1000,ltefield=Trials"` // of them, which close it
	Retries     int           `koanf:"retries" validate:"min=0,max=10"`                     // after the first try
}

// DefaultTuning returns the values for a service that nobody has tuned.
func DefaultTuning() Tuning {
	return Tuning{
		Timeout: time.Second, Concurrency: 64,
		Failures: 5, Delay: 5 * time.Second, Trials: 3, Successes: 2,
		Retries: 2,
	}
}

func (t Tuning) breaker() breaker.Tuning {
	return breaker.Tuning{Failures: t.Failures, Delay: t.Delay, Trials: t.Trials, Successes: t.Successes}
}

// A Client calls one service. It may be used by many goroutines at once.
type Client struct {
	name      string
	log       *slog.Logger
	tuning    atomic.Pointer[Tuning]
	breaker   *breaker.Breaker
	inside    atomic.Int64 // calls in the bulkhead
	instances instances
	transport http.RoundTripper
	metrics   *metrics
}

// New returns a Client for the service of that name, which find finds. Without one, or
// while it finds nobody, calls go to t.URL.
func New(name string, find Finder, t Tuning, log *slog.Logger) (*Client, error) {
	c := &Client{
		name: name, log: log.With("service", name),
		instances: instances{name: name, find: find},
		transport: otelhttp.NewTransport(plainTransport(), otelhttp.WithSpanNameFormatter(spanName), otelhttp.WithMeterProvider(noop.NewMeterProvider())),
	}
	c.tuning.Store(&t)
	var err error
	if c.breaker, err = breaker.For(name, t.breaker(), c.breakerChanged); err != nil {
		return nil, err
	}
	c.metrics, err = newMetrics(name)
	return c, err
}

// Tune makes t hold from the next call on. It may be called at any time. The breaker
// keeps its state.
func (c *Client) Tune(t Tuning) {
	c.tuning.Store(&t)
	c.breaker.Tune(t.breaker())
}

// Away reports whether the service is known to be away, so that calls are refused at once but for trials, and since when.
func (c *Client) Away() (away bool, since time.Time) { return c.breaker.State() }

// HTTP returns the client for requests to http://NAME/. An error that means "not now"
// is an [ErrUnavailable]; an answer of the service is none, whatever it says.
func (c *Client) HTTP() *http.Client {
	return &http.Client{Transport: c, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}
}

// unavailable is an error that means "not now".
func (c *Client) unavailable(why error) error {
	return fmt.Errorf("%w: %s: %w", ErrUnavailable, c.name, why)
}

func (c *Client) breakerChanged(s breaker.State) {
	switch s {
	case breaker.Open:
		c.log.Warn("the service fails, no calls are made for a while", "delay", c.tuning.Load().Delay)
	case breaker.HalfOpen:
		c.log.Debug("calls are tried again")
	case breaker.Closed:
		c.log.Info("the service answers again")
	}
}
