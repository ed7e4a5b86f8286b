package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestSecretsStayOut: git and image builds ignore files that the documents ask people to create:
// keys, credentials, development state, dumps.
func TestSecretsStayOut(t *testing.T) {
	names := []string{"users.jwk", "users.jwk.new", "deploy/new.jwk", "relay.creds", "user.nk", "tls/server.key", "tls/ca.pem", ".env", "prod.env", ".pgjet/users.jwk", "deploy/.pgjet/pgjet.yaml", "app.dump"}
	if _, err := exec.LookPath("git"); err == nil {
		for _, name := range names {
			cmd := exec.CommandContext(t.Context(), "git", "check-ignore", "--no-index", "-q", name)
			cmd.Dir = "../.."
			if err := cmd.Run(); err != nil {
				t.Errorf("git does not ignore %s: %v", name, err)
			}
		}
	}
	ignored, err := os.ReadFile("../../.dockerignore")
	if err != nil {
		t.Fatal(err)
	}
	for _, pattern := range []string{"**/*.jwk", "**/*.jwk.new", "**/*.creds", "**/*.nk", "**/*.key", "**/*.pem", "**/*.env", "**/.env*", "**/.pgjet", "**/*.dump"} {
		if !strings.Contains("\n"+string(ignored), "\n"+pattern+"\n") {
			t.Errorf(".dockerignore lacks %s", pattern)
		}
	}
}
