package web_test

import (
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/pgjet/pgjet/internal/web"
)

func TestGuard(t *testing.T) {
	srv := httptest.NewServer(web.Guard(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }), "users.example"))
	defer srv.Close()
	own := srv.Listener.Addr().String()
	for _, tt := range []struct {
		method, host, origin string
		want                 int
	}{
		{"GET", own, "", 204},
		{"GET", "localhost", "", 204},
		{"GET", "LOCALHOST.:7401", "", 204},
		{"GET", "app.localhost", "", 204},
		{"GET", "127.0.0.2:1", "", 204},
		{"GET", "[::1]:7401", "", 204},
		{"GET", "[::ffff:127.0.0.1]", "", 204},
		{"GET", "users.example:80", "", 204},
		{"DELETE", own, "", 204}, // curl
		{"DELETE", own, "http://" + own, 204},
		{"DELETE", own, "http://evil.example", 403},
		{"PUT", own, "null", 403},
		{"DELETE", "evil.example", "http://evil.example", 421},
		{"GET", "evil.example", "", 421},
		{"GET", "evil.example:7401", "", 421},
		{"GET", "127.0.0.1.evil.example", "", 421},
		{"GET", "localhost.evil.example", "", 421},
		{"GET", "10.0.0.1", "", 421},
		{"GET", "0.0.0.0", "", 421},
		{"GET", "evil.example@127.0.0.1", "", 421},
	} {
		req, err := http.NewRequestWithContext(t.Context(), tt.method, srv.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = tt.host
		if tt.origin != "" {
			req.Header.Set("Origin", tt.origin)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != tt.want || tt.want >= 400 && res.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s, Host %s, Origin %s = %d %s, want %d", tt.method, tt.host, tt.origin, res.StatusCode, body, tt.want)
		}
		if strings.Contains(string(body), "evil") {
			t.Errorf("the answer %s repeats what was sent", body)
		}
	}
}

// TestGuardElsewhere: a request on an address other than loopback may have any Host.
func TestGuardElsewhere(t *testing.T) {
	h := web.Guard(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "http://profiles:7407/", nil))
	if w.Code != http.StatusOK {
		t.Errorf("status = %d, want 200", w.Code)
	}
}

func TestPublic(t *testing.T) {
	for addr, want := range map[string]bool{"127.0.0.1:0": false, ":0": true, "0.0.0.0:0": true} {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if got := web.Public(l.Addr()); got != want {
			t.Errorf("Public(%s) = %t, want %t", l.Addr(), got, want)
		}
		l.Close()
	}
}

var quiet = slog.New(slog.DiscardHandler)
