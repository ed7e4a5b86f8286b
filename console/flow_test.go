package console

import (
	"encoding/json"
	"testing"
	"time"
)

// TestFlow: a rate is unknown, and not 0, if one of its two samples is.
func TestFlow(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	b := board{console: &Console{}}
	for i, s := range []sample{{appended: 10, stored: 5}, {appended: 30, stored: 5}, {appended: -1, stored: 25}, {appended: 50, stored: -1}} {
		s.at = at.Add(time.Duration(i) * flowOver)
		b.samples = append(b.samples, s)
	}
	f := b.flow()
	text, err := json.Marshal(f.Points)
	if want := `[{"at":1796040010,"appended":2,"stored":0},{"at":1796040020,"appended":null,"stored":2},{"at":1796040030,"appended":null,"stored":null}]`; err != nil || string(text) != want {
		t.Errorf("the rates are %s, %v, want\n%s", text, err, want)
	}
	if f.Appended != nil || f.Stored != nil {
		t.Errorf("the last rates are %v and %v, want that they are unknown", f.Appended, f.Stored)
	}
}
