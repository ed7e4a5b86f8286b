package events_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/pgjet/pgjet/events"
)

func valid() events.Event {
	return events.Event{
		ID: uuid.Must(uuid.NewV7()), Type: "user.created", Key: "k1", Source: "/users",
		Time: time.Date(2026, 11, 21, 10, 41, 7, 123456000, time.UTC), Seq: 7, Data: json.RawMessage(`{"a": 1}`),
	}
}

// TestForeignHeaders: headers that others add do not make a message unreadable.
func TestForeignHeaders(t *testing.T) {
	e := valid()
	for name, tt := range map[string]struct {
		header map[string][]string
		want   map[string]string
	}{
		"of JetStream":   {map[string][]string{"Nats-Msg-Id": {"1"}, "Status": {"100"}}, nil},
		"of a service":   {map[string][]string{"Tenant": {"a", "b"}, "Empty": {}}, map[string]string{"Tenant": "a"}},
		"not printable":  {map[string][]string{"Tenant": {"a\x00"}, "Accent": {"é"}, "Good": {"1"}}, map[string]string{"Good": "1"}},
		"a strange name": {map[string][]string{"a b": {"1"}, "": {"1"}}, nil},
		"too many":       {map[string][]string{"Tenant": {strings.Repeat("x", 9000)}, "ce-a": {"b"}}, map[string]string{"ce-a": "b"}},
	} {
		_, header, body := e.Message()
		maps.Copy(header, tt.header)
		got, err := events.FromMessage(header, body)
		if diff := cmp.Diff(tt.want, got.Header); err != nil || diff != "" {
			t.Errorf("%s: FromMessage() = %v, with the headers\n%s", name, err, diff)
		}
	}
}

