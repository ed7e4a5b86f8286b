package devserver

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha512"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// script is a program that claims to be PostgreSQL.
func script(version string) string {
	return "#!/bin/sh\necho 'postgres (PostgreSQL) " + version + " (of nobody)'\n"
}

// pack returns an npm archive of pairs of name and content.
func pack(t *testing.T, pairs ...string) []byte {
	t.Helper()
	b := new(bytes.Buffer)
	z := gzip.NewWriter(b)
	w := tar.NewWriter(z)
	for i := 0; i < len(pairs); i += 2 {
		h := &tar.Header{Name: pairs[i], Size: int64(len(pairs[i+1])), Mode: 0o600, Typeflag: tar.TypeReg}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(pairs[i+1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// wholeServer returns an archive of a complete, if small, server.
func wholeServer(t *testing.T) []byte {
	return pack(t,
		"package/package.json", "{}",
		"package/native/bin/postgres", script("18.4"),
		"package/native/bin/initdb", script("18.4"),
		"package/native/lib/libpq.so.5.18", "library",
		"package/native/share/postgresql/timezone/UTC", "zone",
		"package/native/pg-symlinks.json", `[{"source":"native/lib/libpq.so.5.18","target":"native/lib/libpq.so"}]`,
	)
}

// downloader returns a finder that finds nothing installed, and options with a
// mirror that serves the archive. The checksum is that of want.
func downloader(t *testing.T, archive, want []byte) (finder, PostgresOptions) {
	t.Helper()
	mirror := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/npm/@embedded-postgres/test-x64/-/test-x64-18.4.0.tgz" {
			http.NotFound(w, r)
			return
		}
		w.Write(archive)
	}))
	t.Cleanup(mirror.Close)
	sum := sha512.Sum512(want)
	b := build{major: 18, postgres: "18.4", version: "18.4.0", name: "test-x64", sum: base64.StdEncoding.EncodeToString(sum[:])}
	f := finder{cache: filepath.Join(t.TempDir(), "cache"), build: b, npm: "no-such-npm"}
	return f, PostgresOptions{Mirror: mirror.URL + "/npm/", Log: slog.New(slog.DiscardHandler)}
}

func TestDownloadIsKept(t *testing.T) {
	t.Parallel()
	f, o := downloader(t, wholeServer(t), wholeServer(t))
	found, err := f.find(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if found.version.String() != "18.4" || found.bin != filepath.Join(f.cache, "postgres-18.4", "bin") {
		t.Errorf("found %s in %s", found.version, found.bin)
	}
	link := filepath.Join(f.cache, "postgres-18.4", "lib", "libpq.so")
	if b, err := os.ReadFile(link); err != nil || string(b) != "library" {
		t.Errorf("the link in the archive's list reads %q, %v", b, err)
	}
	o.Mirror = "" // one download is enough
	if _, err := f.find(t.Context(), o); err != nil {
		t.Errorf("find with a cached download: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(f.cache, "download-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestDownloadRefusesOtherArchives(t *testing.T) {
	t.Parallel()
	f, o := downloader(t, append(wholeServer(t), 'x'), wholeServer(t))
	_, err := f.find(t.Context(), o)
	if err == nil || !strings.Contains(err.Error(), "is not the one that pgjet knows") {
		t.Errorf("a tampered archive: %v, want a refusal", err)
	}
	if _, err := os.Stat(f.build.dir(f.cache)); err == nil {
		t.Error("a tampered archive was installed")
	}
}

func TestDownloadNamesWhatFailed(t *testing.T) {
	t.Parallel()
	f, o := downloader(t, nil, nil)
	for mirror, want := range map[string]string{
		o.Mirror + "/elsewhere": "404 Not Found",
		"npm.example.com":       "PGJET_PG_MIRROR is not the address",
		"":                      "npm is not on PATH",
	} {
		o.Mirror = mirror
		if _, err := f.find(t.Context(), o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("mirror %q: %v, want %q", mirror, err, want)
		}
	}
	f.build.name = ""
	if _, err := f.find(t.Context(), o); err == nil || !strings.Contains(err.Error(), "there is no build for") {
		t.Errorf("another system: %v", err)
	}
}

func TestUnpackRefusesToLeave(t *testing.T) {
	t.Parallel()
	const list = "package/native/pg-symlinks.json"
	for name, archive := range map[string][]byte{
		"parent":          pack(t, "package/native/../../../evil", "x"),
		"absolute":        pack(t, "/evil", "x"),
		"link to outside": pack(t, list, `[{"source":"native/../../evil","target":"native/lib/a"}]`),
		"link outside":    pack(t, list, `[{"source":"native/lib/a","target":"native/../../evil"}]`),
		"link elsewhere":  pack(t, list, `[{"source":"/evil","target":"native/a"}]`),
		"twice":           pack(t, "package/native/a", "x", "package/native/a", "y"),
		"not an archive":  []byte("x"),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, "archive.tgz")
			if err := os.WriteFile(file, archive, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := unpack(file, filepath.Join(dir, "in", "..", "to")); err == nil {
				t.Error("unpack: no error")
			}
			if found, _ := filepath.Glob(filepath.Join(dir, "*evil*")); len(found) > 0 {
				t.Errorf("unpack made %v", found)
			}
		})
	}
}

func TestUnpackRefusesLinksInTheArchive(t *testing.T) {
	t.Parallel()
	b := new(bytes.Buffer)
	z := gzip.NewWriter(b)
	w := tar.NewWriter(z)
	if err := w.WriteHeader(&tar.Header{Name: "package/native/lib", Linkname: "/etc", Typeflag: tar.TypeSymlink}); err != nil {
		t.Fatal(err)
	}
	w.Close()
	z.Close()
	dir := t.TempDir()
	file := filepath.Join(dir, "archive.tgz")
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unpack(file, filepath.Join(dir, "to")); err == nil || !strings.Contains(err.Error(), "is not a file") {
		t.Errorf("unpack: %v, want a refusal", err)
	}
}

// TestPinned: there is a build of each supported major version.
func TestPinned(t *testing.T) {
	t.Parallel()
	for major := oldest; major <= newest; major++ {
		b := builds[major]
		if !strings.HasPrefix(b.postgres, fmt.Sprint(major, ".")) || !strings.HasPrefix(b.version, b.postgres+".") {
			t.Errorf("the build of %d is PostgreSQL %q in version %q", major, b.postgres, b.version)
		}
		if sum, err := base64.StdEncoding.DecodeString(b.sums["linux-x64"]); err != nil || len(sum) != sha512.Size {
			t.Errorf("the build of %d has no checksum", major)
		}
	}
	if b := pinned(oldest - 1); b.name != "" {
		t.Errorf("version %d is in package %s", oldest-1, b.name)
	}
}
