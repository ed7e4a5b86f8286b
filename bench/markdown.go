package main

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
)

// docTable matches a table in a document, behind the comment that names its scenario.
var docTable = regexp.MustCompile(`(?m)^<!-- bench: ([a-z-]+) -->\n\n(\|.*\n)+`)

// updateDoc replaces the tables of the scenarios that ran in a document. What is written about
// them has to be checked by a person.
func (r *report) updateDoc(file string) error {
	if r.Interrupted || r.Quick {
		return fmt.Errorf("%s is unchanged: a quick or interrupted run is not documented", file)
	}
	old, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return os.WriteFile(file, []byte(r.inDoc(string(old))), 0o644)
}

// inDoc returns a document with the tables of the report.
func (r *report) inDoc(document string) string {
	return docTable.ReplaceAllStringFunc(document, func(old string) string {
		name := docTable.FindStringSubmatch(old)[1]
		i := slices.IndexFunc(r.Tables, func(t *table) bool { return t.Name == name && slices.ContainsFunc(t.Rows, (*row).ran) })
		if i < 0 {
			return old
		}
		return fmt.Sprintf("<!-- bench: %s -->\n\n%s", name, r.Tables[i].markdown())
	})
}

// markdown returns the table in Markdown, with the rows that ran.
func (t *table) markdown() string {
	columns := t.columns()
	head, line := []string{"variant", "server", "ratio"}, "|---|---|---:|"+strings.Repeat("---:|", len(columns))
	for _, c := range columns {
		head = append(head, strings.TrimSuffix(c.Name+" "+c.Unit, " "))
	}
	text := "| " + strings.Join(head, " | ") + " |\n" + line + "\n"
	for _, r := range t.Rows {
		if r.ran() {
			text += "| " + strings.Join(t.cells(r, columns), " | ") + " |\n"
		}
	}
	return text
}
