package devmail_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/wneessen/go-mail"
)

func TestEmptyAndNewestFirst(t *testing.T) {
	s := start(t, t.TempDir())
	if body := s.do(t, "GET", "/api/messages", "", http.StatusOK); strings.TrimSpace(body) != "[]" {
		t.Errorf("GET /api/messages of an empty box = %s, want []", body)
	}
	if page := s.do(t, "GET", "/", "", http.StatusOK); !strings.Contains(page, "No mail yet.") {
		t.Errorf("GET / of an empty box does not say so:\n%s", page)
	}
	for i := range 5 {
		s.send(t, welcome(t, fmt.Sprintf("u%d@example.com", i)))
	}
	if diff := cmp.Diff([]string{"u4", "u3", "u2", "u1", "u0"}, s.users(t)); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}

	s.do(t, "DELETE", "/api/messages", "", http.StatusNoContent)
	if got := s.users(t); len(got) != 0 {
		t.Errorf("after DELETE: %v, want none", got)
	}
	wantFiles(t, s.dir, 0)
}

func TestRestartKeepsMails(t *testing.T) {
	dir := t.TempDir()
	s := start(t, dir)
	for i := range 3 {
		s.send(t, welcome(t, fmt.Sprintf("u%d@example.com", i)))
	}
	before := s.mails(t)
	s.stop()
	damage(t, dir)

	again := start(t, dir)
	if diff := cmp.Diff(before, again.mails(t), unsized); diff != "" {
		t.Errorf("mails after a restart (-before +after):\n%s", diff)
	}
	again.send(t, welcome(t, "u3@example.com"))
	if diff := cmp.Diff([]string{"u3", "u2", "u1", "u0"}, again.users(t)); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
}

// damage puts files in dir that are no mails, and one that is unfinished.
func damage(t *testing.T, dir string) {
	t.Helper()
	for name, data := range map[string]string{
		"00000000-0000-7000-8000-000000000000.mail":     "not an envelope",
		"ffffffff-ffff-7fff-bfff-ffffffffffff.mail":     `{"from":"a","to":["b"],"time":"2026-01-02T03:04:05Z","size":99}` + "\ntorn",
		"01900000-0000-7000-8000-000000000000.mail":     "",
		"01900000-0000-7000-8000-000000000001.mail.new": "half",
		"notes.txt": "not ours",
	} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600))
	}
	must(t, os.Mkdir(filepath.Join(dir, "folder.mail"), 0o700))
}

func TestOldMailsAreDropped(t *testing.T) {
	for _, tt := range []struct {
		name  string
		mails int
		bytes int64
		want  []string
	}{
		{"beyond a number", 3, 1 << 20, []string{"u4", "u3", "u2"}},
		{"beyond a size, but never the newest", 1000, 10, []string{"u4"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			s := start(t, dir)
			s.Limit(tt.mails, tt.bytes)
			for i := range 5 {
				s.send(t, welcome(t, fmt.Sprintf("u%d@example.com", i)))
			}
			if diff := cmp.Diff(tt.want, s.users(t)); diff != "" {
				t.Errorf("mails kept (-want +got):\n%s", diff)
			}
			wantFiles(t, dir, len(tt.want))
		})
	}
}

func TestUnwritableDirectoryIsNoLoss(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "mails")
	s := start(t, dir)
	must(t, os.RemoveAll(dir))
	var sendErr *mail.SendError
	if err := s.trySend(t, welcome(t, "ann@example.com")); !errors.As(err, &sendErr) || sendErr.ErrorCode() != 452 {
		t.Errorf("send = %v, want code 452", err)
	}
	if n := len(s.mails(t)); n != 0 {
		t.Errorf("%d mails shown that are not stored", n)
	}
}

func TestManyAtOnce(t *testing.T) {
	s := start(t, t.TempDir())
	const senders, each = 8, 5
	var wg sync.WaitGroup
	for i := range senders {
		wg.Go(func() {
			for j := range each {
				if err := s.trySend(t, welcome(t, fmt.Sprintf("u%d-%d@example.com", i, j))); err != nil {
					t.Errorf("send: %v", err)
				}
				s.do(t, "GET", "/api/messages", "", http.StatusOK)
			}
		})
	}
	wg.Wait()
	if n := len(slices.Compact(slices.Sorted(slices.Values(s.users(t))))); n != senders*each {
		t.Errorf("%d mails, want %d", n, senders*each)
	}
	wantFiles(t, s.dir, senders*each)
}

func wantFiles(t *testing.T, dir string, want int) {
	t.Helper()
	files, err := os.ReadDir(dir)
	must(t, err)
	if len(files) != want {
		t.Errorf("%d files in the directory, want %d: %v", len(files), want, files)
	}
}
