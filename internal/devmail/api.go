package devmail

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/pgjet/pgjet/internal/web"
)

// policy lets the page load only its own files. A mail's frame inherits it: styles in a
// mail apply, its images must be in it, and nothing is fetched.
const policy = "default-src 'none'; style-src 'self' 'unsafe-inline'; script-src 'self'; connect-src 'self'; " +
	"img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// Handler returns the page and the API that the package comment lists. The paths
// are absolute: serve it at the root of an address of its own.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /{$}", handler(s.page))
	mux.Handle("GET /messages/{id}", handler(s.page))
	mux.HandleFunc("GET /style.css", asset("style.css"))
	mux.HandleFunc("GET /app.js", asset("app.js"))
	mux.Handle("GET /api/messages", handler(s.listMails))
	mux.Handle("GET /api/messages/{id}", handler(s.oneMail))
	mux.Handle("DELETE /api/messages", handler(s.emptyBox))
	s.faults.Route(mux)
	return guard(web.Guard(mux))
}

// guard sets the headers that every answer has.
func guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-cache")
		next.ServeHTTP(w, r)
	})
}

// listMails answers with an ETag, and HEAD is cheap: clients may poll it.
func (s *Server) listMails(w http.ResponseWriter, r *http.Request) error {
	mails, version := s.box.list()
	w.Header().Set("ETag", version)
	if r.Header.Get("If-None-Match") == version {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	if to := r.FormValue("to"); to != "" {
		mails = slices.DeleteFunc(mails, func(m Mail) bool { return !m.isTo(to) })
	}
	return writeJSON(w, r, mails)
}

// isTo reports whether address is a recipient, in any case of letters.
func (m Mail) isTo(address string) bool {
	return slices.ContainsFunc(m.To, func(to string) bool { return strings.EqualFold(to, address) })
}

func (s *Server) oneMail(w http.ResponseWriter, r *http.Request) error {
	mails, _ := s.box.list()
	m, ok := find(mails, r.PathValue("id"))
	if !ok {
		return &problem{Status: http.StatusNotFound, Detail: "there is no mail with this id"}
	}
	return writeJSON(w, r, m)
}

func find(mails []Mail, id string) (Mail, bool) {
	i := slices.IndexFunc(mails, func(m Mail) bool { return m.ID == id })
	if i < 0 {
		return Mail{}, false
	}
	return mails[i], true
}

func (s *Server) emptyBox(w http.ResponseWriter, _ *http.Request) error {
	if err := s.box.empty(); err != nil {
		return fmt.Errorf("empty mailbox: %w", err)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// writeJSON answers HEAD with the headers only, without encoding v.
func writeJSON(w http.ResponseWriter, r *http.Request, v any) error {
	w.Header().Set("Content-Type", "application/json")
	if r.Method == http.MethodHead {
		return nil
	}
	return json.NewEncoder(w).Encode(v)
}
