package main

import (
	"go/doc"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/pgjet/pgjet/"

// layers lists what each package may import from this module. Every arrow points
// to a package further up, so there are no cycles and no surprises: this table is
// the plan of the house.
var layers = []struct{ pkg, imports string }{
	// Vocabulary and leaves.
	{"docs", ""},
	{"events", ""},
	{"internal/auth", ""},
	{"internal/breaker", ""},
	{"internal/config", ""},
	{"internal/drain", ""},
	{"internal/guessable", ""},
	{"internal/health", ""},
	{"internal/jserror", ""},
	{"internal/natsconn", "internal/jserror"},
	{"internal/mailaddr", ""},
	{"internal/messaging", ""},
	{"internal/registry", ""},
	{"internal/sqlstate", ""},
	{"internal/attempt", "internal/sqlstate"},
	{"internal/postgres", "internal/sqlstate"},
	{"migrations", "internal/postgres internal/sqlstate"},
	{"migrations/demo", "migrations"},
	{"internal/lead", "internal/postgres internal/sqlstate"},
	{"internal/rivals", "internal/postgres"},
	{"internal/operation", ""},
	{"internal/seqset", ""},
	{"internal/session", ""},
	{"internal/sqltx", ""},
	{"internal/telemetry", ""},
	{"internal/web", ""},
	{"internal/supervisor", "internal/health internal/registry internal/telemetry internal/web"},
	// What a service needs.
	{"internal/service", "internal/breaker"},
	{"outbox", "events internal/postgres internal/sqlstate"},
	{"outbox/hint", "events"},
	{"consumers/inbox", "internal/attempt internal/lead internal/operation internal/postgres internal/rivals internal/sqlstate"},
	{"consumers/internal/delivery", "internal/natsconn"},
	{"consumers/internal/durable", "consumers/inbox events internal/jserror internal/natsconn"},
	{"consumers/internal/follow", "consumers/internal/durable events internal/jserror internal/natsconn internal/session"},
	{"consumers/internal/gate", ""},
	{"consumers/internal/membership", "internal/lead"},
	{"consumers/internal/recent", ""},
	{"consumers", "consumers/inbox consumers/internal/delivery consumers/internal/durable consumers/internal/follow consumers/internal/gate consumers/internal/membership consumers/internal/recent events internal/attempt internal/drain internal/jserror internal/lead internal/messaging internal/natsconn internal/postgres internal/rivals internal/session internal/sqlstate internal/sqltx"},
	// Services: they meet in rows and messages, not here.
	{"producer", "events internal/auth internal/guessable internal/mailaddr internal/operation internal/postgres internal/sqlstate outbox"},
	{"relay/backlog", "events"},
	{"relay/protocol", "events internal/jserror internal/seqset relay/backlog"},
	{"relay/audit", "events internal/natsconn internal/seqset relay/backlog"},
	{"internal/upkeep", "internal/operation internal/postgres internal/sqlstate relay/backlog"},
	{"relay", "events internal/drain internal/jserror internal/lead internal/messaging internal/natsconn internal/operation internal/postgres internal/rivals internal/session internal/sqlstate internal/upkeep relay/audit relay/backlog relay/protocol"},
	{"consumers/directory", "consumers events internal/sqlstate"},
	{"consumers/mailer", "consumers events internal/breaker internal/mailaddr"},
	{"consumers/replay", "consumers/inbox events internal/jserror internal/natsconn internal/operation internal/postgres internal/sqlstate"},
	{"consumers/saga", "internal/attempt internal/lead internal/operation internal/postgres internal/session internal/sqlstate"},
	{"consumers/onboarding", "consumers consumers/saga events internal/sqlstate outbox"},
	{"consumers/status", "consumers consumers/inbox consumers/saga events internal/jserror internal/natsconn internal/postgres internal/sqlstate"},
	// Facts for operators.
	{"internal/operate", "consumers/inbox consumers/replay consumers/saga consumers/status events internal/health internal/jserror internal/lead internal/natsconn internal/operation internal/postgres internal/registry internal/sqlstate migrations relay relay/audit"},
	{"internal/ensure", "consumers consumers/inbox consumers/replay internal/jserror internal/lead internal/natsconn"},
	{"console", "consumers consumers/inbox consumers/replay consumers/saga consumers/status docs events internal/attempt internal/operate internal/operation internal/sqlstate internal/upkeep internal/web relay relay/audit"},
	// Tools.
	{"internal/devserver", "internal/sqlstate"},
	{"internal/devfault", ""},
	{"internal/devmail", "internal/devfault internal/web"},
	{"internal/devservices", "internal/devfault internal/web"},
	{"internal/testenv", "internal/devserver migrations migrations/demo"},
	// What users import in their tests.
	{"pgjettest", "consumers events internal/testenv outbox relay"},
	// Tests that need servers, of packages that services import.
	{"internal/tests/console", ""},
	{"internal/tests/database", "internal/testenv"},
	{"internal/tests/guide", ""},
	{"internal/tests/notes", "events outbox relay/backlog"},
	{"internal/tests/outbox", ""},
	{"internal/tests/postgres", ""},
	{"internal/tests/words", ""},
	// Tests that run the program.
	{"internal/tests/program", "internal/devserver internal/testenv relay"},
	{"internal/tests/chaos", ""},
	// For programs of others.
	{"cmd/daemon", "internal/registry internal/supervisor"},
	{"cmd/verbs", "consumers events internal/ensure internal/operation internal/postgres"},
	// The program.
	{"cmd/pgjet", "console consumers consumers/directory consumers/inbox consumers/mailer consumers/onboarding consumers/replay consumers/saga consumers/status docs events internal/auth internal/config internal/devmail internal/devserver internal/devservices internal/ensure internal/health internal/jserror internal/lead internal/natsconn internal/operate internal/operation internal/postgres internal/registry internal/service internal/sqlstate internal/supervisor internal/telemetry internal/upkeep internal/web migrations migrations/demo outbox/hint producer relay relay/audit"},
}

// writers says which package writes which tables: each has one, and the triggers and functions of the migrations.
var writers = []struct{ pkg, tables string }{
	{"consumers/directory", "directory.deleted directory.signups directory.users"},
	{"consumers/inbox", "pgjet.attempt pgjet.consumer pgjet.dead_letter pgjet.inbox pgjet.intent pgjet.process pgjet.slice"},
	{"consumers/saga", "pgjet.saga"},
	{"internal/operation", "pgjet.operation"},
	{"migrations", "pgjet.schema_version"}, // to record what another tool applies
	{"outbox", "pgjet.outbox pgjet.scheduled"},
	{"producer", "users.idempotency users.users"},
	{"relay", "pgjet.adoption pgjet.audit pgjet.checkpoint pgjet.leader pgjet.quarantine pgjet.unknown_message"},
}

// also lists what other packages write, and why that is right.
var also = map[string]string{
	// An operator cancels and brings forward what a service scheduled.
	"pgjet.scheduled": "internal/upkeep",
	// It only prints the statement by which the owner of the tables gives up a stream.
	"pgjet.leader": "internal/upkeep",
	// The onboarding ends with the user active or rejected, in the transaction of its last step.
	"users.users": "consumers/onboarding",
}

// written finds the tables that a statement in Go code writes.
var written = regexp.MustCompile(`(?i)\b(?:insert\s+into|update|delete\s+from|truncate|copy|merge\s+into)\s+((?:pgjet|users|directory)\.[a-z_]+)`)

// TestOneWriter: no package writes a table of another.
func TestOneWriter(t *testing.T) {
	allowed := make(map[string]string)
	for _, w := range writers {
		for table := range strings.FieldsSeq(w.tables) {
			allowed[table] = w.pkg
		}
	}
	seen := make(map[string]bool)
	for _, line := range golist(t, "{{.ImportPath}} {{.Dir}}{{range .GoFiles}} {{.}}{{end}}", module+"...") {
		fields := strings.Fields(line)
		pkg := strings.TrimPrefix(fields[0], module)
		for _, file := range fields[2:] {
			code, err := os.ReadFile(filepath.Join(fields[1], file))
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range written.FindAllSubmatch(code, -1) {
				table := strings.ToLower(string(m[1]))
				seen[table] = true
				if allowed[table] != pkg && !slices.Contains(strings.Fields(also[table]), pkg) {
					t.Errorf("%s/%s writes %s, which is for %q alone; see writers", pkg, file, table, allowed[table])
				}
			}
		}
	}
	for table := range allowed {
		if !seen[table] {
			t.Errorf("writers lists %s, which nobody writes", table)
		}
	}
}

func TestLayers(t *testing.T) {
	var above []string
	allowed := make(map[string][]string)
	for _, l := range layers {
		allowed[l.pkg] = strings.Fields(l.imports)
		for _, i := range allowed[l.pkg] {
			if !slices.Contains(above, i) {
				t.Errorf("layers: %s lists %s, which does not stand above it", l.pkg, i)
			}
		}
		above = append(above, l.pkg)
	}
	for _, line := range golist(t, "{{.ImportPath}}{{range .Imports}} {{.}}{{end}}", module+"...") {
		fields := strings.Fields(line)
		pkg := strings.TrimPrefix(fields[0], module)
		if _, ok := allowed[pkg]; !ok {
			t.Errorf("package %s has no place in layers", pkg)
		}
		for _, i := range fields[1:] {
			own, ok := strings.CutPrefix(i, module)
			if ok && !slices.Contains(allowed[pkg], own) {
				t.Errorf("%s imports %s; see layers", pkg, own)
			}
			if strings.Contains(i, "nats-server") && pkg != "internal/devserver" {
				t.Errorf("%s imports %s; only internal/devserver may", pkg, i)
			}
		}
	}
}

// TestLargePackagesExplainThemselves: a package of more than 2,000 lines shows in its comment why it is one package, and which
// file does what.
func TestLargePackagesExplainThemselves(t *testing.T) {
	for _, line := range golist(t, "{{.ImportPath}} {{.Dir}}{{range .GoFiles}} {{.}}{{end}}", module+"...") {
		fields := strings.Fields(line)
		lines, explains := 0, false
		for _, file := range fields[2:] {
			code, err := os.ReadFile(filepath.Join(fields[1], file))
			if err != nil {
				t.Fatal(err)
			}
			comment, _, _ := strings.Cut(string(code), "\npackage ")
			lines, explains = lines+strings.Count(string(code), "\n"), explains || strings.Contains(comment, "// # Files\n")
		}
		if lines > 2000 && !explains {
			t.Errorf("%s has %d lines, and its comment no section Files", fields[0], lines)
		}
	}
}

// positional lists the files of statements with more than six parameters that have numbers instead of names, and why.
var positional = map[string]string{
	"outbox/append.go":   "database/sql and drivers of others know numbers only; and each append runs it",
	"outbox/schedule.go": "the same",
	"producer/signup.go": "one parameter for each column, in their order, and each sign-up runs it",
}

// TestManyParametersHaveNames: a statement with more than six parameters names them.
func TestManyParametersHaveNames(t *testing.T) {
	seen := make(map[string]bool)
	for _, line := range golist(t, "{{.ImportPath}} {{.Dir}}{{range .GoFiles}} {{.}}{{end}}", module+"...") {
		fields := strings.Fields(line)
		for _, file := range fields[2:] {
			code, err := os.ReadFile(filepath.Join(fields[1], file))
			if err != nil {
				t.Fatal(err)
			}
			if m := regexp.MustCompile("(?m)^.*[^`/]\\$(?:[7-9]|[1-9][0-9])\\b.*$").Find(code); m != nil {
				name := strings.TrimPrefix(fields[0], module) + "/" + file
				if seen[name] = true; positional[name] == "" && !strings.Contains(string(m), "// $") {
					t.Errorf("%s numbers more than six parameters, as in %q: use pgx.NamedArgs", name, strings.TrimSpace(string(m)))
				}
			}
		}
	}
	for name := range positional {
		if !seen[name] {
			t.Errorf("positional lists %s, which needs no exception", name)
		}
	}
}

// TestLightImports keeps a service that uses one of the libraries free of what it
// does not need.
func TestLightImports(t *testing.T) {
	for pkg, unwanted := range map[string][]string{
		"events":    {"net/http", "github.com/nats-io/", "github.com/jackc/", "go.opentelemetry.io/"},
		"outbox":    {"net/http", "github.com/nats-io/", "github.com/danielgtaylor/", "go.opentelemetry.io/otel/sdk", "google.golang.org/"},
		"consumers": {"github.com/nats-io/nats-server", "github.com/danielgtaylor/", "github.com/wneessen/", "go.opentelemetry.io/otel/sdk"},
		"relay":     {"github.com/nats-io/nats-server", "github.com/danielgtaylor/"},
	} {
		for _, dep := range golist(t, "{{.ImportPath}}", "-deps", module+pkg) {
			for _, u := range unwanted {
				if strings.HasPrefix(dep, u) {
					t.Errorf("%s depends on %s", pkg, dep)
				}
			}
		}
	}
}

// TestToolsStayOut: the program does not contain what tests break connections with.
func TestToolsStayOut(t *testing.T) {
	for _, dep := range golist(t, "{{.ImportPath}}", "-deps", module+"cmd/pgjet") {
		if strings.Contains(dep, "toxiproxy") {
			t.Errorf("pgjet depends on %s", dep)
		}
	}
}

// TestOutboxIsLight: a service that imports only outbox links few modules. go mod tidy downloads
// little for it, although it reads the tests of imported packages, too.
func TestOutboxIsLight(t *testing.T) {
	t.Parallel()
	const mostModules, mostBytes = 12, 30 << 20
	modules := golist(t, "{{with .Module}}{{.Path}}{{end}}", "-deps", module+"outbox")
	slices.Sort(modules)
	modules = slices.DeleteFunc(slices.Compact(modules), func(m string) bool { return m == "" })
	if len(modules) > mostModules {
		t.Errorf("a service that imports outbox links %d modules, want at most %d: %s", len(modules), mostModules, strings.Join(modules, " "))
	}
	size, downloads := tidied(t, "outbox")
	t.Logf("%d modules linked, %d bytes downloaded by go mod tidy", len(modules), size)
	if size > mostBytes {
		t.Errorf("go mod tidy of a service that imports outbox downloads %d bytes, want at most %d:\n%s", size, mostBytes, strings.Join(downloads, "\n"))
	}
}

// TestOutboxIsForServices: package outbox exports what a service needs. What the relay and operators need of the same tables is in
// relay/backlog and internal/upkeep.
func TestOutboxIsForServices(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "doc", "-short", module+"outbox").Output()
	if err != nil {
		t.Fatalf("go doc: %v", err)
	}
	var names []string
	for _, m := range regexp.MustCompile(`(?m)^ *(?:func|type|const|var) (\w+)`).FindAllSubmatch(out, -1) {
		names = append(names, string(m[1]))
	}
	if got, want := strings.Join(names, " "), "Append AppendAt AppendAtSQL AppendSQL Cancel CancelSQL Queue QueueAt SQLTx"; got != want {
		t.Errorf("package outbox exports %s, want %s", got, want)
	}
}

