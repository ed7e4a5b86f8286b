package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

// A changed is the result of a command that changes something at once.
type changed struct {
	Targets []string `json:"targets"` // what the command was to change
	Changed bool     `json:"changed"` // false: nothing had to be changed
	Said    []string `json:"said"`    // for people, one line each
}

// showChanged shows the result of a command that changes one target.
func showChanged(cmd *cobra.Command, target string, did bool, said ...string) error {
	return showChanges(cmd, []string{target}, did, said...)
}

func showChanges(cmd *cobra.Command, targets []string, did bool, said ...string) error {
	c := changed{append([]string{}, targets...), did, append([]string{}, said...)}
	return show(cmd, c, func(w io.Writer) {
		for _, line := range c.Said {
			fmt.Fprintln(w, plain(line))
		}
	})
}

// An ensured is the result of a command that creates what is missing and compares the rest. The
// command returns differences as an error.
type ensured struct {
	Names []string `json:"names"` // of what has to exist
	Said  []string `json:"said"`  // what was done, one line each
}

func showEnsured(cmd *cobra.Command, names, said []string) error {
	e := ensured{names, append([]string{}, said...)}
	return show(cmd, e, func(w io.Writer) {
		for _, line := range e.Said {
			fmt.Fprintln(w, plain(line))
		}
	})
}
