package producer

import (
	"context"
	"net/http"
	"strings"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/semconv/v1.43.0/httpconv"
	"go.opentelemetry.io/otel/trace"
)

// An observer records each request as a server span and in metrics, with the names of
// OpenTelemetry's semantic conventions. It omits every attribute whose value a client
// chooses: the host, the port, the path, the user agent, forwarded addresses. Each such
// value would be a separate time series, kept for as long as the process lives.
type observer struct {
	duration     httpconv.ServerRequestDuration
	requestSize  httpconv.ServerRequestBodySize
	responseSize httpconv.ServerResponseBodySize
}

// secondBuckets are those that the semantic conventions recommend for request durations.
var secondBuckets = metric.WithExplicitBucketBoundaries(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)

func newObserver(meter metric.Meter) (o observer, err error) {
	if o.duration, err = httpconv.NewServerRequestDuration(meter, secondBuckets); err != nil {
		return o, err
	}
	if o.requestSize, err = httpconv.NewServerRequestBodySize(meter); err != nil {
		return o, err
	}
	o.responseSize, err = httpconv.NewServerResponseBodySize(meter)
	return o, err
}

// observe calls next inside a server span, which continues the caller's trace, and records the
// request under its route, r.Pattern. The route is known before next answers.
func (o observer) observe(w *response, r *http.Request, next func(*response, *http.Request)) {
	begun := time.Now()
	attributes := requestAttributes(r)
	ctx := otel.GetTextMapPropagator().Extract(r.Context(), propagation.HeaderCarrier(r.Header))
	ctx, span := otel.Tracer(scope).Start(ctx, spanName(attributes, r),
		trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(attributes...))
	defer span.End()
	defer func() {
		status := w.status
		if status == 0 {
			status = http.StatusOK // net/http sends it for a handler that wrote nothing
		}
		attributes = append(attributes, attribute.Int("http.response.status_code", status))
		span.SetAttributes(attributes[len(attributes)-1])
		if status >= http.StatusInternalServerError {
			span.SetStatus(codes.Error, "")
		}
		o.record(ctx, w, r, time.Since(begun), attribute.NewSet(attributes...))
	}()
	next(w, r.WithContext(withRequestID(ctx, r)))
}

func (o observer) record(ctx context.Context, w *response, r *http.Request, took time.Duration, set attribute.Set) {
	o.duration.RecordSet(ctx, took.Seconds(), set)
	o.requestSize.RecordSet(ctx, max(0, r.ContentLength), set)
	o.responseSize.RecordSet(ctx, w.size, set)
}

// requestAttributes returns the attributes of r that are known before it is answered. Each
// has few possible values.
func requestAttributes(r *http.Request) []attribute.KeyValue {
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	attributes := make([]attribute.KeyValue, 0, 5) // and the status
	attributes = append(attributes, attribute.String("http.request.method", knownMethod(r.Method)), attribute.String("url.scheme", scheme))
	if version := knownVersions[r.Proto]; version != "" {
		attributes = append(attributes, attribute.String("network.protocol.version", version))
	}
	if _, route, ok := strings.Cut(r.Pattern, " "); ok {
		attributes = append(attributes, attribute.String("http.route", route))
	}
	return attributes
}

// knownVersions are those that net/http speaks. A client may announce HTTP/1.7.
var knownVersions = map[string]string{"HTTP/1.0": "1.0", "HTTP/1.1": "1.1", "HTTP/2.0": "2"}

// knownMethod returns method if HTTP defines it, and _OTHER for an invented one.
func knownMethod(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete,
		http.MethodConnect, http.MethodOptions, http.MethodTrace:
		return method
	}
	return "_OTHER"
}

// spanName returns "POST /users", or the method alone for a path that does not exist.
func spanName(attributes []attribute.KeyValue, r *http.Request) string {
	method := attributes[0].Value.AsString()
	if method == "_OTHER" {
		method = "HTTP"
	}
	if _, route, ok := strings.Cut(r.Pattern, " "); ok {
		return method + " " + route
	}
	return method
}
