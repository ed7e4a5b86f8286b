package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/consumers/status"
	"github.com/pgjet/pgjet/internal/jserror"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

const root = "../../"

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(root + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestDocsShowCompiledCode: Go code in the README and the page on appending is part of an example
// that the tests run.
func TestDocsShowCompiledCode(t *testing.T) {
	examples := read(t, "internal/tests/outbox/example_test.go") + read(t, "consumers/example_test.go") + read(t, "pgjettest/example_test.go")
	blocks := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(read(t, "README.md")+read(t, "docs/appending.md"), -1)
	if len(blocks) == 0 {
		t.Error("they show no Go code")
	}
	for _, b := range blocks {
		if !strings.Contains(examples, b[1]) {
			t.Errorf("this code is in no example:\n%s", b[1])
		}
	}
}

// TestDocsNameTestsThatExist: the tests that documents mention exist.
func TestDocsNameTestsThatExist(t *testing.T) {
	declared := regexp.MustCompile(`(?m)^func (Test[A-Za-z0-9]+)\(`)
	tests := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		for _, m := range declared.FindAllStringSubmatch(read(t, strings.TrimPrefix(path, root)), -1) {
			tests[m[1]] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range pages(t) {
		for _, name := range regexp.MustCompile("`(Test[A-Za-z0-9]+)`").FindAllStringSubmatch(read(t, doc), -1) {
			if !tests[name[1]] {
				t.Errorf("%s names %s, which does not exist", doc, name[1])
			}
		}
	}
}

// TestDocsNameCommandsThatExist: each "pgjet …" in the documents is a command with those flags, and
// each "make …" a target.
func TestDocsNameCommandsThatExist(t *testing.T) {
	makefile := read(t, "Makefile")
	docs := pages(t)
	for _, doc := range docs {
		text := read(t, doc)
		for _, m := range regexp.MustCompile("(?m)(?:^|`|/|\\s)pgjet ((?:status|console|event|key|retry|doctor|check|audit|republish|op|explain|version|dev|users|relay|consumer?|migrate|stream|outbox|replay|nats|ready|dead|saga|services|standin|config)\\b[^`|\n]*)(?:`|$)").FindAllStringSubmatch(text, -1) {
			checkCommand(t, doc, strings.Fields(strings.TrimSuffix(strings.Split(m[1], " >")[0], `)"`)))
		}
		for _, m := range regexp.MustCompile("(?m)(?:^|`)make ([a-z-]+)(?:`|$)").FindAllStringSubmatch(text, -1) {
			if !strings.Contains(makefile, "\n"+m[1]+":") {
				t.Errorf("%s says make %s, which is no target", doc, m[1])
			}
		}
	}
}

// pages returns all pages for people: those of docs, those at the root, and the designs beside the code.
func pages(t *testing.T) []string {
	t.Helper()
	all := []string{"README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/reference/consumers.md", "relay/DESIGN.md", "consumers/inbox/DESIGN.md", "internal/operate/DESIGN.md", "examples/README.md"}
	for _, pattern := range []string{"docs/*.md", "docs/guide/*.md", "docs/runbooks/*.md"} {
		paths, err := filepath.Glob(root + pattern)
		if err != nil || len(paths) < 2 {
			t.Fatalf("%s: %q, %v", pattern, paths, err)
		}
		for _, path := range paths {
			all = append(all, strings.TrimPrefix(path, root))
		}
	}
	return all
}

// TestDocsLinkToWhatExists: a link to a file of the repository leads there, and one to a heading to a heading.
func TestDocsLinkToWhatExists(t *testing.T) {
	for _, page := range pages(t) {
		for _, m := range regexp.MustCompile(`\]\(([^)\s]+)\)`).FindAllStringSubmatch(read(t, page), -1) {
			name, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(name, ":") {
				continue // on the web
			}
			to := page
			if name != "" {
				to = filepath.Join(filepath.Dir(page), name)
			}
			if _, err := os.Stat(root + to); err != nil {
				t.Errorf("%s links to %s, which does not exist", page, m[1])
			} else if anchor != "" && !slices.Contains(anchors(read(t, to)), anchor) {
				t.Errorf("%s links to %s, which has no such heading", page, m[1])
			}
		}
	}
}

// anchors returns the anchors of a page's headings on GitHub.
func anchors(text string) (all []string) {
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(text, -1) {
		name := regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(strings.ToLower(m[1]), "")
		all = append(all, strings.ReplaceAll(name, " ", "-"))
	}
	return all
}

// TestDocsDrawTheStates: the page on consumers has the state diagram of package inbox.
func TestDocsDrawTheStates(t *testing.T) {
	var diagram strings.Builder
	for line := range strings.Lines(read(t, "consumers/inbox/doc.go")) {
		if drawn, ok := strings.CutPrefix(line, "//\t"); ok {
			diagram.WriteString(drawn)
		}
	}
	if diagram.Len() == 0 {
		t.Fatal("the package comment of inbox has no diagram")
	}
	if !strings.Contains(read(t, "docs/consumers.md"), "```\n"+diagram.String()+"```\n") {
		t.Errorf("docs/consumers.md does not have the diagram of consumers/inbox/doc.go:\n%s", diagram.String())
	}
}

// TestEveryCauseIsDocumented: each reason of a relay has a line in docs/cli.md and in a runbook.
func TestEveryCauseIsDocumented(t *testing.T) {
	words := map[string]bool{"halted": true}
	for _, reason := range jserror.Reasons {
		if reason != jserror.ConsumerMissing && reason != jserror.ConsumerDiffers { // a relay has no durable consumer
			words[string(reason)] = true
		}
	}
	files, err := filepath.Glob(root + "relay/*.go")
	if err != nil || len(files) < 20 {
		t.Fatalf("%d files of the relay, %v", len(files), err)
	}
	for _, path := range files {
		for _, m := range regexp.MustCompile(`block\("([a-z_]+)"`).FindAllStringSubmatch(read(t, strings.TrimPrefix(path, root)), -1) {
			words[m[1]] = true
		}
	}
	if len(words) < 15 {
		t.Errorf("found %d causes in the code of the relay", len(words))
	}
	for _, doc := range []string{"docs/cli.md", "docs/runbooks/relay-not-publishing.md"} {
		text := read(t, doc)
		for w := range words {
			if !strings.Contains(text, "\n| `"+w+"` |") {
				t.Errorf("%s does not explain %s", doc, w)
			}
		}
	}
}

// TestEveryWhyIsDocumented: each reason of a consumer has a line in docs/cli.md and in a runbook.
func TestEveryWhyIsDocumented(t *testing.T) {
	for _, doc := range []string{"docs/cli.md", "docs/runbooks/consumer-not-moving.md"} {
		text := read(t, doc)
		for _, code := range status.Codes {
			if !slices.Contains(sqlstate.Reasons, sqlstate.Class(code)) && !strings.Contains(text, "\n| `"+code+"` |") {
				t.Errorf("%s does not explain %s", doc, code)
			}
		}
	}
}

// TestEveryDatabaseReasonIsDocumented: each class of PostgreSQL's errors has a line in docs/cli.md
// and in a runbook.
func TestEveryDatabaseReasonIsDocumented(t *testing.T) {
	for _, doc := range []string{"docs/cli.md", "docs/runbooks/database.md"} {
		text := read(t, doc)
		for _, reason := range sqlstate.Reasons {
			if !strings.Contains(text, "\n| `"+string(reason)+"` |") {
				t.Errorf("%s does not explain %s", doc, reason)
			}
		}
	}
}

func checkCommand(t *testing.T, doc string, words []string) {
	t.Helper()
	cmd, rest, err := newRoot().Find(words)
	if err != nil || !cmd.Runnable() && len(rest) > 0 {
		t.Errorf("%s says pgjet %s: there is no such command", doc, strings.Join(words, " "))
		return
	}
	if err := cmd.ParseFlags(rest); err != nil {
		t.Errorf("%s says pgjet %s: %v", doc, strings.Join(words, " "), err)
		return
	}
	if err := cmd.ValidateArgs(cmd.Flags().Args()); err != nil {
		t.Errorf("%s says pgjet %s: %v", doc, strings.Join(words, " "), err)
	}
}

// TestFlagsThatAreNamedExist: each flag that stands alone in the docs, in `--flag` or `--flag VALUE`, or in a command that the console or package
// operate writes, is one of some command.
func TestFlagsThatAreNamedExist(t *testing.T) {
	known := map[string]bool{"tx-mode": true, "exclude": true, "schema": true, "response-type": true, "js-domain": true} // of Atlas, nsc and nats
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		for _, m := range regexp.MustCompile(`--([a-z-]+)`).FindAllStringSubmatch(cmd.LocalFlags().FlagUsages(), -1) {
			known[m[1]] = true
		}
		for _, c := range cmd.Commands() {
			walk(c)
		}
	}
	walk(newRoot())
	files := pages(t)
	for _, pattern := range []string{"console/*.go", "console/web/*.html", "internal/operate/*.go"} {
		paths, err := filepath.Glob(root + pattern)
		if err != nil || len(paths) < 2 {
			t.Fatalf("%s: %q, %v", pattern, paths, err)
		}
		for _, path := range paths {
			if !strings.HasSuffix(path, "_test.go") {
				files = append(files, strings.TrimPrefix(path, root))
			}
		}
	}
	for _, file := range files {
		named := "`--([a-z][a-z-]*)"
		if !strings.HasSuffix(file, ".md") {
			named = `(?:pgjet [^"]*|" ?)--([a-z][a-z-]*)`
		}
		for _, m := range regexp.MustCompile(named).FindAllStringSubmatch(read(t, file), -1) {
			if !known[m[1]] {
				t.Errorf("%s names the flag --%s, which no command has", file, m[1])
			}
		}
	}
}

// TestEveryFlagIsDocumented: docs/cli.md lists every command and every flag.
func TestEveryFlagIsDocumented(t *testing.T) {
	doc := read(t, "docs/cli.md")
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Runnable() && !strings.Contains(doc, "`"+cmd.CommandPath()) {
			t.Errorf("docs/cli.md does not list %s", cmd.CommandPath())
		}
		for line := range strings.Lines(cmd.LocalFlags().FlagUsages()) {
			if m := regexp.MustCompile(`--([a-z-]+)`).FindStringSubmatch(line); m != nil && !strings.Contains(doc, "`--"+m[1]+"`") {
				t.Errorf("docs/cli.md does not list --%s of %s", m[1], cmd.CommandPath())
			}
		}
		for _, c := range cmd.Commands() {
			walk(c)
		}
	}
	walk(newRoot())
}