func TestMessageAndBack(t *testing.T) {
	for name, change := range map[string]func(*events.Event){
		"plain":                   func(*events.Event) {},
		"key with odd characters": func(e *events.Event) { e.Key = "a b.*>\"%ü€" },
		"source with a space":     func(e *events.Event) { e.Source = "my service" },
		"trace":                   func(e *events.Event) { e.Traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01" },
		"extensions":              func(e *events.Event) { e.Header = map[string]string{"ce-tenant": "ä b", "tracestate": "a=1, b=2%20"} },
		"headers of one's own": func(e *events.Event) {
			e.Header = map[string]string{"Tenant": "a b%20\"", "x_Y-9": "", "Nats": "1", "ce-a": "b", "tracestate": "a=1"}
		},
		"data kept byte for byte":  func(e *events.Event) { e.Data = json.RawMessage("{ \"a\":1e400,\n\t\"a\":2 }") },
		"bytes":                    func(e *events.Event) { e.ContentType, e.Data = "application/protobuf", []byte("\x00\xff{") },
		"no bytes":                 func(e *events.Event) { e.ContentType, e.Data = "application/protobuf", []byte{} },
		"content type":             func(e *events.Event) { e.ContentType = "application/vnd.acme+json; charset=\"utf-8\"" },
		"time with nanoseconds":    func(e *events.Event) { e.Time = e.Time.Add(1) },
		"type with several tokens": func(e *events.Event) { e.Type = "a.b-c.d_E.9" },
	} {
		t.Run(name, func(t *testing.T) {
			e := valid()
			change(&e)
			if err := e.Validate(); err != nil {
				t.Fatalf("Validate() = %v", err)
			}
			_, header, body := e.Message()
			for name, v := range header {
				if strings.ContainsFunc(v[0], func(r rune) bool { return r < ' ' || r > '~' }) {
					t.Errorf("header %s = %q has characters outside printable ASCII", name, v[0])
				}
			}
			got, err := events.FromMessage(header, body)
			if err != nil {
				t.Fatalf("FromMessage() = %v", err)
			}
			if diff := cmp.Diff(e, got); diff != "" {
				t.Errorf("event changed on its way:\n%s", diff)
			}
		})
	}
}

func TestMessageForm(t *testing.T) {
	e := valid()
	subject, header, body := e.Message()
	if subject != "events.01.user.created" { // FNV-1a of "k1" mod 64
		t.Errorf("subject = %s", subject)
	}
	want := map[string][]string{
		"ce-specversion": {"1.0"}, "ce-id": {e.ID.String()}, "ce-source": {"/users"}, "ce-type": {"user.created"},
		"ce-subject": {"k1"}, "ce-time": {"2026-11-21T10:41:07.123456Z"}, "ce-datacontenttype": {"application/json"},
		"Pgjet-Seq": {"7"},
	}
	if diff := cmp.Diff(want, header); diff != "" {
		t.Errorf("headers:\n%s", diff)
	}
	if !bytes.Equal(body, e.Data) {
		t.Errorf("body = %s, want %s", body, e.Data)
	}
}

func TestValidateNamesTheField(t *testing.T) {
	for _, tt := range []struct {
		name, field string
		change      func(*events.Event)
	}{
		{"no id", "id", func(e *events.Event) { e.ID = uuid.Nil }},
		{"empty type", "type", func(e *events.Event) { e.Type = "" }},
		{"wildcard in type", "type", func(e *events.Event) { e.Type = "user.*" }},
		{"full wildcard", "type", func(e *events.Event) { e.Type = "user.>" }},
		{"empty token", "type", func(e *events.Event) { e.Type = "user..created" }},
		{"leading dot", "type", func(e *events.Event) { e.Type = ".user" }},
		{"accent in type", "type", func(e *events.Event) { e.Type = "usér.created" }},
		{"trailing dot", "type", func(e *events.Event) { e.Type = "user." }},
		{"space in type", "type", func(e *events.Event) { e.Type = "user created" }},
		{"newline after type", "type", func(e *events.Event) { e.Type = "user.created\n" }},
		{"long type", "type", func(e *events.Event) { e.Type = strings.Repeat("a", events.MaxType+1) }},
		{"empty key", "key", func(e *events.Event) { e.Key = "" }},
		{"long key", "key", func(e *events.Event) { e.Key = strings.Repeat("a", events.MaxKey+1) }},
		{"line break in key", "key", func(e *events.Event) { e.Key = "a\r\nb" }},
		{"invalid UTF-8 in key", "key", func(e *events.Event) { e.Key = "a\xff" }},
		{"no data", "data", func(e *events.Event) { e.Data = nil }},
		{"no JSON by another name", "data", func(e *events.Event) { e.ContentType, e.Data = "Application/X+JSON ; a=b", []byte(`{`) }},
		{"large bytes", "data", func(e *events.Event) { e.ContentType, e.Data = "a/b", make([]byte, events.MaxData+1) }},
		{"a content type of one part", "content_type", func(e *events.Event) { e.ContentType = "protobuf" }},
		{"a line break in the content type", "content_type", func(e *events.Event) { e.ContentType = "a/b\r\nx: y" }},
		{"an accent in the content type", "content_type", func(e *events.Event) { e.ContentType = `a/b; c="é"` }},
		{"a long content type", "content_type", func(e *events.Event) { e.ContentType = "a/" + strings.Repeat("b", 127) }},
		{"no JSON", "data", func(e *events.Event) { e.Data = json.RawMessage(`{`) }},
		{"two documents", "data", func(e *events.Event) { e.Data = json.RawMessage(`{}{}`) }},
		{"invalid UTF-8 in data", "data", func(e *events.Event) { e.Data = json.RawMessage("\"\xff\"") }},
		{"large data", "data", func(e *events.Event) { e.Data = []byte(`"` + strings.Repeat("a", events.MaxData-1) + `"`) }},
		{"header of NATS", "header", func(e *events.Event) { e.Header = map[string]string{"Nats-Rollup": "all"} }},
		{"header Status", "header", func(e *events.Event) { e.Header = map[string]string{"Status": "100"} }},
		{"reserved attribute", "header", func(e *events.Event) { e.Header = map[string]string{"ce-id": "x"} }},
		{"upper-case extension", "header", func(e *events.Event) { e.Header = map[string]string{"ce-Tenant": "x"} }},
		{"header of NATS in small letters", "header", func(e *events.Event) { e.Header = map[string]string{"nats-rollup": "all"} }},
		{"attribute in capitals", "header", func(e *events.Event) { e.Header = map[string]string{"CE-id": "x"} }},
		{"header of pgjet", "header", func(e *events.Event) { e.Header = map[string]string{"PGJET-seq": "1"} }},
		{"trace in capitals", "header", func(e *events.Event) { e.Header = map[string]string{"Tracestate": "a=1"} }},
		{"content type as a header", "header", func(e *events.Event) { e.Header = map[string]string{"content-Type": "application/cloudevents+json"} }},
		{"header without a name", "header", func(e *events.Event) { e.Header = map[string]string{"": "x"} }},
		{"blank in the name of a header", "header", func(e *events.Event) { e.Header = map[string]string{"a b": "x"} }},
		{"long name of a header", "header", func(e *events.Event) { e.Header = map[string]string{strings.Repeat("a", 65): "x"} }},
		{"blank at the end of a header", "header", func(e *events.Event) { e.Header = map[string]string{"Tenant": "x "} }},
		{"accent in a header", "header", func(e *events.Event) { e.Header = map[string]string{"Tenant": "é"} }},
		{"line break in a header of one's own", "header", func(e *events.Event) { e.Header = map[string]string{"Tenant": "x\r\nNats-TTL: 1s"} }},
		{"large headers of one's own", "header", func(e *events.Event) { e.Header = map[string]string{"Tenant": strings.Repeat("x", 9000)} }},
		{"line break in header", "header", func(e *events.Event) { e.Header = map[string]string{"ce-a": "x\r\nNats-TTL: 1s"} }},
		{"large headers", "header", func(e *events.Event) { e.Header = map[string]string{"ce-a": strings.Repeat("x", 9000)} }},
		{"line break in traceparent", "traceparent", func(e *events.Event) { e.Traceparent = "x\r\ny" }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := valid()
			tt.change(&e)
			invalid, ok := errors.AsType[*events.InvalidError](e.Validate())
			if !ok || invalid.Field != tt.field {
				t.Errorf("Validate() = %v, want an InvalidError of field %s", e.Validate(), tt.field)
			}
		})
	}
	e := valid()
	e.Data = []byte(`"` + strings.Repeat("a", events.MaxData-2) + `"`)
	if err := e.Validate(); err != nil {
		t.Errorf("Validate() of the largest payload = %v, want nil", err)
	}
}

