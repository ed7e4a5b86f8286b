package devservices

import (
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// maxDelay is less than the time that a request may take.
const maxDelay = 10 * time.Second

// A fault is what happens to the next Count requests, to all if it is 0.
type fault struct {
	Status int      `json:"status,omitempty"`
	Count  int      `json:"count,omitempty"`
	Delay  duration `json:"delay,omitempty"`
}

// A duration is written as 1.5s.
type duration time.Duration

// MarshalText writes it.
func (d duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads it.
func (d *duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = duration(v)
	return err
}

// faults holds the one fault in force. The zero value is none.
type faults struct {
	declines bool // 402 is an answer of the service itself

	mu  sync.Mutex
	now *fault
}

// take returns what happens to this request.
func (f *faults) take() fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.now == nil {
		return fault{}
	}
	taken := *f.now
	if taken.Count == 1 {
		f.now = nil
	} else if taken.Count > 1 {
		f.now = &fault{taken.Status, taken.Count - 1, taken.Delay}
	}
	return taken
}

func (f *faults) set(next *fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now = next
}

func (f *faults) problem(now fault) error {
	if now.Status == http.StatusPaymentRequired && f.declines {
		return &problem{Status: now.Status, Code: "declined", Detail: "no account is opened for this user"}
	}
	return &problem{Status: now.Status, Code: "fault", Detail: "this stand-in was told to fail"}
}

func (f *faults) get(w http.ResponseWriter, _ *http.Request) error {
	f.mu.Lock()
	now := f.now
	f.mu.Unlock()
	if now == nil {
		return writeJSON(w, http.StatusOK, json.RawMessage(`{}`))
	}
	return writeJSON(w, http.StatusOK, now)
}

func (f *faults) put(w http.ResponseWriter, r *http.Request) error {
	var in fault
	if err := readJSON(w, r, &in); err != nil {
		return err
	}
	switch {
	case in.Status == 0 && in.Delay == 0:
		return invalid("status", "is missing, and so is delay")
	case in.Status != 0 && (in.Status < 400 || in.Status > 599):
		return invalid("status", "must be from 400 to 599")
	case in.Count < 0:
		return invalid("count", "must not be negative")
	case in.Delay < 0 || time.Duration(in.Delay) > maxDelay:
		return invalid("delay", fmt.Sprintf("must be from 0 to %s", maxDelay))
	}
	f.set(&in)
	return writeJSON(w, http.StatusOK, in)
}

func (f *faults) delete(w http.ResponseWriter, _ *http.Request) error {
	f.set(nil)
	w.WriteHeader(http.StatusNoContent)
	return nil
}
