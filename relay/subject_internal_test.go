package relay

import "testing"

func TestMeets(t *testing.T) {
	for _, row := range []struct {
		pattern, prefix string
		want            bool
	}{
		{"events.>", "events", true},
		{"events.*.user.>", "events", true},
		{">", "events", true},
		{"*.>", "events", true},
		{"*.*.user.created", "events", true},
		{"events", "events", false},
		{"orders.>", "events", false},
		{"events.>", "events.a", true},
		{"events.a.>", "events.a", true},
		{"events.a", "events.a", false},
		{"events.b.>", "events.a", false},
		{"a.>", "a.b.c", true},
	} {
		if got := meets(row.pattern, row.prefix); got != row.want {
			t.Errorf("meets(%q, %q) = %t, want %t", row.pattern, row.prefix, got, row.want)
		}
	}
}
