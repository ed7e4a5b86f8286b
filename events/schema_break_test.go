package events_test

import (
	"encoding/json"
	"maps"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/pgjet/pgjet/events"
)

// Versions that UserRenamed could become. The embedded one gives them its methods.
type (
	kept = events.UserRenamed
	same struct {
		kept   `json:"-"`
		UserID string    `json:"user_id"`
		Name   string    `json:"name"`
		At     time.Time `json:"renamed_at"` // the name in Go is free
	}
	more struct {
		kept   `json:"-"`
		UserID string    `json:"user_id"`
		Name   string    `json:"name"`
		At     time.Time `json:"renamed_at"`
		By     string    `json:"by,omitempty"`
	}
	mandatory struct {
		kept   `json:"-"`
		UserID string    `json:"user_id"`
		Name   string    `json:"name"`
		At     time.Time `json:"renamed_at"`
		By     string    `json:"by"`
	}
	fewer struct {
		kept   `json:"-"`
		UserID string    `json:"user_id"`
		At     time.Time `json:"renamed_at"`
	}
	renamed struct {
		kept     `json:"-"`
		UserID   string    `json:"user_id"`
		FullName string    `json:"full_name"`
		At       time.Time `json:"renamed_at"`
	}
	retyped struct {
		kept   `json:"-"`
		UserID string `json:"user_id"`
		Name   string `json:"name"`
		At     int64  `json:"renamed_at"`
	}
)

// TestABrokenContractIsNoticed: each change that other readers could not read fails
// TestPayloadsKeepTheirForm, even if the schema was changed with the type.
func TestABrokenContractIsNoticed(t *testing.T) {
	today := readContract(t, kept{}.EventType())
	const required, property = `"required": [`, `"properties": {`
	by := []string{property, property + ` "by": {"type": "string"},`}
	later := contract{golden: maps.Clone(today.golden)} // once "by" was added
	later.golden["testdata/user.renamed/2.json"] = []byte(`{"user_id":"0199b1c2-6f00-7000-8000-000000000001","name":"A","renamed_at":"2027-01-01T00:00:00Z","by":"admin"}`)
	later.schema = edit(today.schema, by...)
	for what, tt := range map[string]struct {
		contract
		payload events.Payload
		edits   []string // of the schema: old, new, …
		want    string   // of the error; "" is none
	}{
		"nothing":                                       {today, same{}, nil, ""},
		"a field added":                                 {today, more{}, by, ""},
		"a field added, and not declared":               {today, more{}, nil, "lacks by"},
		"a required field added":                        {today, mandatory{}, append([]string{required, required + `"by",`}, by...), "the schema refuses it"},
		"a required field, as an empty one":             {today, mandatory{}, by, "disagree on whether by is required"},
		"a field removed":                               {today, fewer{}, []string{`"name",`, ``, `"name": {`, `"x": {`}, "unknown field"},
		"a field renamed":                               {today, renamed{}, []string{`"name"`, `"full_name"`}, "the schema refuses it"},
		"a field of another type":                       {today, retyped{}, []string{`"type": "string",` + "\n      " + `"format": "date-time"`, `"type": "integer"`}, "the schema refuses it"},
		"a field of another type, also the golden file": {contract{today.schema, map[string][]byte{"1.json": []byte(`{"renamed_at":7}`)}}, retyped{}, nil, "is a string date-time"},
		"an optional field kept":                        {later, more{}, nil, ""},
		"an optional field made required":               {later, mandatory{}, []string{required, required + `"by",`}, "missing property 'by'"},
		"an optional field removed":                     {later, same{}, []string{` "by": {"type": "string"},`, ``}, `unknown field "by"`},
	} {
		t.Run(what, func(t *testing.T) {
			c := contract{edit(tt.schema, tt.edits...), tt.golden}
			err := c.kept(tt.payload)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("%v, want an error with %q", err, tt.want)
			}
		})
	}
}

func edit(schema []byte, edits ...string) []byte {
	return []byte(strings.NewReplacer(edits...).Replace(string(schema)))
}

// personal returns the values of the payload fields that the schema marks as personal.
func personal(t *testing.T, eventType string, data []byte) (values map[string]string) {
	t.Helper()
	var s struct {
		Properties map[string]struct {
			Comment string `json:"$comment"`
		}
	}
	var fields map[string]any
	if err := json.Unmarshal(readContract(t, eventType).schema, &s); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &fields); err != nil {
		t.Fatal(err)
	}
	values = make(map[string]string)
	for name, p := range s.Properties {
		if p.Comment == "pii" {
			values[name], _ = fields[name].(string)
		}
	}
	return values
}

// TestErrorsShowNothingPersonal: whichever field does not fit, the error of Decode shows no
// value of a marked field.
func TestErrorsShowNothingPersonal(t *testing.T) {
	marked := 0
	for _, p := range payloads {
		for _, golden := range readContract(t, p.EventType()).golden {
			values := personal(t, p.EventType(), golden)
			marked += len(values)
			for _, field := range regexp.MustCompile(`"(\w+)": `).FindAllString(string(golden), -1) {
				wrong := []byte(strings.Replace(string(golden), field, field+`[7, "ada@example.com", "Ada"], "was": `, 1))
				err := decode(p, wrong)
				for name, value := range values {
					if err == nil || strings.Contains(err.Error(), value) {
						t.Errorf("%s, wrong %s: the error is %v, want one without the %s", p.EventType(), field, err, name)
					}
				}
			}
			for _, name := range []string{"email", "name"} {
				if _, ok := values[name]; !ok && strings.Contains(string(golden), `"`+name+`"`) {
					t.Errorf("the schema of %s does not mark %s as personal", p.EventType(), name)
				}
			}
		}
	}
	if marked < 5 {
		t.Errorf("%d marked fields, want those of three types", marked)
	}
}

// decode reads data as a payload of the type of p.
func decode(p events.Payload, data []byte) (err error) {
	e := events.Event{Type: p.EventType(), Data: data}
	switch p.(type) {
	case events.UserCreated:
		_, err = events.Decode[events.UserCreated](e)
	case events.UserRenamed:
		_, err = events.Decode[events.UserRenamed](e)
	case events.UserActivated:
		_, err = events.Decode[events.UserActivated](e)
	case events.UserRejected:
		_, err = events.Decode[events.UserRejected](e)
	case events.UserStillPending:
		_, err = events.Decode[events.UserStillPending](e)
	case events.UserDeleted:
		_, err = events.Decode[events.UserDeleted](e)
	}
	return err
}
