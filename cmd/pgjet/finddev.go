package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
)

// findDev has a command for operators that was given no address of the servers use the pgjet dev that runs in this folder or
// one above it, and says so.
func findDev(cmd *cobra.Command) error {
	database, nats := cmd.Flag("database-url"), cmd.Flag("nats-url")
	given := database != nil && database.Changed || nats != nil && nats.Changed
	service := cmd.Flag("log-level") != nil // it does not run beside that by mistake
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

// runningDev returns the state directory of the pgjet dev that runs in this folder or one above it, and where its servers are.
func runningDev() (state string, p places, found bool) {
	dir, err := os.Getwd()
	for err == nil {
		state = filepath.Join(dir, ".pgjet")
		if isOwn(state) { // one of somebody else may lead anywhere
			if p, err := placesIn(state); err == nil {
				return state, p, true
			}
		}
		if dir == filepath.Dir(dir) {
			break
		}
		dir = filepath.Dir(dir)
	}
	return "", places{}, false
}
