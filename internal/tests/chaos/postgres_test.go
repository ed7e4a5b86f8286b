package chaos

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/internal/tests/program"
)

// TestChaosPostgreSQL kills, pauses and blocks the server of the outbox.
func TestChaosPostgreSQL(t *testing.T) {
	t.Parallel()
	p := program.PostgresProcess(t)
	g := newRig(t, p.URL(), testenv.NATS(t).URL())
	g.begin()

	for i := range upTo(2, 15) { // killed
		g.backlog(2000, 20)
		g.moment(300 * time.Millisecond)
		p = program.CrashPostgres(t, p)
		if i%2 == 0 {
			g.moment(time.Second)
		}
		g.flows(20)
	}
	for range upTo(1, 4) { // paused
		g.backlog(500, 20)
		thaw := testenv.Freeze(t, p.PID())
		time.Sleep(upTo(3*time.Second, 30*time.Second))
		if scale > 0 {
			g.says("database_unreachable")
		}
		thaw()
		g.flows(20)
	}
	for range upTo(1, 4) { // read-only, except for the writer
		g.exec(`alter system set default_transaction_read_only = on`)
		g.exec(`select pg_reload_conf()`)
		g.backlog(500, 20)
		g.says("database_read_only")
		g.moment(time.Second)
		g.exec(`alter system reset default_transaction_read_only`)
		g.exec(`select pg_reload_conf()`)
		g.flows(20)
	}
	g.check()
}

// exec runs one or more statements.
func (g *rig) exec(sql string) {
	g.Helper()
	if _, err := g.db.Exec(g.Context(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		g.Fatalf("%s: %v", sql, err)
	}
}

// relayRole returns the database's address for a role with the rights of a relay, and at most 4
// connections.
func (g *rig) relayRole() string {
	g.Helper()
	role := strings.Replace(program.Query[string](g, g.db, `select current_database()`), "pgjet_test_", "pgjet_role_", 1)
	g.exec(fmt.Sprintf(`create role %s login connection limit 4`, role))
	g.Cleanup(func() {
		ctx := context.Background()
		_, err := g.db.Exec(ctx, fmt.Sprintf(`
			select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = '%s'`, role))
		if err == nil {
			_, err = g.db.Exec(ctx, fmt.Sprintf(`drop owned by %[1]s; drop role %[1]s`, role), pgx.QueryExecModeSimpleProtocol)
		}
		if err != nil {
			g.Error(err)
		}
	})
	g.exec(`grant usage on schema pgjet to ` + role)
	g.exec(`grant select, insert, update, delete on all tables in schema pgjet to ` + role)
	g.exec(`grant execute on all functions in schema pgjet to ` + role)
	u, err := url.Parse(g.database)
	if err != nil {
		g.Fatal(err)
	}
	u.User = url.User(role)
	return u.String()
}

// disconnect ends the relay's connections to the database.
func (g *rig) disconnect() {
	g.Helper()
	g.exec(`select pg_terminate_backend(pid, 5000) from pg_stat_activity
		where application_name like 'pgjet-relay%' and datname = current_database()`)
}

// TestChaosConnectionsExhausted uses up the connections that the relay could have.
func TestChaosConnectionsExhausted(t *testing.T) {
	t.Parallel()
	g := newRig(t, testenv.DatabaseURL(t), testenv.NATS(t).URL())
	g.database = g.relayRole()
	g.begin()
	for range upTo(1, 5) {
		var all []*pgx.Conn
		testenv.Eventually(t, program.Healing, "all connections are taken", func() bool {
			g.disconnect()
			if conn, err := pgx.Connect(t.Context(), g.database); err == nil {
				all = append(all, conn)
			}
			return len(all) == 4
		})
		g.says("database_exhausted")
		for _, conn := range all {
			conn.Close(t.Context())
		}
		g.flows(20)
	}
	g.check()
}
