package devfault_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/pgjet/pgjet/internal/devfault"
)

// A rig is a switch that is asked by HTTP.
type rig struct {
	*testing.T
	devfault.Switch
	mux *http.ServeMux
}

func newRig(t *testing.T) *rig {
	r := &rig{T: t, mux: http.NewServeMux()}
	r.Route(r.mux)
	return r
}

// ask wants a status and a text in the answer.
func (r *rig) ask(status int, method, body, says string) {
	r.Helper()
	w := httptest.NewRecorder()
	r.mux.ServeHTTP(w, httptest.NewRequest(method, "/fault", strings.NewReader(body)))
	want := map[bool]string{true: "application/problem+json", false: "application/json"}[status >= 400]
	if w.Code != status || !strings.Contains(w.Body.String(), says) || status != 204 && w.Header().Get("Content-Type") != want {
		r.Errorf("%s %s = %d %s, want %d and %s", method, body, w.Code, w.Body, status, says)
	}
}

func TestSwitch(t *testing.T) {
	r := newRig(t)
	r.ask(200, "GET", "", "{}\n")
	if r.Take() != (devfault.Fault{}) {
		t.Error("a new switch has a fault")
	}
	r.ask(200, "PUT", `{"status":451,"count":2}`, `{"status":451,"count":2}`)
	r.Take()
	r.ask(200, "GET", "", `{"status":451,"count":1}`)
	if got := r.Take(); got.Status != 451 {
		t.Errorf("the second is %+v, want status 451", got)
	}
	r.ask(200, "GET", "", "{}\n")
	r.ask(200, "PUT", `{"status":503,"delay":"1.5s"}`, `{"status":503,"delay":"1.5s"}`)
	for range 3 { // without a count they have no end
		if got := r.Take(); got.Status != 503 || time.Duration(got.Delay) != 1500*time.Millisecond {
			t.Errorf("a fault without a count is %+v, want status 503 after 1.5s", got)
		}
	}
	r.ask(204, "DELETE", "", "")
	r.ask(200, "GET", "", "{}\n")
}

func TestBadFault(t *testing.T) {
	r := newRig(t)
	for body, want := range map[string]struct {
		status int
		says   string
	}{
		`status=451`:                             {400, "invalid_body"},
		``:                                       {400, "invalid_body"},
		`[]`:                                     {400, "invalid_body"},
		`{"status":451}{"status":451}`:           {400, "more than one"},
		`{"status":451,"colour":"red"}`:          {400, "colour"},
		`{"status":451,"delay":5}`:               {400, "invalid_body"},
		`{"status":"451"}`:                       {400, "status"},
		`{"status":451,"count":1.5}`:             {400, "count"},
		strings.Repeat(" ", 5000):                {413, "4 KiB"},
		`{}`:                                     {422, "status is missing"},
		`{"count":1}`:                            {422, "status is missing"},
		`{"status":250}`:                         {422, "400 to 599"},
		`{"status":600}`:                         {422, "400 to 599"},
		`{"status":451,"count":-1}`:              {422, "negative"},
		`{"status":451,"delay":"11s","count":1}`: {422, "0 to 10s"},
		`{"status":451,"delay":"-1s","count":22}`: {422, "0 to 10s"},
	} {
		r.ask(want.status, "PUT", body, want.says)
		r.ask(200, "GET", "", "{}\n")
	}
}
