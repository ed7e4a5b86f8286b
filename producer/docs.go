package producer

import (
	"bytes"
	"cmp"
	_ "embed" // the page
	"fmt"
	"html/template"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

//go:embed docs.html
var docsPage string

var docsTemplate = template.Must(template.New("docs").Parse(docsPage))

// docsPolicy lets a browser load nothing at all, from here or elsewhere: the page is
// complete. Its style stands in it, and there is no script.
const docsPolicy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// A docs is the content of the page.
type docs struct {
	Info       *huma.Info
	Operations []docsOperation
	Schemas    []docsSchema
	Problems   []problemCode
}

type docsOperation struct {
	*huma.Operation
	Token      bool // is needed
	Parameters []docsField
	Body       *docsType
	Answers    []docsAnswer
}

type docsAnswer struct {
	Status, Text string
	Body         *docsType
	Headers      []docsField
}

type docsSchema struct {
	Name, Text string
	Fields     []docsField
}

type docsField struct {
	Name, In, Text string
	Required       bool
	Type           docsType
	Example        string
}

// A docsType is a type in words, or the name of a schema.
type docsType struct {
	List   bool
	Schema string
	Words  string
}

// serveDocs serves the page for people, made from the OpenAPI document.
func (s *Server) serveDocs() {
	var page bytes.Buffer
	if err := docsTemplate.Execute(&page, describe(s.api.OpenAPI())); err != nil {
		panic(err) // the template is wrong
	}
	s.mux.Handle("GET /{$}", http.RedirectHandler("/docs", http.StatusFound))
	s.mux.HandleFunc("GET /docs", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", docsPolicy)
		w.Header().Set("Referrer-Policy", "no-referrer")
		_, _ = w.Write(page.Bytes()) // the client may be gone
	})
}

func describe(api *huma.OpenAPI) docs {
	d := docs{Info: api.Info, Problems: problemCodes}
	for _, path := range slices.Sorted(maps.Keys(api.Paths)) {
		item := api.Paths[path]
		for _, op := range []*huma.Operation{item.Get, item.Post, item.Put, item.Patch, item.Delete} {
			if op != nil {
				d.Operations = append(d.Operations, describeOperation(op))
			}
		}
	}
	schemas := api.Components.Schemas.Map()
	for _, name := range slices.Sorted(maps.Keys(schemas)) {
		d.Schemas = append(d.Schemas, docsSchema{name, schemas[name].Description, describeFields(schemas[name])})
	}
	return d
}

func describeOperation(op *huma.Operation) docsOperation {
	d := docsOperation{Operation: op, Token: len(op.Security) > 0}
	for _, p := range op.Parameters {
		d.Parameters = append(d.Parameters, describeParameter(p.Name, p))
	}
	if op.RequestBody != nil {
		d.Body = describeBody(op.RequestBody.Content)
	}
	for _, status := range slices.Sorted(maps.Keys(op.Responses)) {
		r := op.Responses[status]
		a := docsAnswer{Status: status, Text: r.Description, Body: describeBody(r.Content)}
		for _, name := range slices.Sorted(maps.Keys(r.Headers)) {
			a.Headers = append(a.Headers, describeParameter(name, r.Headers[name]))
		}
		d.Answers = append(d.Answers, a)
	}
	return d
}

func describeParameter(name string, p *huma.Param) docsField {
	f := docsField{Name: name, In: p.In, Text: p.Description, Required: p.Required}
	if p.Schema != nil {
		f.Text, f.Type = cmp.Or(f.Text, p.Schema.Description), describeType(p.Schema)
		f.Example = example(p.Schema)
	}
	return f
}

func describeBody(content map[string]*huma.MediaType) *docsType {
	for _, name := range slices.Sorted(maps.Keys(content)) {
		if schema := content[name].Schema; schema != nil {
			t := describeType(schema)
			return &t
		}
	}
	return nil
}

func describeFields(s *huma.Schema) []docsField {
	var all []docsField
	for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
		p := s.Properties[name]
		f := docsField{
			Name: name, Text: p.Description, Required: slices.Contains(s.Required, name),
			Type: describeType(p), Example: example(p),
		}
		if p.WriteOnly {
			f.Text = strings.TrimSpace(f.Text + " Never shown.")
		}
		all = append(all, f)
	}
	return all
}

func describeType(s *huma.Schema) docsType {
	if s.Type == "array" && s.Items != nil {
		t := describeType(s.Items)
		t.List = true
		return t
	}
	if s.Ref != "" {
		return docsType{Schema: s.Ref[strings.LastIndexByte(s.Ref, '/')+1:]}
	}
	words := []string{s.Type}
	if s.Format != "" && s.Format != "int64" {
		words = append(words, s.Format)
	}
	if len(s.Enum) > 0 {
		words = append(words, "one of "+strings.Trim(fmt.Sprint(s.Enum), "[]"))
	}
	words = append(words, limits("", s.Minimum, s.Maximum)...)
	words = append(words, limits(" characters", s.MinLength, s.MaxLength)...)
	if s.Default != nil {
		words = append(words, fmt.Sprint("default ", s.Default))
	}
	return docsType{Words: strings.Join(words, ", ")}
}

func limits[N int | float64](unit string, least, most *N) []string {
	switch {
	case least != nil && most != nil:
		return []string{fmt.Sprintf("%v to %v%s", *least, *most, unit)}
	case least != nil:
		return []string{fmt.Sprintf("at least %v%s", *least, unit)}
	case most != nil:
		return []string{fmt.Sprintf("at most %v%s", *most, unit)}
	}
	return nil
}

func example(s *huma.Schema) string {
	if len(s.Examples) == 0 {
		return ""
	}
	return fmt.Sprint(s.Examples[0])
}
