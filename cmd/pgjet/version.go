package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/migrations"
)

// A buildInfo is the output of pgjet version.
type buildInfo struct {
	Version  string `json:"version"`
	Revision string `json:"revision"` // of the source; "" if it is not known
	Modified bool   `json:"modified"` // the source was changed since
	Go       string `json:"go"`
	Platform string `json:"platform"`
	Schema   int64  `json:"schema"` // the required version of the tables
}

func thisBuild() buildInfo {
	b := buildInfo{Version: version(), Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH, Schema: migrations.Latest()}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				b.Revision = s.Value
			case "vcs.modified":
				b.Modified = s.Value == "true"
			}
		}
	}
	return b
}

func versionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show the version of this program, and of the tables that it needs",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b := thisBuild()
			return show(cmd, b, func(w io.Writer) {
				fmt.Fprintf(w, "pgjet\t%s\n", b.Version)
				if b.Revision != "" {
					fmt.Fprintf(w, "source\t%s%s\n", b.Revision, map[bool]string{true: ", changed since"}[b.Modified])
				}
				fmt.Fprintf(w, "go\t%s, %s\ntables\tversion %d\n", b.Go, b.Platform, b.Schema)
			})
		},
	}
	outputFlag(cmd.Flags())
	return cmd
}
