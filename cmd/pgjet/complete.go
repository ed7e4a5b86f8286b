package main

import (
	"context"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pgjet/pgjet/consumers/saga"
	"github.com/pgjet/pgjet/internal/operate"
	"github.com/pgjet/pgjet/internal/operation"
)

// completedArgs lists, for each command, what its arguments name. Commands that are not listed
// complete to nothing.
var completedArgs = map[string]string{
	"pgjet consumer get":                   operate.Consumers,
	"pgjet consumer pause":                 operate.Consumers,
	"pgjet consumer resume":                operate.Consumers,
	"pgjet replay":                         operate.Consumers,
	"pgjet event get":                      operate.Events,
	"pgjet event timeline":                 operate.Events,
	"pgjet key":                            operate.Keys,
	"pgjet retry":                          operate.Retries,
	"pgjet dead get":                       operate.Letters,
	"pgjet dead ls":                        operate.Letters,
	"pgjet dead redrive":                   operate.Letters,
	"pgjet dead discard":                   operate.Letters,
	"pgjet dead export":                    operate.Letters,
	"pgjet saga get":                       operate.Sagas,
	"pgjet saga retry":                     operate.Sagas,
	"pgjet outbox scheduled get":           operate.Schedules,
	"pgjet outbox scheduled cancel":        operate.Schedules,
	"pgjet outbox scheduled bring-forward": operate.Schedules,
	"pgjet op get":                         operate.Operations,
	"pgjet op resume":                      operate.Resumable,
	"pgjet op cancel":                      operate.Cancellable,
	"pgjet republish plan":                 operate.Events,
	"pgjet republish run":                  operate.Plans,
	"pgjet consumer ensure":                operate.Consumers,
	"pgjet relay quarantine retry":         operate.Quarantines,
	"pgjet relay quarantine drop":          operate.Quarantines,
}

// completedFlags lists what flags name, in commands that use a database.
var completedFlags = map[string]string{"consumer": operate.Consumers, "type": operate.Types, "key": operate.Keys, "stream": operate.Streams}

// states lists the values of --state.
var states = map[string][]string{
	"pgjet event ls":            eventStates,
	"pgjet saga ls":             saga.States,
	"pgjet relay quarantine ls": {"held", "retry", "dropped"},
	"pgjet op ls":               operation.States,
	"pgjet dead ls":             letterStates,
	"pgjet dead groups":         letterStates,
	"pgjet dead export":         letterStates,
}

var letterStates = []string{"dead", "redriven", "done", "discarded", "all"}

// completedWords lists the values of other flags.
var completedWords = map[string][]string{
	"log-level": {"debug", "info", "warn", "error"},
	"pg-mirror": {"npm"},
}

// completions sets up shell completion for the commands below cmd. Values come from the database
// where it can be asked. Files are offered only for flags that name one.
func completions(cmd *cobra.Command) {
	path := cmd.CommandPath()
	switch {
	case path == "pgjet explain":
		cmd.ValidArgsFunction = fixed(explained())
	case completedArgs[path] != "":
		cmd.ValidArgsFunction = live(completedArgs[path], cmd.ValidArgs...)
		cmd.ValidArgs = nil // cobra takes one of both
	case cmd.ValidArgs == nil && cmd.ValidArgsFunction == nil && !cmd.HasSubCommands() && path != "pgjet config validate":
		cmd.ValidArgsFunction = cobra.NoFileCompletions
	}
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
		var complete cobra.CompletionFunc
		switch words := completedWords[f.Name]; {
		case f.Name == "output":
			complete = fixed(formsOf(f))
		case f.Name == "state":
			complete = fixed(states[path])
		case words != nil:
			complete = fixed(words)
		case completedFlags[f.Name] != "" && cmd.Flag("database-url") != nil:
			complete = live(completedFlags[f.Name])
		case strings.Contains(f.Usage, "file") || f.Name == "dir" || f.Name == "pg-bin":
			return // the shell completes file names
		default:
			complete = cobra.NoFileCompletions
		}
		_ = cmd.RegisterFlagCompletionFunc(f.Name, complete) // the flag exists, and has no completion yet
	})
	for _, c := range cmd.Commands() {
		completions(c)
	}
}

// fixed returns a completion to these words.
func fixed(words []string) cobra.CompletionFunc {
	return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return words, cobra.ShellCompDirectiveNoFileComp
	}
}

// completionTime bounds how long a shell waits for the database.
const completionTime = time.Second

// live returns a completion to what the database knows, and to the words of also. If the database
// does not answer in time, it completes to these words only.
func live(what string, also ...string) cobra.CompletionFunc {
	known := fixed(also)
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
		defer cancel()
		cmd.SetContext(ctx)
		cmd.SetErr(io.Discard) // the shell would print it into the command line
		if configure(cmd) != nil || findDev(cmd) != nil {
			return known(cmd, args, "")
		}
		s := settings{databaseURL: cmd.Flag("database-url").Value.String()}
		var src operate.Source
		src.DB, src.DBErr = s.reach(ctx)
		if src.DB != nil {
			defer src.DB.Close()
		}
		words, err := src.Candidates(ctx, what)
		if err != nil {
			return known(cmd, args, "")
		}
		for _, w := range also {
			if !slices.Contains(words, w) {
				words = append(words, w)
			}
		}
		return slices.DeleteFunc(words, func(w string) bool { // drop what was typed already
			w, _, _ = strings.Cut(w, "\t")
			return slices.Contains(args, w)
		}), cobra.ShellCompDirectiveNoFileComp
	}
}
