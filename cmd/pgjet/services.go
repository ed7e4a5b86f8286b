package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/internal/operate"
	"github.com/pgjet/pgjet/internal/registry"
)

type instance = operate.Instance

func servicesCommand() *cobra.Command {
	var s settings
	cmd := group(&cobra.Command{
		Use:   "services",
		Short: "See which processes run, and whether they are ready",
		Long: `See which processes run, and whether they are ready. Each running process answers over NATS.
Their health pages are read over HTTP, so they have to be reachable from here.`,
	}, s.servicesListCommand(), s.servicesGetCommand())
	s.natsURLFlag(cmd.PersistentFlags())
	s.access.flags(cmd.PersistentFlags())
	return cmd
}

func (s *settings) servicesListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the instances of all services",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := s.instances(cmd.Context(), "")
			if err != nil {
				return err
			}
			return showInstances(cmd, all)
		},
	}
	outputFlag(cmd.Flags())
	return cmd
}

func (s *settings) servicesGetCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "get NAME",
		Short: "Show all that is known of the instances of one service",
		Args:  oneName("service", "pgjet services ls"),
		RunE: func(cmd *cobra.Command, args []string) error {
			all, err := s.instances(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if len(all) == 0 {
				return &exitError{exitNotFound, fmt.Errorf("no instance of %q answers; see: pgjet services ls", args[0])}
			}
			return showInstance(cmd, all)
		},
	}
	outputFlag(cmd.Flags())
	return cmd
}

// instances returns the instances of one service with their health, or of all services if name is
// empty.
func (s *settings) instances(ctx context.Context, name string) ([]instance, error) {
	nc, err := s.dialNATS()
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	all, err := operate.Instances(ctx, nc, name)
	switch {
	case errors.Is(err, registry.ErrAway) || errors.Is(err, nats.ErrConnectionClosed):
		return nil, &exitError{exitUnreachable, err}
	case err != nil:
		return nil, &exitError{exitUsage, err}
	}
	return all, nil
}

func showInstances(cmd *cobra.Command, all []instance) error {
	return show(cmd, all, func(w io.Writer) {
		fmt.Fprintln(w, "NAME\tID\tSTREAM\tVERSION\tADDRESS\tHEALTH\tCONFIG\tUP\tWHY")
		for _, i := range all {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", plain(i.Name), plain(i.ID), plain(cmp.Or(i.Metadata[registry.StreamKey], "-")), plain(i.Version), plain(cmp.Or(i.Address, "-")),
				i.Health, plain(cmp.Or(i.Metadata["config"], "-")), uptime(i.Started), plain(i.Cause))
		}
	})
}

func showInstance(cmd *cobra.Command, all []instance) error {
	return show(cmd, all, func(w io.Writer) {
		for n, i := range all {
			if n > 0 {
				fmt.Fprintln(w)
			}
			started := "-"
			if !i.Started.IsZero() {
				started = i.Started.UTC().Format(time.RFC3339) + ", up " + uptime(i.Started)
			}
			for _, line := range [][2]string{
				{"name", i.Name},
				{"id", i.ID},
				{"stream", cmp.Or(i.Metadata[registry.StreamKey], "-")},
				{"version", i.Version},
				{"address", cmp.Or(i.Address, "-")},
				{"health", i.Health},
				{"why", i.Cause},
				{"health url", cmp.Or(i.HealthURL, "-")},
				{"config", cmp.Or(i.Metadata["config"], "-")},
				{"started", started},
			} {
				if line[1] != "" {
					fmt.Fprintf(w, "%s\t%s\n", line[0], plain(line[1]))
				}
			}
		}
	})
}

// uptime formats how long something has run.
func uptime(started time.Time) string {
	if started.IsZero() {
		return "-"
	}
	return time.Since(started).Round(time.Second).String()
}
