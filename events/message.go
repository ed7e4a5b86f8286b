package events

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
)

// Defaults for subjects and their stream. A service may have its own: see [SubjectsOf].
const (
	// Prefix is what subjects begin with.
	Prefix = "events"
	// AllSubjects matches every event.
	AllSubjects = Prefix + ".>"
	// DefaultStream is the name of the stream, unless another one is given.
	DefaultStream = "EVENTS"
	// Partitions is the number of slices into which keys are hashed.
	Partitions = 64
)

// MaxPrefix is the length limit of a subject prefix, in bytes.
const MaxPrefix = 64

// Subjects are the subjects of one service's events: <prefix>.<partition>.<type>. Services
// that share a NATS account need different prefixes.
type Subjects struct {
	prefix     string
	partitions [Partitions]string // the beginnings of all subjects
}

// SubjectsOf returns the subjects that begin with a prefix, which [CheckPrefix] accepts; "" is
// [Prefix].
func SubjectsOf(prefix string) *Subjects {
	if prefix == "" {
		prefix = Prefix
	}
	s := &Subjects{prefix: prefix}
	for i := range s.partitions {
		s.partitions[i] = fmt.Sprintf("%s.%02x.", prefix, i)
	}
	return s
}

// CheckPrefix returns why prefix cannot begin the subjects of events, or nil. A prefix is
// one or more parts of letters, digits, _ and -, joined by dots. No part behind the first
// is two hex digits, and no subject of NATS or pgjet begins so.
func CheckPrefix(prefix string) error {
	first, _, _ := strings.Cut(prefix, ".")
	switch {
	case len(prefix) > MaxPrefix:
		return fmt.Errorf("prefix is longer than %d bytes", MaxPrefix)
	case !dotted(prefix):
		return fmt.Errorf("prefix %q is not letters, digits, _ and - in parts joined by dots, such as orders", prefix)
	case slices.ContainsFunc(strings.Split(prefix, ".")[1:], isPartition):
		return fmt.Errorf("prefix %q has a part of two hex digits, which would be taken for the partition", prefix)
	case first == "pgjet", strings.HasPrefix(first, "_INBOX"):
		return fmt.Errorf("prefix %q is taken: subjects of pgjet or NATS begin with %s", prefix, first)
	}
	return nil
}

// MaxSource is the length limit of an event's source, in bytes.
const MaxSource = 255

// CheckSource returns why source cannot be [Event.Source], or nil. A source is not empty,
// and printable.
func CheckSource(source string) error {
	switch {
	case source == "":
		return errors.New("source is empty, want the name of the service")
	case len(source) > MaxSource:
		return fmt.Errorf("source is longer than %d bytes", MaxSource)
	case !printable(source):
		return errors.New("source has control characters or invalid UTF-8")
	}
	return nil
}

// Prefix returns the prefix of the subjects.
func (s *Subjects) Prefix() string { return s.prefix }

// All returns the subject filter that matches every event.
func (s *Subjects) All() string { return s.prefix + ".>" }

// Filter returns the subject filter that matches all events of one type.
func (s *Subjects) Filter(eventType string) string { return s.prefix + ".*." + eventType }

// PartitionFilter returns the subject filter that matches the events of one type in one partition.
func (s *Subjects) PartitionFilter(partition int, eventType string) string {
	return s.partitions[partition] + eventType
}

// TakenBy reports whether a stream that captures these subjects, with the wildcards of
// NATS, captures any event of s.
func (s *Subjects) TakenBy(stream []string) bool {
	return slices.ContainsFunc(stream, func(pattern string) bool { return meets(pattern, s.prefix) })
}

// meets reports whether pattern, with the wildcards of NATS, matches any subject that
// begins with prefix.
func meets(pattern, prefix string) bool {
	p := strings.Split(pattern, ".")
	for i, token := range strings.Split(prefix, ".") {
		switch {
		case i < len(p) && p[i] == ">":
			return true
		case i >= len(p) || p[i] != "*" && p[i] != token:
			return false
		}
	}
	return len(p) > strings.Count(prefix, ".")+1
}

// Of returns the subject of an event of this type and key, such as
// "events.2c.user.created". Its partition is the FNV-1a hash (32 bits) of the key
// modulo [Partitions], as two hex digits, so all events of one key share it.
func (s *Subjects) Of(eventType, key string) string {
	hash := uint32(2166136261)
	for i := range len(key) {
		hash = (hash ^ uint32(key[i])) * 16777619
	}
	return s.partitions[hash%Partitions] + eventType
}

