package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
)

// findDev connects a command for operators to the pgjet dev that runs in this directory or one
// above it. It does so only if no address was given, and prints a line about it.
func findDev(cmd *cobra.Command) error {
	database, nats := cmd.Flag("database-url"), cmd.Flag("nats-url")
	given := database != nil && database.Changed || nats != nil && nats.Changed
	service := cmd.Flag("log-level") != nil // a process must not join it by mistake
	if given || service || database == nil && nats == nil {
		return nil
	}
	state, p, found := runningDev()
	if !found {
		return nil
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "using the pgjet dev that runs in %s\n", plain(state))
	if database != nil {
		if err := cmd.Flags().Set(database.Name, p.Database); err != nil {
			return err
		}
	}
	if nats != nil {
		return cmd.Flags().Set(nats.Name, p.NATS)
	}
	return nil
}

// runningDev returns the pgjet dev that runs in this directory or one above it: its state directory
// and its addresses.
func runningDev() (state string, p devAddresses, found bool) {
	dir, err := os.Getwd()
	for err == nil {
		state = filepath.Join(dir, ".pgjet")
		if isOwn(state) { // another user's may contain any address
			if p, err := readAddresses(state); err == nil {
				return state, p, true
			}
		}
		if dir == filepath.Dir(dir) {
			break
		}
		dir = filepath.Dir(dir)
	}
	return "", devAddresses{}, false
}
