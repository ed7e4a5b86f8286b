package main

import (
	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/internal/devservices"
)

func standinCommand() *cobra.Command {
	var s processSettings
	var dir string
	cmd := &cobra.Command{
		Use:   "standin profiles|billing",
		Short: "Stand in for another service, for development",
		Long: `Stand in for another service, for development: profiles or billing. It registers under that
name. PUT /fault makes it fail, DELETE /fault ends that; see
https://github.com/pgjet/pgjet/blob/main/docs/services.md.`,
		ValidArgs: []string{devservices.Profiles, devservices.Billing},
		Args:      oneOfThem,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, log := cmd.Context(), s.logger(cmd)
			handler, err := devservices.New(args[0], dir, log)
			if err != nil {
				return err
			}
			l, err := listen(args[0], s.addr, "--addr")
			if err != nil {
				return err
			}
			nc, _, err := s.connectNATS(args[0], log)
			if err != nil {
				return err
			}
			defer nc.Close()
			log.InfoContext(ctx, "serving the API", "addr", "http://"+l.Addr().String())
			warnPublic(ctx, log, args[0], "--addr", l.Addr())
			s.registryConn, s.served = nc, l.Addr()
			return s.serve(ctx, log, args[0], serveHTTP(args[0], l, handler, log))
		},
	}
	f := cmd.Flags()
	f.StringVar(&s.addr, "addr", "127.0.0.1:7407", "where to serve it")
	f.StringVar(&dir, "dir", "", "directory that keeps its state; by default the state is lost at the end")
	s.natsURLFlag(f)
	s.access.flags(f)
	s.processFlags(f)
	return cmd
}
