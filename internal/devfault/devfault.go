// Package devfault is the switch by which whatever stands in for a service of others, the mail server included, is made to fail.
// It is the same everywhere, at /fault:
//
//   - PUT with {"status","count","delay"}: the next count requests, all if it is 0 or left out, fail with that status, late by
//     the delay if there is one. Without a status they are late, and carried out. The answer is the fault in force
//   - DELETE: 204, nothing fails any more
//   - GET: what is still to come; {} if that is nothing
//
// Refusals are problem details (RFC 9457) with a code.
package devfault

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// MaxDelay is less than the time that a request may take.
const MaxDelay = 10 * time.Second

const maxBody = 4 << 10

// A Fault is what happens to the next Count requests, to all if it is 0. The zero Fault is none.
type Fault struct {
	Status int      `json:"status,omitempty"` // of the answer, HTTP's or SMTP's, from 400 to 599
	Count  int      `json:"count,omitempty"`
	Delay  Duration `json:"delay,omitempty"`
}

// A Duration is written as 1.5s.
type Duration time.Duration

// MarshalText writes it.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads it.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// A Switch holds the one fault in force. The zero value is none, and is ready.
type Switch struct {
	mu  sync.Mutex
	now Fault
}

// Take returns what happens to this request.
func (s *Switch) Take() Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken := s.now
	switch taken.Count {
	case 0:
	case 1:
		s.now = Fault{}
	default:
		s.now.Count--
	}
	return taken
}

// left returns what is still to come.
func (s *Switch) left() Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

func (s *Switch) set(next Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = next
}

// Route has mux answer at /fault.
func (s *Switch) Route(mux *http.ServeMux) {
	mux.HandleFunc("GET /fault", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, s.left()) })
	mux.HandleFunc("PUT /fault", s.put)
	mux.HandleFunc("DELETE /fault", func(w http.ResponseWriter, _ *http.Request) {
		s.set(Fault{})
		w.WriteHeader(http.StatusNoContent)
	})
}

func (s *Switch) put(w http.ResponseWriter, r *http.Request) {
	next, refused := read(http.MaxBytesReader(w, r.Body, maxBody))
	if refused != nil {
		w.Header().Set("Content-Type", "application/problem+json")
		answer(w, refused.Status, refused)
		return
	}
	s.set(next)
	answer(w, http.StatusOK, next)
}

// answer writes v. If the client has gone, nobody needs it.
func answer(w http.ResponseWriter, status int, v any) {
	if h := w.Header(); h.Get("Content-Type") == "" {
		h.Set("Content-Type", "application/json")
	}
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// A problem says why a fault is refused.
type problem struct {
	Title  string `json:"title"`
	Status int    `json:"status"`
	Code   string `json:"code"`
	Detail string `json:"detail"`
}

func refuse(status int, code, detail string) *problem {
	return &problem{http.StatusText(status), status, code, detail}
}

// read returns the fault that a body asks for, or why there is none.
func read(body io.Reader) (f Fault, refused *problem) {
	dec := json.NewDecoder(body)
	dec.DisallowUnknownFields()
	err := dec.Decode(&f)
	if err == nil {
		if _, more := dec.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("the body holds more than one JSON value")
		}
	}
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		return f, refuse(http.StatusRequestEntityTooLarge, "body_too_large", "the body is larger than 4 KiB")
	}
	if err != nil {
		return f, refuse(http.StatusBadRequest, "invalid_body", `want an object such as {"status":503,"count":2,"delay":"1s"}: `+err.Error())
	}
	invalid := func(detail string) (Fault, *problem) {
		return f, refuse(http.StatusUnprocessableEntity, "invalid_field", detail)
	}
	switch {
	case f.Status == 0 && f.Delay == 0:
		return invalid("status is missing, and so is delay")
	case f.Status != 0 && (f.Status < 400 || f.Status > 599):
		return invalid("status must be from 400 to 599")
	case f.Count < 0:
		return invalid("count must not be negative")
	case f.Delay < 0 || time.Duration(f.Delay) > MaxDelay:
		return invalid(fmt.Sprintf("delay must be from 0 to %s", MaxDelay))
	}
	return f, nil
}
