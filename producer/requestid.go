package producer

import (
	"context"
	"maps"
	"net/http"
	"strings"

	"github.com/pgjet/pgjet/events"
)

// requestIDHeader is the header with which a client or a proxy names a request.
const requestIDHeader = "X-Request-Id"

// mostRequestID is the length limit of a request's id.
const mostRequestID = 128

type requestIDKey struct{}

// withRequestID returns ctx with the id of r, if r has one that can be kept and shown.
func withRequestID(ctx context.Context, r *http.Request) context.Context {
	given := r.Header.Values(requestIDHeader)
	if len(given) != 1 || given[0] == "" || len(given[0]) > mostRequestID || strings.ContainsFunc(given[0], notInRequestID) {
		return ctx
	}
	return context.WithValue(ctx, requestIDKey{}, given[0])
}

func notInRequestID(c rune) bool {
	letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
	return !letter && !strings.ContainsRune("_-.:+/=", c)
}

// requested returns the event that announces p, with the id of the request that led to it:
// an operator can find either by the other.
func requested(ctx context.Context, p events.Payload) (events.Payload, error) {
	id, ok := ctx.Value(requestIDKey{}).(string)
	if !ok {
		return p, nil
	}
	e, err := events.New(p)
	if err != nil {
		return nil, err
	}
	header := maps.Clone(e.Header)
	if header == nil {
		header = make(map[string]string)
	}
	header["ce-requestid"] = id
	e.Header = header
	return e, nil
}
