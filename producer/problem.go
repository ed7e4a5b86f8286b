package producer

import (
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/danielgtaylor/huma/v2"
)

// A Problem is the body of every answer that is not a success: an RFC 9457
// problem. It never holds a value that the client sent.
type Problem struct {
	Type   string       `json:"type" format:"uri-reference" example:"about:blank" doc:"Always about:blank: the code says more."`
	Title  string       `json:"title" example:"Unprocessable Entity" doc:"The status in words."`
	Status int          `json:"status" example:"422" doc:"The HTTP status."`
	Detail string       `json:"detail" example:"The password needs at least 12 characters." doc:"What is wrong, for people."`
	Code   string       `json:"code" example:"password_too_short" doc:"What is wrong, for programs. It does not change. If several fields are wrong: invalid_fields."`
	Errors []FieldError `json:"errors,omitempty" nullable:"false" doc:"What is wrong with each field."`

	retryAfter int    // seconds; 0: no Retry-After
	challenge  string // for WWW-Authenticate, which every 401 has
}

// A FieldError describes what is wrong with one field of the request.
type FieldError struct {
	Field   string `json:"field" example:"password" doc:"The field, such as email."`
	Code    string `json:"code" example:"password_too_short" doc:"What is wrong, for programs."`
	Message string `json:"message" example:"The password needs at least 12 characters." doc:"What is wrong, for people."`
}

func newProblem(status int, code, detail string, fields ...FieldError) *Problem {
	title := http.StatusText(status)
	if title == "" {
		title = "Error"
	}
	return &Problem{Type: "about:blank", Title: title, Status: status, Code: code, Detail: detail, Errors: fields}
}

// fieldProblem returns the problem of one field.
func fieldProblem(status int, e FieldError) *Problem {
	return newProblem(status, e.Code, e.Message, e)
}

// invalidFields returns the problem of fields that break rules.
func invalidFields(fields []FieldError) *Problem {
	if len(fields) == 1 {
		return fieldProblem(http.StatusUnprocessableEntity, fields[0])
	}
	return newProblem(http.StatusUnprocessableEntity, "invalid_fields", "Several fields are not valid.", fields...)
}

// unavailableProblem returns the problem of a temporary failure: the client should try
// again.
func unavailableProblem(code, detail string) *Problem {
	p := newProblem(http.StatusServiceUnavailable, code, detail)
	p.retryAfter = 1
	return p
}

func internalProblem() *Problem {
	return newProblem(http.StatusInternalServerError, "internal", "Something went wrong here, and was logged.")
}

// Error returns the code and the detail.
func (p *Problem) Error() string { return p.Code + ": " + p.Detail }

// GetStatus returns the status, for huma.
func (p *Problem) GetStatus() int { return p.Status }

// GetHeaders returns the headers, for huma.
func (p *Problem) GetHeaders() http.Header {
	h := make(http.Header)
	if p.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(p.retryAfter))
	}
	if p.challenge != "" {
		h.Set("WWW-Authenticate", p.challenge)
	}
	return h
}

// ContentType returns the media type, for huma, whatever the client accepts.
func (p *Problem) ContentType(string) string { return "application/problem+json" }

// writeProblem answers a request that does not get as far as huma.
func writeProblem(w http.ResponseWriter, p *Problem) {
	body, err := json.Marshal(p)
	if err != nil {
		panic(err) // strings and an int
	}
	maps.Copy(w.Header(), p.GetHeaders())
	w.Header().Set("Content-Type", p.ContentType(""))
	w.WriteHeader(p.Status)
	_, _ = w.Write(body) // the client may be gone
}

// useProblems makes huma answer with a [Problem]. huma's error type is a package variable,
// one for the whole process. Only this function sets it, once, before the first operation
// is registered.
var useProblems = sync.OnceFunc(func() { huma.NewError = problemOf })

// problemOf returns the problem for an error that huma found. Operations return a [Problem]
// already, which passes through. Of huma's own errors it keeps only the status: their texts
// and values repeat the request.
func problemOf(status int, _ string, errs ...error) huma.StatusError {
	for _, err := range errs {
		if p, ok := errors.AsType[*Problem](err); ok {
			return p
		}
	}
	switch status {
	case http.StatusBadRequest:
		return newProblem(status, "body_required", "The request needs a body.")
	case http.StatusRequestTimeout:
		return newProblem(status, "body_timeout", "The body took too long to arrive.")
	case http.StatusRequestEntityTooLarge:
		return tooLarge()
	case http.StatusUnprocessableEntity:
		return newProblem(status, "invalid_parameter", "A parameter is not valid.", parameters(errs)...)
	case http.StatusInternalServerError:
		// Since operations return problems, huma has failed to read the body here.
		return newProblem(http.StatusBadRequest, "body_incomplete", "The body ended before its end.")
	}
	return newProblem(status, "invalid_request", "The request is not valid.")
}

// parameters names the path, query and header parameters that huma refused.
func parameters(errs []error) []FieldError {
	var fields []FieldError
	for _, err := range errs {
		d, ok := errors.AsType[*huma.ErrorDetail](err)
		if !ok {
			continue
		}
		_, name, found := strings.Cut(d.Location, ".")
		if !found {
			name = d.Location
		}
		fields = append(fields, FieldError{Field: name, Code: "invalid_parameter", Message: "This parameter is not valid."})
	}
	return fields
}

func tooLarge() *Problem {
	return newProblem(http.StatusRequestEntityTooLarge, "body_too_large",
		"The body is larger than "+strconv.Itoa(maxBody>>10)+" KiB.")
}
