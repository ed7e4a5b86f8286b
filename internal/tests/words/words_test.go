package words

import (
	"bytes"
	"fmt"
	"go/scanner"
	"go/token"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// A form is a discouraged form of words in comments, names of Go, and documents.
type form struct {
	hint    string // in lower case, in every text that matches; searching it is faster
	pattern *regexp.Regexp
	reason  string
}

const things = `(process|row|event|transaction|relay|consumer|connection|session|server|client|caller|reader|writer|` +
	`handler|message|stream|database|program|goroutine|test|statement)(e?s)?`

// text are the forms in comments and documents.
var text = []form{
	{"who", re(things + `,? (else )?who(m|ever)?`), "who is a person: a thing is that, which, or its name"},
	{"tell", re(`tell(s|ing)?`), "use report, log, record, show, say, return or distinguish"},
	{"told", re(`told`), "use report, log, record, show, say, return or distinguish"},
	{"by and by", re(`by and by`), "say when, or leave it out"},
	{"heed", re(`heed(s|ed|ing)?`), "use respect, follow or obey"},
	{"for want of", re(`for want of`), "use without, or for lack of"},
	{"the first try", re(`(at|on) the first try`), "use at once, or the first attempt"},
	{"good for", re(`(is|are|be) (no )?good for`), "say what it supports, or how long it is valid"},
	{"crowd", re(`crowd(s|ed|ing)?`), "name the number that is meant"},
	{"farewell", re(`farewell`), "name the message that is meant"},
	{"reckon", re(`reckon(s|ed|ing)?`), "use count, compute or expect"},
	{"but for", re(`but for (the|its|those|what|one)`), "use except"},
	{"anew", re(`anew`), "use again"},
	{"nobody who", re(`asks? nobody who (they|you) are`), "say that there is no authentication"},
	{"hopeless", re(`hopeless`), "name the condition"},
	{"death throes", re(`death throes`), "name the state"},
	{"known", re(`(make|makes|made) (it )?known`), "use record, register or announce"},
	{"in the stream", re(`places? in the stream`), "use stream sequence"},
	{"nobody knows", re(`nobody knows`), "use unknown"},
	{"out of touch", re(`out of touch`), "name what cannot be reached"},
	{"dealt with", re(`dealt with`), "use settle, handle or process"},
	{"by itself", re(`comes? by itself`), "name what delivers it"},
	{"right", re(`puts? (it )?right`), "use repair or correct"},
	{"in the hands of", re(`in the hands of`), "use held by, or name the state"},
	{"time and again", re(`time and again`), "use repeatedly"},
	{"befall", re(`befall(s|en)?`), "use happen to, or name the fault"},
}

// names are the forms in identifiers of Go.
var names = []form{
	{"", regexp.MustCompile(`(?i)deaththroes|hopeless|crowd|farewell|reckon|situation|leavebehind|impatient|untold`), "name what it is"},
	{"", regexp.MustCompile(`^(Tended|tended|wish|Wish|told|Told)$`), "name what it is"},
}

func re(pattern string) *regexp.Regexp { return regexp.MustCompile(`(?i)\b` + pattern + `\b`) }

// found returns the part of s that matches f, "" if there is none. lower is s in lower case.
func (f form) found(s, lower string) string {
	if !strings.Contains(lower, f.hint) {
		return ""
	}
	return f.pattern.FindString(s)
}

// exceptions begin the paths of files that are not checked.
var exceptions = []string{
	"internal/tests/words/", // it lists the forms
	"docs/decisions.md",     // history
}

func TestPlainWords(t *testing.T) {
	root := os.DirFS("../../..")
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && name != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "bin" || d.Name() == "testdata"):
			return fs.SkipDir
		case slices.ContainsFunc(exceptions, func(e string) bool { return strings.HasPrefix(name, e) }):
			return nil
		case !strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, ".md"):
			return nil
		}
		src, err := fs.ReadFile(root, name)
		switch {
		case err != nil || bytes.Contains(src[:min(len(src), 500)], []byte("DO NOT EDIT")):
			return err
		case strings.HasSuffix(name, ".go"):
			checkGo(t, name, src)
		default:
			line := 1
			for paragraph := range strings.SplitSeq(string(src), "\n\n") {
				check(t, fmt.Sprintf("%s:%d", name, line), paragraph, text)
				line += strings.Count(paragraph, "\n") + 2
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// checkGo checks the comments and identifiers of a source file.
func checkGo(t *testing.T, name string, src []byte) {
	t.Helper()
	fset := token.NewFileSet()
	var s scanner.Scanner
	s.Init(fset.AddFile(name, -1, len(src)), src, nil, scanner.ScanComments)
	comment, first, last, seen := "", 0, 0, map[string]bool{}
	for {
		pos, tok, lit := s.Scan()
		line := fset.Position(pos).Line
		if comment != "" && (tok != token.COMMENT || line != last+1) {
			check(t, fmt.Sprintf("%s:%d", name, first), comment, text)
			comment = ""
		}
		switch tok {
		case token.EOF:
			return
		case token.COMMENT:
			if comment == "" {
				first = line
			}
			comment, last = comment+" "+strings.TrimPrefix(lit, "//"), line
		case token.IDENT:
			if seen[lit] || strings.HasPrefix(lit, "Test") { // documents name tests
				continue
			}
			seen[lit] = true
			check(t, fmt.Sprintf("%s:%d", name, line), lit, names)
		}
	}
}

// check reports the forms that s has.
func check(t *testing.T, where, s string, forms []form) {
	t.Helper()
	for found, reason := range discouraged(s, forms) {
		t.Errorf("%s: %q: %s", where, found, reason)
	}
}

// discouraged returns the parts of s that match forms, with the reasons.
func discouraged(s string, forms []form) map[string]string {
	s = strings.Join(strings.Fields(s), " ")
	lower, all := strings.ToLower(s), map[string]string{}
	for _, f := range forms {
		if found := f.found(s, lower); found != "" {
			all[found] = f.reason
		}
	}
	return all
}

// TestForms: each form is found, also across lines, and similar text is not.
func TestForms(t *testing.T) {
	for s, bad := range map[string]bool{
		"the process who leads": true, "relays, whom it waits for": true, "an operator who asks": false, "the process whose lock it is": false,
		"it tells the log": true, "Told": true, "toll": false, "sent by and\n by": true,
		"it heeds limits": true, "failed for want of room": true, "a token is good for an hour": true, "a crowd of callers": true,
		"all but for the last": true, "idle, but for half a minute": false, "make it anew": true, "pages ask nobody who they are": true,
		"a stream made anew": true, "a new stream": false, "its place in the stream": true, "makes it known": true, "it is known": false,
	} {
		if is := len(discouraged(s, text)) > 0; is != bad {
			t.Errorf("%q: discouraged is %t, want %t", s, is, bad)
		}
	}
	for name, bad := range map[string]bool{"deathThroes": true, "wish": true, "wished": false, "drain": false} {
		if is := len(discouraged(name, names)) > 0; is != bad {
			t.Errorf("name %q: discouraged is %t, want %t", name, is, bad)
		}
	}
}
