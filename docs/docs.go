// Package docs has the documents that the program prints, so that those who have no copy of the
// repository can read them.
package docs

import (
	"embed"
	"regexp"
	"slices"
	"strings"
)

// URL is where the documents are that the program does not have.
const URL = "https://github.com/pgjet/pgjet/blob/main/docs/"

// Runbooks are the files runbooks/*.md: what to do about each reason why something does not move.
//
//go:embed runbooks/*.md
var Runbooks embed.FS

var link = regexp.MustCompile(`\]\((\.\./)?([a-z-]+)\.md(#[a-z_-]+)?\)`)

// Runbook returns the runbook of that name, such as dead-letters; "" if there is none. Instead of links to files it has the command that
// prints the other runbook, or the address of another document.
func Runbook(name string) string {
	text, err := Runbooks.ReadFile("runbooks/" + name + ".md")
	if err != nil {
		return ""
	}
	return link.ReplaceAllStringFunc(string(text), func(text string) string {
		part := link.FindStringSubmatch(text)
		if part[1] == "" {
			return "](pgjet explain " + part[2] + ")"
		}
		return "](" + URL + part[2] + ".md" + part[3] + ")"
	})
}

// Names returns the names of all runbooks.
func Names() (names []string) {
	files, _ := Runbooks.ReadDir("runbooks") // they are there
	for _, f := range files {
		names = append(names, strings.TrimSuffix(f.Name(), ".md"))
	}
	slices.Sort(names)
	return names
}
