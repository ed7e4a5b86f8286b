// Package events is the vocabulary that the services share: the envelope, the typed
// payloads, and how an event is written into a NATS message. It does no I/O and knows no
// other package of this module.
//
// An [Event] is a fact in the past tense. It has one id (a UUIDv7) that never changes,
// whatever is retried, redriven or replayed; a type such as "user.created"; a key, the
// aggregate whose events stay in order; and a [Payload], as JSON or in the form that the
// payload names itself.
//
// On the wire an event is a CloudEvents 1.0 message in binary mode (NATS protocol binding):
// context attributes are headers named ce-…, the body is the payload, byte for byte as it
// was appended. See [Event.Message].
package events

import (
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"reflect"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"
)

// Limits of an event. A NATS server with default settings (max_payload 1 MiB) could not
// store a larger message, so [Event.Validate] refuses the event when it is appended.
const (
	MaxData = 900 << 10 // bytes of payload
	MaxType = 128       // bytes of type
	MaxKey  = 255       // bytes of key
	maxHead = 8 << 10   // bytes of further headers
	maxName = 64        // bytes of the name of one
)

// An Event is one fact.
type Event struct {
	ID     uuid.UUID // UUIDv7; the CloudEvents id
	Type   string    // what happened: dot-separated subject tokens
	Key    string    // the aggregate it happened to: its events stay in order
	Source string    // the service that recorded it; the relay sets it
	Time   time.Time // when it was appended; zero: PostgreSQL's clock decides
	Seq    int64     // position in the outbox, 0 until it is read back from there

	// Traceparent is the W3C trace context in which the event was created. Nothing on the
	// way overwrites it. Empty: not traced.
	Traceparent string
	// Header holds further message headers: "tracestate", CloudEvents extensions ("ce-" and
	// 1 to 20 lower-case letters or digits), and others of your own, such as "Tenant".
	// Together with the traceparent they have at most 8 KiB. A name of your own is a
	// letter, then letters, digits, - and _, at most 64. In any case of letters, none
	// begins with ce-, Nats- or Pgjet-, or is Traceparent, Status, Description or
	// Content-Type. Values are printable ASCII without blanks at the ends.
	Header map[string]string
	// ContentType is the media type of Data; "" is application/json.
	ContentType string
	// Data is the payload, at most [MaxData] bytes. If [Event.IsJSON], it is valid JSON in UTF-8.
	Data []byte
}

// A Payload is the typed body of an event. Its encoded form is a published contract:
// fields are added, never renamed; a new meaning is a new type. It is JSON, unless it is a
// [ContentTyper] too.
type Payload interface {
	// EventType names the fact, such as "user.created". It must not depend on the
	// value: [Decode] asks the zero value.
	EventType() string
	// EventKey names the aggregate, such as a user's id.
	EventKey() string
}

// A ContentTyper is a [Payload] that names its own form, such as protobuf. Unless that is
// JSON, it needs MarshalBinary, of [encoding.BinaryMarshaler], and UnmarshalBinary, of
// [encoding.BinaryUnmarshaler], to be decoded.
type ContentTyper interface {
	Payload
	// EventContentType returns a media type, such as "application/protobuf". It must not depend on the value.
	EventContentType() string
}

// New returns the event that announces p, with a new id. If p is already an Event, New
// returns it, and gives it a new id if it had none. New fails if p cannot be encoded; it
// validates nothing else.
func New(p Payload) (Event, error) {
	e, ok := p.(Event)
	if !ok {
		e = Event{Type: p.EventType(), Key: p.EventKey()}
		if err := e.encode(p); err != nil {
			return Event{}, fmt.Errorf("encode %s: %w", p.EventType(), err)
		}
	}
	if e.ContentType == jsonType {
		e.ContentType = ""
	}
	if e.ID == uuid.Nil {
		id, err := uuid.NewV7()
		if err != nil {
			return Event{}, fmt.Errorf("make an event id: %w", err)
		}
		e.ID = id
	}
	return e, nil
}

// encode sets the content type and the data of e to those of p.
func (e *Event) encode(p Payload) (err error) {
	if t, ok := p.(ContentTyper); ok {
		e.ContentType = t.EventContentType()
	}
	if e.IsJSON() {
		e.Data, err = json.Marshal(p)
		return err
	}
	m, ok := p.(encoding.BinaryMarshaler)
	if !ok {
		return fmt.Errorf("%T is %s and has no method MarshalBinary", p, e.ContentType)
	}
	e.Data, err = m.MarshalBinary()
	return err
}

