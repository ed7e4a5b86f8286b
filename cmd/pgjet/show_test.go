package main

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/status"
	"github.com/pgjet/pgjet/internal/operate"
)

// TestCommandsToType: in a printed command, a shell reads each name as one word.
func TestCommandsToType(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"ORDERS", "a b", "it's", `"quoted"`, "$HOME", "`id`", "a;id", "a&b|c", "~", "*", "#x", "Ä", ""} {
		out, err := exec.Command("bash", "-c", "printf %s "+word(name)).Output()
		if err != nil || string(out) != name {
			t.Errorf("a shell takes %s for %q, %v, want %q", word(name), out, err, name)
		}
	}
	if got, want := typed("pgjet relay resume", "it's $5"), `pgjet relay resume --stream 'it'\''s $5'`; got != want {
		t.Errorf("typed() = %s, want %s", got, want)
	}
	s := status.Status{Name: "a$b", Stream: "c;d", Paused: &inbox.Paused{}}
	for code, want := range map[string]string{
		"paused": `pgjet consumer resume 'a$b'`, "slow": `pgjet consumer get 'a$b'`, "stream_missing": `pgjet stream ensure --stream 'c;d'`,
	} {
		if got := operate.NextForConsumer(s, code, true); got != want {
			t.Errorf("what to type about %s is %s, want %s", code, got, want)
		}
	}
	for _, code := range status.Codes {
		if got := operate.NextAtConsumer(s, code, true); got == "" || strings.HasPrefix(got, "pgjet consumer get ") {
			t.Errorf("pgjet consumer get says about %s: %s", code, got)
		}
	}
	if word("ORDERS-1") != "ORDERS-1" {
		t.Error("a plain name is quoted")
	}
}
