package auth

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/lestrrat-go/jwx/v3/jwk"
)

const (
	refreshEvery = 5 * time.Minute // a withdrawn key may verify for this long
	askEvery     = time.Minute     // at most this often, for tokens with an unknown kid
	fetchTimeout = 3 * time.Second
	maxJWKS      = 256 << 10 // bytes
)

// A Remote is a JWK set that another server publishes. [Remote.Run] keeps it fresh. While
// the server is away, the keys stay as they are. Keys that cannot be used are left out.
type Remote struct {
	url    string
	client *http.Client
	log    *slog.Logger
	now    func() time.Time
	keys   atomic.Pointer[map[string]key] // nil until they are loaded

	turn  chan struct{} // to fetch; holds the rest
	asked time.Time     // for an unknown kid
	away  bool
}

// NewRemote returns the JWK set at an http or https URL. Over http, anyone on the network
// path can make tokens: use it only on networks that encrypt by themselves.
func NewRemote(address string, log *slog.Logger) (*Remote, error) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, errors.New("want a URL such as https://host/.well-known/jwks.json")
	}
	return &Remote{
		url: address, log: log, now: time.Now, turn: make(chan struct{}, 1),
		client: &http.Client{
			Timeout:       fetchTimeout,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// Run fetches the keys every few minutes until ctx ends, and sooner after a failure.
func (r *Remote) Run(ctx context.Context) error {
	b := backoff.NewExponentialBackOff(backoff.WithInitialInterval(time.Second),
		backoff.WithMaxInterval(time.Minute), backoff.WithMaxElapsedTime(0))
	for {
		wait := refreshEvery
		if r.refresh(ctx) {
			b.Reset()
		} else {
			wait = b.NextBackOff()
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
	}
}

// refresh waits for its turn, fetches the keys and reports whether that worked.
func (r *Remote) refresh(ctx context.Context) bool {
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
		return r.fetch(ctx)
	case <-ctx.Done():
		return false
	}
}

// key returns the key with this kid. If it is unknown, key fetches the keys again, but not
// often.
func (r *Remote) key(ctx context.Context, kid string) (key, error) {
	if k, ok := r.find(kid); ok {
		return k, nil
	}
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
	case <-ctx.Done():
		return key{}, fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
	}
	k, ok := r.find(kid)
	if now := r.now(); !ok && (r.asked.IsZero() || now.Sub(r.asked) >= askEvery) {
		r.asked = now
		r.fetch(context.WithoutCancel(ctx)) // also for other waiting calls
		k, ok = r.find(kid)
	}
	switch {
	case ok:
		return k, nil
	case r.keys.Load() == nil:
		return key{}, ErrUnavailable
	}
	return key{}, refused("unknown key")
}

func (r *Remote) find(kid string) (k key, ok bool) {
	if keys := r.keys.Load(); keys != nil {
		k, ok = (*keys)[kid]
	}
	return k, ok
}

// fetch replaces the keys with those that are served now. The caller must have the turn.
func (r *Remote) fetch(ctx context.Context) bool {
	keys, err := r.get(ctx)
	switch {
	case err != nil && ctx.Err() != nil:
		return false
	case err != nil && !r.away:
		r.log.WarnContext(ctx, "cannot fetch the keys of tokens, will keep trying", "err", err, "known", r.keys.Load() != nil)
	case err == nil && r.away:
		r.log.InfoContext(ctx, "the keys of tokens are back")
	}
	r.away = err != nil
	if err == nil {
		r.keys.Store(&keys)
	}
	return err == nil
}

func (r *Remote) get(ctx context.Context) (map[string]key, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, err // with the URL, without a password in it
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %d", req.URL.Redacted(), resp.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxJWKS+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", req.URL.Redacted(), err)
	}
	set, err := jwk.Parse(body, jwk.WithIgnoreParseError(true)) // keys of other kinds may be among them
	if err != nil || len(body) > maxJWKS {
		return nil, fmt.Errorf("%s is no JWK set of at most %d KiB", req.URL.Redacted(), maxJWKS>>10)
	}
	keys, unusable := usableKeys(set)
	if len(keys) == 0 {
		return nil, fmt.Errorf("%s has no key that can be used: %w", req.URL.Redacted(), cmp.Or(unusable, errors.New("it is empty")))
	}
	return keys, nil
}
