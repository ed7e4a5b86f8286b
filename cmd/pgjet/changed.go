package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

// A changed is what a command says that changes something at once.
type changed struct {
	Targets []string `json:"targets"` // what was to be changed
	Changed bool     `json:"changed"` // false: all was so already
	Said    []string `json:"said"`    // what it says to people, a line each
}

// showChanged shows what a command did to a target.
func showChanged(cmd *cobra.Command, output, target string, did bool, said ...string) error {
	return showChanges(cmd, output, []string{target}, did, said...)
}

func showChanges(cmd *cobra.Command, output string, targets []string, did bool, said ...string) error {
	c := changed{append([]string{}, targets...), did, append([]string{}, said...)}
	return show(cmd.OutOrStdout(), output, c, func(w io.Writer) {
		for _, line := range c.Said {
			fmt.Fprintln(w, plain(line))
		}
	})
}

// An ensured is what a command says that creates what is missing, or compares what there is. Differences are its error.
type ensured struct {
	Names []string `json:"names"` // of what is to be there
	Said  []string `json:"said"`  // what was done, a line each
}

func showEnsured(cmd *cobra.Command, output string, names, said []string) error {
	e := ensured{names, append([]string{}, said...)}
	return show(cmd.OutOrStdout(), output, e, func(w io.Writer) {
		for _, line := range e.Said {
			fmt.Fprintln(w, plain(line))
		}
	})
}
