package guide_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Kinds of blocks.
const (
	file       = "file"       // it is written
	command    = "command"    // it is run, and must succeed
	eventually = "eventually" // it is run until it prints the expected output
	terminal   = "terminal"   // it is run until the end of the test
)

// A block is a code block of the guide.
type block struct {
	at   string // page and line
	kind string
	name string // of a file
	text string
	want []string // lines that must be printed, in this order; … stands for anything
}

var (
	named = regexp.MustCompile("^`([^`]+)`$")
	fence = regexp.MustCompile("^```([a-z]*)$")
)

// blocksOf returns the blocks of a page.
func blocksOf(t *testing.T, page string) []block {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	all, err := parse(filepath.Base(page), string(text))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// parse returns the blocks of a page. Each has to be of a known kind: a block that would
// not be executed is an error.
func parse(page, text string) (all []block, err error) {
	lead, inside := "", false
	var lang string
	var body strings.Builder
	for n, line := range strings.Split(text, "\n") {
		at := fmt.Sprintf("%s:%d", page, n+1)
		m := fence.FindStringSubmatch(line)
		switch {
		case strings.HasPrefix(strings.TrimSpace(line), "```") && m == nil, inside && m != nil && m[1] != "":
			return nil, fmt.Errorf("%s: a block begins and ends with three backquotes at the beginning of a line, and a language", at)
		case !inside && m != nil:
			inside, lang = true, m[1]
			body.Reset()
		case inside && m != nil:
			inside = false
			b := block{at: at, text: body.String()}
			switch name := named.FindStringSubmatch(lead); {
			case name != nil:
				b.kind, b.name = file, name[1]
			case lang == "text" && len(all) > 0 && all[len(all)-1].kind != file && len(all[len(all)-1].want) == 0:
				all[len(all)-1].want = strings.Split(strings.TrimSpace(b.text), "\n")
				lead = ""
				continue
			case lang != "sh":
				return nil, fmt.Errorf("%s: a block of %q is neither a file, whose name stands alone above it, nor what a command prints", at, lang)
			case strings.Contains(lead, "n a terminal of its own"):
				b.kind = terminal
			case strings.HasPrefix(lead, "A moment later"):
				b.kind = eventually
			default:
				b.kind = command
			}
			all, lead = append(all, b), ""
		case inside:
			body.WriteString(line + "\n")
		case strings.TrimSpace(line) != "":
			lead = strings.TrimSpace(line)
		}
	}
	if inside {
		return nil, fmt.Errorf("%s: the last block does not end", page)
	}
	for _, b := range all {
		if b.kind == eventually && len(b.want) == 0 {
			return nil, fmt.Errorf("%s: it does not say what to wait for", b.at)
		}
	}
	return all, nil
}

// missingLine returns the first line of want that out lacks behind those before it; "" if
// there is none.
func missingLine(out string, want []string) (missing string) {
	lines := strings.Split(out, "\n")
	for _, w := range want {
		pattern := regexp.MustCompile("^" + strings.ReplaceAll(regexp.QuoteMeta(strings.TrimSpace(w)), "…", ".*") + "$")
		found := false
		for len(lines) > 0 && !found {
			found = pattern.MatchString(strings.TrimSpace(lines[0]))
			lines = lines[1:]
		}
		if !found {
			return w
		}
	}
	return ""
}

// TestParse: a block that would not be executed is an error, as is one without expected
// output to wait for.
func TestParse(t *testing.T) {
	for name, row := range map[string]struct{ text, want string }{
		"no file name":     {"Some code:\n\n```go\npackage a\n```\n", `p.md:5: a block of "go" is neither`},
		"no language":      {"```\nls\n```\n", `p.md:3: a block of "" is neither`},
		"indented":         {"- a\n  ```sh\n  ls\n  ```\n", "p.md:2: a block begins"},
		"words behind":     {"```sh skip\nls\n```\n", "p.md:1: a block begins"},
		"output of a file": {"`a.go`\n```go\npackage a\n```\n```text\nok\n```\n", `p.md:7: a block of "text" is neither`},
		"output twice":     {"```sh\nls\n```\n```text\na\n```\n```text\nb\n```\n", `p.md:9: a block of "text" is neither`},
		"nothing to await": {"A moment later:\n```sh\nls\n```\n", "p.md:4: it does not say what to wait for"},
		"open":             {"```sh\nls\n", "p.md: the last block does not end"},
		"right":            {"`a.go`\n\n```go\npackage a\n```\n\nThen:\n\n```sh\nls\n```\n\n```text\na…\n```\n\nIn a terminal of its own:\n\n```sh\ncat\n```\n", ""},
	} {
		all, err := parse("p.md", row.text)
		if row.want != "" {
			if err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("%s: %v, want %q", name, err, row.want)
			}
			continue
		}
		if err != nil || len(all) != 3 || all[0].kind != file || all[0].name != "a.go" || all[1].kind != command || all[1].want[0] != "a…" || all[2].kind != terminal {
			t.Errorf("%s: %v, %v", name, all, err)
		}
	}
	for want, missing := range map[string]string{"a\nc…": "", "b\na": "a", "c…x": "c…x", "…": ""} {
		if got := missingLine("a\nb\n  c 17\n", strings.Split(want, "\n")); got != missing {
			t.Errorf("of %q, %q is missing, want %q", want, got, missing)
		}
	}
}
