package main

import (
	"bytes"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"unicode/utf8"

	"golang.org/x/term"

	"github.com/pgjet/pgjet/internal/operate"
)

// A screen describes where a table is written.
type screen struct {
	width  int  // of the terminal; 0: a file or a pipe, which gets each row whole, on one line
	colour bool // for a terminal, unless the environment forbids it
}

// screenOf describes out.
func screenOf(out io.Writer) screen {
	f, ok := out.(*os.File)
	if !ok || !terminal(out) {
		return screen{}
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		width = 0
	}
	return screen{width, os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
}

const (
	widestCell = 40 // on a terminal, except for the last cell of a row
	leastWidth = 20 // of the last column; with less room the terminal breaks the line
)

// aligned returns text with its tab-separated cells in columns, without what a terminal would obey.
// On a terminal it cuts long cells, and wraps the last cell of a row below itself.
func (s screen) aligned(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	rows := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	cells := make([][]string, len(rows))
	var out bytes.Buffer
	w := tabwriter.NewWriter(&out, 0, 0, 3, ' ', 0)
	for i, row := range rows {
		cells[i] = strings.Split(row, "\t")
		for j, cell := range cells[i] {
			cells[i][j] = harmless(cell)
			if s.width > 0 && j < len(cells[i])-1 {
				cells[i][j] = shortened(cells[i][j], widestCell)
			}
		}
		_, _ = io.WriteString(w, strings.Join(cells[i], "\t")+"\n") // to memory
	}
	if err := w.Flush(); err != nil {
		return "", err
	}
	if s.width == 0 {
		return out.String(), nil
	}
	var b strings.Builder
	header := len(rows) > 1 && isHeader(cells[0])
	for i, line := range strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n") {
		last := cells[i][len(cells[i])-1]
		begin := line[:len(line)-len(last)]
		if s.colour {
			begin = coloured(begin, cells[i][:len(cells[i])-1], header && i == 0)
		}
		indent := utf8.RuneCountInString(line) - utf8.RuneCountInString(last)
		parts := []string{last}
		if !isCommand(cells[i]) {
			parts = wrapped(last, s.width-indent)
		}
		for j, part := range parts {
			if s.colour {
				part = coloured(part, []string{part}, header && i == 0)
			}
			if j > 0 {
				begin = strings.Repeat(" ", indent)
			}
			b.WriteString(begin + part + "\n")
		}
	}
	return b.String(), nil
}

// isHeader reports whether a row names columns.
func isHeader(row []string) bool {
	return len(row) > 1 && strings.Join(row, "") != "" && strings.ToUpper(strings.Join(row, "")) == strings.Join(row, "")
}

// isCommand reports whether the last cell of a row has to stay whole, to be copied.
func isCommand(row []string) bool {
	return len(row) == 1 || row[0] == "next" || strings.HasPrefix(row[len(row)-1], "-> ")
}

// wrapped returns text in parts of at most width characters, split at blanks where possible.
func wrapped(text string, width int) (parts []string) {
	if width < leastWidth {
		return []string{text}
	}
	for utf8.RuneCountInString(text) > width {
		runes := []rune(text)
		head := string(runes[:width])
		at := len(head)
		if blank := strings.LastIndexByte(string(runes[:width+1]), ' '); blank > 0 {
			at = blank
		}
		parts = append(parts, strings.TrimRight(text[:at], " "))
		text = strings.TrimLeft(text[at:], " ")
	}
	return append(parts, text)
}

// shortened returns s, cut to most characters.
func shortened(s string, most int) string {
	if r := []rune(s); len(r) > most {
		return string(r[:most-1]) + "…"
	}
	return s
}

// The escape sequences sent to a terminal.
const (
	red, green, yellow, bold = "31", "32", "33", "1"
)

// colours are those of words that describe a state. No word is understood by its colour alone.
var colours = func() map[string]string {
	all := map[string]string{
		"dead": red, "failed": red, "broken": red, "missing": red, "held": red, "differs": red, "needs_operator": red,
		"warning": yellow, "stopped": yellow, "unknown": yellow, "quarantined": yellow, "undoing": yellow, "pending": yellow,
		"ok": green, "done": green, "ready": green, "published": green, "true": green,
	}
	for _, r := range operate.Reasons {
		if !r.Healthy {
			all[r.Code] = red
		}
	}
	for word, colour := range map[string]string{"moving": green, "idle": green, "retrying": yellow, "degraded": yellow, "breaker_open": yellow} {
		all[word] = colour
	}
	return all
}()

// coloured returns a line of a table with the cells in colour that describe a state. The cells of a
// header are bold.
func coloured(line string, cells []string, header bool) string {
	var b strings.Builder
	for _, cell := range cells {
		colour := colours[cell]
		if header {
			colour = bold
		}
		at := strings.Index(line, cell)
		if colour == "" || cell == "" || at < 0 {
			continue
		}
		b.WriteString(line[:at] + "\x1b[" + colour + "m" + cell + "\x1b[0m")
		line = line[at+len(cell):]
	}
	return b.String() + line
}
