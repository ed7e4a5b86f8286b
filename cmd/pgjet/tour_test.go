//go:build unix

package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A tourStep is a block of the tour, and what it finally shows. A block that is repeated
// until then changes nothing.
type tourStep struct {
	begins string
	again  bool
	shows  string // a pattern
}

var tour = []tourStep{
	{"curl -sS http://127.0.0.1:7400/users -H", false, `"email":"ada@example.com"`},
	{"eval", false, `has the role admin`},
	{"TOKEN=", true, `"users":\[\{.*"name":"Ada","state":"active"`}, // before billing fails
	{"ADA=", false, `(?s)"name":"Ada Lovelace".*"users":\[\{.*"name":"Ada Lovelace"`},
	{"curl -sS -X PUT http://127.0.0.1:7408/fault -d '{\"status\":402}'", false, `"email":"bob@example.com"`},
	{"bin/pgjet saga ls", true, `(?m)undone .* billing_declined`},
	{"curl -sS -X PUT http://127.0.0.1:7408/fault -d '{\"status\":503}'", false, `"email":"dave@example.com"`},
	{"curl -sS http://127.0.0.1:7404/metrics", true, `service="billing"\} 2`},
	{"bin/pgjet outbox scheduled ls", false, `ID .* DUE`},
	{"curl -sS -X DELETE", true, `(?s)done.*done.*done`},
	{"sed -i.bak", false, ``},
	{"curl -sS \"http://127.0.0.1:7400/users/$ADA/profile\"", true, `feature_off`},
	{"bin/pgjet services ls", true, `(?s)billing .* ready .*pgjet-directory .*pgjet-onboarding .*pgjet-relay .*pgjet-users .*pgjet-welcome-mailer .*profiles `},
}

// TestTour runs the README's sign-up and the tour, block by block.
func TestTour(t *testing.T) {
	t.Parallel()
	for _, tool := range []string{"bash", "curl", "sed", "grep"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("the tour needs %s", tool)
		}
	}
	blocks := tourBlocks(t)
	if len(blocks) != len(tour) {
		t.Fatalf("the tour has %d blocks, this test knows %d", len(blocks), len(tour))
	}
	dir, port := stateDir(t), freePorts(t)
	startDev(t, dir, port)
	vars := filepath.Join(t.TempDir(), "vars")
	for i, step := range tour {
		if !strings.HasPrefix(blocks[i], step.begins) {
			t.Fatalf("block %d of the tour is\n%s\nwant it to begin with %s", i, blocks[i], step.begins)
		}
		shown := ""
		looks := func() bool {
			shown = typedIn(t, hereInstead(blocks[i], dir, port), vars)
			return regexp.MustCompile(step.shows).MatchString(shown)
		}
		if !step.again && !looks() {
			t.Fatalf("%s\nshows %q, want %s", blocks[i], shown, step.shows)
		}
		if step.again {
			begun := time.Now()
			for !looks() {
				if time.Since(begun) > time.Minute {
					t.Fatalf("%s\nstill shows %q, want %s", blocks[i], shown, step.shows)
				}
				time.Sleep(100 * time.Millisecond)
			}
		}
	}
}

// tourBlocks returns what README and tour say to type, from the sign-up on.
func tourBlocks(t *testing.T) []string {
	t.Helper()
	_, text, _ := strings.Cut(read(t, "README.md"), "In a second terminal:")
	text, after, found := strings.Cut(text, "## In your service")
	if !found || after == "" {
		t.Fatal("the README does not lead to the tour")
	}
	text += read(t, "docs/tour.md")
	var blocks []string
	for _, b := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(text, -1) {
		blocks = append(blocks, b[1])
	}
	return slices.DeleteFunc(blocks, func(b string) bool { return strings.HasPrefix(b, "make ") })
}

// hereInstead returns block for the pgjet dev with this directory and port.
func hereInstead(block, dir string, port int) string {
	block = regexp.MustCompile(`127\.0\.0\.1:740(\d)`).ReplaceAllStringFunc(block, func(at string) string {
		return "127.0.0.1:" + strconv.Itoa(port+int(at[len(at)-1]-'0'))
	})
	return strings.NewReplacer(".pgjet/", dir+"/", "dev env", "dev env --dir "+dir, "bin/pgjet", binary()).Replace(block)
}

// typedIn runs a block in a shell with the variables of earlier blocks, and returns its output.
func typedIn(t *testing.T, block, vars string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", `[ ! -e "$VARS" ] || . "$VARS"
`+block+`
declare -p TOKEN ADA PGJET_DATABASE_URL PGJET_NATS_URL >"$VARS" 2>/dev/null || true`)
	cmd.Env = append(withoutSettings(os.Environ()), "VARS="+vars)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", block, err, out)
	}
	return string(out)
}

func withoutSettings(env []string) []string {
	return slices.DeleteFunc(env, func(v string) bool { return strings.HasPrefix(v, "PGJET_") })
}
