package main

import (
	"context"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestDemoRecovery runs what "make demo-recovery" shows: a dead letter is redriven, a read
// model that was lost is rebuilt.
func TestDemoRecovery(t *testing.T) {
	t.Parallel()
	for _, tool := range []string{"bash", "curl", "psql"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("the demonstration needs %s", tool)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "../../docs/demo-recovery.sh")
	cmd.Env = append(os.Environ(), "PGJET="+binary(), "PORT="+strconv.Itoa(freePorts(t)),
		"PGJET_DATABASE_URL=postgres://ann@"+nowhere+"/x", "PGJET_NATS_URL=nats://"+nowhere) // it must not touch what the caller uses
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it stops what it started
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "3 people in the directory again") {
		t.Errorf("demo-recovery.sh: %v\n%s", err, out)
	}
}
