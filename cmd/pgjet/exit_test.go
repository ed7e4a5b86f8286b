package main

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/testenv"
)

// refusedFor runs a pgjet that must end with that exit code and the reason.
func refusedFor(t *testing.T, want int, args []string, reason string, words ...string) {
	t.Helper()
	code, p := runProcess(t, nil, args...)
	if got := p.Stderr.String(); code != want || !strings.HasPrefix(got, "pgjet: "+reason+": ") || strings.Count(got, reason+":") != 1 {
		t.Errorf("exit code %d, want %d and a line that begins with the reason %s, of %s", code, want, reason, p)
	}
	for _, w := range words {
		if !strings.Contains(p.Stderr.String(), w) {
			t.Errorf("stderr does not say %q, of %s", w, p)
		}
	}
}

// TestCommandsNameLocks: a command that waits too long for a table names the session that holds it.
func TestCommandsNameLocks(t *testing.T) {
	t.Parallel()
	for _, row := range []struct{ table, command string }{
		{"inbox", "consumer ls"},
		{"consumer", "consumer pause notes --reason why"},
		{"dead_letter", "dead redrive --all --yes"},
		{"inbox", "dead discard 1 --reason why"},
		{"saga", "saga retry 5b0d1a5e-1f5c-4c53-9d5c-0f6a8f3f7c11 --reason why"},
		{"consumer", "replay notes --all --yes"},
		{"inbox", "replay notes --all --yes"},
		{"operation", "replay notes --all --again --yes --force --reason why"},
		{"outbox", "outbox status"},
		{"checkpoint", "outbox status -o json"},
		{"checkpoint", "outbox prune"},
		{"outbox", "outbox prune --older-than 0s --dry-run"},
	} {
		t.Run(row.table+" "+row.command, func(t *testing.T) {
			t.Parallel()
			b := newReplayRig(t, 3, false)
			b.exec(`insert into pgjet.dead_letter (consumer, event_id, stream, generation, stream_seq, subject, type, key, header, data, error, error_group, attempts)
				select 'notes', event_id, 'EVENTS', 1, stream_seq, 'events.00.note.made', 'note.made', 'k', '{}', '', '', '', 1 from pgjet.inbox limit 1`)
			b.exec(`update pgjet.inbox set state = 'dead' where event_id in (select event_id from pgjet.dead_letter)`)
			conn, err := pgx.Connect(t.Context(), b.where[1]+"&application_name=psql")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close(context.Background())
			if _, err := conn.Exec(t.Context(), `begin; lock table pgjet.`+row.table); err != nil {
				t.Fatal(err)
			}
			args := append(strings.Fields(row.command), b.where...)
			if !strings.HasPrefix(row.command, "replay") && !strings.HasPrefix(row.command, "consumer ls") {
				args = append(strings.Fields(row.command), b.where[:2]...)
			}
			refusedFor(t, exitRefused, args, "database_timeout",
				fmt.Sprintf(`the lock on table pgjet.%s is held by process %d of the server, application "psql"`, row.table, conn.PgConn().PID()))
		})
	}
}

// TestPooledCommandsNameLocks: the same through a pooler, which has no setting for how long to wait.
func TestPooledCommandsNameLocks(t *testing.T) {
	t.Parallel()
	for _, row := range []struct{ table, command string }{
		{"pgjet.dead_letter", "dead ls"},
		{"pgjet.dead_letter", "dead redrive --all --yes"},
		{"pgjet.checkpoint", "outbox prune"},
		{"pgjet.outbox", "outbox status"},
		{"pgjet.saga", "saga ls"},
		{"directory.schema_version", "migrate status"},
		{"users.users", "users grant ann@example.com admin --reason why"},
	} {
		t.Run(row.command, func(t *testing.T) {
			t.Parallel()
			database := testenv.DatabaseURL(t)
			tx, err := openDB(t, database).Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback(context.Background())
			if _, err := tx.Exec(t.Context(), `lock table `+row.table); err != nil {
				t.Fatal(err)
			}
			args := append(strings.Fields(row.command), "--database-url", testenv.PgBouncer(t, database, "transaction"))
			refusedFor(t, exitRefused, args, "database_timeout",
				fmt.Sprintf(`the lock on table %s is held by process %d of the server`, row.table, tx.Conn().PgConn().PID()))
		})
	}
}