// usual are the subjects with the default prefix.
var usual = SubjectsOf(Prefix)

// Subject is [Subjects.Of] with the default [Prefix].
func Subject(eventType, key string) string { return usual.Of(eventType, key) }

// Filter is [Subjects.Filter] with the default [Prefix].
func Filter(eventType string) string { return usual.Filter(eventType) }

// cut splits a subject or filter into its prefix, its partition, which may be *, and its type. ok is false if it names no partition.
func cut(subject string) (prefix, partition, eventType string, ok bool) {
	parts := strings.Split(subject, ".")
	for i := 1; i < len(parts)-1; i++ {
		if parts[i] == "*" || isPartition(parts[i]) {
			return strings.Join(parts[:i], "."), parts[i], strings.Join(parts[i+1:], "."), true
		}
	}
	return "", "", subject, false
}

// isPartition reports whether part is two hex digits.
func isPartition(part string) bool {
	return len(part) == 2 && strings.Trim(part, "0123456789abcdef") == ""
}

// Partition returns the partition of a subject; 0 if it names none.
func Partition(subject string) int {
	_, partition, _, _ := cut(subject)
	n, err := strconv.ParseUint(partition, 16, 8)
	if err != nil {
		return 0
	}
	return int(n) % Partitions
}

// PrefixOf returns the first prefix in these subjects, filters, or wildcards of a stream
// such as "orders.>"; "" if none has one.
func PrefixOf(subjects ...string) string {
	for _, subject := range subjects {
		prefix, _, _, ok := cut(subject)
		if !ok {
			prefix, ok = strings.CutSuffix(subject, ".>")
		}
		if ok && CheckPrefix(prefix) == nil {
			return prefix
		}
	}
	return ""
}

// FilteredType returns the type in a subject or filter.
func FilteredType(subject string) string {
	_, _, eventType, _ := cut(subject)
	return eventType
}

// AnyPartition returns a subject or filter with all partitions in place of its own.
func AnyPartition(subject string) string {
	prefix, _, eventType, ok := cut(subject)
	if !ok {
		return subject
	}
	return prefix + ".*." + eventType
}

// Message returns the subject (with the default [Prefix]), headers and body that carry e. The headers are pgjet's own and those
// of [Event.Header]; their names are case-sensitive and exactly as written here
// (the map converts to a nats.Header).
func (e Event) Message() (subject string, header map[string][]string, body []byte) {
	header = make(map[string][]string)
	for name, value := range e.Headers() {
		header[name] = []string{value}
	}
	return Subject(e.Type, e.Key), header, e.Data
}

// Headers returns the headers of [Event.Message] one by one, for callers that write many
// messages into the same memory.
func (e Event) Headers() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		ok := yield("ce-specversion", "1.0") &&
			yield("ce-id", e.ID.String()) &&
			yield("ce-source", escape(e.Source)) &&
			yield("ce-type", e.Type) &&
			yield("ce-subject", escape(e.Key)) &&
			yield("ce-time", e.Time.UTC().Format(time.RFC3339Nano)) &&
			yield("ce-datacontenttype", escape(cmp.Or(e.ContentType, jsonType))) &&
			yield("Pgjet-Seq", strconv.FormatInt(e.Seq, 10)) &&
			(e.Traceparent == "" || yield("traceparent", e.Traceparent))
		for name, value := range e.Header {
			if strings.HasPrefix(name, "ce-") { // an attribute; others are written as they are
				value = escape(value)
			}
			ok = ok && yield(name, value)
		}
	}
}

// FromMessage returns the event that a message carries. It fails if the message is no
// CloudEvent in binary mode, lacks a header that [Event.Message] always writes, other than
// ce-datacontenttype, has an attribute twice, or carries an event that
// [Event.ValidateStored] refuses. On failure it returns the part
// that it could read, so that the failure can be recorded; the id is then only a claim. The
// error shows nothing of the key and the payload.
func FromMessage(header map[string][]string, body []byte) (Event, error) {
	r := reader{header: header}
	if v := r.attribute("ce-specversion"); r.err == nil && v != "1.0" {
		r.err = errors.New("header ce-specversion is not 1.0")
	}
	e := Event{
		ID:     read(&r, "ce-id", "a UUID of 36 characters", parseID),
		Type:   r.attribute("ce-type"),
		Key:    r.attribute("ce-subject"),
		Source: r.attribute("ce-source"),
		Time:   read(&r, "ce-time", "a time such as 2006-01-02T15:04:05Z", func(s string) (time.Time, error) { return time.Parse(time.RFC3339Nano, s) }),
		Seq:    read(&r, "Pgjet-Seq", "a number", func(s string) (int64, error) { return strconv.ParseInt(s, 10, 64) }),
		Data:   body,
	}
	e.Traceparent = r.first("traceparent")
	if len(header["ce-datacontenttype"]) > 0 { // others may leave it out
		e.ContentType = r.attribute("ce-datacontenttype")
	}
	if e.ContentType == jsonType {
		e.ContentType = ""
	}
	e.Header = r.further()
	r.variants()
	if r.err == nil {
		r.err = e.ValidateStored()
	}
	if r.err != nil {
		return e, fmt.Errorf("read event from message: %w", r.err)
	}
	return e, nil
}

