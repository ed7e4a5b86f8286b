package main

import (
	"os/exec"
	"slices"
	"testing"
	"time"
)

// TestSlowDisk: a commit on the slow disk takes at least as long as a sync.
func TestSlowDisk(t *testing.T) {
	if _, err := exec.LookPath("cc"); err != nil {
		t.Skip("there is no C compiler")
	}
	l := startTestLab(t)
	slow, err := l.onSlowDisk(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.siteIn(t.Context(), slow, none)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	if again, err := l.onSlowDisk(t.Context()); again != slow || err != nil {
		t.Errorf("another server, %v", err)
	}
	if _, err := s.db.Exec(t.Context(), `create table written ()`); err != nil {
		t.Fatal(err)
	}
	var took []time.Duration
	for range 10 {
		began := time.Now()
		if _, err := s.db.Exec(t.Context(), `insert into written default values`); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	if median := took[len(took)/2]; median < slowSync { // the walwriter may have synced for one of them
		t.Errorf("commits took %v, want %s at least", took, slowSync)
	}
}
