//go:build unix

package devserver

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRefusalNamesTheClosedDirectory(t *testing.T) {
	t.Parallel()
	private := filepath.Join(t.TempDir(), "private")
	if err := os.Mkdir(private, 0o700); err != nil {
		t.Fatal(err)
	}
	inside := filepath.Join(private, "a", "b")
	for _, tt := range []struct{ bin, dir, want string }{
		{"/", inside, "can enter " + closed(inside) + ": choose another directory with --dir"},
		{inside, "/", "can enter " + closed(inside) + ": choose another directory with --pg-bin"},
		{"/", "/", "run pgjet as another user"},
	} {
		err := refusal(tt.bin, tt.dir, errors.New("cause"))
		if !strings.Contains(err.Error(), tt.want) || !strings.HasSuffix(err.Error(), "(cause)") {
			t.Errorf("refusal(%q, %q) = %v, want %s", tt.bin, tt.dir, err, tt.want)
		}
	}
	if d := closed(inside); d == "" || !strings.HasPrefix(private, d) {
		t.Errorf("closed(%q) = %q, want %q or a directory above it", inside, d, private)
	}
}
