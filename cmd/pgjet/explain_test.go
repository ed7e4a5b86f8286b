package main

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/pgjet/pgjet/docs"
	"github.com/pgjet/pgjet/internal/operate"
)

// TestReasonsPage: docs/reference/reasons.md is made from the list. To make it anew: UPDATE=1 go test -run TestReasonsPage ./cmd/pgjet
func TestReasonsPage(t *testing.T) {
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(root+"docs/reference/reasons.md", []byte(operate.ReasonsPage()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if read(t, "docs/reference/reasons.md") != operate.ReasonsPage() {
		t.Error("docs/reference/reasons.md is not what the list says; run: UPDATE=1 go test -run TestReasonsPage ./cmd/pgjet")
	}
}

// TestExplain: each reason has a runbook, and is explained, with the whole page of that, by the program alone.
func TestExplain(t *testing.T) {
	t.Parallel()
	for _, r := range operate.Reasons {
		out := explained(explain(r.Code))
		if !strings.Contains(out, r.Meaning) || !strings.Contains(out, r.Next) {
			t.Errorf("pgjet explain %s says %s", r.Code, out)
		}
		if page, err := docs.Runbooks.ReadFile("runbooks/" + r.Runbook); err != nil || len(page) < 100 || !strings.Contains(out, string(page)) {
			t.Errorf("pgjet explain %s does not show %s: %v", r.Code, r.Runbook, err)
		}
	}
	out := must(t, exitOK, "explain", "stream_full")
	if !strings.HasPrefix(out, "stream_full, of a relay: the stream is at one of its limits\n") || strings.Count(out, "\n# ") != 2 {
		t.Errorf("pgjet explain stream_full says\n%s", out)
	}
	var all []explanation
	if err := json.Unmarshal([]byte(must(t, exitOK, "explain", "-o", "json", "paused")), &all); err != nil || len(all) != 2 || all[0].About != "relay" || all[0].Next != "pgjet relay resume" || all[0].Page == "" {
		t.Errorf("as JSON it is %+v, %v", all, err)
	}
	if out = must(t, exitOK, "explain"); strings.Count(out, "\n") != len(operate.Reasons)+1 {
		t.Errorf("pgjet explain lists\n%s", out)
	}
	refused(t, exitNotFound, []string{"explain", "steam_full"}, `"steam_full" is no reason; did you mean stream_full?`, "pgjet explain")
	refused(t, exitNotFound, []string{"explain", "weather"}, `"weather" is no reason; all are listed by: pgjet explain`)
	refused(t, exitUsage, []string{"explain", "-o", "xml"}, "--output")
}

func TestVersionCommand(t *testing.T) {
	t.Parallel()
	var b buildInfo
	if err := json.Unmarshal([]byte(must(t, exitOK, "version", "-o", "json")), &b); err != nil || b.Version == "" || !strings.HasPrefix(b.Go, "go1.") || b.Schema < 16 {
		t.Errorf("the version is %+v, %v", b, err)
	}
	if out := must(t, exitOK, "version"); !strings.HasPrefix(out, "pgjet") || !strings.Contains(out, "\ntables   version ") {
		t.Errorf("the version is\n%s", out)
	}
}
