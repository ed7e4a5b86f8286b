package producer

import (
	"fmt"
	"net/http"
	"path"
	"runtime"
	"runtime/debug"

	"go.opentelemetry.io/otel/propagation"
)

// serve answers one request, for whose path and method the mux has r.Pattern, inside its
// server span. Without a pattern, allow lists the methods that the path knows.
func (s *Server) serve(w *response, r *http.Request, allow string) {
	h := w.Header()
	s.secure(h, r)
	if tp := traceparent(r); tp != "" {
		h.Set("Traceparent", tp)
	}
	defer s.recoverPanic(w, r)
	switch {
	case r.Pattern != "":
		s.mux.ServeHTTP(w, r)
	case allow != "":
		h.Set("Allow", allow)
		writeProblem(w, newProblem(http.StatusMethodNotAllowed, "method_not_allowed",
			"This path does not know the request's method."))
	default:
		writeProblem(w, newProblem(http.StatusNotFound, "not_found", "There is nothing at this path."))
	}
}

// secure sets the headers that keep a browser from interpreting an answer as anything else,
// from showing it in a frame, and from loading anything for it.
func (s *Server) secure(h http.Header, r *http.Request) {
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	if len(r.TransferEncoding) > 0 {
		// A proxy that uses Content-Length instead would see the next request elsewhere in
		// the data: nothing that follows is read.
		h.Set("Connection", "close")
	}
	if r.TLS != nil || s.proxied(r) && r.Header.Get("X-Forwarded-Proto") == "https" {
		h.Set("Strict-Transport-Security", "max-age=31536000")
	}
}

// route returns the mux's pattern for r. Without one, it returns the methods that the path
// knows, if any. Unclean paths do not exist: the mux would redirect to the clean one, which
// loses the body.
func (s *Server) route(r *http.Request) (pattern, allow string) {
	if p := r.URL.Path; p == "" || p[0] != '/' || path.Clean(p) != p {
		return "", ""
	}
	handler, pattern := s.mux.Handler(r)
	if pattern != "" {
		return pattern, ""
	}
	refusal := discard{}
	handler.ServeHTTP(refusal, r)
	return "", refusal.Header().Get("Allow")
}

// recoverPanic turns a panic into 500 and one log line. The panic's value may hold
// anything, so it logs only the type, and the text of the runtime's own errors.
func (s *Server) recoverPanic(w *response, r *http.Request) {
	v := recover()
	if v == nil {
		return
	}
	if v == http.ErrAbortHandler { //nolint:errorlint // a sentinel of panics, which nobody wraps
		panic(v)
	}
	what := fmt.Sprintf("%T", v)
	if err, ok := v.(runtime.Error); ok {
		what = err.Error()
	}
	s.log.ErrorContext(r.Context(), "request panicked", "route", r.Pattern,
		"trace_id", traceID(r.Context()), "panic", what, "stack", string(debug.Stack()))
	if w.status != 0 {
		panic(http.ErrAbortHandler) // too late for an answer: cut it off visibly
	}
	writeProblem(w, internalProblem())
}

// maxTracestate is the length that W3C asks everyone to propagate.
const maxTracestate = 512

// boundTracestate drops a longer tracestate. It would be stored with the event,
// and a client could fill it until the event is too large to be published.
func boundTracestate(h http.Header) {
	n := 0
	for _, v := range h.Values("Tracestate") {
		n += len(v)
	}
	if n > maxTracestate {
		h.Del("Tracestate")
	}
}

// traceparent returns the W3C trace context of r's server span, or "".
func traceparent(r *http.Request) string {
	c := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(r.Context(), c)
	return c["traceparent"]
}

// A response records what has been sent of it.
type response struct {
	http.ResponseWriter
	status int   // 0: no header was sent
	size   int64 // of the body so far
}

// WriteHeader sends the header.
func (w *response) WriteHeader(status int) {
	if w.status == 0 && status >= http.StatusOK { // others are informational
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write sends a part of the body, after the header.
func (w *response) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(b)
	w.size += int64(n)
	return n, err
}

// Unwrap lets deadlines through.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// A discard is the header of an answer that is not sent.
type discard http.Header

func (d discard) Header() http.Header         { return http.Header(d) }
func (d discard) Write(b []byte) (int, error) { return len(b), nil }
func (d discard) WriteHeader(int)             {}
