package events_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/pgjet/pgjet/events"
)

// payloads are all payloads of this package.
var payloads = []events.Payload{
	events.UserCreated{}, events.UserRenamed{}, events.UserActivated{}, events.UserRejected{}, events.UserStillPending{}, events.UserDeleted{},
}

// A contract is the promise about one type of event: its schema, and messages as they were
// once written. To add a field, add it as an optional one to the payload and the schema,
// and add a file with it to testdata. The files there are never edited.
type contract struct {
	schema []byte
	golden map[string][]byte // by name of file
}

func readContract(t *testing.T, eventType string) (c contract) {
	t.Helper()
	var err error
	if c.schema, err = events.Schemas.ReadFile("schema/" + eventType + ".json"); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("testdata/" + eventType + "/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d golden files of %s, %v", len(files), eventType, err)
	}
	c.golden = make(map[string][]byte)
	for _, name := range files {
		if c.golden[name], err = os.ReadFile(name); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// TestPayloadsKeepTheirForm: messages of the past can be read, and messages of today have
// the promised form.
func TestPayloadsKeepTheirForm(t *testing.T) {
	for _, p := range payloads {
		if err := readContract(t, p.EventType()).kept(p); err != nil {
			t.Errorf("%s is a published contract, and it was broken:\n%v", p.EventType(), err)
		}
	}
}

// TestEveryPayloadHasAContract: the list above is complete, and each schema belongs to a
// payload.
func TestEveryPayloadHasAContract(t *testing.T) {
	var listed, have []string
	for _, p := range payloads {
		listed = append(listed, reflect.TypeOf(p).Name()+" "+p.EventType())
	}
	entries, err := events.Schemas.ReadDir("schema")
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != len(payloads) {
		t.Errorf("%d schemas of %d payloads", len(entries), len(payloads))
	}
	have = declared(t)
	slices.Sort(listed)
	if diff := cmp.Diff(have, listed); diff != "" {
		t.Errorf("the package has other payloads than this test checks:\n%s", diff)
	}
}

// declared returns the payloads in the source of this package, with their types.
func declared(t *testing.T) (all []string) {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Name.Name != "EventType" || f.Recv == nil || strings.HasSuffix(name, "_test.go") {
				continue
			}
			if text, ok := f.Body.List[0].(*ast.ReturnStmt).Results[0].(*ast.BasicLit); ok { // Event itself returns a field
				all = append(all, f.Recv.List[0].Type.(*ast.Ident).Name+" "+strings.Trim(text.Value, `"`))
			}
		}
	}
	slices.Sort(all)
	return all
}

// kept returns how p, a payload of today, breaks the contract.
func (c contract) kept(p events.Payload) error {
	schema, err := compile(c.schema)
	if err != nil {
		return err
	}
	all := []error{c.describes(reflect.TypeOf(p))}
	for _, name := range slices.Sorted(maps.Keys(c.golden)) {
		if err := keeps(schema, c.golden[name], reflect.New(reflect.TypeOf(p))); err != nil {
			all = append(all, fmt.Errorf("%s: %w", name, err))
		}
	}
	return errors.Join(all...)
}

// keeps checks a message of the past: p, decoded from it, must have all of its fields and
// write them as they were.
func keeps(schema *jsonschema.Schema, golden []byte, p reflect.Value) error {
	if err := validate(schema, golden); err != nil {
		return fmt.Errorf("the schema refuses it: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(golden))
	d.DisallowUnknownFields()
	if err := d.Decode(p.Interface()); err != nil {
		return fmt.Errorf("it is not read: %w", err)
	}
	now, err := json.Marshal(p.Interface())
	if err != nil {
		return err
	}
	if err := validate(schema, now); err != nil {
		return fmt.Errorf("the schema refuses what is written today: %w", err)
	}
	var was, is map[string]any
	if err := errors.Join(json.Unmarshal(golden, &was), json.Unmarshal(now, &is)); err != nil {
		return err
	}
	maps.DeleteFunc(is, func(field string, _ any) bool { _, old := was[field]; return !old }) // was added
	if diff := cmp.Diff(was, is); diff != "" {
		return fmt.Errorf("it is written differently today:\n%s", diff)
	}
	return nil
}

// describes returns how the schema and t differ.
func (c contract) describes(t reflect.Type) error {
	var s struct {
		Title      string
		Required   []string
		Properties map[string]struct{ Type, Format string }
	}
	if err := json.Unmarshal(c.schema, &s); err != nil {
		return err
	}
	var errs []error
	differs := func(format string, args ...any) { errs = append(errs, fmt.Errorf("the schema "+format, args...)) }
	for f := range t.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "-" {
			continue
		}
		p, ok := s.Properties[name]
		if !ok {
			differs("lacks %s", name)
		}
		delete(s.Properties, name)
		if optional := strings.Contains(options, "omit"); optional == slices.Contains(s.Required, name) {
			differs("and %s disagree on whether %s is required", t.Name(), name)
		}
		if isTime := f.Type == reflect.TypeFor[time.Time](); isTime != (p.Format == "date-time") {
			differs("says %s is a %s %s, it is a %s", name, p.Type, p.Format, f.Type)
		}
	}
	for name := range s.Properties {
		differs("has %s, which %s has not", name, t.Name())
	}
	return errors.Join(errs...)
}

func compile(schema []byte) (*jsonschema.Schema, error) {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(schema))
	if err != nil {
		return nil, err
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("payload.json", doc); err != nil {
		return nil, err
	}
	return c.Compile("payload.json")
}

func validate(schema *jsonschema.Schema, data []byte) error {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		return err
	}
	return schema.Validate(doc)
}
