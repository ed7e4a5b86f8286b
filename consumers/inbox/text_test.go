package inbox

import (
	"strings"
	"testing"
	"unicode/utf8"
)

// TestIndexable: a text is cut between characters, at the size limit of an index, and not before.
func TestIndexable(t *testing.T) {
	for _, test := range []struct{ s, want string }{
		{"", ""},
		{"123456789", "123456789"},
		{"1234567890", "1234567890"},
		{"12345678901", "1234567…"},
		{"123456ääää", "123456…"},
		{"a\x00b\xff", "a\uFFFDb\uFFFD"},
	} {
		if got := Indexable(test.s, 10); got != test.want {
			t.Errorf("%q becomes %q, want %q", test.s, got, test.want)
		}
	}
}

// TestGroupsAreShort: the name of a group is short, and still differs where the errors do.
func TestGroupsAreShort(t *testing.T) {
	long := strings.Repeat("ä", 200)
	if got := group("t", long); got != "t: "+long {
		t.Errorf("200 characters become %q", got)
	}
	a, b := group("t", long+"a"), group("t", long+"b")
	if a == b || !strings.HasPrefix(a, "t: "+long+"…") {
		t.Errorf("what differs after 200 characters becomes %q and %q", a, b)
	}
	if n := utf8.RuneCountInString(a); n != 3+200+9 {
		t.Errorf("201 characters become %d", n)
	}
	if got := group("t", `no "x" at 10:15, a@b.example`); got != "t: no … at …:…, …" {
		t.Errorf("what varies stays: %q", got)
	}
}

func TestTraceID(t *testing.T) {
	id := strings.Repeat("0a", 16)
	for traceparent, want := range map[string]string{
		"00-" + id + "-b7ad6b7169203331-01":       id,
		"":                                        "",
		"00-" + id + "-b7ad6b7169203331":          "",
		"00-" + id + "0-b7ad6b7169203331-01":      "",
		"00-" + id + "-b7ad6b7169203331-01-extra": "",
	} {
		got := traceID(traceparent)
		if (got == nil) != (want == "") || got != nil && *got != want {
			t.Errorf("the trace id of %q is %v, want %q", traceparent, got, want)
		}
	}
}