// TestTimesAreJudgedInUTC: the zone of the process or of a time makes no difference.
func TestTimesAreJudgedInUTC(t *testing.T) {
	west, east := time.FixedZone("west", -5*3600), time.FixedZone("east", 5*3600)
	for at, fits := range map[time.Time]bool{
		time.Date(9999, 12, 31, 23, 59, 59, 0, west):     false,
		time.Date(10000, 1, 1, 1, 0, 0, 0, east):         true,
		time.Date(1, 1, 1, 1, 0, 0, 0, east):             false,
		time.Date(0, 12, 31, 23, 0, 0, 0, west):          true,
		time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC): true,
	} {
		e := valid()
		e.Time = at
		if err := e.Validate(); (err == nil) != fits {
			t.Errorf("an event of %s: Validate() = %v, want it to fit: %t", at, err, fits)
		}
		_, header, _ := e.Message()
		if says := header["ce-time"][0]; fits && (len(says) < 20 || says[4] != '-' || !strings.HasSuffix(says, "Z")) {
			t.Errorf("an event of %s says ce-time %s", at, says)
		}
	}
}

func TestFromMessageSaysWhatIsWrong(t *testing.T) {
	for _, tt := range []struct{ name, header, value, want string }{
		{"no id", "ce-id", "", "ce-id is missing"},
		{"id is no UUID", "ce-id", "7", "ce-id"},
		{"bad time", "ce-time", "yesterday", "ce-time"},
		{"other version", "ce-specversion", "0.3", "ce-specversion"},
		{"id of another form", "ce-id", "urn:uuid:0190163d-8694-739b-aea5-966c26f8ad90", "ce-id"},
		{"no id at all", "ce-id", "00000000-0000-0000-0000-000000000000", "id is missing"},
		{"no key", "ce-subject", "", "ce-subject is missing"},
		{"no type", "ce-type", "", "ce-type is missing"},
		{"type with blanks", "ce-type", "a b", "type must"},
		{"long type", "ce-type", strings.Repeat("t", 200), "type is longer"},
		{"long key", "ce-subject", strings.Repeat("k", 5000), "key is longer"},
		{"control characters", "ce-subject", "a%1bb", "key has control"},
		{"much header", "ce-x", strings.Repeat("x", 9000), "header is larger"},
		{"another spelling", "Ce-Id", "0190163d-8694-739b-aea5-966c26f8ad90", "Ce-Id is spelt"},
		{"another seq", "pgjet-seq", "1", "pgjet-seq is spelt"},
		{"ten thousand in UTC", "ce-time", "9999-12-31T23:59:59-05:00", "time is not in the years"},
		{"bad escape", "ce-subject", "%zz", "ce-subject"},
		{"bad seq", "Pgjet-Seq", "x", "Pgjet-Seq"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, header, body := valid().Message()
			header[tt.header] = []string{tt.value}
			if tt.value == "" {
				delete(header, tt.header)
			}
			if _, err := events.FromMessage(header, body); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("FromMessage() = %v, want an error with %q", err, tt.want)
			}
		})
	}
}

