package auth

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pgjet/pgjet/internal/testenv"
)

// A keyServer serves a JWK set that a test changes, and counts requests.
type keyServer struct {
	*httptest.Server
	asked  atomic.Int64
	answer atomic.Pointer[http.HandlerFunc]
}

func serveKeys(t *testing.T) *keyServer {
	t.Helper()
	s := &keyServer{}
	s.away()
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		(*s.answer.Load())(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *keyServer) serve(set string) {
	s.do(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(set)) })
}

func (s *keyServer) away() {
	s.do(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
}

func (s *keyServer) do(fn http.HandlerFunc) { s.answer.Store(&fn) }

// A clock is moved by hand.
type clock struct{ at atomic.Int64 }

func (c *clock) now() time.Time      { return now.Add(time.Duration(c.at.Load())) }
func (c *clock) add(d time.Duration) { c.at.Add(int64(d)) }

// remoteVerifier returns a verifier that has only the keys at s.
func remoteVerifier(t *testing.T, s *keyServer) (*Verifier, *Remote, *clock) {
	t.Helper()
	r, err := NewRemote(s.URL+"/.well-known/jwks.json", testenv.Logger(t))
	if err != nil {
		t.Fatal(err)
	}
	c := &clock{}
	r.now = c.now
	v := newVerifier(nil).With(r)
	v.now = func() time.Time { return now }
	return v, r, c
}

func setOf(t *testing.T, signers ...signer) string {
	t.Helper()
	var keys []string
	for _, s := range signers {
		keys = append(keys, jsonOf(t, jwkOf(t, s.public(), s.kid)))
	}
	return `{"keys":[` + strings.Join(keys, ",") + `]}`
}

func TestRemoteKeys(t *testing.T) {
	s := serveKeys(t)
	v, r, c := remoteVerifier(t, s)
	ed, ec := claim(), ecSigner.sign(ecSigner.header(), with())
	verify := func(when, token string, want error, asked int64) {
		t.Helper()
		before := s.asked.Load()
		if _, err := v.Verify(t.Context(), token); !errors.Is(err, want) {
			t.Errorf("%s: Verify() = %v, want %v", when, err, want)
		}
		if n := s.asked.Load() - before; n != asked {
			t.Errorf("%s: the server was asked %d times, want %d", when, n, asked)
		}
	}
	verify("before they were ever loaded", ed, ErrUnavailable, 1)
	s.serve(setOf(t, edSigner))
	verify("less than a minute later", ed, ErrUnavailable, 0)
	verify("garbage", "x.y.z", ErrInvalid, 0)
	c.add(time.Minute)
	verify("a minute later", ed, nil, 1)
	verify("again", ed, nil, 0)

	s.serve(setOf(t, ecSigner, edSigner))
	c.add(time.Minute - 1)
	verify("a new key, within the minute", ec, ErrInvalid, 0)
	c.add(1)
	verify("a new key, a minute later", ec, nil, 1)

	s.away()
	c.add(time.Hour)
	verify("unknown while the server is away", head(`{"alg":"EdDSA","kid":"nobody","typ":"at+jwt"}`), ErrInvalid, 1)
	verify("known while the server is away", ed, nil, 0)

	s.serve(setOf(t, ecSigner))
	if !r.refresh(t.Context()) {
		t.Error("a refresh failed")
	}
	verify("withdrawn", ed, ErrInvalid, 0)
	verify("still there", ec, nil, 0)
}

// TestRemoteAnswers: if the server answers anything but valid keys, the known ones stay.
func TestRemoteAnswers(t *testing.T) {
	s := serveKeys(t)
	v, r, _ := remoteVerifier(t, s)
	s.serve(setOf(t, edSigner))
	if !r.refresh(t.Context()) {
		t.Fatal("a refresh failed")
	}
	elsewhere := serveKeys(t)
	elsewhere.serve(setOf(t, rsaSigner))
	for name, answer := range map[string]http.HandlerFunc{
		"nothing":   func(http.ResponseWriter, *http.Request) {},
		"no JSON":   func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) },
		"empty set": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"keys":[]}`)) },
		"a secret": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"keys":[{"kty":"oct","k":"AAAA"}]}`))
		},
		"weak keys": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"ed","x":"` + encode(make([]byte, 32)) + `"}]}`))
		},
		"too much": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(setOf(t, rsaSigner) + strings.Repeat(" ", maxJWKS)))
		},
		"500": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(500)
			_, _ = w.Write([]byte(setOf(t, rsaSigner)))
		},
		"redirect": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, elsewhere.URL, http.StatusFound) },
		"cut short": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write([]byte(`{"keys":[`))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s.do(answer)
			if r.refresh(t.Context()) {
				t.Error("the refresh reports success")
			}
			if _, err := v.Verify(t.Context(), claim()); err != nil {
				t.Errorf("the known key does not verify any more: %v", err)
			}
		})
	}
	if n := elsewhere.asked.Load(); n != 0 {
		t.Errorf("a redirect was followed %d times", n)
	}
}

// TestRemoteSkipsOtherKeys: a set may hold keys for other purposes.
func TestRemoteSkipsOtherKeys(t *testing.T) {
	s := serveKeys(t)
	v, r, _ := remoteVerifier(t, s)
	s.serve(strings.Replace(setOf(t, edSigner), `[`,
		`[{"kty":"oct","k":"AAAA","kid":"a"},{"kty":"XYZ","kid":"b"},{"kty":"EC","crv":"P-521","kid":"c","x":"AA","y":"AA"},`, 1))
	if !r.refresh(t.Context()) {
		t.Fatal("a refresh failed")
	}
	if _, err := v.Verify(t.Context(), claim()); err != nil {
		t.Errorf("the good key among others: %v", err)
	}
}

// TestOwnKeysComeFirst: the server of another issuer cannot take over a kid.
func TestOwnKeysComeFirst(t *testing.T) {
	s := serveKeys(t)
	_, r, _ := remoteVerifier(t, s)
	s.serve(setOf(t, signer{"ed", "ES256", ecSigner.private}))
	if !r.refresh(t.Context()) {
		t.Fatal("a refresh failed")
	}
	v := testVerifier(t).With(r)
	if _, err := v.Verify(t.Context(), claim()); err != nil {
		t.Errorf("own key: %v", err)
	}
	if _, err := v.Verify(t.Context(), ecSigner.sign(`{"alg":"ES256","kid":"ed","typ":"at+jwt"}`, with())); !errors.Is(err, ErrInvalid) {
		t.Errorf("the other's key under the same kid: %v, want ErrInvalid", err)
	}
}

// TestRunFetchesUntilItWorks has the server come up late.
func TestRunFetchesUntilItWorks(t *testing.T) {
	s := serveKeys(t)
	v, r, _ := remoteVerifier(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := r.Run(ctx); err != nil {
			t.Errorf("Run() = %v", err)
		}
	})
	testenv.Eventually(t, 10*time.Second, "the server is asked", func() bool { return s.asked.Load() > 0 })
	s.serve(setOf(t, edSigner))
	testenv.Eventually(t, 10*time.Second, "the keys are loaded", func() bool { return r.keys.Load() != nil })
	if _, err := v.Verify(t.Context(), claim()); err != nil {
		t.Errorf("Verify() = %v", err)
	}
	cancel()
	wg.Wait()
}

// TestManyUnknownKeys sends many tokens with unknown keys at once: the server gets one
// request, and all waiting calls get its answer.
func TestManyUnknownKeys(t *testing.T) {
	s := serveKeys(t)
	v, _, _ := remoteVerifier(t, s)
	s.serve(setOf(t, edSigner))
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, err := v.Verify(t.Context(), claim()); err != nil {
				t.Errorf("Verify() = %v", err)
			}
		})
	}
	wg.Wait()
	if n := s.asked.Load(); n != 1 {
		t.Errorf("the server was asked %d times, want once", n)
	}
}

func TestNewRemote(t *testing.T) {
	for _, address := range []string{"", "host", "ftp://host/x", "https://", "file:///etc/passwd", "https://%zz"} {
		if _, err := NewRemote(address, testenv.Logger(t)); err == nil {
			t.Errorf("NewRemote(%q) took it", address)
		}
	}
}
