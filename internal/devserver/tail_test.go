package devserver

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

func TestTailKeepsTheLastLines(t *testing.T) {
	t.Parallel()
	log := new(bytes.Buffer)
	tl := newTail(slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	if tl.String() != "" {
		t.Errorf("an empty tail is %q", tl)
	}
	tl.Write([]byte("first\nsec"))
	tl.Write([]byte("ond\n\n" + strings.Repeat("x", 2*tailBytes) + "\n"))
	for range tailLines - 2 {
		tl.Write([]byte("more\n"))
	}
	tl.Write([]byte("end"))
	tl.flush()
	want := ":\n  " + strings.Repeat("x", tailBytes) + strings.Repeat("\n  more", tailLines-2) + "\n  end"
	if got := tl.String(); got != want {
		t.Errorf("tail = %.60q… (%d bytes), want %.60q… (%d bytes)", got, len(got), want, len(want))
	}
	if !strings.Contains(log.String(), "msg=second") {
		t.Error("the log has no line second")
	}
}