// TestCommandsSayTheReason: an error because PostgreSQL or NATS refused begins with the reason.
func TestCommandsSayTheReason(t *testing.T) {
	t.Parallel()
	b := newReplayRig(t, 1, false)
	database, nats := b.where[1], b.where[3]
	nobody := strings.Replace(database, "?", "?role=pgjet_writer&", 1)
	gone := "postgres://nobody@127.0.0.1:1/none"
	pooler := testenv.PgBouncer(t, database, "transaction")
	for _, row := range []struct {
		database, command, reason string
		code                      int
	}{
		{pooler, "migrate up", "pooler", exitUnreachable},
		{pooler, "replay notes --all --yes", "pooler", exitUnreachable},
		{gone, "migrate up", "database_unreachable", exitUnreachable},
		{gone, "dead ls", "database_unreachable", exitUnreachable},
		{nobody, "consumer ls", "permission_denied", exitFailed},
		{nobody, "consumer get notes", "permission_denied", exitFailed},
		{nobody, "consumer pause notes --reason why", "permission_denied", exitFailed},
		{nobody, "dead ls", "permission_denied", exitFailed},
		{nobody, "dead redrive --all --yes", "permission_denied", exitFailed},
		{nobody, "saga ls", "permission_denied", exitFailed},
		{nobody, "saga retry 5b0d1a5e-1f5c-4c53-9d5c-0f6a8f3f7c11 --reason why", "permission_denied", exitFailed},
		{nobody, "relay quarantine ls", "permission_denied", exitFailed},
		{nobody, "relay quarantine drop 1 --reason why", "permission_denied", exitFailed},
		{nobody, "relay pause --reason why", "permission_denied", exitFailed},
		{nobody, "relay status", "permission_denied", exitFailed},
		{nobody, "outbox status", "permission_denied", exitFailed},
		{nobody, "outbox prune", "permission_denied", exitFailed},
		{nobody, "replay notes --all --yes", "permission_denied", exitFailed},
		{"", "stream ensure --nats-url nats://127.0.0.1:1", "nats_unreachable", exitUnreachable},
		{database, "consumer ls --nats-url nats://127.0.0.1:1", "nats_unreachable", exitUnreachable},
		{"", "consumer ensure directory --stream NONE", "stream_missing", exitNotFound},
	} {
		t.Run(row.command+" "+row.reason, func(t *testing.T) {
			t.Parallel()
			args := strings.Fields(row.command)
			if row.database != "" {
				args = append(args, "--database-url", row.database)
			}
			for _, prefix := range []string{"consumer ls", "consumer get", "replay", "consumer ensure", "relay status"} {
				if strings.HasPrefix(row.command, prefix) && !strings.Contains(row.command, "--nats-url") {
					args = append(args, "--nats-url", nats)
				}
			}
			refusedFor(t, row.code, args, row.reason)
		})
	}
}

// TestUnknownNames: a command about anything that does not exist ends with exit code 4.
func TestUnknownNames(t *testing.T) {
	t.Parallel()
	b := newReplayRig(t, 0, false)
	const id = "5b0d1a5e-1f5c-4c53-9d5c-0f6a8f3f7c11"
	for _, command := range []string{
		"relay quarantine retry 7", "relay quarantine drop 7 --reason why", "relay pause --stream NONE --reason why",
		"saga get " + id, "saga retry " + id + " --reason why",
		"dead get 7", "dead redrive 7", "dead discard 7 --reason why", "dead reopen 7", "dead ls --consumer nobody", "dead redrive --consumer nobody --yes",
		"consumer get nobody", "consumer pause nobody --reason why", "consumer resume nobody", "consumer ensure nobody", "replay nobody --all --yes",
		"users grant " + id + " admin --reason why", "users revoke " + id + " admin --reason why",
	} {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			where := b.where[:2]
			for _, both := range []string{"consumer get", "replay", "consumer ensure"} {
				if strings.HasPrefix(command, both) {
					where = b.where
				}
			}
			if command == "consumer ensure nobody" {
				where = b.where[2:]
			}
			refused(t, exitNotFound, append(strings.Fields(command), where...))
		})
	}
}

// TestMigrateStatusOfAnOperator: the command shows what a user may see, and reports what is hidden.
func TestMigrateStatusOfAnOperator(t *testing.T) {
	t.Parallel()
	address := testenv.DatabaseURL(t)
	operator := strings.Replace(address, "?", "?role=pgjet_operator&", 1)
	code, p := runProcess(t, nil, "migrate", "status", "--database-url", operator)
	if out := p.Stdout.String(); code != exitPartly || !strings.Contains(out, "00001_outbox.sql") || !strings.Contains(out, "true") || !strings.Contains(out, "?") {
		t.Errorf("exit code %d, want %d and what the operator may see, of %s", code, exitPartly, p)
	}
	if says := p.Stderr.String(); !strings.HasPrefix(says, "pgjet: permission_denied: ") || !strings.Contains(says, "in the schema users, directory;") && !strings.Contains(says, "in the schema directory, users;") {
		t.Errorf("stderr does not say what the operator may not see, of %s", p)
	}
	if out := must(t, exitPartly, "migrate", "status", "-o", "json", "--database-url", operator); !strings.Contains(out, `"state":"hidden"`) {
		t.Errorf("JSON does not say what is hidden: %s", out)
	}
	refusedFor(t, exitFailed, []string{"migrate", "up", "--database-url", operator}, "permission_denied", "nothing was changed")
}
