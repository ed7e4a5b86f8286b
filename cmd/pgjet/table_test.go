package main

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"
)

const rows = "NAME\tSTATE\tERROR\n" +
	"welcome-mailer\tfailing\tmail server answered to RCPT TO: 450 4.2.0 come back later, please\n" +
	"a-name-that-is-longer-than-what-a-terminal-has-room-for\tidle\t-\n"

// TestAligned: a pipe gets the whole table, one line for each row, without colour; a terminal gets
// columns that fit.
func TestAligned(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name       string
		screen     screen
		text, want string
	}{
		{"a pipe", screen{}, rows, "" +
			"NAME                                                      STATE     ERROR\n" +
			"welcome-mailer                                            failing   mail server answered to RCPT TO: 450 4.2.0 come back later, please\n" +
			"a-name-that-is-longer-than-what-a-terminal-has-room-for   idle      -\n"},
		{"a terminal", screen{width: 90}, rows, "" +
			"NAME                                       STATE     ERROR\n" +
			"welcome-mailer                             failing   mail server answered to RCPT TO: 450\n" +
			"                                                     4.2.0 come back later, please\n" +
			"a-name-that-is-longer-than-what-a-termi…   idle      -\n"},
		{"colours", screen{width: 90, colour: true}, "STATE\tWHY\nfailing\tfailing too\nidle\tx\n", "" +
			"\x1b[1mSTATE\x1b[0m     \x1b[1mWHY\x1b[0m\n" +
			"\x1b[31mfailing\x1b[0m   failing too\n" +
			"\x1b[32midle\x1b[0m      x\n"},
		{"a narrow terminal", screen{width: 30}, "name\ta name\nwhy\tone two three four five six seven\n", "" +
			"name   a name\nwhy    one two three four five\n       six seven\n"},
		{"a word that is too long", screen{width: 27}, "why\tééééééééééééééééééééééééé\n", "why   ééééééééééééééééééééé\n      éééé\n"},
		{"what is to be copied", screen{width: 30}, "next\tpgjet dead groups --consumer welcome-mailer\n\t\t-> pgjet explain stream_full --and more\n", "" +
			"next   pgjet dead groups --consumer welcome-mailer\n          -> pgjet explain stream_full --and more\n"},
		{"what a terminal obeys", screen{width: 80, colour: true}, "why\t\x1b[31mred\n", "why   \uFFFD[31mred\n"},
	} {
		got, err := tt.screen.aligned(tt.text)
		if err != nil || got != tt.want {
			t.Errorf("%s: %v\n%q, want\n%q", tt.name, err, got, tt.want)
		}
	}
	if screenOf(new(bytes.Buffer)) != (screen{}) {
		t.Error("a buffer is a terminal")
	}
}

// TestOnATerminal: output to a terminal is coloured, unless NO_COLOR is set or the terminal has no
// colours. Output to a pipe is not.
func TestOnATerminal(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("script"); err != nil {
		t.Skip("it needs script, which gives a program a terminal")
	}
	for name, tt := range map[string]struct {
		command string
		colours bool
	}{
		"on a terminal": {binary() + " explain", true},
		"NO_COLOR":      {"NO_COLOR=1 " + binary() + " explain", false},
		"TERM=dumb":     {"TERM=dumb " + binary() + " explain", false},
		"a pipe":        {binary() + " explain | cat", false},
	} {
		cmd := exec.CommandContext(t.Context(), "script", "-qec", "stty cols 60; "+tt.command, "/dev/null")
		cmd.Env = append(withoutSettings(cmd.Environ()), "TERM=xterm")
		out, err := cmd.Output()
		if err != nil || !strings.Contains(string(out), "stream_full") {
			t.Fatalf("%s: %v %s", name, err, out)
		}
		if got := strings.Contains(string(out), "\x1b["); got != tt.colours {
			t.Errorf("%s: colours %v, want %v:\n%q", name, got, tt.colours, out)
		}
		widest := 0
		for line := range strings.Lines(string(out)) {
			widest = max(widest, len(line))
		}
		if fits := widest < 60+30; fits == strings.HasSuffix(tt.command, "cat") {
			t.Errorf("%s: the widest line has %d bytes", name, widest)
		}
	}
}
