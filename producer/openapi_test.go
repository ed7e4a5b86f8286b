package producer_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pgjet/pgjet/internal/testenv"
)

func TestOpenAPI(t *testing.T) {
	srv := serve(t, testenv.Postgres(t))
	a := get(t, srv, "/openapi.json")
	var doc struct {
		OpenAPI    string                    `json:"openapi"`
		Paths      map[string]map[string]any `json:"paths"`
		Components struct {
			Schemas map[string]struct {
				Properties           map[string]map[string]any `json:"properties"`
				Required             []string                  `json:"required"`
				AdditionalProperties bool                      `json:"additionalProperties"`
			} `json:"schemas"`
		} `json:"components"`
	}
	if err := json.Unmarshal(a.body, &doc); err != nil {
		t.Fatalf("%v in %s", err, a.body)
	}
	if !strings.HasPrefix(doc.OpenAPI, "3.1") || doc.Paths["/users"]["post"] == nil || doc.Paths["/users/{id}"]["get"] == nil {
		t.Errorf("document lacks 3.1 or an operation: %s", a.body)
	}
	n := doc.Components.Schemas["NewUser"]
	if diff := cmp.Diff([]string{"email", "name", "password"}, n.Required); diff != "" || n.AdditionalProperties {
		t.Errorf("NewUser: required (-want +got):\n%sadditional properties: %v, want false", diff, n.AdditionalProperties)
	}
	if n.Properties["password"]["minLength"] != 12.0 || n.Properties["$schema"] != nil {
		t.Errorf("NewUser = %v", n.Properties)
	}
	if doc.Components.Schemas["Problem"].Properties["code"] == nil || doc.Components.Schemas["User"].Properties["id"]["format"] != "uuid" {
		t.Errorf("schemas = %+v, want Problem and User", doc.Components.Schemas)
	}
	if a := get(t, srv, "/openapi.yaml"); a.StatusCode != 200 || !bytes.HasPrefix(a.body, []byte("components:")) {
		t.Errorf("GET /openapi.yaml = %d %.40q", a.StatusCode, a.body)
	}
}

// TestOpenAPIRefusals: operations that need a token list its refusals, and the others say
// that they need none.
func TestOpenAPIRefusals(t *testing.T) {
	var doc struct {
		Paths map[string]map[string]struct {
			Security  []any          `json:"security"`
			Responses map[string]any `json:"responses"`
		} `json:"paths"`
	}
	if err := json.Unmarshal(get(t, serve(t, testenv.Postgres(t)), "/openapi.json").body, &doc); err != nil {
		t.Fatal(err)
	}
	for path, operations := range doc.Paths {
		for method, op := range operations {
			name := method + " " + path
			if op.Security == nil {
				t.Errorf("%s does not say whether it needs a token", name)
			}
			for status, want := range map[string]bool{
				"400": true, // two Authorization headers, or a body that is none
				"401": len(op.Security) > 0 || path == "/sessions",
				"403": len(op.Security) > 0 || path == "/sessions",
				"429": method == "post" || path == "/users/{id}/password",
				"503": true,
			} {
				if _, got := op.Responses[status]; got != want {
					t.Errorf("%s describes %s: %v, want %v", name, status, got, want)
				}
			}
		}
	}
}

var update = flag.Bool("update", false, "write the golden files anew")

// TestGoldenOpenAPI: docs/openapi.yaml is the document that the service serves, so a review
// shows a change of the API. To write it again:
//
//	go test ./producer -run TestGoldenOpenAPI -update
func TestGoldenOpenAPI(t *testing.T) {
	const golden = "../docs/openapi.yaml"
	got := get(t, serve(t, testenv.Postgres(t)), "/openapi.yaml").body
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(string(got), "\n")); diff != "" {
		t.Errorf("%s is not what is served (-file +served); write it anew with -update:\n%s", golden, diff)
	}
}
