package directory

import (
	"encoding/json"
	"net/http"
)

const problemType = "application/problem+json"

// A Problem is the body of every answer that is not a success: an RFC 9457 problem.
type Problem struct {
	Type   string `json:"type" doc:"Always about:blank: the code says more."`
	Title  string `json:"title" doc:"The status in words."`
	Status int    `json:"status" doc:"The HTTP status."`
	Detail string `json:"detail" doc:"What is wrong, for people."`
	Code   string `json:"code" doc:"What is wrong, for programs. It does not change."`
}

func newProblem(status int, code, detail string) *Problem {
	return &Problem{"about:blank", http.StatusText(status), status, detail, code}
}

func invalid(parameter, want string) *Problem {
	return newProblem(http.StatusUnprocessableEntity, "invalid_parameter", "The parameter "+parameter+" "+want+".")
}

// Error returns the code and the detail.
func (p *Problem) Error() string { return p.Code + ": " + p.Detail }

// GetStatus returns the status, for huma.
func (p *Problem) GetStatus() int { return p.Status }

// GetHeaders returns the headers, for huma.
func (p *Problem) GetHeaders() http.Header {
	if p.Status == http.StatusServiceUnavailable {
		return http.Header{"Retry-After": {"1"}}
	}
	return nil
}

// ContentType returns the media type, for huma, whatever the client would accept.
func (p *Problem) ContentType(string) string { return problemType }

// write answers a request that does not reach huma.
func (p *Problem) write(w http.ResponseWriter) {
	body, err := json.Marshal(p)
	if err != nil {
		panic(err) // strings and an int
	}
	w.Header().Set("Content-Type", problemType)
	w.WriteHeader(p.Status)
	_, _ = w.Write(body) // the client may have gone
}
