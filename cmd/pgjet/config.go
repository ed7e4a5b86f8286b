package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pgjet/pgjet/internal/config"
)

func configCommand(root *cobra.Command) *cobra.Command {
	return group(&cobra.Command{
		Use:   "config",
		Short: "Look at the configuration",
		Long: `Look at the configuration: defaults, then the file that --config names, then the
environment, then flags. A later one wins, key by key. One file serves all processes.`,
	}, configShowCommand(root), configValidateCommand(), configInitCommand())
}

func configShowCommand(root *cobra.Command) *cobra.Command {
	var origin bool
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show the value of every key, and where it comes from",
		Long: `Show the value of every key of processes, from the defaults, the file, the environment and
the flags; with --origin also where it comes from. Secrets are masked.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := configured(cmd.Context()).load()
			if err != nil {
				return &exitError{exitUsage, err}
			}
			showWarnings(cmd, c)
			return showConfig(cmd, origin, c)
		},
	}
	f := cmd.Flags()
	outputFlag(f)
	f.BoolVar(&origin, "origin", false, "show where each value comes from")
	visitKeys(root, func(_ string, flag *pflag.Flag) {
		if f.Lookup(flag.Name) == nil {
			f.AddFlag(flag)
		}
	})
	return cmd
}

// A configView is the JSON output of pgjet config show.
type configView struct {
	File string         `json:"file,omitempty"`
	Hash string         `json:"hash"`
	Keys []config.Value `json:"keys"`
}

func showConfig(cmd *cobra.Command, origin bool, c *config.Config) error {
	all := configView{c.File(), c.Hash(), c.Values()}
	return show(cmd, all, func(w io.Writer) {
		heading := "KEY\tVALUE"
		if origin {
			heading += "\tORIGIN"
		}
		fmt.Fprintln(w, heading)
		for _, v := range all.Keys {
			line := v.Key + "\t" + cmp.Or(plain(v.Text), "-")
			if origin {
				line += "\t" + plain(v.Origin)
			}
			fmt.Fprintln(w, line)
		}
		fmt.Fprintf(w, "\nhash %s\n", all.Hash)
	})
}

func showWarnings(cmd *cobra.Command, c *config.Config) {
	for _, w := range c.Warnings() {
		fmt.Fprintln(cmd.ErrOrStderr(), "pgjet: warning:", w)
	}
}

func configValidateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "validate [FILE]",
		Short: "Report whether a file is valid, and everything that is wrong with it",
		Long: `Report whether a file is valid, together with this environment, and everything that is wrong
with it. The default FILE is that of --config. The exit code is 2 if it is not valid.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c := configured(cmd.Context())
			c.file = cmp.Or(strings.Join(args, ""), c.file)
			if c.file == "" {
				return usagef("name a file, or set --config or PGJET_CONFIG")
			}
			valid, err := c.load()
			if err != nil {
				return &exitError{exitUsage, err}
			}
			if _, err := listedRelays(valid, ""); err != nil {
				return err
			}
			showWarnings(cmd, valid)
			v := validConfig{c.file, valid.Hash(), append([]string{}, valid.Warnings()...)}
			return show(cmd, v, func(w io.Writer) { fmt.Fprintf(w, "%s is valid, hash %s\n", plain(v.File), v.Hash) })
		},
	}
	outputFlag(cmd.Flags())
	return cmd
}

// A validConfig is the JSON output of pgjet config validate for a valid file.
type validConfig struct {
	File     string   `json:"file"`
	Hash     string   `json:"hash"`
	Warnings []string `json:"warnings"`
}

func configInitCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "init",
		Short: "Print a file with all keys and their defaults",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := configured(cmd.Context()).schema.Write(cmd.OutOrStdout()); err != nil {
				return errors.Join(errors.New("print the configuration"), err)
			}
			return nil
		},
	}
}
