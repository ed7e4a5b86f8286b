package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
)

// An asyncAPI is the part of docs/asyncapi.yaml that is compared with the code.
type asyncAPI struct {
	Channels struct {
		Events struct {
			Address    string
			Parameters struct {
				Partition, Type struct{ Enum []string }
			}
			Messages map[string]reference
		}
	}
	Operations map[string]struct {
		Action   string
		Messages []reference
	}
	Components struct {
		Messages map[string]struct {
			Name    string
			Payload struct{ Schema reference }
		}
		MessageTraits struct {
			Event struct{ Headers map[string]any }
		} `yaml:"messageTraits"`
	}
}

type reference struct {
	Ref string `yaml:"$ref"`
}

// readAsyncAPI returns the document, also as decoded JSON.
func readAsyncAPI(t *testing.T) (doc asyncAPI, raw any) {
	t.Helper()
	text := []byte(read(t, "docs/asyncapi.yaml"))
	if err := yaml.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	var all any
	if err := yaml.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	return doc, asJSON(t, all)
}

// asJSON returns v in the form that the validator accepts.
func asJSON(t *testing.T, v any) any {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

func compileSchema(t *testing.T, doc any) *jsonschema.Schema {
	t.Helper()
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("schema.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// specification returns the schema of AsyncAPI 3.0 documents that its authors publish.
func specification(t *testing.T) *jsonschema.Schema {
	t.Helper()
	f, err := os.Open("testdata/asyncapi-3.0.0.json.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(r)
	if err != nil {
		t.Fatal(err)
	}
	return compileSchema(t, doc)
}

// TestAsyncAPIIsValid also checks that the schema refuses mistakes.
func TestAsyncAPIIsValid(t *testing.T) {
	spec := specification(t)
	_, raw := readAsyncAPI(t)
	if err := spec.Validate(raw); err != nil {
		t.Errorf("docs/asyncapi.yaml is not AsyncAPI 3.0: %v", err)
	}
	for old, wrong := range map[string]string{
		"action: send": "action: shout", "asyncapi: 3.0.0": "asyncapi: 2.6.0", "address:": "adr:", "title: pgjet user events": "titel: x",
		"channel: {$ref": "chanel: {$ref",
	} {
		var all any
		if err := yaml.Unmarshal([]byte(strings.Replace(read(t, "docs/asyncapi.yaml"), old, wrong, 1)), &all); err != nil {
			t.Fatal(err)
		}
		if spec.Validate(asJSON(t, all)) == nil {
			t.Errorf("with %q it is valid, too", wrong)
		}
	}
	for _, ref := range references(raw) {
		if file, pointer, local := strings.Cut(ref, "#"); local && !resolves(raw, pointer) {
			t.Errorf("%s leads nowhere", ref)
		} else if _, err := os.Stat(filepath.Join(root, "docs", file)); err != nil {
			t.Errorf("%s leads nowhere: %v", ref, err)
		}
	}
}

// references returns all that doc refers to.
func references(doc any) (all []string) {
	switch v := doc.(type) {
	case map[string]any:
		if ref, ok := v["$ref"].(string); ok {
			all = append(all, ref)
		}
		for _, part := range v {
			all = append(all, references(part)...)
		}
	case []any:
		for _, part := range v {
			all = append(all, references(part)...)
		}
	}
	return all
}

func resolves(doc any, pointer string) bool {
	for name := range strings.SplitSeq(strings.TrimPrefix(pointer, "/"), "/") {
		part, ok := doc.(map[string]any)
		if !ok {
			return false
		}
		doc = part[name]
	}
	return doc != nil
}

// ownTypes returns the types that package events has.
func ownTypes(t *testing.T) (types []string) {
	t.Helper()
	entries, err := events.Schemas.ReadDir("schema")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		types = append(types, strings.TrimSuffix(e.Name(), ".json"))
	}
	return types
}

// messages returns the names in references.
func messages(all []reference) (names []string) {
	for _, r := range all {
		names = append(names, path.Base(r.Ref))
	}
	slices.Sort(names)
	return names
}

// TestAsyncAPISaysWhichTypes: each type of the code is a message with its schema, and the
// consumers receive those that they ask for.
func TestAsyncAPISaysWhichTypes(t *testing.T) {
	doc, _ := readAsyncAPI(t)
	types := ownTypes(t)
	same := func(what string, got, want []string) {
		t.Helper()
		if diff := cmp.Diff(slices.Sorted(slices.Values(want)), slices.Sorted(slices.Values(got))); diff != "" {
			t.Errorf("%s of docs/asyncapi.yaml are not those of the code:\n%s", what, diff)
		}
	}
	channel := doc.Channels.Events
	same("the types", channel.Parameters.Type.Enum, types)
	same("the messages of the channel", slices.Collect(maps.Keys(channel.Messages)), types)
	same("the messages", slices.Collect(maps.Keys(doc.Components.Messages)), types)
	for name, m := range doc.Components.Messages {
		if m.Name != name || m.Payload.Schema.Ref != "../events/schema/"+name+".json" {
			t.Errorf("message %s is called %s and has the schema %s", name, m.Name, m.Payload.Schema.Ref)
		}
		if ref := channel.Messages[name].Ref; ref != "#/components/messages/"+name {
			t.Errorf("message %s of the channel is %s", name, ref)
		}
	}
	for name, op := range doc.Operations {
		if op.Action == "send" {
			same("what is published", messages(op.Messages), types)
			continue
		}
		own := ownConsumers[name]
		if own == nil {
			t.Errorf("docs/asyncapi.yaml has a consumer %s, which pgjet has not", name)
			continue
		}
		same("what "+name+" receives", messages(op.Messages), consumedTypes(t, own()))
	}
	for name := range ownConsumers {
		if op := doc.Operations[name]; op.Action != "receive" {
			t.Errorf("docs/asyncapi.yaml does not say what %s receives", name)
		}
	}
}

// consumedTypes returns the types that a consumer's durable consumer brings.
func consumedTypes(t *testing.T, c consumers.Consumer) (types []string) {
	t.Helper()
	config, err := c.Configs("")
	if err != nil {
		t.Fatal(err)
	}
	for _, subject := range config[0].FilterSubjects {
		types = append(types, events.FilteredType(subject))
	}
	slices.Sort(types)
	return slices.Compact(types)
}

// TestAsyncAPISaysWhichSubjects: the address of the channel is what the code publishes to.
func TestAsyncAPISaysWhichSubjects(t *testing.T) {
	doc, _ := readAsyncAPI(t)
	partitions := make(map[string]bool)
	for n := range 2000 {
		eventType := ownTypes(t)[n%len(ownTypes(t))]
		subject := events.Subject(eventType, fmt.Sprint("key ", n))
		partition := strings.Split(subject, ".")[1]
		partitions[partition] = true
		if want := strings.NewReplacer("{partition}", partition, "{type}", eventType).Replace(doc.Channels.Events.Address); subject != want {
			t.Fatalf("subject is %s, docs/asyncapi.yaml says %s", subject, want)
		}
	}
	if diff := cmp.Diff(doc.Channels.Events.Parameters.Partition.Enum, slices.Sorted(maps.Keys(partitions))); diff != "" {
		t.Errorf("the partitions of docs/asyncapi.yaml are not those of the code:\n%s", diff)
	}
}

// TestAsyncAPISaysWhichHeaders: those that the code writes, no others, and which of them
// are always there.
func TestAsyncAPISaysWhichHeaders(t *testing.T) {
	doc, _ := readAsyncAPI(t)
	schema := compileSchema(t, asJSON(t, doc.Components.MessageTraits.Event.Headers))
	e := events.Event{ID: uuid.Must(uuid.NewV7()), Type: "user.created", Key: "a b", Source: "/users", Time: time.Now(), Seq: 7}
	_, always, _ := e.Message()
	e.Traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	e.Header = map[string]string{"tracestate": "a=1", "ce-tenant": "\u00e4 b"}
	_, all, _ := e.Message()
	for _, header := range []map[string][]string{always, all} {
		if err := schema.Validate(plainHeaders(header)); err != nil {
			t.Errorf("docs/asyncapi.yaml forbids these headers: %v", err)
		}
	}
	delete(all, "ce-tenant") // extensions are free
	known := slices.Sorted(maps.Keys(doc.Components.MessageTraits.Event.Headers["properties"].(map[string]any)))
	if diff := cmp.Diff(slices.Sorted(maps.Keys(all)), known); diff != "" {
		t.Errorf("the headers of docs/asyncapi.yaml are not those of the code:\n%s", diff)
	}
	var required []string
	for _, name := range doc.Components.MessageTraits.Event.Headers["required"].([]any) {
		required = append(required, name.(string))
	}
	slices.Sort(required)
	if diff := cmp.Diff(slices.Sorted(maps.Keys(always)), required); diff != "" {
		t.Errorf("the required headers are not those that each message has:\n%s", diff)
	}
}

func plainHeaders(header map[string][]string) map[string]any {
	plain := make(map[string]any)
	for name, values := range header {
		plain[name] = values[0]
	}
	return plain
}