// IsJSON reports whether the content type says that the data is JSON: application/json, or
// a type that ends in +json, with any parameters.
func (e Event) IsJSON() bool {
	if e.ContentType == "" {
		return true
	}
	media, _, _ := strings.Cut(strings.ToLower(e.ContentType), ";")
	media = strings.TrimSpace(media)
	return media == jsonType || strings.HasSuffix(media, "+json")
}

const jsonType = "application/json"

// EventType returns e.Type. With it an Event can stand where a [Payload] is expected: a
// caller that sets the id or headers itself builds the Event.
func (e Event) EventType() string { return e.Type }

// EventKey returns e.Key.
func (e Event) EventKey() string { return e.Key }

// TypeOf returns the event type of T: what EventType returns for the zero value of T or, if T
// is a pointer, for a pointer to a zero value.
func TypeOf[T Payload]() string { return (*blank[T]()).EventType() }

// blank returns a pointer to a T in which a payload can be decoded: a pointer inside is not nil.
func blank[T Payload]() *T {
	p := new(T)
	if t := reflect.TypeFor[T](); t.Kind() == reflect.Pointer {
		reflect.ValueOf(p).Elem().Set(reflect.New(t.Elem()))
	}
	return p
}

// Decode returns the payload of e: from JSON if e is JSON, else by UnmarshalBinary of *T or,
// if T is a pointer, of T. It ignores fields that T does not have, so that a producer may add
// some. It fails if e has another type or if its data does not fit; a later attempt would
// fail too. The error shows nothing of the data.
func Decode[T Payload](e Event) (T, error) {
	p := blank[T]()
	if want := (*p).EventType(); e.Type != want {
		return *p, fmt.Errorf("decode event %s: it is %s, not %s", e.ID, e.Type, want)
	}
	if e.IsJSON() {
		if err := json.Unmarshal(e.Data, p); err != nil {
			return *p, fmt.Errorf("decode event %s: %s", e.ID, misfit(err))
		}
		return *p, nil
	}
	u, ok := any(p).(encoding.BinaryUnmarshaler)
	if !ok {
		u, ok = any(*p).(encoding.BinaryUnmarshaler)
	}
	if !ok {
		return *p, fmt.Errorf("decode event %s: it is %s, and %T has no method UnmarshalBinary", e.ID, e.ContentType, p)
	}
	if u.UnmarshalBinary(e.Data) != nil { // the error may show the data
		return *p, fmt.Errorf("decode event %s: %T does not take its %d bytes of %s", e.ID, *p, len(e.Data), e.ContentType)
	}
	return *p, nil
}

// misfit describes what is wrong with a payload, without any value of it.
func misfit(err error) string {
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		kind, _, _ := strings.Cut(e.Value, " ")
		return fmt.Sprintf("cannot unmarshal %s into field %s of type %s", kind, e.Field, e.Type)
	}
	if e, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Sprintf("it is not valid JSON at byte %d", e.Offset)
	}
	return "a value does not fit its field"
}

// An InvalidError says which field of an event can never be published, and why.
type InvalidError struct {
	Field  string // as in [Event], lower case: "type", "key", "data", …
	Reason string
}

// Error names the field and the reason, never the value.
func (e *InvalidError) Error() string { return "event " + e.Field + " " + e.Reason }

var extensionForm = regexp.MustCompile(`^ce-[a-z0-9]{1,20}$`)

// reserved are the headers that only the relay writes.
var reserved = map[string]bool{
	"ce-specversion": true, "ce-id": true, "ce-source": true, "ce-type": true,
	"ce-subject": true, "ce-time": true, "ce-datacontenttype": true,
}

// Validate returns an [*InvalidError] if e could never be published, nil otherwise.
func (e Event) Validate() error {
	if err := e.ValidateStored(); err != nil {
		return err
	}
	if e.IsJSON() && !json.Valid(e.Data) {
		return &InvalidError{"data", "is not valid JSON in UTF-8"}
	}
	return nil
}

// deepest is the deepest nesting of JSON that encoding/json reads.
const deepest = 10_000