func TestNewRefusesWhatJSONCannotHold(t *testing.T) {
	if _, err := events.New(unencodable{}); err == nil {
		t.Error("New() = nil, want an error")
	}
}

type unencodable struct{ C chan int }

func (unencodable) EventType() string { return "a" }
func (unencodable) EventKey() string  { return "k" }

func TestDecodeRefusesAnotherType(t *testing.T) {
	e := valid()
	e.Type = "user.renamed"
	if _, err := events.Decode[events.UserCreated](e); err == nil {
		t.Error("Decode() of another type = nil, want an error")
	}
}

// TestDecodeShowsNoValues: errors are logged and stored.
func TestDecodeShowsNoValues(t *testing.T) {
	for _, data := range []string{
		`{"user_id":12345}`, `{"created_at":"12345"}`, `{"email":["12345"]}`, `{"email":12345.5}`, `{"email":"12345`, `"12345"`, `12345`,
	} {
		e := valid()
		e.Data = json.RawMessage(data)
		if _, err := events.Decode[events.UserCreated](e); err == nil || strings.Contains(err.Error(), "12345") {
			t.Errorf("Decode(%s) = %v, want an error without the value", data, err)
		}
	}
}

func FuzzFromMessage(f *testing.F) {
	f.Add("ce-id", "x", []byte("{}"))
	f.Add("ce-subject", "%00%", []byte(""))
	f.Fuzz(func(t *testing.T, name, value string, body []byte) {
		_, header, _ := valid().Message()
		header[name] = []string{value}
		e, err := events.FromMessage(header, body)
		if err == nil && e.ID == uuid.Nil && value != uuid.Nil.String() {
			t.Errorf("an event without id was accepted: %v", header)
		}
	})
}

// A point is a payload in a form of its own.
type point struct{ x, y byte }

func (point) EventType() string        { return "point.made" }
func (point) EventKey() string         { return "p" }
func (point) EventContentType() string { return "application/x-point" }

func (p point) MarshalBinary() ([]byte, error) { return []byte{p.x, p.y}, nil }

func (p *point) UnmarshalBinary(b []byte) error {
	if len(b) != 2 {
		return fmt.Errorf("secret %x", b)
	}
	*p = point{b[0], b[1]}
	return nil
}

// A plain is a payload that states a form and lacks the methods for it.
type plain struct {
	X int `json:"x"`
}

func (plain) EventType() string        { return "point.made" }
func (plain) EventKey() string         { return "p" }
func (plain) EventContentType() string { return "application/x-point" }

// A sealed is a payload with all its methods on the pointer, as beside generated code.
type sealed struct{ point }

func (*sealed) EventType() string                { return "point.made" }
func (*sealed) EventKey() string                 { return "p" }
func (*sealed) EventContentType() string         { return "application/x-point" }
func (s *sealed) MarshalBinary() ([]byte, error) { return s.point.MarshalBinary() }
func (s *sealed) UnmarshalBinary(b []byte) error { return s.point.UnmarshalBinary(b) }

