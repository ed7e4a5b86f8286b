package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/internal/operate"
)

func doctorCommand() *cobra.Command {
	var s settings
	all := false
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look for settings that break a promise or soon will; exit code 6 if there are some",
		Long: `Look for settings that break a promise, or soon will, of PostgreSQL, NATS and the streams:
with versions, permissions, poolers, limits, clocks and disks, as far as they can be read.
Each has its consequence and what to do. The command changes nothing. --all also shows what
is in order. The exit code is 6 if something is broken or a warning, 5 if neither server
answers.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.withSource(cmd.Context(), func(ctx context.Context, src operate.Source) error {
				d := src.Diagnose(ctx)
				if err := show(cmd, d, func(w io.Writer) { writeDiagnosis(w, d, all) }); err != nil {
					return err
				}
				switch {
				case src.Err() != nil:
					return &exitError{exitUnreachable, src.Err()}
				case !d.Healthy:
					return &exitError{exitFindings, errors.New("some settings need an operator")}
				}
				return nil
			})
		},
	}
	s.databaseFlag(cmd.Flags())
	s.natsFlags(cmd.Flags())
	outputFlag(cmd.Flags())
	cmd.Flags().BoolVar(&all, "all", false, "also show what is in order")
	return cmd
}

func writeDiagnosis(w io.Writer, d operate.Diagnosis, all bool) {
	ok := 0
	for _, c := range d.Checks {
		if c.State == operate.OK {
			ok++
			if !all {
				continue
			}
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", c.State, c.What, plain(c.Found))
		if c.Consequence != "" {
			fmt.Fprintf(w, "\t\t%s\n", plain(c.Consequence))
		}
		if c.Fix != "" {
			fmt.Fprintf(w, "\t\t-> %s\n", plain(c.Fix))
		}
	}
	fmt.Fprintf(w, "\n%d of %d are in order\n", ok, len(d.Checks))
}
