package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/internal/lead"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/sqlstate"
	"github.com/pgjet/pgjet/migrations"
	"github.com/pgjet/pgjet/migrations/demo"
)

func migrateCommand() *cobra.Command {
	var s settings
	withDemo := false
	up := &cobra.Command{
		Use:   "up",
		Short: "Apply what is missing",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.migrateUp(cmd, withDemo)
		},
	}
	outputFlag(up.Flags())
	status := s.migrateStatusCommand(&withDemo)
	cmd := group(&cobra.Command{Use: "migrate", Short: "Create and update the tables"}, up, status, migratePrintCommand())
	for _, c := range []*cobra.Command{up, status} {
		s.databaseFlag(c.Flags())
		c.Flags().BoolVar(&withDemo, "demo", false, "also the tables of the demo, users and directory; existing ones are always included")
	}
	s.directFlag(up.Flags())
	return cmd
}

func migratePrintCommand() *cobra.Command {
	after := int64(0)
	cmd := &cobra.Command{
		Use:   "print",
		Short: "Print the tables of the schema pgjet as plain SQL, for a migration tool of your own",
		Long: `Print the tables of the schema pgjet as plain SQL, for a migration tool of your own. It
needs one transaction, of the owner of the schema, and records what it applied in
pgjet.schema_version, so that pgjet migrate status and up understand it. See
https://github.com/pgjet/pgjet/blob/main/docs/migrations.md.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var script bytes.Buffer
			if err := migrations.WriteScript(&script, after); err != nil {
				return usagef("--after: %w", err)
			}
			_, err := script.WriteTo(cmd.OutOrStdout())
			return err
		},
	}
	cmd.Flags().Int64Var(&after, "after", 0, "print what follows this version, which the database has; 0 prints all")
	return cmd
}

// demoSets returns the demo's migrations if they are asked for or already in db.
func demoSets(ctx context.Context, db *pgxpool.Pool, asked bool) ([]migrations.Set, error) {
	if asked {
		return demo.Sets, nil
	}
	return demo.In(ctx, db)
}

func (s *settings) migrateUp(cmd *cobra.Command, withDemo bool) error {
	ctx, hints := cmd.Context(), cmd.ErrOrStderr()
	config, err := s.directConfig()
	if err != nil {
		return err
	}
	config.ConnConfig.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		if n.Routine == "exec_stmt_raise" { // raised by a migration
			fmt.Fprintln(hints, "pgjet:", n.Message)
		}
	}
	db, err := reach(ctx, config)
	if err != nil {
		return err
	}
	defer postgres.Close(db)
	sets, err := demoSets(ctx, db, withDemo)
	if err != nil {
		return err
	}
	applied, err := migrations.Up(ctx, db, sets...)
	names, said := []string{}, []string{}
	for _, m := range applied {
		names = append(names, m.Schema+"/"+m.File)
		said = append(said, fmt.Sprintf("applied %s/%s", m.Schema, m.File))
	}
	if err == nil && len(applied) == 0 {
		said = append(said, "nothing to apply")
	}
	return errors.Join(showChanges(cmd, names, len(applied) > 0, said...), lead.NameLock(ctx, db, err))
}

func (s *settings) migrateStatusCommand(withDemo *bool) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show which migrations are applied; exit code 6 if one is missing, 3 if the user may not see all",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			db, err := s.reach(cmd.Context())
			if err != nil {
				return err
			}
			defer postgres.Close(db)
			var all []migrations.Status
			err = withLockNamed(cmd.Context(), db, func(ctx context.Context) error {
				sets, err := demoSets(ctx, db, *withDemo)
				if err == nil {
					all, err = migrations.List(ctx, db, sets...)
				}
				return err
			})
			if err != nil {
				return err
			}
			return showMigrations(cmd, all)
		},
	}
	outputFlag(cmd.Flags())
	return cmd
}

func showMigrations(cmd *cobra.Command, all []migrations.Status) error {
	missing := 0
	var hidden []string
	gaps := &migrations.OrderError{}
	for _, m := range all {
		switch m.State {
		case migrations.Pending:
			missing++
		case migrations.OutOfOrder:
			gaps.Missing = append(gaps.Missing, m)
		case migrations.Hidden:
			hidden = append(hidden, m.Schema)
		}
	}
	if err := show(cmd, all, func(w io.Writer) { writeMigrations(w, all) }); err != nil {
		return err
	}
	if len(gaps.Missing) > 0 {
		return &exitError{exitFindings, gaps}
	}
	if missing > 0 {
		return &exitError{exitFindings, fmt.Errorf("%d migrations are missing; run: pgjet migrate up", missing)}
	}
	if hidden = slices.Compact(hidden); len(hidden) > 0 {
		return &exitError{exitPartly, fmt.Errorf("%s: the user may not see what is applied in the schema %s; ask as the owner of the tables, or grant usage on it and select on its schema_version",
			sqlstate.Permission, strings.Join(hidden, ", "))}
	}
	return nil
}

func writeMigrations(w io.Writer, all []migrations.Status) {
	fmt.Fprintln(w, "SCHEMA\tVERSION\tFILE\tAPPLIED")
	for _, m := range all {
		note, applied := "", fmt.Sprint(m.Applied)
		switch m.State {
		case migrations.Hidden:
			applied = "?"
		case migrations.Unknown:
			m.File, note = "-", " (a newer pgjet did)"
		case migrations.OutOfOrder:
			note = " (out of order)"
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%s%s\n", m.Schema, m.Version, m.File, applied, note)
	}
}