// TestPointers: a pointer may stand for a payload, wherever its methods are.
func TestPointers(t *testing.T) {
	e, err := events.New(&sealed{point{1, 255}})
	if err != nil || string(e.Data) != "\x01\xff" {
		t.Fatalf("New() = %+v, %v", e, err)
	}
	if got, err := events.Decode[*sealed](e); err != nil || got.point != (point{1, 255}) {
		t.Errorf("Decode() = %v, %v, want it back", got, err)
	}
	if got, err := events.Decode[*point](e); err != nil || *got != (point{1, 255}) {
		t.Errorf("Decode() = %v, %v, want it back", got, err)
	}
	if got, err := events.Decode[*plain](events.Event{Type: "point.made", Data: []byte(`{"x": 7}`)}); err != nil || got.X != 7 {
		t.Errorf("Decode() of JSON = %v, %v, want 7", got, err)
	}
	if a, b := events.TypeOf[*point](), events.TypeOf[*sealed](); a != "point.made" || b != "point.made" {
		t.Errorf("the types are %q and %q", a, b)
	}
}

// TestBytes: a payload is sent in the form that it names, and an event is decoded from the
// form that it has.
func TestBytes(t *testing.T) {
	e, err := events.New(point{1, 255})
	if err != nil || e.Validate() != nil || e.ContentType != "application/x-point" || string(e.Data) != "\x01\xff" {
		t.Fatalf("New() = %+v, %v, %v", e, err, e.Validate())
	}
	if _, header, _ := e.Message(); header["ce-datacontenttype"][0] != "application/x-point" {
		t.Errorf("the message says %q", header["ce-datacontenttype"])
	}
	if got, err := events.Decode[point](e); err != nil || got != (point{1, 255}) {
		t.Errorf("Decode() = %v, %v, want it back", got, err)
	}
	if got, err := events.Decode[plain](events.Event{Type: "point.made", Data: []byte(`{"x": 7}`)}); err != nil || got.X != 7 {
		t.Errorf("Decode() of JSON = %v, %v, want 7: the event says what it is", got, err)
	}
	if _, err := events.Decode[plain](e); err == nil || !strings.Contains(err.Error(), "application/x-point, and *events_test.plain has no method UnmarshalBinary") {
		t.Errorf("Decode() without UnmarshalBinary = %v, want an error that says so", err)
	}
	if _, err := events.New(plain{}); err == nil || !strings.Contains(err.Error(), "application/x-point and has no method MarshalBinary") {
		t.Errorf("New() without MarshalBinary = %v, want an error that says so", err)
	}
	e.Data = []byte("secret")
	if _, err := events.Decode[point](e); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("Decode() of bytes that do not fit = %v, want an error that shows nothing of them", err)
	}
	if e, err := events.New(events.Event{Type: "a", Key: "k", ContentType: "application/json", Data: []byte(`1`)}); err != nil || e.ContentType != "" {
		t.Errorf("the content type of plain JSON is %q, %v, want none", e.ContentType, err)
	}
}

// TestSubjectsOfAPrefix: the partition of a key does not depend on the prefix.
func TestSubjectsOfAPrefix(t *testing.T) {
	for prefix, want := range map[string]string{"": "events.01.order.paid", "orders": "orders.01.order.paid", "acme.orders": "acme.orders.01.order.paid"} {
		s := events.SubjectsOf(prefix)
		if got := s.Of("order.paid", "k1"); got != want {
			t.Errorf("with prefix %q the subject is %s, want %s", prefix, got, want)
		}
		if got, want := s.Filter("order.paid"), s.Prefix()+".*.order.paid"; got != want {
			t.Errorf("with prefix %q the filter is %s, want %s", prefix, got, want)
		}
		if got, want := s.All(), s.Prefix()+".>"; got != want {
			t.Errorf("with prefix %q all subjects are %s, want %s", prefix, got, want)
		}
	}
}

