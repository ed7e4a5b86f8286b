package jserror

import (
	"os"
	"slices"
	"strings"
	"testing"
)

func TestCodes(t *testing.T) {
	known := append(slices.Clone(Reasons), MessageMissing)
	names := make(map[string]int)
	for code, row := range codes {
		if row.name == "" || !slices.Contains(known, row.class) {
			t.Errorf("code %d is %q of class %q, want a name and a known class", code, row.name, row.class)
		}
		if other, twice := names[row.name]; twice {
			t.Errorf("codes %d and %d are both %s", code, other, row.name)
		}
		names[row.name] = code
	}
	for code, want := range map[int]Class{0: "", WrongLastSequence: Fenced, MessageNotFound: MessageMissing, 19999: Failed} {
		if got := Of(code); got != want {
			t.Errorf("Of(%d) = %q, want %q", code, got, want)
		}
	}
}

// TestReasonsAreDocumented: each reason has its entry in the documents.
func TestReasonsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, reason := range Reasons {
		if !strings.Contains(string(text), "`"+string(reason)+"`") {
			t.Errorf("docs/cli.md does not explain %s", reason)
		}
	}
}
