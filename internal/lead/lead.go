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

	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

// Silence is for how long a leader may ask nothing of the database. Then it loses its
// session, and with it the lead.
const Silence = 8 * time.Second

// patience bounds one question to the database, but for waiting for the lead.
const patience = 10 * time.Second

// Lock is the SQL for the key of a lead's lock: $1 is its name.
const Lock = `hashtextextended($1, 0)`

// Connect opens a connection for a lead, under an application name. It returns a
// [postgres.PoolerError] if a pooler answers; what says what needs the lead.
func Connect(ctx context.Context, config *pgx.ConnConfig, what, application string, settings ...postgres.Setting) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, patience/2)
	defer cancel()
	silence := fmt.Sprintf("%ds", int(Silence.Seconds()))
	return postgres.Connect(ctx, config, postgres.Session{
		What: what, Application: application,
		Settings: append(settings,
			postgres.Setting{Name: "idle_session_timeout", Value: silence},
			postgres.Setting{Name: "idle_in_transaction_session_timeout", Value: silence}),
		// A standby blocks in the lock: let the server notice by itself when it
		// died. Not every system that PostgreSQL runs on can; there, TCP has to.
		Optional: []postgres.Setting{{Name: "client_connection_check_interval", Value: "5s"}, {Name: "tcp_user_timeout", Value: silence}},
	})
}

// Close closes the connection, and gives the lead up.
func Close(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	conn.Close(ctx)
}

// A Holder is the session that holds a lead.
type Holder struct {
	PID         *int64     `json:"pid"` // nil: a prepared transaction
	Application string     `json:"application"`
	Since       *time.Time `json:"since"` // when it connected; nil if the role may not know
	Foreign     bool       `json:"-"`     // it has another application name than the one that waits
}

// String says who it is, as "held by process 4711 of the server, application "pgjet-relay",
// connected since 2026-01-02T15:04:05Z".
func (h Holder) String() string {
	if h.PID == nil {
		return "held by a prepared transaction"
	}
	text := fmt.Sprintf("held by process %d of the server, application %q", *h.PID, h.Application)
	if h.Since != nil {
		text += ", connected since " + h.Since.UTC().Format(time.RFC3339)
	}
	return text
}

// Take blocks until the lead of this name is the connection's. Now and then, and at
// once, it calls standby with the session that has it instead.
func Take(ctx context.Context, conn *pgx.Conn, name string, standby func(Holder)) error {
	locked, err := try(ctx, conn, name)
	for err == nil && !locked {
		if err := find(ctx, conn, name, standby); err != nil {
			return err
		}
		if locked, err = block(ctx, conn, name); err == nil && !locked {
			err = depose(ctx, conn, name)
		}
	}
	return err
}

// try takes the lock if nobody has it.
func try(ctx context.Context, conn *pgx.Conn, name string) (locked bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err = conn.QueryRow(ctx, `select pg_try_advisory_lock(`+Lock+`)`, name).Scan(&locked)
	return locked, err
}

// asked is the condition on pg_locks that a session holds the lock of the lead $1, or waits for it.
const asked = `locktype = 'advisory' and objsubid = 1
		   and (classid::bigint << 32 | objid::bigint) = ` + Lock + `
		   and pg_locks.database = (select oid from pg_database where datname = current_database())`

// held is the condition that it holds it: a shared lock keeps others from the lead, too.
const held = asked + ` and granted`

// State is the SQL that tells of the lead $1 of sessions with the application name $2: whether one
// of them has it, how many sessions wait, and the foreign one that holds the lock, as the first
// three fields of a [Holder], and whether there is one.
const State = `
	with asked as (
		select pid, application_name, backend_start, granted from pg_locks left join pg_stat_activity using (pid) where ` + asked + `
	), own as (
		select coalesce(bool_or(granted and application_name = $2), false) as leads, count(*) filter (where not granted) as waiting from asked
	)
	select leads, waiting, pid, coalesce(application_name, ''), backend_start, asked.granted is not null
	  from own left join asked on granted and application_name is distinct from $2
	 order by pid limit 1`

// find calls standby with the holder, unless there is none any more.
func find(ctx context.Context, conn *pgx.Conn, name string, standby func(Holder)) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var h Holder
	err := conn.QueryRow(ctx, `
		select pid, coalesce(application_name, ''), backend_start from pg_locks left join pg_stat_activity using (pid) where `+held+`
		 order by pid limit 1`, name).
		Scan(&h.PID, &h.Application, &h.Since)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err == nil {
		h.Foreign = h.Application != conn.PgConn().ParameterStatus("application_name")
		standby(h)
	}
	return err
}

// block waits for the lock for a while. The session keeps it beyond the transaction.
func block(ctx context.Context, conn *pgx.Conn, name string) (locked bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	wait := pgx.TxOptions{BeginQuery: fmt.Sprintf(`begin; set local lock_timeout = '%dms'`, Silence.Milliseconds()/2)}
	err = pgx.BeginTxFunc(ctx, conn, wait, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `select pg_advisory_lock(`+Lock+`)`, name)
		return err
	})
	if sqlstate.Is(err, sqlstate.LockNotAvailable) {
		return false, nil
	}
	return err == nil, err
}

// depose ends the session of a leader to whom the server could send nothing for long.
func depose(ctx context.Context, conn *pgx.Conn, name string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_, err := conn.Exec(ctx, `
		select pg_terminate_backend(pid)
		  from pg_locks join pg_stat_activity using (pid)
		 where `+held+`
		   and wait_event = 'ClientWrite' and state_change < clock_timestamp() - make_interval(secs => $2)`,
		name, Silence.Seconds())
	return err
}
