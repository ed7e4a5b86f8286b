package operate

import (
	"slices"
	"testing"

	"github.com/pgjet/pgjet/internal/registry"
)

// TestProcessesAreFoundOnce: a process that registers as several services, such as pgjet dev, is one finding,
// under the name of the part that is not ready.
func TestProcessesAreFoundOnce(t *testing.T) {
	t.Parallel()
	v := new(view)
	for _, i := range []registry.Instance{
		{Name: "pgjet-directory", ID: "d", HealthURL: "http://127.0.0.1:7404/readyz"},
		{Name: "pgjet-relay", ID: "a", HealthURL: "http://127.0.0.1:7404/readyz"},
		{Name: "pgjet-users", ID: "b", HealthURL: "http://127.0.0.1:7404/readyz"},
		{Name: "pgjet-users", ID: "c", HealthURL: "http://127.0.0.1:8404/readyz"},
	} {
		v.Processes = append(v.Processes, Instance{Instance: i, Health: "not_ready", Cause: "relay: stream_full"})
	}
	v.judgeProcesses()
	var found []string
	for _, f := range v.Findings {
		found = append(found, f.What+" "+f.Code)
	}
	if want := []string{"process pgjet-relay a not_ready", "process pgjet-users c not_ready"}; !slices.Equal(found, want) {
		t.Errorf("found are %q, want %q", found, want)
	}
}
