// Package service makes HTTP calls to another service. A [Client] turns requests for
// http://NAME/path into requests to a live instance of that service, and keeps the trouble
// of one service from spreading:
//
//   - a bulkhead: a bounded number of calls at a time; further ones are refused at once;
//   - a breaker: a service that fails is left alone for a while;
//   - a timeout for each request, until the body of the answer has been read;
//   - retries, with growing pauses and within the request's deadline, of requests that may
//     be repeated: those with an idempotent method or an Idempotency-Key, whose body can be
//     read again. A Retry-After is honoured, unless it is too long to wait;
//   - instances take turns, and one that has just failed is avoided.
//
// The service fails if it cannot be reached, sends no header in time, or answers 5xx or
// 429. Any other answer is a success.
//
// Calls carry the trace. A redirect is an answer, and is not followed.
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

// ErrUnavailable says that the service cannot answer now, and may later. The request may
// have reached it, unless none was sent.
var ErrUnavailable = errors.New("service unavailable")

// A Finder returns the addresses of the live instances of the service of that name, such as
// http://10.0.0.1:8080. With an error it may return the last known ones.
type Finder func(ctx context.Context, name string) ([]string, error)

// A Tuning holds the settings that may change while the process runs. The tags name the
// keys in the section services.NAME of the configuration, and the limits of their values.
type Tuning struct {
	URL         string        `koanf:"-"`                                                   // used if no instance is known
	Timeout     time.Duration `koanf:"timeout" validate:"min=1ms,max=1m"`                   // of one request
	Concurrency int           `koanf:"concurrency" validate:"min=1"`                        // calls at a time
	Failures    uint          `koanf:"failures" validate:"min=1,max=1000"`                  // in a row, which open the breaker
	Delay       time.Duration `koanf:"delay" validate:"min=1ms,max=1h"`                     // for which it is open
	Trials      uint          `koanf:"trials" validate:"min=1,max=1000"`                    // calls let through then
	Successes   uint          `koanf:"successes" validate:"min=1,max=1000,ltefield=Trials"` // of them, which close it
	Retries     int           `koanf:"retries" validate:"min=0,max=10"`                     // after the first request
}

// DefaultTuning returns the default settings.
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

// New returns a Client for the service of that name, which find finds. If find is nil or
// finds no instance, calls go to t.URL.
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

// Tune applies t from the next call on. It may be called at any time. The breaker keeps its
// state.
func (c *Client) Tune(t Tuning) {
	c.tuning.Store(&t)
	c.breaker.Tune(t.breaker())
}

// Away reports whether the service is known to be away, and since when. All calls but
// trials are then refused at once.
func (c *Client) Away() (away bool, since time.Time) { return c.breaker.State() }

// HTTP returns the client for requests to http://NAME/. A temporary failure is an
// [ErrUnavailable]; any answer of the service is no error.
func (c *Client) HTTP() *http.Client {
	return &http.Client{Transport: c, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}
}

// unavailable returns why as a temporary failure.
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
