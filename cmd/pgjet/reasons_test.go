package main

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/pgjet/pgjet/consumers/status"
	"github.com/pgjet/pgjet/internal/jserror"
	"github.com/pgjet/pgjet/internal/operate"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

// reasonsAbout returns the codes of the reasons about one thing.
func reasonsAbout(about string) (codes []string) {
	for _, r := range operate.Reasons {
		if r.About == about {
			codes = append(codes, r.Code)
		}
	}
	return codes
}

// TestReasonsAreTheRunbooks: each reason has a line in its runbook and in docs/cli.md, the four
// runbooks that list reasons list no others, and the commands to type exist.
func TestReasonsAreTheRunbooks(t *testing.T) {
	cli := read(t, "docs/cli.md")
	seen := make(map[string]bool)
	for _, r := range operate.Reasons {
		if id := r.About + " " + r.Code; seen[id] {
			t.Errorf("%s is listed twice", id)
		} else {
			seen[id] = true
		}
		line := "\n| `" + r.Code + "` |"
		listed := r.Runbook != "quarantine.md" // which has one reason
		if listed && !strings.Contains(read(t, "docs/runbooks/"+r.Runbook), line) {
			t.Errorf("docs/runbooks/%s does not explain %s", r.Runbook, r.Code)
		}
		if !listed && !strings.Contains(cli, line) {
			t.Errorf("docs/cli.md does not explain %s", r.Code)
		}
		if words := strings.Fields(strings.ReplaceAll(r.Next, "NAME", "directory")); len(words) > 0 {
			checkCommand(t, "the reason "+r.Code, words[1:])
		}
		if r.Meaning == "" {
			t.Errorf("the reason %s says nothing", r.Code)
		}
	}
	for book, about := range map[string]string{"relay-not-publishing.md": operate.Relay, "consumer-not-moving.md": operate.Consumer, "database.md": "", "process.md": operate.Process} {
		for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\|").FindAllStringSubmatch(read(t, "docs/runbooks/"+book), -1) {
			if !slices.Contains(reasonsAbout(about), m[1]) && !slices.Contains(reasonsAbout(""), m[1]) {
				t.Errorf("docs/runbooks/%s explains %s, which is no reason", book, m[1])
			}
		}
	}
}

// TestReasonsAreAll: the list has all reasons that relays and consumers report, those of consumers
// in their order.
func TestReasonsAreAll(t *testing.T) {
	relay, consumer, both := reasonsAbout(operate.Relay), reasonsAbout(operate.Consumer), reasonsAbout("")
	for _, class := range sqlstate.Reasons {
		if !slices.Contains(both, string(class)) {
			t.Errorf("%s of PostgreSQL is no reason", class)
		}
	}
	for _, class := range jserror.Reasons {
		if class != jserror.ConsumerMissing && class != jserror.ConsumerDiffers && !slices.Contains(relay, string(class)) {
			t.Errorf("%s of JetStream is no reason of a relay", class)
		}
	}
	var own []string
	for _, code := range status.Codes {
		if !slices.Contains(sqlstate.Reasons, sqlstate.Class(code)) {
			own = append(own, code)
		}
	}
	inOrder := slices.DeleteFunc(slices.Clone(consumer), func(code string) bool { return code == string(jserror.Permission) })
	slices.SortFunc(own, func(a, b string) int { return slices.Index(status.Codes, a) - slices.Index(status.Codes, b) })
	if !slices.Equal(inOrder, own) {
		t.Errorf("the reasons of consumers are\n%q, want\n%q", inOrder, own)
	}
	for _, r := range operate.Reasons {
		if r.About == operate.Consumer && r.Healthy != (status.Why{Code: r.Code}).Healthy() {
			t.Errorf("the list says healthy=%t of %s", r.Healthy, r.Code)
		}
	}
}
