package main

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestProgressLines: without a terminal a line is written now and then, even without progress. The
// number done never exceeds the total.
func TestProgressLines(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		p := newProgress(&out, "redrive", "")
		for done := range 24 {
			p.report(7, done+1, 23)
			time.Sleep(time.Second)
		}
		for range 6 { // nothing moves
			p.report(7, 24, 23)
			time.Sleep(time.Second)
		}
		p.finish()
		want := "redrive 7 6/23 1/s\nredrive 7 11/23 1/s\nredrive 7 16/23 1/s\nredrive 7 21/23 1/s\nredrive 7 24/24 1/s\n"
		if got := out.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	})
}

// TestProgressBar: a bar shows no rate before it is known. The number done never exceeds the total.
func TestProgressBar(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		p := newProgress(&out, "replay", "directory")
		p.draw(false)
		p.report(7, 0, 23)
		if got := out.String(); strings.Contains(got, "/s") || strings.Contains(got, "/hr") {
			t.Errorf("it begins with a rate: %q", got)
		}
		time.Sleep(2 * time.Second)
		p.report(7, 12, 23)
		time.Sleep(2 * time.Second)
		p.report(7, 24, 23)
		p.finish()
		got := out.String()
		for _, want := range []string{"replay 7 directory 6/s", "12/23", "24/24"} {
			if !strings.Contains(got, want) {
				t.Errorf("%q lacks %s", got, want)
			}
		}
		if strings.Contains(got, "24/23") {
			t.Errorf("more is done than there is: %q", got)
		}
	})
}
