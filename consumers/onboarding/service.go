package onboarding

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"go.opentelemetry.io/otel/propagation"

	"github.com/pgjet/pgjet/consumers/saga"
)

// A Service is another service, called with JSON. A call ends after the 10 s of an attempt, if its
// client has no shorter timeout.
type Service struct {
	Name string // for errors
	HTTP *http.Client
	URL  string // such as http://profiles.example:8080
}

// An answerError is an unsuccessful answer of a service.
type answerError struct {
	service string
	status  int
}

func (e *answerError) Error() string { return fmt.Sprintf("%s answered %d", e.service, e.status) }

// notNow are the answers of a service that is unavailable or overloaded, whatever the request is.
var notNow = map[int]bool{
	http.StatusTooManyRequests: true, http.StatusBadGateway: true,
	http.StatusServiceUnavailable: true, http.StatusGatewayTimeout: true,
}

// call makes a request with an idempotency key, and decodes the answer into v unless that is nil.
// If there is no answer, or a temporary failure, the service is unavailable; any other unsuccessful
// answer is an [answerError].
func (s Service) call(ctx context.Context, method, path, key string, body, v any) error {
	req, err := s.request(ctx, method, path, key, body)
	if err != nil {
		return err
	}
	resp, err := s.HTTP.Do(req)
	if err != nil {
		return s.noAnswer(err)
	}
	defer resp.Body.Close()
	const most = 64 << 10
	b, err := io.ReadAll(io.LimitReader(resp.Body, most))
	switch {
	case err != nil:
		return s.noAnswer(err)
	case notNow[resp.StatusCode]:
		return saga.Unavailable(&answerError{s.Name, resp.StatusCode})
	case resp.StatusCode/100 != 2:
		return &answerError{s.Name, resp.StatusCode}
	case v == nil:
		return nil
	}
	if err := json.Unmarshal(b, v); err != nil { // err may quote the answer
		return fmt.Errorf("%s answered %d with something other than the expected JSON", s.Name, resp.StatusCode)
	}
	return nil
}

func (s Service) request(ctx context.Context, method, path, key string, body any) (*http.Request, error) {
	var content io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encode a request to %s: %w", s.Name, err)
		}
		content = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimRight(s.URL, "/")+path, content)
	if err != nil {
		return nil, fmt.Errorf("make a request to %s: its URL is not valid", s.Name)
	}
	req.Header.Set("Idempotency-Key", key)
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	propagation.TraceContext{}.Inject(ctx, propagation.HeaderCarrier(req.Header))
	return req, nil
}

// noAnswer returns an outage, even if the attempt's own time was up: it was spent waiting, and no
// user is rejected for that.
func (s Service) noAnswer(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err // it contains the whole URL
	}
	return saga.Unavailable(fmt.Errorf("%s does not answer: %w", s.Name, err))
}
