package devservices

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"

	"github.com/google/uuid"
)

const maxBody = 4 << 10

// A handler answers a request. Its error is answered as a problem.
type handler func(w http.ResponseWriter, r *http.Request) error

// ServeHTTP calls h.
func (h handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	err := h(w, r)
	if err == nil {
		return
	}
	p, ok := errors.AsType[*problem](err)
	if !ok {
		p = &problem{Status: http.StatusInternalServerError, Code: "internal", Detail: err.Error()}
	}
	p.Type, p.Title = "about:blank", http.StatusText(p.Status)
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // the client may be gone
}

// A problem is an RFC 9457 problem.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Code   string `json:"code"`
	Detail string `json:"detail"`
}

func (p *problem) Error() string { return p.Code + ": " + p.Detail }

func invalid(field, what string) error {
	return &problem{Status: http.StatusUnprocessableEntity, Code: "invalid_field", Detail: field + " " + what}
}

func writeJSON(w http.ResponseWriter, status int, v any) error {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	return json.NewEncoder(w).Encode(v)
}

// readJSON reads a body that is one small object with no fields that v lacks.
func readJSON(w http.ResponseWriter, r *http.Request, v any) error {
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	dec.DisallowUnknownFields()
	err := dec.Decode(v)
	if err == nil {
		if _, err = dec.Token(); errors.Is(err, io.EOF) {
			return nil
		}
	}
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		return &problem{Status: http.StatusRequestEntityTooLarge, Code: "body_too_large", Detail: "the body is larger than 4 KiB"}
	}
	return &problem{Status: http.StatusBadRequest, Code: "invalid_body", Detail: "the body is not one JSON object of the fields that are known here"}
}

// userID returns a user's id in its canonical form.
func userID(s string) (string, error) {
	id, err := uuid.Parse(s)
	if err != nil || s != id.String() {
		return "", invalid("user_id", "must be a UUID in lower case")
	}
	return s, nil
}
