package devmail

import (
	"cmp"
	"encoding/json"
	"errors"
	"net/http"
)

// A problem is an error made for the caller (RFC 9457).
type problem struct {
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
}

// Error returns the detail.
func (p *problem) Error() string { return cmp.Or(p.Detail, http.StatusText(p.Status)) }

// A handler answers a request, or returns why it cannot. A [*problem] is shown to the
// client, any other error is not.
type handler func(w http.ResponseWriter, r *http.Request) error

// ServeHTTP answers a handler's errors.
func (h handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	err := h(w, r)
	if err == nil {
		return
	}
	p, ok := errors.AsType[*problem](err)
	if !ok {
		p = &problem{Status: http.StatusInternalServerError, Detail: err.Error()}
	}
	p.Title = http.StatusText(p.Status)
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // a client that has left needs no answer
}