// parseID reads an id in its canonical form only.
func parseID(s string) (uuid.UUID, error) {
	if len(s) != len(uuid.Nil.String()) {
		return uuid.Nil, errors.New("it has another length")
	}
	return uuid.Parse(s)
}

// A reader reads headers until the first error, which it keeps.
type reader struct {
	header map[string][]string
	err    error
}

func (r *reader) fail(name, what string) {
	r.err = errors.Join(r.err, fmt.Errorf("header %s %s", name, what))
}

func (r *reader) attribute(name string) string {
	v := r.header[name]
	switch {
	case len(v) == 0 || v[0] == "":
		r.fail(name, "is missing")
		return ""
	case len(v) > 1:
		r.fail(name, fmt.Sprintf("is there %d times", len(v)))
	}
	return r.unescape(name, v[0])
}

func (r *reader) unescape(name, value string) string {
	s, err := url.PathUnescape(value)
	if err != nil {
		r.fail(name, "has an invalid escape after a %")
	}
	return s
}

func read[T any](r *reader, name, form string, parse func(string) (T, error)) T {
	var v T
	s := r.attribute(name)
	if s == "" {
		return v
	}
	v, err := parse(s)
	if err != nil {
		r.fail(name, fmt.Sprintf("is %.40q, not %s", s, form))
	}
	return v
}

// variants refuses a second spelling of an attribute. Names are case-sensitive, and another
// reader may use the other spelling.
func (r *reader) variants() {
	for name := range r.header {
		lower := strings.ToLower(name)
		if name != lower && reserved[lower] || name != "Pgjet-Seq" && lower == "pgjet-seq" {
			r.fail(name, "is spelt in other letters than "+lower)
		}
	}
}

// further returns the headers that belong in [Event.Header]. Anybody may add headers
// without a meaning to pgjet: further leaves out those that [Event.Validate] refuses, and
// all of them if they are too many.
func (r *reader) further() map[string]string {
	known, others := make(map[string]string), make(map[string]string)
	size := 0
	for name, v := range r.header {
		switch {
		case len(v) == 0 || reserved[name]: // most are
			continue
		case custom(name):
			if !plain(v[0]) {
				continue
			}
			others[name] = v[0]
		case name == "tracestate":
			known[name] = v[0]
		case allowed(name):
			known[name] = r.unescape(name, v[0])
		default:
			continue
		}
		size += len(name) + len(v[0])
	}
	if size+len(r.first("traceparent")) <= maxHead {
		maps.Copy(known, others)
	}
	if len(known) == 0 {
		return nil
	}
	return known
}

// first returns the first value of a header.
func (r *reader) first(name string) string {
	if v := r.header[name]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// HintSubject returns the core NATS subject on which a service may announce that it has
// just committed events for a stream.
func HintSubject(stream string) string { return "pgjet.hint." + stream }

// LeadSubject returns the subject on which the leading relays of a stream announce
// themselves, so that each notices others that would publish there.
func LeadSubject(stream string) string { return "pgjet.lead." + stream }

// HandleSubject returns the subject on which the processes of a consumer of a stream announce
// themselves, so that each notices those in a copy of its database.
func HandleSubject(stream, consumer string) string { return "pgjet.handle." + stream + "." + consumer }

// FollowSubject returns the core NATS subject to which a stream sends its events for the
// processes that follow it under a name.
func FollowSubject(stream, name string) string { return "pgjet.follow." + stream + "." + name }

// escape encodes a header value as the CloudEvents bindings demand: every byte
// outside U+0021 to U+007E, and space, double quote and percent, as %XX.
func escape(s string) string {
	if !strings.ContainsFunc(s, special) {
		return s
	}
	var b strings.Builder
	for _, c := range []byte(s) {
		if special(rune(c)) {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

func special(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '%' }
