// Package lead elects one of many processes, for work that only one at a time may do. A
// lead is a session advisory lock of PostgreSQL on a connection of its own. It lives and
// dies with that connection: after a crash another process takes over at once, and a leader
// that hangs loses the lead after [Silence].
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

// Silence is how long a leader may send nothing to the database. Then it loses its session,
// and with it the lead.
const Silence = 8 * time.Second

// patience bounds one query, except for waiting for the lead.
const patience = 10 * time.Second

// Lock is the SQL for the key of a lead's lock: $1 is its name.
const Lock = `hashtextextended($1, 0)`

// Connect opens a connection for a lead, under an application name. It returns a
// [postgres.PoolerError] if a pooler answers; what names the user of the lead.
func Connect(ctx context.Context, config *pgx.ConnConfig, what, application string, settings ...postgres.Setting) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, patience/2)
	defer cancel()
	silence := fmt.Sprintf("%ds", int(Silence.Seconds()))
	return postgres.Connect(ctx, config, postgres.Session{
		What: what, Application: application,
		Settings: append(settings,
			postgres.Setting{Name: "idle_session_timeout", Value: silence},
			postgres.Setting{Name: "idle_in_transaction_session_timeout", Value: silence}),
		// A standby blocks on the lock, so the server has to notice by itself that it died.
		// Not every system that PostgreSQL runs on can; there, TCP has to.
		Optional: []postgres.Setting{{Name: "client_connection_check_interval", Value: "5s"}, {Name: "tcp_user_timeout", Value: silence}},
	})
}

// Close closes the connection, and releases the lead.
func Close(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	conn.Close(ctx)
}

// A Holder is the session that holds a lead.
type Holder struct {
	PID         *int64     `json:"pid"` // nil: a prepared transaction
	Application string     `json:"application"`
	Since       *time.Time `json:"since"` // when it connected; nil if the role may not see that
	Foreign     bool       `json:"-"`     // it has another application name than the waiting session
}

// String describes the session, as "held by process 4711 of the server, application
// "pgjet-relay", connected since 2026-01-02T15:04:05Z".
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

// Take blocks until the connection has the lead of this name. At once, and then now and
// then, it calls standby with the session that has it.
func Take(ctx context.Context, conn *pgx.Conn, name string, standby func(Holder)) error {
	return take(ctx, conn, name, "", standby)
}

// Join is [Take] for a lead that any number of connections share, but not with one that
// took it alone.
func Join(ctx context.Context, conn *pgx.Conn, name string, standby func(Holder)) error {
	return take(ctx, conn, name, "_shared", standby)
}

func take(ctx context.Context, conn *pgx.Conn, name, shared string, standby func(Holder)) error {
	locked, err := try(ctx, conn, name, shared)
	for err == nil && !locked {
		if err := find(ctx, conn, name, shared, standby); err != nil {
			return err
		}
		if locked, err = block(ctx, conn, name, shared); err == nil && !locked {
			err = Depose(ctx, conn, name)
		}
	}
	return err
}

// Try takes the lead of this name if it is free, and reports whether it did.
func Try(ctx context.Context, conn *pgx.Conn, name string) (taken bool, err error) {
	return try(ctx, conn, name, "")
}

func try(ctx context.Context, conn *pgx.Conn, name, shared string) (locked bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err = conn.QueryRow(ctx, `select pg_try_advisory_lock`+shared+`(`+Lock+`)`, name).Scan(&locked)
	return locked, err
}

// Leave releases the lead that [Join] joined.
func Leave(ctx context.Context, conn *pgx.Conn, name string) error {
	return unlock(ctx, conn, name, "_shared")
}

// Release releases the lead that [Take] or [Try] took.
func Release(ctx context.Context, conn *pgx.Conn, name string) error {
	return unlock(ctx, conn, name, "")
}

func unlock(ctx context.Context, conn *pgx.Conn, name, shared string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_, err := conn.Exec(ctx, `select pg_advisory_unlock`+shared+`(`+Lock+`)`, name)
	return err
}

// Holders returns the sessions that have the leads of these names: several for a lead that
// was joined, none for one that is free.
func Holders(ctx context.Context, conn *pgx.Conn, names ...string) (map[string][]Holder, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	rows, err := conn.Query(ctx, `
		with leads as materialized (
			select name, hashtextextended(name, 0) as key from unnest($1::text[]) as u (name)
		), held as materialized (
			select pid, classid::bigint << 32 | objid::bigint as key from pg_locks
			 where locktype = 'advisory' and objsubid = 1 and granted
			   and database = (select oid from pg_database where datname = current_database())
		)
		select name, pid, coalesce(application_name, ''), backend_start
		  from leads join held using (key) left join pg_stat_activity using (pid) order by name, pid`, names)
	if err != nil {
		return nil, err
	}
	all := make(map[string][]Holder)
	var name string
	var h Holder
	_, err = pgx.ForEachRow(rows, []any{&name, &h.PID, &h.Application, &h.Since}, func() error {
		h.Foreign = h.Application != conn.PgConn().ParameterStatus("application_name")
		all[name] = append(all[name], h)
		return nil
	})
	return all, err
}

// asked is the condition on pg_locks for a session that holds the lock of the lead $1, or
// waits for it.
const asked = `locktype = 'advisory' and objsubid = 1
		   and (classid::bigint << 32 | objid::bigint) = ` + Lock + `
		   and pg_locks.database = (select oid from pg_database where datname = current_database())`

// held is the condition for a session that holds it: a shared lock also keeps others from
// the lead.
const held = asked + ` and granted`

// State is the SQL for the state of the lead $1 among sessions with the application name
// $2. It returns whether one of them has the lead, how many wait, the foreign session that
// holds the lock (the first three fields of a [Holder]), and whether there is one.
const State = `
	with asked as (
		select pid, application_name, backend_start, granted from pg_locks left join pg_stat_activity using (pid) where ` + asked + `
	), own as (
		select coalesce(bool_or(granted and application_name = $2), false) as leads, count(*) filter (where not granted) as waiting from asked
	)
	select leads, waiting, pid, coalesce(application_name, ''), backend_start, asked.granted is not null
	  from own left join asked on granted and application_name is distinct from $2
	 order by pid limit 1`

// find calls standby with the session that is in the way, unless there is none any more.
func find(ctx context.Context, conn *pgx.Conn, name, shared string, standby func(Holder)) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var h Holder
	err := conn.QueryRow(ctx, `
		select pid, coalesce(application_name, ''), backend_start from pg_locks left join pg_stat_activity using (pid) where `+held+`
		   and ($2 = '' or mode = 'ExclusiveLock')
		 order by pid limit 1`, name, shared).
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
func block(ctx context.Context, conn *pgx.Conn, name, shared string) (locked bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	wait := pgx.TxOptions{BeginQuery: fmt.Sprintf(`begin; set local lock_timeout = '%dms'`, Silence.Milliseconds()/2)}
	err = pgx.BeginTxFunc(ctx, conn, wait, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `select pg_advisory_lock`+shared+`(`+Lock+`)`, name)
		return err
	})
	if sqlstate.Is(err, sqlstate.LockNotAvailable) {
		return false, nil
	}
	return err == nil, err
}

// Depose ends the sessions that have a lead and to which the server could send nothing for
// long.
func Depose(ctx context.Context, conn *pgx.Conn, name string) error {
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
