package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pgjet/pgjet/internal/operate"
)

func outputFlag(f *pflag.FlagSet) { outputForms(f, "table or json") }

// outputForms registers --output with these values: the default first, then "or" or commas.
func outputForms(f *pflag.FlagSet, forms string) { f.StringP("output", "o", "table", forms) }

// formsOf returns the values of --output.
func formsOf(output *pflag.Flag) []string {
	forms, _, _ := strings.Cut(output.Usage, ":")
	words := strings.FieldsFunc(forms, func(r rune) bool { return strings.ContainsRune(", ", r) })
	return slices.DeleteFunc(words, func(w string) bool { return w == "or" })
}

// checkChoices refuses values of --output and --state that the command does not have.
func checkChoices(cmd *cobra.Command) error {
	if f := cmd.Flag("output"); f != nil && !slices.Contains(formsOf(f), f.Value.String()) {
		forms, _, _ := strings.Cut(f.Usage, ":")
		return usagef("--output is %q, want %s", f.Value, forms)
	}
	if f, all := cmd.Flag("state"), states[cmd.CommandPath()]; f != nil && f.Value.String() != "" && !slices.Contains(all, f.Value.String()) {
		return usagef("--state is %q, want one of %s", short(f.Value.String()), strings.Join(all, ", "))
	}
	return nil
}

// outputForm returns the value of --output.
func outputForm(cmd *cobra.Command) string { return cmd.Flag("output").Value.String() }

// A stdio is where a command asks, and where it writes its result and everything else.
type stdio struct {
	in       io.Reader
	out, err io.Writer
	output   string // the form of the result
}

func stdioOf(cmd *cobra.Command) stdio {
	return stdio{cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr(), outputForm(cmd)}
}

// show writes the result of a command: value as JSON, or what table writes, in columns.
func show(cmd *cobra.Command, value any, table func(w io.Writer)) error {
	return stdioOf(cmd).show(value, table)
}

func (s stdio) show(value any, table func(w io.Writer)) error {
	if s.output == "json" {
		return json.NewEncoder(s.out).Encode(value)
	}
	var text bytes.Buffer
	table(&text)
	aligned, err := screenOf(s.out).aligned(text.String())
	if err != nil {
		return err
	}
	_, err = io.WriteString(s.out, aligned)
	return err
}

// lines returns a function that writes a line of a table: a name, and a formatted text.
func lines(w io.Writer) func(name, format string, args ...any) {
	return func(name, format string, args ...any) {
		fmt.Fprintf(w, "%s\t%s\n", name, plain(fmt.Sprintf(format, args...)))
	}
}

// counts returns functions that write a line of a table: a name, a value and a note. some leaves out zero.
func counts(w io.Writer) (line func(name string, value any, note string), some func(name string, n int64, note string)) {
	line = func(name string, value any, note string) { fmt.Fprintf(w, "%s\t%v\t%s\n", name, value, note) }
	some = func(name string, n int64, note string) {
		if n > 0 {
			line(name, n, note)
		}
	}
	return line, some
}

// harmless returns text without escapes and other characters that a terminal would obey.
func harmless(text string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || unicode.IsGraphic(r) {
			return r
		}
		return '\uFFFD'
	}, text)
}

// ago formats how long ago something was.
func ago(d time.Duration) string { return operate.Ago(d) }

// since formats how long before now t was; "-" if t is nil.
func since(now time.Time, t *time.Time) string {
	if t == nil {
		return "-"
	}
	return ago(now.Sub(*t))
}

// plain returns s on one line, without anything that would move a terminal's cursor or a column.
func plain(s string) string { return operate.Plain(s) }

// shellQuote returns s as one word of a shell.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// word returns s as one word of a command to be typed.
func word(s string) string { return operate.Word(s) }

// short returns s for a sentence: plain, and not too long.
func short(s string) string { return shortened(plain(s), widestCell) }

// notEmpty refuses a flag with an empty value. For --type "$TYPE" without TYPE the command would
// otherwise select more than was meant.
func notEmpty(f *pflag.FlagSet, names ...string) error {
	for _, name := range names {
		if flag := f.Lookup(name); flag != nil && flag.Changed && strings.TrimSpace(flag.Value.String()) == "" {
			return usagef("--%s is empty; leave it out, or give it a value", name)
		}
	}
	return nil
}

// timeFlag parses a time, or how long ago it was.
func timeFlag(name, value string) (time.Time, error) {
	if value == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(value); err == nil && d >= 0 {
		return time.Now().Add(-d), nil
	}
	at, err := time.Parse(time.RFC3339, value)
	if err != nil {
		return at, usagef("%s is %q, want a time such as 2026-11-01T00:00:00Z, or how long ago, such as 90m", name, value)
	}
	return at, nil
}

// A changed is the result of a command that changes something at once.
type changed struct {
	Targets []string `json:"targets"` // what the command was to change
	Changed bool     `json:"changed"` // false: nothing had to be changed
	Said    []string `json:"said"`    // for people, one line each
}

// showChanged shows the result of a command that changes one target.
func showChanged(cmd *cobra.Command, target string, did bool, said ...string) error {
	return showChanges(cmd, []string{target}, did, said...)
}

func showChanges(cmd *cobra.Command, targets []string, did bool, said ...string) error {
	c := changed{append([]string{}, targets...), did, append([]string{}, said...)}
	return show(cmd, c, func(w io.Writer) {
		for _, line := range c.Said {
			fmt.Fprintln(w, plain(line))
		}
	})
}

// An ensured is the result of a command that creates what is missing and compares the rest. The
// command returns differences as an error.
type ensured struct {
	Names []string `json:"names"` // of what has to exist
	Said  []string `json:"said"`  // what was done, one line each
}

func showEnsured(cmd *cobra.Command, names, said []string) error {
	e := ensured{names, append([]string{}, said...)}
	return show(cmd, e, func(w io.Writer) {
		for _, line := range e.Said {
			fmt.Fprintln(w, plain(line))
		}
	})
}
