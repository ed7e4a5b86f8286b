package main

import (
	"strings"
	"testing"

	"github.com/pgjet/pgjet/consumers/mailer"
	"github.com/pgjet/pgjet/internal/testenv"
)

// TestOldServerIsRefused: every command that needs the stream refuses at once, and names both
// versions.
func TestOldServerIsRefused(t *testing.T) {
	t.Parallel()
	_, url := testenv.JetStream(t)
	database := testenv.DatabaseURL(t)
	old := testenv.OtherVersion(t, url, "2.12.15")
	for _, command := range []string{
		"stream ensure", "consumer ensure " + mailer.Name, "consumer ensure " + mailer.Name + " --apply", "consumer ls", "consumer get " + mailer.Name,
		"replay " + mailer.Name + " --all --again --force --reason x --yes",
	} {
		words := append(strings.Fields(command), "--nats-url", old)
		if !strings.HasPrefix(command, "stream") && (!strings.Contains(command, "ensure") || strings.Contains(command, "--apply")) {
			words = append(words, "--database-url", database)
		}
		refused(t, exitUnreachable, words, "nats_outdated: the server runs nats-server 2.12.15, pgjet needs 2.14 or newer")
	}
	must(t, exitOK, "services", "ls", "--nats-url", old)
}

// TestAbsentStream: a command that is about a stream that does not exist says so, and lists
// those that do.
func TestAbsentStream(t *testing.T) {
	t.Parallel()
	_, url := testenv.JetStream(t)
	database := testenv.DatabaseURL(t)
	must(t, exitOK, "stream", "ensure", "--nats-url", url)
	const says = "stream NOPE does not exist; these exist: EVENTS"
	refused(t, exitNotFound, []string{"consumer", "ensure", mailer.Name, "--stream", "NOPE", "--nats-url", url}, says)
	ends(t, exitFindings, asked("relay status --stream NOPE", url), database, says, "pgjet stream ensure --stream NOPE")
	db := openDB(t, database)
	if _, err := db.Exec(t.Context(), `insert into pgjet.consumer (name, stream, stream_created, ordered, effects) values ('notes', 'NOPE', now(), true, false)`); err != nil {
		t.Fatal(err)
	}
	ends(t, exitFindings, asked("consumer ls", url), database, "stream_missing", says)
	refused(t, exitNotFound, []string{"replay", "notes", "--all", "--yes", "--nats-url", url, "--database-url", database}, "NOPE")
}
