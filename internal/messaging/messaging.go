// Package messaging names the attributes of spans about messages (OpenTelemetry's semantic
// conventions for messaging), so that the spans of a send and of the processing agree:
// messaging.destination.name is the subject, messaging.nats.stream the stream.
package messaging

import (
	"net/url"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/attribute"
)

// A Destination is where the messages of one span go, or come from.
type Destination struct {
	Stream   string
	Subject  string // empty if the messages have several
	Template string // the subject with * for what depends on the key; a wider one if the messages have several
}

// Add adds a message's subject and its template.
func (d *Destination) Add(subject, template string) {
	switch {
	case d.Template == "":
		d.Subject, d.Template = subject, template
		return
	case d.Template != template:
		first, _, _ := strings.Cut(template, ".")
		d.Template = first + ".>"
	}
	if d.Subject != subject {
		d.Subject = ""
	}
}

// SpanName returns the name of a span of an operation, such as "send events.*.user.created".
func (d Destination) SpanName(operation string) string { return operation + " " + d.Template }

// Attributes returns the attributes of a span of an operation on the destination. The
// operation is its type, too.
func (d Destination) Attributes(operation string) []attribute.KeyValue {
	attrs := []attribute.KeyValue{
		attribute.String("messaging.system", "nats"),
		attribute.String("messaging.operation.name", operation),
		attribute.String("messaging.operation.type", operation),
		attribute.String("messaging.destination.template", d.Template),
		attribute.String("messaging.nats.stream", d.Stream),
	}
	if d.Subject != "" {
		attrs = append(attrs, attribute.String("messaging.destination.name", d.Subject))
	}
	return attrs
}

// Server returns server.address and server.port of the server to which conn is connected,
// and nothing if there is none.
func Server(conn *nats.Conn) []attribute.KeyValue {
	u, err := url.Parse(conn.ConnectedUrlRedacted())
	if err != nil || u.Hostname() == "" {
		return nil
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		port = 4222
	}
	return []attribute.KeyValue{attribute.String("server.address", u.Hostname()), attribute.Int("server.port", port)}
}
