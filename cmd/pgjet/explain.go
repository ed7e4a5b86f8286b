package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/docs"
	"github.com/pgjet/pgjet/internal/config"
	"github.com/pgjet/pgjet/internal/operate"
)

// An explanation is what pgjet explain prints about a reason.
type explanation struct {
	Code    string `json:"code"`
	About   string `json:"about"` // relay, consumer, process or outbox; "" is all of them; or it is a runbook
	Meaning string `json:"meaning"`
	Next    string `json:"next"`    // the command to type, with NAME for the consumer; "" is to read the page
	Runbook string `json:"runbook"` // the file of the page; "" if there is none
	Healthy bool   `json:"healthy"` // nobody has to do anything
	Page    string `json:"page,omitempty"`
}

func explainCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "explain [CODE|RUNBOOK]",
		Short: "Explain a reason, with its runbook, or print a runbook; or list all reasons",
		Long: `Explain a reason, a word such as stream_full that pgjet status gives: what it means, what to
type, and its whole runbook; or print a runbook by its name, such as dead-letters. Without
an argument, list all reasons, the worst first. No server is needed.`,
		Example: "  pgjet explain stream_full",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				all := explain("")
				return show(cmd, all, func(w io.Writer) { listReasons(w, all) })
			}
			all := explain(strings.TrimSuffix(args[0], ":"))
			if len(all) == 0 {
				return &exitError{exitNotFound, fmt.Errorf("%q is no reason%s; to list all: pgjet explain", short(args[0]), suggestion(args[0], explained()))}
			}
			if outputForm(cmd) == "json" {
				return show(cmd, all, nil)
			}
			_, err := io.WriteString(cmd.OutOrStdout(), explanationText(all))
			return err
		},
	}
	outputFlag(cmd.Flags())
	return cmd
}

// explained returns all words that pgjet explain knows: reasons and names of runbooks.
func explained() []string {
	codes := docs.Names()
	for _, r := range operate.Reasons {
		codes = append(codes, r.Code)
	}
	slices.Sort(codes)
	return slices.Compact(codes)
}

// explain returns the reasons with this code, with their pages. If code is "", it returns all
// reasons, without pages.
func explain(code string) (all []explanation) {
	for _, r := range operate.Reasons {
		if code != "" && r.Code != code {
			continue
		}
		e := explanation{Code: r.Code, About: r.About, Meaning: r.Meaning, Next: r.Next, Runbook: r.Runbook, Healthy: r.Healthy}
		if code != "" {
			e.Page = docs.Runbook(strings.TrimSuffix(r.Runbook, ".md"))
		}
		all = append(all, e)
	}
	own := strings.ReplaceAll(code, "_", "-") // a reason may have a page of its own besides the page of its subject
	page := docs.Runbook(own)
	if page == "" || slices.ContainsFunc(all, func(e explanation) bool { return e.Page == page }) {
		return all
	}
	title, _, _ := strings.Cut(strings.TrimPrefix(page, "# "), "\n")
	return append(all, explanation{Code: own, About: "runbook", Meaning: title, Runbook: own + ".md", Healthy: true, Page: page})
}

func listReasons(w io.Writer, all []explanation) {
	fmt.Fprintln(w, "REASON\tOF\tMEANING")
	for _, e := range all {
		fmt.Fprintf(w, "%s\t%s\t%s\n", e.Code, cmp.Or(e.About, "all"), e.Meaning)
	}
}

// explanationText formats the reasons with one code, with each page once.
func explanationText(all []explanation) string {
	var b strings.Builder
	var pages []string
	for _, e := range all {
		if e.About == "runbook" {
			pages = append(pages, e.Page)
			continue
		}
		fmt.Fprintf(&b, "%s, of %s: %s\n", e.Code, cmp.Or(map[string]string{"": "all", operate.Outbox: "the outbox"}[e.About], "a "+e.About), e.Meaning)
		if e.Next != "" {
			fmt.Fprintf(&b, "  -> %s\n", e.Next)
		}
		if e.Healthy {
			b.WriteString("  nobody has to do anything\n")
		}
		if e.Page != "" && !slices.Contains(pages, e.Page) {
			pages = append(pages, e.Page)
		}
	}
	for i, page := range pages {
		if i > 0 || all[0].About != "runbook" {
			b.WriteByte('\n')
		}
		b.WriteString(page)
	}
	return b.String()
}

// suggestion returns "; did you mean ...?" with the word that typed is closest to, or "".
func suggestion(typed string, words []string) string {
	best, least := "", 3 // edits
	for _, w := range words {
		if d := config.Edits(strings.ToLower(typed), w); d < least || d == least && best == "" && strings.HasPrefix(w, typed) {
			best, least = w, d
		}
	}
	if best == "" {
		return ""
	}
	return "; did you mean " + best + "?"
}
