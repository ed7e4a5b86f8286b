package main

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/pgjet/pgjet/docs"
	"github.com/pgjet/pgjet/internal/operate"
)

// TestReasonsPage: docs/reference/reasons.md is made from the list. To write it again: UPDATE=1 go test -run TestReasonsPage ./cmd/pgjet
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

// TestExplain: the program explains each reason with a whole runbook, without any server.
func TestExplain(t *testing.T) {
	t.Parallel()
	for _, r := range operate.Reasons {
		out := explanationText(explain(r.Code))
		if !strings.Contains(out, r.Meaning) || strings.Contains(out, " a outbox") || !strings.Contains(out, r.Next) {
			t.Errorf("pgjet explain %s says %s", r.Code, out)
		}
		if page := docs.Runbook(strings.TrimSuffix(r.Runbook, ".md")); len(page) < 100 || !strings.Contains(out, page) {
			t.Errorf("pgjet explain %s does not show %s", r.Code, r.Runbook)
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
	if out = must(t, exitOK, "explain", "dead-letters"); !strings.HasPrefix(out, "# Dead letters") {
		t.Errorf("a runbook is\n%s", out)
	}
	if out = must(t, exitOK, "explain", "pooler"); strings.Count(out, "\n# ") != 2 || !strings.Contains(out, "# A pooler where a session is needed") {
		t.Errorf("a reason with a page of its own is explained so:\n%s", out)
	}
	refused(t, exitNotFound, []string{"explain", "steam_full"}, `"steam_full" is no reason; did you mean stream_full?`, "pgjet explain")
	refused(t, exitNotFound, []string{"explain", "weather"}, `"weather" is no reason; to list all: pgjet explain`)
	refused(t, exitUsage, []string{"explain", "-o", "xml"}, "--output")
}

func TestVersionCommand(t *testing.T) {
	t.Parallel()
	var b buildInfo
	if err := json.Unmarshal([]byte(must(t, exitOK, "version", "-o", "json")), &b); err != nil || b.Version == "" || !strings.HasPrefix(b.Go, "go1.") || b.Schema < 4 {
		t.Errorf("the version is %+v, %v", b, err)
	}
	if out := must(t, exitOK, "version"); !strings.HasPrefix(out, "pgjet") || !strings.Contains(out, "\ntables   version ") {
		t.Errorf("the version is\n%s", out)
	}
}

// TestNoFilesOfTheRepository: the program's texts make sense without the repository. They refer to
// its files only by a URL or by the command that prints them, and every runbook that a runbook
// refers to can be printed.
func TestNoFilesOfTheRepository(t *testing.T) {
	t.Parallel()
	file := regexp.MustCompile(`(?:^|[^/a-z])(docs/[a-z/-]*\.md|runbooks/[a-z-]+\.md|[a-z-]+\.md\b)`)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch name := d.Name(); {
		case err != nil:
			return err
		case d.IsDir() && (name == ".git" || name == "bench" || name == "examples" || name == "tests"):
			return filepath.SkipDir
		case !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") || name == "reason.go":
			return nil
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			if text, ok := n.(*ast.BasicLit); ok && text.Kind == token.STRING && file.MatchString(strings.Trim(text.Value, "\"`")) {
				t.Errorf("%s: %s names a file that users do not have", path, text.Value)
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range docs.Names() {
		page := docs.Runbook(name)
		if m := regexp.MustCompile(`\]\([^):]*\.md[^)]*\)`).FindString(page); m != "" {
			t.Errorf("pgjet explain %s has a link to a file: %s", name, m)
		}
		for _, m := range regexp.MustCompile("pgjet explain ([a-z-]+)").FindAllStringSubmatch(page, -1) {
			if len(explain(m[1])) == 0 && m[1] != "with" {
				t.Errorf("pgjet explain %s refers to %s, which it does not know", name, m[0])
			}
		}
	}
}
