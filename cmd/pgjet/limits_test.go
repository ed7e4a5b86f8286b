package main

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/pgjet/pgjet/internal/testenv"
)

func TestParseNetworks(t *testing.T) {
	got, err := parseNetworks([]string{"10.1.2.3/8", "192.0.2.1", "2001:db8::/32", "::1"})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"10.0.0.0/8", "192.0.2.1/32", "2001:db8::/32", "::1/128"}
	for i, n := range got {
		if n.String() != want[i] {
			t.Errorf("network %d = %s, want %s", i, n, want[i])
		}
	}
	for _, bad := range []string{"", "proxy.example", "10.0.0.0/33", "10.0.0"} {
		if got, err := parseNetworks([]string{bad}); err == nil {
			t.Errorf("parseNetworks(%q) = %v, want an error", bad, got)
		}
	}
}

// TestRateLimitBehindProxies: the process trusts X-Forwarded-For from a proxy that
// --trusted-proxies names, and from no other client.
func TestRateLimitBehindProxies(t *testing.T) {
	t.Parallel()
	database := testenv.DatabaseURL(t)
	statuses := func(s *service, tries int) []int {
		var all []int
		for i := range tries {
			status, header, body := request(t, http.MethodPost, s.Addr+"/users", "{}", map[string]string{
				"Content-Type": "application/json", "X-Forwarded-For": fmt.Sprintf("198.51.100.%d", i),
			})
			if status == http.StatusTooManyRequests {
				wait, err := strconv.Atoi(header.Get("Retry-After"))
				if err != nil || wait < 1 || wait > 60 || !strings.Contains(body, `"rate_limited"`) {
					t.Errorf("429 %s with Retry-After %q, want rate_limited and seconds", body, header.Get("Retry-After"))
				}
			}
			all = append(all, status)
		}
		slices.Sort(all)
		return slices.Compact(all)
	}
	if got := statuses(startUsers(t, database), 200); !slices.Equal(got, []int{422, 429}) {
		t.Errorf("200 tries from one address that claims to be many: %v, want 429 in the end", got)
	}
	if got := statuses(startUsers(t, database, "--trusted-proxies", "127.0.0.0/8,::1"), 200); !slices.Equal(got, []int{422}) {
		t.Errorf("200 tries from as many addresses behind a trusted proxy: %v, want no 429", got)
	}
	refused(t, exitUsage, []string{"users", "--database-url", database, "--trusted-proxies", "nonsense"}, "--trusted-proxies", `"nonsense"`, "10.0.0.0/8")
}
