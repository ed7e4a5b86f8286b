// Package program runs pgjet for tests, with servers that a test may kill, freeze and cut off. A
// package of tests that uses it has a TestMain that calls [Main].
package program

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	"github.com/pgjet/pgjet/internal/testenv"
)

// Secret is the password in addresses that tests give to pgjet. No process may print it.
const Secret = "s3cretpw"

// Patience bounds everything that a test waits for.
const Patience = 20 * time.Second

// Healing bounds the time from a fault until all is well.
const Healing = time.Minute

// AnyPort is an address to listen on, with a port that the system chooses.
const AnyPort = "127.0.0.1:0"

// Source is the source of the events of [StartRelay].
const Source = "/users"

// Raced reports whether the tests have the race detector. If they do, so has the pgjet that they run.
var Raced = hasRaceDetector()

// binary is the pgjet that the tests run.
var binary string

// lifeline is closed by the end of this process.
var lifeline io.Closer

// Main builds pgjet, runs the tests, and exits the process. In a process that [StartNATSProcess]
// started, it runs a NATS server instead.
func Main(m *testing.M) {
	if options := os.Getenv(natsVariable); options != "" {
		serveNATS(options)
	}
	if err := build(); err != nil {
		fmt.Fprintln(os.Stderr, "build pgjet:", err)
		os.Exit(1)
	}
	testenv.Main(m)
}

// Binary returns the path of the pgjet that [Main] built.
func Binary() string { return binary }

func hasRaceDetector() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// build builds pgjet, with the race detector if the tests have it, into a
// directory that is removed when this process has ended, however it ends.
func build() error {
	dir, err := os.MkdirTemp("", "pgjet-cmd-")
	if err != nil {
		return err
	}
	cleaner := exec.Command("sh", "-c", `cat; rm -rf "$0"`, dir)
	if lifeline, err = cleaner.StdinPipe(); err != nil {
		return err
	}
	if err := cleaner.Start(); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // other users run it, too
		return err
	}
	binary = filepath.Join(dir, "pgjet")
	args := []string{"build", "-ldflags=-w", "-o", binary} // without debug information the link takes a third less
	if Raced {
		args = append(args, "-race")
	}
	out, err := exec.Command("go", append(args, "github.com/pgjet/pgjet/cmd/pgjet")...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}
