package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// completed returns what a shell is offered for the last word, without descriptions.
func completed(t *testing.T, vars env, args ...string) (words []string) {
	t.Helper()
	code, p := runProcess(t, vars, append([]string{"__complete"}, args...)...)
	lines := strings.Split(strings.TrimSpace(p.Stdout.String()), "\n")
	if code != exitOK || lines[len(lines)-1] != ":4" { // no names of files
		t.Fatalf("exit code %d, of %s", code, p)
	}
	for _, line := range lines[:len(lines)-1] {
		word, _, _ := strings.Cut(line, "\t")
		words = append(words, word)
	}
	return words
}

// TestCompletion: consumers, types, keys, streams and ids come from the database, which flags or
// the environment name; states and formats come from the program.
func TestCompletion(t *testing.T) {
	t.Parallel()
	b := newReplayRig(t, 2, false)
	database := b.where[1]
	b.exec(`insert into pgjet.outbox (id, type, key, data) values ('00000000-0000-7000-8000-000000000001', 'note.kept', 'k7', '{}')`)
	b.exec(`insert into pgjet.scheduled (id, due, type, key, data) values ('00000000-0000-7000-8000-000000000002', now() + interval '1 hour', 'note.made', 'k', '{}')`)
	b.exec(`insert into pgjet.leader (stream, epoch) values ('NOTES', 1) on conflict do nothing`)
	b.exec(`insert into pgjet.dead_letter (consumer, event_id, type, key, generation, stream, stream_seq, subject, header, data, error, attempts)
		values ('notes', gen_random_uuid(), 'note.made', 'k', 1, 'EVENTS', 9, 's', '{}', '', 'never', 1)`)
	b.exec(`insert into pgjet.operation (kind, target, by, reason, state) values ('republish', 'EVENTS', 'ann', '', 'planned'), ('replay', 'notes', 'ann', '', 'failed'), ('replay', 'notes', 'ann', '', 'done')`)
	vars := env{"PGJET_DATABASE_URL": asOperator(database)}
	for command, want := range map[string]string{"republish run": "planned", "op cancel": "planned", "op resume": "failed", "op get": "planned failed done"} {
		var ids []string
		for state := range strings.FieldsSeq(want) {
			ids = append(ids, query[string](t, b.db, `select id::text from pgjet.operation where state = '`+state+`'`))
		}
		got := completed(t, vars, append(strings.Fields(command), "")...)
		slices.Sort(got)
		if slices.Sort(ids); !slices.Equal(got, ids) {
			t.Errorf("%s completes to %q, want %q, which are %s", command, got, ids, want)
		}
	}
	for args, want := range map[string]string{
		"consumer get ":            "notes",
		"replay ":                  "notes",
		"consumer ensure ":         "notes",
		"consumer ensure pgjet":    "pgjet-users",
		"retry --consumer ":        "notes",
		"event ls --type note.k":   "note.kept",
		"event get 00000000":       "00000000-0000-7000-8000-000000000001",
		"key k7":                   "k7",
		"relay status --stream NO": "NOTES",
		"outbox scheduled get 0":   "00000000-0000-7000-8000-000000000002",
		"dead get ":                "1",
		"event ls --state pend":    "pending",
		"saga ls --state needs":    "needs_operator",
		"explain stream_f":         "stream_full",
		"status -o j":              "json",
	} {
		words := strings.Split(args, " ")
		if got := completed(t, vars, words...); !slices.Contains(got, want) {
			t.Errorf("%s completes to %q, want %s", args, got, want)
		}
		if strings.HasPrefix(args, "consumer") {
			if got := completed(t, nil, append(words[:len(words)-1], "--database-url", database, "")...); !slices.Contains(got, want) {
				t.Errorf("%s with a flag for the database completes to %q, want %s", args, got, want)
			}
		}
	}
	if got := completed(t, vars, "dead", "redrive", "1", ""); slices.Contains(got, "1") {
		t.Errorf("what was typed is offered again: %q", got)
	}
	if got := completed(t, env{"PGJET_DATABASE_URL": "postgres://ann@" + nowhere + "/x"}, "consumer", "get", ""); len(got) != 0 {
		t.Errorf("without the database it completes to %q", got)
	}
	if got := completed(t, nil, "consumer", "get", ""); len(got) != 0 {
		t.Errorf("without an address it completes to %q", got)
	}
}

// TestCompletionOffersNoFiles: files are offered only where a file is meant, and every other
// argument and flag has a completion.
func TestCompletionOffersNoFiles(t *testing.T) {
	root := newRoot()
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.CommandPath() != "pgjet config validate" && !cmd.HasSubCommands() && cmd.ValidArgs == nil && cmd.ValidArgsFunction == nil {
			t.Errorf("the words of %s complete to files", cmd.CommandPath())
		}
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if _, ok := cmd.GetFlagCompletionFunc(f.Name); !ok && !strings.Contains(f.Usage, "file") && f.Name != "dir" && f.Name != "pg-bin" && f.Name != "help" {
				t.Errorf("--%s of %s completes to files", f.Name, cmd.CommandPath())
			}
		})
		for _, c := range cmd.Commands() {
			walk(c)
		}
	}
	walk(root)
	for path := range completedArgs {
		if cmd, rest, err := root.Find(strings.Fields(path)[1:]); err != nil || len(rest) > 0 || cmd.CommandPath() != path {
			t.Errorf("completedArgs names %s, which is no command", path)
		}
	}
	for path, values := range states {
		if cmd, _, err := root.Find(strings.Fields(path)[1:]); err != nil || cmd.Flag("state") == nil || len(values) == 0 {
			t.Errorf("states names %s, which has no --state", path)
		}
	}
}
