package devmail

import (
	"cmp"
	"encoding/json"
	"errors"
	"net/http"
)

// A problem is an error made for the caller (RFC 9457).
type problem struct {
	Title  string         `json:"title"`
	Status int            `json:"status"`
	Detail string         `json:"detail,omitempty"`
	Errors []fieldProblem `json:"errors,omitempty"`
}

// A fieldProblem says which field of the request is wrong, and how.
type fieldProblem struct {
	Location string `json:"location"` // such as "body.count"
	Message  string `json:"message"`
}

// Error returns the detail.
func (p *problem) Error() string { return cmp.Or(p.Detail, http.StatusText(p.Status)) }

func badField(name, message string) error {
	return &problem{
		Status: http.StatusUnprocessableEntity,
		Detail: name + " " + message,
		Errors: []fieldProblem{{Location: "body." + name, Message: message}},
	}
}

// badBody explains why a body could not be decoded.
func badBody(err error) error {
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && e.Field != "" {
		return badField(e.Field, "must be a whole number, not "+e.Value)
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return &problem{Status: http.StatusRequestEntityTooLarge, Detail: "the body is too large"}
	}
	return &problem{Status: http.StatusBadRequest, Detail: "read the body: " + err.Error()}
}

// A handler answers a request, or returns why it cannot: a [*problem] is the
// caller's to know, every other error is ours.
type handler func(w http.ResponseWriter, r *http.Request) error

// ServeHTTP is where errors meet HTTP.
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
	_ = json.NewEncoder(w).Encode(p) // a caller who has left needs no answer
}
