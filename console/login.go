package console

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// cookieName is the cookie that [Console.Token] sets.
const cookieName = "pgjet_console"

// Token returns a handler that passes requests with the token to c. The token is in a header
// Authorization: Bearer, or in the cookie that the log-in page sets. It should be long and random.
func (c *Console) Token(token string) http.Handler {
	mac := hmac.New(sha256.New, []byte(token))
	mac.Write([]byte("pgjet console"))
	pass := hex.EncodeToString(mac.Sum(nil)) // the cookie must not contain the token
	same := func(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }
	return guard(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		bearer, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		cookie, err := r.Cookie(cookieName)
		switch {
		case same(bearer, token), err == nil && same(cookie.Value, pass), strings.HasPrefix(r.URL.Path, c.config.Path+"/assets/"):
			c.ServeHTTP(w, r)
		case r.Method == http.MethodPost && r.URL.Path == c.config.Path+"/log-in":
			r.Body = http.MaxBytesReader(w, r.Body, mostBodies) // the client is not authenticated yet
			if !same(r.PostFormValue("token"), token) {
				c.loginPage(w, login{"This is not the token.", r.PostFormValue("next")})
				return
			}
			http.SetCookie(w, &http.Cookie{Name: cookieName, Value: pass, Path: c.config.Path + "/", HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: r.TLS != nil})
			next, below := strings.CutPrefix(r.PostFormValue("next"), c.config.Path)
			if !below || !local(next) {
				next = "/"
			}
			http.Redirect(w, r, c.config.Path+next, http.StatusSeeOther)
		default:
			c.loginPage(w, login{Next: r.URL.RequestURI()})
		}
	}))
}

// A login is the content of the page that asks for the token.
type login struct {
	Problem string // of the last attempt; "" if none
	Next    string // the page that was asked for
}

func (c *Console) loginPage(w http.ResponseWriter, l login) {
	c.write(w, http.StatusUnauthorized, "login.html", frame{page: page{Title: "Log in", Content: l}, Path: c.config.Path, Name: c.config.Name})
}

// Header returns a handler that passes requests to c if they come from one of the proxies and have
// the header in which the proxy names the user, such as X-Forwarded-User. Changes are recorded with
// that user. The proxy has to remove the header from what clients send; a request with two of them
// is refused.
func (c *Console) Header(name string, proxies []netip.Prefix) http.Handler {
	c.config.User = func(r *http.Request) string { return r.Header.Get(name) }
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		addr, err := netip.ParseAddr(host)
		known := err == nil && slices.ContainsFunc(proxies, func(p netip.Prefix) bool { return p.Contains(addr.Unmap()) })
		if named := r.Header.Values(name); !known || len(named) != 1 || named[0] == "" { // of two, a client may have sent one
			http.Error(w, "Your user is not known. Use the proxy that names it.", http.StatusUnauthorized)
			return
		}
		c.ServeHTTP(w, r)
	})
}
