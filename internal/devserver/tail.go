package devserver

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
)

const (
	tailLines = 12      // kept for error messages
	tailBytes = 8 << 10 // of one line; the rest is dropped
)

// A tail receives the output of a process: it logs every line and keeps the last ones for
// an error message.
type tail struct {
	log *slog.Logger

	mu    sync.Mutex
	open  []byte // the line that has not ended yet
	lines []string
}

func newTail(log *slog.Logger) *tail { return &tail{log: log} }

// Write never fails.
func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for part := range bytes.Lines(b) {
		line, ended := bytes.CutSuffix(part, []byte("\n"))
		t.open = append(t.open, line[:min(len(line), tailBytes-len(t.open))]...)
		if ended {
			t.endLine()
		}
	}
	return len(b), nil
}

// flush ends the last line, for a process that did not end it.
func (t *tail) flush() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.endLine()
}

func (t *tail) endLine() {
	line := strings.TrimRight(string(t.open), " \r")
	t.open = t.open[:0]
	if line == "" {
		return
	}
	t.log.Debug(line)
	t.lines = append(t.lines, line)
	if len(t.lines) > tailLines {
		t.lines = t.lines[1:]
	}
}

// String returns the last lines for the end of an error message: a colon and an indented
// line each, or nothing if there are none.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.lines) == 0 {
		return ""
	}
	return ":\n  " + strings.Join(t.lines, "\n  ")
}
