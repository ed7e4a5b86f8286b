package operate

import (
	"context"
	"encoding/json"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

// A Schema is the form of the payloads of an event type, as its newest events have it.
type Schema struct {
	Events int     `json:"events"` // number of payloads that were read
	Other  int     `json:"other"`  // of those that are no JSON, or too long to be read
	Fields []Field `json:"fields"` // by path
}

// A Field is a field of payloads. It says nothing about values.
type Field struct {
	Path  string   `json:"path"`  // such as address.city, or items[].price
	Kinds []string `json:"kinds"` // string, number, boolean, null, object or array
	In    int      `json:"in"`    // number of payloads that have it
}

// Bounds of a [Schema].
const (
	schemaEvents = 100
	schemaBytes  = 64 << 10 // of a payload
	schemaFields = 300
	schemaDepth  = 8
)

// SchemaOf reads the newest events of a type, among as many rows of the outbox as Source.Rows.
func (s Source) SchemaOf(ctx context.Context, eventType string) (schema Schema, err error) {
	if s.DB == nil {
		return schema, s.DBErr
	}
	payloads, err := collect(ctx, s.DB, pgx.RowTo[[]byte], `
		select coalesce(convert_to(left(data::text, $3), 'UTF8'), substr(body, 1, $3), '')
		  from (select type, data, body from pgjet.outbox order by seq desc limit $4) o where type = $1 limit $2`,
		eventType, schemaEvents, schemaBytes, s.looks())
	if err != nil {
		return schema, sqlstate.Wrap("read events of type "+Plain(eventType), err)
	}
	return schemaOf(payloads), nil
}

func schemaOf(payloads [][]byte) Schema {
	schema := Schema{Events: len(payloads), Fields: []Field{}}
	kinds, in := make(map[string]map[string]bool), make(map[string]int)
	for _, raw := range payloads {
		var value any
		if json.Unmarshal(raw, &value) != nil {
			schema.Other++
			continue
		}
		has := make(map[string]bool)
		walk("", value, schemaDepth, func(path, kind string) {
			if kinds[path] == nil {
				if len(kinds) >= schemaFields {
					return
				}
				kinds[path] = make(map[string]bool)
			}
			kinds[path][kind], has[path] = true, true
		})
		for path := range has {
			in[path]++
		}
	}
	for _, path := range slices.Sorted(maps.Keys(kinds)) {
		schema.Fields = append(schema.Fields, Field{path, slices.Sorted(maps.Keys(kinds[path])), in[path]})
	}
	return schema
}

// walk calls fn with the path and kind of each field below a value, at most depth levels deep.
func walk(path string, value any, depth int, fn func(path, kind string)) {
	if path != "" {
		fn(path, kindOf(value))
	}
	if depth == 0 {
		return
	}
	switch v := value.(type) {
	case map[string]any:
		for _, name := range slices.Sorted(maps.Keys(v)) {
			below := Plain(inbox.Mask(name)) // a map may have people as its keys
			if path != "" {
				below = path + "." + below
			}
			walk(below, v[name], depth-1, fn)
		}
	case []any:
		for _, one := range v {
			walk(path+"[]", one, depth-1, fn)
		}
	}
}

func kindOf(value any) string {
	switch value.(type) {
	case nil:
		return "null"
	case string:
		return "string"
	case float64:
		return "number"
	case bool:
		return "boolean"
	case []any:
		return "array"
	}
	return "object"
}