// tidied returns the number of bytes and the modules that go mod tidy downloads, with an empty
// cache, for a module that imports one package of this one.
func tidied(t *testing.T, pkg string) (size int64, downloads []string) {
	t.Helper()
	service, cache, own := t.TempDir(), t.TempDir(), golist(t, "{{.Dir}}", "-m")[0]
	for name, text := range map[string]string{
		"go.mod": "module example.com/service\n\ngo 1.26.0\n\nrequire " + strings.TrimSuffix(module, "/") + " v0.0.0\n\nreplace " + strings.TrimSuffix(module, "/") + " => " + own + "\n",
		"a.go":   "package service\n\nimport _ \"" + module + pkg + "\"\n",
	} {
		if err := os.WriteFile(filepath.Join(service, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	env, err := exec.CommandContext(t.Context(), "go", "env", "GOMODCACHE", "GOPROXY").Output()
	if err != nil {
		t.Fatal(err)
	}
	warm, proxy, _ := strings.Cut(strings.TrimSpace(string(env)), "\n")
	cmd := exec.CommandContext(t.Context(), "go", "mod", "tidy")
	cmd.Dir = service
	cmd.Env = append(os.Environ(), "GOMODCACHE="+cache, "GOFLAGS=-modcacherw", "GOSUMDB=off",
		"GOPROXY=file://"+filepath.ToSlash(warm)+"/cache/download,"+proxy) // modules on this machine are not downloaded
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go mod tidy: %v\n%s", err, out)
	}
	root := filepath.Join(cache, "cache", "download")
	err = filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		size += info.Size()
		if strings.HasSuffix(path, ".zip") {
			downloads = append(downloads, strings.TrimPrefix(path, root))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return size, downloads
}

func TestEveryPackageHasADoc(t *testing.T) {
	for _, line := range golist(t, "{{.ImportPath}} {{.Doc}}", module+"...") {
		if pkg, doc, _ := strings.Cut(line, " "); strings.TrimSpace(doc) == "" {
			t.Errorf("package %s has no doc comment", pkg)
		}
	}
}

// TestExamplesRun: go test runs each Example, since it has an output.
func TestExamplesRun(t *testing.T) {
	for _, line := range golist(t, "{{.ImportPath}} {{.Dir}}{{range .TestGoFiles}} {{.}}{{end}}{{range .XTestGoFiles}} {{.}}{{end}}", module+"...") {
		fields := strings.Fields(line)
		for _, name := range fields[2:] {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(fields[1], name), nil, parser.ParseComments|parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range doc.Examples(file) {
				if e.Output == "" && !e.EmptyOutput {
					t.Errorf("%s/%s: Example%s has no // Output: so nothing shows that it works", fields[0], name, e.Name)
				}
			}
		}
	}
}

func golist(t *testing.T, format string, args ...string) []string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", append([]string{"list", "-f", format}, args...)...).Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}