// TestPartsOfSubjects: of subjects and filters, with any prefix.
func TestPartsOfSubjects(t *testing.T) {
	for _, prefix := range []string{"events", "acme.orders", "3f"} {
		subjects := events.SubjectsOf(prefix)
		for n := range 200 {
			eventType, key := "order.0a.paid", fmt.Sprint("key ", n)
			subject := subjects.Of(eventType, key)
			want := events.Partition(events.Subject(eventType, key))
			if got := events.Partition(subject); got != want || subject != fmt.Sprintf("%s.%02x.%s", prefix, want, eventType) {
				t.Fatalf("the partition of %s is %d, want %d", subject, got, want)
			}
			for _, filter := range []string{subject, subjects.Filter(eventType)} {
				if got := events.FilteredType(filter); got != eventType {
					t.Errorf("the type of %s is %s, want %s", filter, got, eventType)
				}
				if got := events.AnyPartition(filter); got != subjects.Filter(eventType) {
					t.Errorf("%s is of %s, want %s", filter, got, subjects.Filter(eventType))
				}
				if got := events.PrefixOf("audit.made", "*.>", ">", filter, "other.>"); got != prefix {
					t.Errorf("the prefix of %s is %q, want %q", filter, got, prefix)
				}
			}
			if got, want := subjects.PartitionFilter(want, "order.>"), fmt.Sprintf("%s.%02x.order.>", prefix, want); got != want {
				t.Errorf("the filter of a partition is %s, want %s", got, want)
			}
		}
	}
	if got := events.PrefixOf("audit.made", "acme.orders.>"); got != "acme.orders" {
		t.Errorf("the prefix of a stream is %q, want acme.orders", got)
	}
	if got := events.PrefixOf("", "x", ">", "*.*.>", "*.3f.x"); got != "" {
		t.Errorf("what has no prefix has %q", got)
	}
	if events.Partition("x") != 0 || events.FilteredType("x") != "x" || events.AnyPartition("x.y") != "x.y" {
		t.Error("what has no partition has one")
	}
}

// TestTakenBy: which streams capture events with a prefix.
func TestTakenBy(t *testing.T) {
	for _, row := range []struct {
		pattern, prefix string
		want            bool
	}{
		{"events.>", "events", true},
		{"events.*.user.>", "events", true},
		{">", "events", true},
		{"*.>", "events", true},
		{"*.*.user.created", "events", true},
		{"events", "events", false},
		{"orders.>", "events", false},
		{"events.>", "events.a", true},
		{"events.a.>", "events.a", true},
		{"events.a", "events.a", false},
		{"events.b.>", "events.a", false},
		{"a.>", "a.b.c", true},
	} {
		if got := events.SubjectsOf(row.prefix).TakenBy([]string{"other.made", row.pattern}); got != row.want {
			t.Errorf("TakenBy(%q) of %q is %t, want %t", row.pattern, row.prefix, got, row.want)
		}
	}
}

func TestCheckPrefix(t *testing.T) {
	for _, good := range []string{"events", "orders", "acme.orders", "a-b_c.9", "3f", "a.3g", "pgjets", strings.Repeat("a", events.MaxPrefix)} {
		if err := events.CheckPrefix(good); err != nil {
			t.Errorf("CheckPrefix(%q) = %v, want nil", good, err)
		}
	}
	for _, bad := range []string{"", ".", "a.", "a..b", "a b", "a.*", "a.>", "$JS", "pgjet", "pgjet.hint", "a.3f", "a.00.b", "_INBOX", "_INBOX_relay.a", "ä", strings.Repeat("a", events.MaxPrefix+1)} {
		if events.CheckPrefix(bad) == nil {
			t.Errorf("CheckPrefix(%q) = nil, want an error", bad)
		}
	}
}

// TestReminderID: each user has exactly one, which is always the same: a UUIDv7 with the
// time of the user's id.
func TestReminderID(t *testing.T) {
	user := uuid.Must(uuid.NewV7())
	id := events.ReminderID(user)
	if id != events.ReminderID(user) || id == events.ReminderID(uuid.Must(uuid.NewV7())) || id == user {
		t.Error("the id of a reminder is not the user's own")
	}
	if id.Version() != 7 || id.Variant() != uuid.RFC4122 || id.Time() != user.Time() {
		t.Errorf("%s is no UUIDv7 of the time of %s", id, user)
	}
}