// ValidateStored is Validate for an event whose payload PostgreSQL keeps as json.
// PostgreSQL parsed the payload when it stored it, so only the depth of its nesting is
// checked.
func (e Event) ValidateStored() error {
	switch {
	case e.ID == uuid.Nil:
		return &InvalidError{"id", "is missing"}
	case len(e.Type) > MaxType:
		return &InvalidError{"type", fmt.Sprintf("is longer than %d bytes", MaxType)}
	case !dotted(e.Type):
		return &InvalidError{"type", "must be letters, digits, _ and - in parts joined by dots, such as user.created"}
	case e.Key == "":
		return &InvalidError{"key", "is empty"}
	case len(e.Key) > MaxKey:
		return &InvalidError{"key", fmt.Sprintf("is longer than %d bytes", MaxKey)}
	case !printable(e.Key):
		return &InvalidError{"key", "has control characters or invalid UTF-8"}
	case !e.Time.IsZero() && (e.Time.UTC().Year() < 1 || e.Time.UTC().Year() > 9999):
		return &InvalidError{"time", "is not in the years 1 to 9999 of UTC"}
	case len(e.Data) > MaxData:
		return &InvalidError{"data", fmt.Sprintf("is %d bytes, more than %d: store the large part elsewhere and put its address in the event", len(e.Data), MaxData)}
	case !mediaType(e.ContentType):
		return &InvalidError{"content_type", "is no media type such as application/protobuf, of at most 128 bytes"}
	case e.IsJSON() && (!utf8.Valid(e.Data) || len(e.Data) >= 2*deepest && !json.Valid(e.Data)):
		return &InvalidError{"data", "is not valid JSON in UTF-8"}
	}
	return e.validateHeader()
}

func (e Event) validateHeader() error {
	size := len(e.Traceparent)
	if !printable(e.Traceparent) {
		return &InvalidError{"traceparent", "has control characters or invalid UTF-8"}
	}
	for name, value := range e.Header {
		size += len(name) + len(value)
		switch {
		case !allowed(name) && !custom(name):
			return &InvalidError{"header", "has a name that is neither tracestate, a CloudEvents extension (ce-…), nor free: letters, digits, - and _, " +
				"and not what begins with Nats- or Pgjet- or is Status, Description or Content-Type"}
		case custom(name) && !plain(value):
			return &InvalidError{"header", name + " is not printable ASCII without blanks at its ends, as all clients of NATS keep it"}
		case !printable(value):
			return &InvalidError{"header", name + " has control characters or invalid UTF-8"}
		}
	}
	if size > maxHead {
		return &InvalidError{"header", fmt.Sprintf("is larger than %d bytes", maxHead)}
	}
	return nil
}

// mediaType reports whether s is a media type, or empty.
func mediaType(s string) bool {
	if s == "" {
		return true
	}
	media, _, err := mime.ParseMediaType(s)
	return err == nil && len(s) <= MaxType && strings.Contains(media, "/") &&
		!strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

// dotted reports whether s is one or more non-empty parts joined by dots. It runs for every
// event that is appended or published; a regular expression costs ten times as much.
func dotted(s string) bool {
	before := '.'
	for _, c := range s {
		word := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-'
		if !word && (c != '.' || before == '.') {
			return false
		}
		before = c
	}
	return before != '.'
}

// allowed reports whether CloudEvents or W3C define name, so that it may stand in
// [Event.Header].
func allowed(name string) bool {
	return name == "tracestate" || extensionForm.MatchString(name) && !reserved[name]
}

// custom reports whether name may stand in [Event.Header] as one without a meaning to
// pgjet, NATS or CloudEvents. They may read names in any case of letters.
func custom(name string) bool {
	if name == "" || len(name) > maxName {
		return false
	}
	for i := range len(name) {
		c := name[i]
		letter := 'a' <= c|0x20 && c|0x20 <= 'z'
		if !letter && (i == 0 || (c < '0' || c > '9') && c != '-' && c != '_') {
			return false
		}
	}
	before, _, _ := strings.Cut(name, "-")
	switch lower := strings.ToLower(before); lower {
	case "ce", "nats", "pgjet":
		return len(lower) == len(name) // alone it is no prefix
	case "traceparent", "tracestate", "status", "description":
		return len(lower) < len(name)
	}
	return !strings.EqualFold(name, "content-type")
}

// plain reports whether s may be a header value that is written unescaped.
func plain(s string) bool {
	return strings.Trim(s, " ") == s && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}
