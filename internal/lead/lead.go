// Package lead lets one of many processes do what only one at a time may do. A lead
// is a session advisory lock of PostgreSQL on a connection of its own: it lives and
// dies with that connection, so a crash hands over at once, and a leader that hangs
// loses it after [Silence].
package lead

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgjet/pgjet/internal/sqlstate"
)

// Silence is for how long a leader may ask nothing of the database. Then it loses its
// session, and with it the lead.
const Silence = 8 * time.Second

// patience bounds one question to the database, but for waiting for the lead.
const patience = 10 * time.Second

// Lock is the SQL for the key of a lead's lock: $1 is its name.
const Lock = `hashtextextended($1, 0)`

// Connect opens a connection for a lead, under an application name. The settings are
// SQL; the server may refuse them.
func Connect(ctx context.Context, config *pgx.ConnConfig, application string, settings ...string) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, patience/2)
	defer cancel()
	config = config.Copy()
	config.RuntimeParams["application_name"] = application
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	silence := int(Silence.Seconds())
	settings = append(settings,
		// A standby blocks in the lock: let the server notice by itself when it
		// died. Not every system that PostgreSQL runs on can; there, TCP has to.
		`set client_connection_check_interval = '5s'`,
		fmt.Sprintf(`set idle_session_timeout = '%ds'`, silence),
		fmt.Sprintf(`set idle_in_transaction_session_timeout = '%ds'`, silence),
		fmt.Sprintf(`set tcp_user_timeout = '%ds'`, silence))
	for _, setting := range settings {
		_, err := conn.Exec(ctx, setting)
		if _, refused := errors.AsType[*pgconn.PgError](err); err != nil && !refused {
			Close(conn)
			return nil, err
		}
	}
	return conn, nil
}

// Impatient returns the options of a transaction that PostgreSQL ends if its process asks
// nothing for so long in it, such as one that is frozen: the rows that it has locked
// belong to who takes over.
func Impatient(silence time.Duration) pgx.TxOptions {
	return pgx.TxOptions{BeginQuery: fmt.Sprintf(`begin; set local idle_in_transaction_session_timeout = '%dms'`, silence.Milliseconds())}
}

// Close closes the connection, and gives the lead up.
func Close(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	conn.Close(ctx)
}

// Take blocks until the lead of this name is the connection's. It calls standby once
// if somebody else has it.
func Take(ctx context.Context, conn *pgx.Conn, name string, standby func()) error {
	locked, err := try(ctx, conn, name)
	if err != nil || locked {
		return err
	}
	standby()
	return wait(ctx, conn, name)
}

// try takes the lock if nobody has it.
func try(ctx context.Context, conn *pgx.Conn, name string) (locked bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err = conn.QueryRow(ctx, `select pg_try_advisory_lock(`+Lock+`)`, name).Scan(&locked)
	return locked, err
}

// wait blocks until the lock is ours. Now and then it looks whether who holds it
// hangs in a way that PostgreSQL does not count as silence.
func wait(ctx context.Context, conn *pgx.Conn, name string) error {
	if _, err := conn.Exec(ctx, fmt.Sprintf(`set lock_timeout = '%dms'`, Silence.Milliseconds()/2)); err != nil {
		return err
	}
	for {
		err := block(ctx, conn, name)
		if !sqlstate.Is(err, sqlstate.LockNotAvailable) {
			if err == nil {
				_, err = conn.Exec(ctx, `set lock_timeout = 0`)
			}
			return err
		}
		if err := depose(ctx, conn, name); err != nil {
			return err
		}
	}
}

// block waits for the lock for a while.
func block(ctx context.Context, conn *pgx.Conn, name string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_, err := conn.Exec(ctx, `select pg_advisory_lock(`+Lock+`)`, name)
	return err
}

// depose ends the session of a leader to whom the server could send nothing for long.
func depose(ctx context.Context, conn *pgx.Conn, name string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_, err := conn.Exec(ctx, `
		select pg_terminate_backend(pid)
		  from pg_locks join pg_stat_activity using (pid)
		 where locktype = 'advisory' and granted and objsubid = 1
		   and (classid::bigint << 32 | objid::bigint) = `+Lock+`
		   and pg_locks.database = (select oid from pg_database where datname = current_database())
		   and wait_event = 'ClientWrite' and state_change < clock_timestamp() - make_interval(secs => $2)`,
		name, Silence.Seconds())
	return err
}
