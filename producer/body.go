package producer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"reflect"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// maxDepth is the depth limit of nested arrays and objects in a body.
const maxDepth = 16

// requireJSON refuses, before it is read, a body that is announced as anything but plain
// JSON of a sensible size.
func requireJSON(ctx huma.Context, next func(huma.Context)) {
	if ctx.Operation().RequestBody == nil {
		next(ctx)
		return
	}
	r, w := humago.Unwrap(ctx)
	if p := checkHeader(r); p != nil {
		writeProblem(w, p)
		return
	}
	r.Header.Set("Content-Type", "application/json") // huma's comparison is case-sensitive
	r.Body = io.NopCloser(r.Body)                    // huma closes it before it answers, and the close waits for the rest of the body
	next(ctx)
}

func checkHeader(r *http.Request) *Problem {
	if !isJSON(r.Header.Values("Content-Type")) {
		return newProblem(http.StatusUnsupportedMediaType, "content_type",
			"The body must be JSON in UTF-8: Content-Type: application/json.")
	}
	for _, coding := range r.Header.Values("Content-Encoding") {
		if coding != "" && !strings.EqualFold(coding, "identity") {
			return newProblem(http.StatusUnsupportedMediaType, "content_encoding",
				"The body must not be compressed.")
		}
	}
	if r.ContentLength > maxBody {
		return tooLarge()
	}
	return nil
}

func isJSON(contentType []string) bool {
	if len(contentType) != 1 {
		return false
	}
	t, params, err := mime.ParseMediaType(contentType[0])
	if err != nil || t != "application/json" {
		return false
	}
	for name, value := range params {
		if name != "charset" || !strings.EqualFold(value, "utf-8") {
			return false
		}
	}
	return true
}

// jsonFormat reads a [jsonBody] and nothing else.
var jsonFormat = huma.Format{
	Marshal: huma.DefaultJSONFormat.Marshal,
	Unmarshal: func(data []byte, v any) error {
		b, ok := v.(interface{ decode(data []byte) })
		if !ok {
			return fmt.Errorf("cannot read JSON into %T: wrap it in jsonBody", v)
		}
		b.decode(data)
		return nil
	},
}

// A jsonBody is a request's body, read strictly. It keeps a [Problem] instead of an error,
// and returns it from Resolve: huma would drop the code of an error and repeat the body.
type jsonBody[T any] struct {
	value   T
	problem *Problem
}

// Schema describes the body as a T.
func (jsonBody[T]) Schema(r huma.Registry) *huma.Schema {
	return r.Schema(reflect.TypeFor[T](), true, "")
}

func (b *jsonBody[T]) decode(data []byte) { b.problem = decode(data, &b.value) }

// Resolve returns what was wrong with the body.
func (b *jsonBody[T]) Resolve(huma.Context) []error {
	if b.problem != nil {
		return []error{b.problem}
	}
	return nil
}

// decode reads the one JSON object in data into v. Names are case-sensitive and
// unique, unknown ones are refused, text is valid Unicode.
func decode(data []byte, v any) *Problem {
	if p := checkSyntax(data); p != nil {
		return p
	}
	err := json.Unmarshal(data, v, json.RejectUnknownMembers(true))
	if err == nil {
		return nil
	}
	semantic, ok := errors.AsType[*json.SemanticError](err)
	if !ok {
		return newProblem(http.StatusBadRequest, "json_invalid", "The body is not valid JSON.")
	}
	field := fieldName(semantic.JSONPointer)
	if errors.Is(err, json.ErrUnknownName) {
		return fieldProblem(http.StatusBadRequest, FieldError{field, "unknown_field", "This field is not known."})
	}
	return fieldProblem(http.StatusBadRequest, FieldError{field, "wrong_type", "This field has the wrong JSON type."})
}

// checkSyntax refuses what is not exactly one JSON object.
func checkSyntax(data []byte) *Problem {
	if !utf8.Valid(data) {
		return newProblem(http.StatusBadRequest, "invalid_utf8", "The body is not valid UTF-8.")
	}
	d := jsontext.NewDecoder(bytes.NewReader(data))
	switch d.PeekKind() {
	case '[', '"', '0', 't', 'f', 'n':
		return newProblem(http.StatusBadRequest, "json_object_required", "The body must be a JSON object.")
	}
	for {
		if _, err := d.ReadToken(); err != nil {
			return syntaxProblem(d, err)
		}
		if d.StackDepth() > maxDepth {
			return newProblem(http.StatusBadRequest, "json_too_deep",
				fmt.Sprintf("The body is nested deeper than %d levels.", maxDepth))
		}
		if d.StackDepth() == 0 {
			break
		}
	}
	if _, err := d.ReadToken(); !errors.Is(err, io.EOF) {
		return newProblem(http.StatusBadRequest, "json_trailing_data", "The body goes on after its JSON object.")
	}
	return nil
}

// syntaxProblem says where the JSON is wrong, without quoting it.
func syntaxProblem(d *jsontext.Decoder, err error) *Problem {
	offset := d.InputOffset()
	if syntactic, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		offset = syntactic.ByteOffset
		if errors.Is(err, jsontext.ErrDuplicateName) {
			return fieldProblem(http.StatusBadRequest, FieldError{
				fieldName(syntactic.JSONPointer), "duplicate_field", "This field stands in the body twice.",
			})
		}
	}
	return newProblem(http.StatusBadRequest, "json_invalid", fmt.Sprintf("The body is not valid JSON at byte %d.", offset))
}

// fieldName returns the name at which p points, as in "address.street". A name
// comes from the client: it is cut short and kept printable.
func fieldName(p jsontext.Pointer) string {
	var name strings.Builder
	for token := range p.Tokens() {
		if name.Len() > 0 {
			name.WriteByte('.')
		}
		for _, r := range token {
			if name.Len() >= 64 {
				return name.String()
			}
			if !unicode.IsPrint(r) {
				r = unicode.ReplacementChar
			}
			name.WriteRune(r)
		}
	}
	return name.String()
}
