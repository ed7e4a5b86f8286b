package inbox_test

import (
	"fmt"
	"testing"

	"github.com/pgjet/pgjet/consumers/inbox"
)

// TestFindGroup: looking up the group first changes no list, count or plan.
func TestFindGroup(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.die("mailer", "no answer", 1, 3)
	b.die("crm", "no answer", 5, 2)
	for _, l := range b.list(inbox.Filter{}) {
		plain, found := inbox.Filter{Group: l.Group}, inbox.Filter{Group: l.Group, Most: 1000}
		if err := found.FindGroup(t.Context(), b.db); err != nil || found.Consumer != l.Consumer {
			t.Fatalf("FindGroup() = %v, of %q, want %q", err, found.Consumer, l.Consumer)
		}
		if got, want := fmt.Sprint(b.list(found)), fmt.Sprint(b.list(plain)); got != want {
			t.Errorf("the group %s is %s, want %s", l.Group, got, want)
		}
		counted, err := inbox.Redrive.Count(t.Context(), b.db, found)
		planned, planErr := inbox.Redrive.Plan(t.Context(), b.db, plain)
		if err != nil || planErr != nil || fmt.Sprint(counted) != fmt.Sprint(planned) {
			t.Errorf("counted are %+v, %v, planned %+v, %v", counted, err, planned, planErr)
		}
	}
	none := inbox.Filter{Group: "g_00000000"}
	if err := none.FindGroup(t.Context(), b.db); err != nil || len(b.list(none)) != 0 {
		t.Errorf("of no group: %v, %d letters", err, len(b.list(none)))
	}
	if one := b.list(inbox.Filter{Most: 1}); len(one) != 1 {
		t.Errorf("%d letters, want 1 at most", len(one))
	}
}
