// Package devservices has stand-ins for two foreign services, for development: profiles and
// billing. They keep their state as JSON in a directory, and can be made to fail.
//
// Profiles:
//
//   - PUT /profiles/{user_id} with {"name"}: 201, or 200 if there was one;
//     {"user_id","name"}
//   - GET /profiles/{user_id}: 200 or 404
//   - DELETE /profiles/{user_id}: 204, also if there is none
//
// Billing:
//
//   - POST /accounts with {"user_id"} and an Idempotency-Key: 201,
//     {"account_id","user_id"}; the same answer for the same key; 422 if the request
//     differs; 409 once the key is deleted
//   - DELETE /accounts/{account_id}: 204, also if there is none
//   - DELETE /accounts?key=KEY: closes the account that a POST with this key opened, if
//     any; later ones will open none
//   - GET /accounts?user_id=ID: {"accounts":[…]}
//
// Both:
//
//   - PUT, GET and DELETE /fault, see [devfault]; 402 of billing is declined. What is late is
//     carried out even if the caller has gone.
//   - GET /livez: 200, whatever the fault
//
// Refusals are problem details (RFC 9457) with a code. State is written before the answer.
// There is no authentication: serve it on this machine alone. There, a request must name
// 127.0.0.1 or localhost: see [web.Guard].
package devservices

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/pgjet/pgjet/internal/devfault"
	"github.com/pgjet/pgjet/internal/web"
)

// Names of the services.
const (
	Profiles = "profiles"
	Billing  = "billing"
)

// New returns the stand-in of that name. It keeps its state in dir, or only in memory if
// dir is empty.
func New(name, dir string, log *slog.Logger) (http.Handler, error) {
	s := &server{log: log.With("service", name), mux: http.NewServeMux()}
	s.declines = name == Billing
	f := file{}
	if dir != "" {
		f.path = filepath.Join(dir, name+".json")
	}
	var err error
	switch name {
	case Profiles:
		err = s.profiles(f)
	case Billing:
		err = s.billing(f)
	default:
		err = fmt.Errorf("there is no stand-in for %q", name)
	}
	if err != nil {
		return nil, err
	}
	s.mux.Handle("GET /livez", handler(func(w http.ResponseWriter, _ *http.Request) error {
		return writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
	}))
	s.faults.Route(s.mux)
	return web.Guard(s), nil
}

type server struct {
	log    *slog.Logger
	mux    *http.ServeMux
	faults devfault.Switch

	declines bool // 402 is an answer of the service itself
}

// ServeHTTP logs the route and status of each request.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	begun := time.Now()
	a := &answer{ResponseWriter: w, status: http.StatusOK}
	_, route := s.mux.Handler(r)
	s.mux.ServeHTTP(a, r)
	s.log.DebugContext(r.Context(), "request", "route", route, "status", a.status, "took", time.Since(begun))
}

// handle adds a route that faults apply to.
func (s *server) handle(pattern string, h handler) {
	s.mux.Handle(pattern, handler(func(w http.ResponseWriter, r *http.Request) error {
		f := s.faults.Take()
		late := time.After(time.Duration(f.Delay))
		select {
		case <-late:
		case <-r.Context().Done():
			if f.Status != 0 {
				return r.Context().Err()
			}
			// As in any service, the work goes on even if the client does not wait for the
			// answer.
			<-late
		}
		if f.Status != 0 {
			return s.fail(f)
		}
		return h(w, r.WithContext(context.WithoutCancel(r.Context())))
	}))
}

// fail returns the answer that a fault wants.
func (s *server) fail(f devfault.Fault) error {
	if f.Status == http.StatusPaymentRequired && s.declines {
		return &problem{Status: f.Status, Code: "declined", Detail: "no account is opened for this user"}
	}
	return &problem{Status: f.Status, Code: "fault", Detail: "this stand-in was told to fail"}
}

// An answer records its status.
type answer struct {
	http.ResponseWriter
	status int
}

func (a *answer) WriteHeader(status int) {
	a.status = status
	a.ResponseWriter.WriteHeader(status)
}

// A file holds the state of one service; without a path it holds nothing.
type file struct{ path string }

// load fills state, which stays as it is if there is no file yet.
func (f file) load(state any) error {
	if f.path == "" {
		return nil
	}
	b, err := os.ReadFile(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(b, state)
	}
	if err != nil {
		return fmt.Errorf("read the state of a stand-in from %s: %w; remove the file to begin anew", f.path, err)
	}
	return nil
}

// save replaces the file as a whole.
func (f file) save(state any) error {
	if f.path == "" {
		return nil
	}
	b, err := json.MarshalIndent(state, "", " ")
	if err == nil {
		err = os.MkdirAll(filepath.Dir(f.path), 0o700)
	}
	if err == nil {
		err = os.WriteFile(f.path+".new", b, 0o600)
	}
	if err == nil {
		err = os.Rename(f.path+".new", f.path)
	}
	if err != nil {
		return fmt.Errorf("keep the state of a stand-in: %w", err)
	}
	return nil
}
