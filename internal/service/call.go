package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pgjet/pgjet/internal/breaker"
)

var (
	errFull    = errors.New("too many calls at a time")
	errRefused = errors.New("it has failed too often, and is left alone for a while")
	errTimeout = errors.New("it did not answer in time")
)

// plainTransport uses no proxy, and bounds the size of headers.
func plainTransport() *http.Transport {
	return &http.Transport{
		DialContext:            (&net.Dialer{Timeout: 2 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		MaxIdleConnsPerHost:    32,
		IdleConnTimeout:        30 * time.Second,
		TLSHandshakeTimeout:    2 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
	}
}

// RoundTrip makes one call, with one or more requests. See [http.RoundTripper].
func (c *Client) RoundTrip(req *http.Request) (*http.Response, error) {
	t := *c.tuning.Load()
	if req.URL.Scheme != "http" || req.URL.Host != c.name {
		closeBody(req)
		return nil, fmt.Errorf("%s://%s is not http://%s", req.URL.Scheme, req.URL.Host, c.name)
	}
	if c.inside.Add(1) > int64(t.Concurrency) {
		c.inside.Add(-1)
		closeBody(req)
		c.metrics.full()
		return nil, c.unavailable(errFull)
	}
	leave := sync.OnceFunc(func() { c.inside.Add(-1) })
	res, err := c.retry(req, t)
	if err != nil {
		leave()
		closeBody(req)
		return nil, err
	}
	held := res.Body.(*body)
	held.closed = append(held.closed, leave)
	context.AfterFunc(held.ctx, leave) // for a caller that does not close the body
	return res, nil
}

// try sends req to one instance. Its error is [ErrUnavailable], unless the caller gave up.
func (c *Client) try(req *http.Request, t Tuning) (res *http.Response, err error) {
	called := c.breaker.Do(func() breaker.Outcome {
		res, err = c.send(req, t) //nolint:bodyclose // the caller closes it
		switch {
		case errors.Is(req.Context().Err(), context.Canceled) || errors.Is(err, errNotFound):
			return breaker.Nothing
		case err != nil || failure(res.StatusCode):
			return breaker.Failed
		}
		return breaker.Answered
	})
	if !called {
		return nil, c.unavailable(errRefused)
	}
	return res, err
}

func (c *Client) send(req *http.Request, t Tuning) (*http.Response, error) {
	ctx, cancel := context.WithTimeoutCause(req.Context(), t.Timeout, errTimeout)
	at, err := c.instances.pick(ctx, t.URL)
	if err != nil {
		cancel()
		return nil, c.unavailable(err)
	}
	begun := time.Now()
	res, err := c.transport.RoundTrip(to(ctx, req, at))
	c.metrics.tried(req, begun, res)
	if err == nil && !failure(res.StatusCode) {
		c.instances.answered(at.Host)
	} else if !errors.Is(req.Context().Err(), context.Canceled) {
		c.instances.failed(at.Host)
	}
	if err == nil {
		res.Body = &body{ReadCloser: res.Body, ctx: ctx, closed: []func(){cancel}}
		return res, nil
	}
	cause := context.Cause(ctx)
	cancel()
	switch {
	case errors.Is(req.Context().Err(), context.Canceled):
		return nil, req.Context().Err()
	case cause != nil: // more specific than "context deadline exceeded"
		return nil, c.unavailable(cause)
	}
	return nil, c.unavailable(err)
}

// to returns req for the instance at that address.
func to(ctx context.Context, req *http.Request, at *url.URL) *http.Request {
	r := req.Clone(ctx)
	r.URL.Scheme, r.URL.Host, r.Host = at.Scheme, at.Host, ""
	if prefix := strings.TrimSuffix(at.EscapedPath(), "/"); prefix != "" { // of a configured URL
		r.URL.RawPath = prefix + r.URL.EscapedPath()
		r.URL.Path = strings.TrimSuffix(at.Path, "/") + r.URL.Path
	}
	return r
}

// failure reports whether an answer with this status is a failure of the service.
func failure(status int) bool {
	return status >= http.StatusInternalServerError || status == http.StatusTooManyRequests
}

func closeBody(req *http.Request) {
	if req.Body != nil {
		_ = req.Body.Close() // nothing was read from it
	}
}

// A body is that of an answer. Its request lasts until it is closed.
type body struct {
	io.ReadCloser
	ctx    context.Context //nolint:containedctx // the try's
	closed []func()
}

// Read returns a specific error if the request's time was up.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		if cause := context.Cause(b.ctx); cause != nil {
			err = fmt.Errorf("%w: %w", ErrUnavailable, cause)
		}
	}
	return n, err
}

// Close ends the request.
func (b *body) Close() error {
	err := b.ReadCloser.Close()
	for _, f := range slices.Backward(b.closed) {
		f()
	}
	return err
}
