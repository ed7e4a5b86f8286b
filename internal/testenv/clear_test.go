package testenv

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/devserver"
)

// dirVariable names the file to which a child process of the test writes the directory of its
// server.
const dirVariable = "PGJET_TEST_DIR_FILE"

// TestServerEndsWithItsProcess: a killed test process leaves neither a server nor a directory.
func TestServerEndsWithItsProcess(t *testing.T) {
	if file := os.Getenv(dirVariable); file != "" {
		server(t)
		if err := os.WriteFile(file, []byte(shared.dir+" "+shared.own.URL()), 0o600); err != nil {
			t.Fatal(err)
		}
		select {} // until it is killed
	}
	t.Parallel()
	file := filepath.Join(t.TempDir(), "dir")
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestServerEndsWithItsProcess$")
	cmd.Env = append(os.Environ(), dirVariable+"="+file, urlVariable+"=")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var dir, url string
	Eventually(t, time.Minute, "the server runs", func() bool {
		b, err := os.ReadFile(file)
		dir, url, _ = strings.Cut(string(b), " ")
		return err == nil && url != ""
	})
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // it was killed
	Eventually(t, time.Minute, "the directory is removed", func() bool {
		_, err := os.Stat(dir)
		return errors.Is(err, os.ErrNotExist)
	})
	if conn, err := pgx.Connect(t.Context(), url); err == nil {
		conn.Close(t.Context())
		t.Error("the server still runs")
	}
}

// TestUnstarted: without PostgreSQL the message says what to do.
func TestUnstarted(t *testing.T) {
	none := &devserver.NotFoundError{Looked: "postgres in PATH", Download: errors.New("no npm")}
	for _, want := range []string{"tests need a PostgreSQL server, and there is none\n", "Looked for: postgres in PATH\n", "Not downloaded: no npm\n", "apt-get install postgresql", "PGJET_PG_BIN=DIR go test", "PGJET_TEST_DATABASE_URL=postgres://"} {
		if got := unstarted(none); !strings.Contains(got, want) {
			t.Errorf("it says %q, want %q in it", got, want)
		}
	}
	refused := errors.New("refused")
	t.Setenv(urlVariable, "")
	if got := unstarted(refused); !strings.Contains(got, "does not start: refused; choose its programs by PGJET_PG_BIN, or name a running one") {
		t.Errorf("it says %q", got)
	}
	t.Setenv(urlVariable, "postgres://there")
	if got := unstarted(refused); !strings.Contains(got, "cannot use the PostgreSQL server that PGJET_TEST_DATABASE_URL names: refused") {
		t.Errorf("it says %q", got)
	}
}
