package operate

import (
	"maps"
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

// TestCausesAreFoundOnce: what a consumer or a relay is known to lack is no second finding of its process,
// but another cause of that process is one.
func TestCausesAreFoundOnce(t *testing.T) {
	t.Parallel()
	v := new(view)
	v.found("consumer directory", Consumer, "paused", "by ann@host", "")
	v.found("relay of EVENTS", Relay, "stream_full", "", "")
	v.found("relay of BILLS", Relay, "paused", "by ann@host", "")
	for id, causes := range map[string][]string{
		"a": {"directory: paused by ann@host at noon"},
		"b": {"relay: stream_full: maximum bytes exceeded", "directory: paused by ann@host at noon"},
		"c": {"directory: paused by ann@host at noon", "users: database_unreachable: it is away"},
		"d": {"mailer: paused by ann@host at noon"},
		"e": {"relay: stream_full_of_fish"},
		"f": {"relay: paused: by ann@host: upgrade"},
	} {
		v.Processes = append(v.Processes, Instance{
			Instance: registry.Instance{Name: "x", ID: id, HealthURL: "http://" + id}, Health: "not_ready", Cause: causes[0], causes: causes,
		})
	}
	v.judgeProcesses()
	found := make(map[string]string)
	for _, f := range v.Findings[3:] {
		found[f.What] = f.Text
	}
	want := map[string]string{
		"process x c": "users: database_unreachable: it is away", "process x d": "mailer: paused by ann@host at noon", "process x e": "relay: stream_full_of_fish",
	}
	if !maps.Equal(found, want) {
		t.Errorf("found are %q, want %q", found, want)
	}
}
