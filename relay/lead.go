package relay

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgjet/pgjet/internal/session"
	"github.com/pgjet/pgjet/outbox"
)

var errStandby = errors.New("standby: another relay leads")

// A leader that is silent for this long, in seconds, loses its session and with it
// the lead. It looks at the database every 50 ms, so it would have to hang.
const silence = 8

// lockKey is what the session advisory lock of a stream's relays is taken on.
const lockKey = `hashtextextended('pgjet.relay.' || $1, 0)`

// lead connects to the database and waits until this is the only relay of the
// stream. The lock lives and dies with the connection, so a crash hands over at
// once.
func lead(ctx context.Context, r *Relay, keeper *session.Keeper) (*database, error) {
	conn, err := connect(ctx, r.Database)
	if err != nil {
		return nil, blockedByDatabase(err)
	}
	d := &database{conn: conn, stream: r.Stream, Reader: outbox.NewReader(conn)}
	if err := d.lead(ctx, r, keeper); err != nil {
		d.close()
		return nil, blockedByDatabase(fmt.Errorf("take the lead: %w", err))
	}
	return d, nil
}

func (d *database) close() { closeConn(d.conn) }

func closeConn(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout/5)
	defer cancel()
	conn.Close(ctx)
}

func connect(ctx context.Context, config *pgx.ConnConfig) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	config = config.Copy()
	config.RuntimeParams["application_name"] = "pgjet-relay"
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	for _, setting := range []string{
		// A standby blocks in the lock: let the server notice by itself when it
		// died. Not every system that PostgreSQL runs on can; there, TCP has to.
		`set client_connection_check_interval = '5s'`,
		fmt.Sprintf(`set idle_session_timeout = '%ds'`, silence),
		fmt.Sprintf(`set idle_in_transaction_session_timeout = '%ds'`, silence),
		fmt.Sprintf(`set tcp_user_timeout = '%ds'`, silence),
		// Plans for any floor would look into every partition.
		`set plan_cache_mode = force_custom_plan`,
	} {
		_, err := conn.Exec(ctx, setting)
		if _, refused := errors.AsType[*pgconn.PgError](err); err != nil && !refused {
			conn.Close(ctx)
			return nil, err
		}
	}
	return conn, nil
}

func (d *database) lead(ctx context.Context, r *Relay, keeper *session.Keeper) error {
	locked, err := d.try(ctx)
	if err != nil {
		return err
	}
	if !locked {
		if keeper.Waiting(errStandby) {
			r.Log.InfoContext(ctx, "another relay leads, standing by")
		}
		if err := d.wait(ctx); err != nil {
			return err
		}
	}
	return d.begin(ctx)
}

// try takes the lock if nobody has it.
func (d *database) try(ctx context.Context) (locked bool, err error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	err = d.conn.QueryRow(ctx, `select pg_try_advisory_lock(`+lockKey+`)`, d.stream).Scan(&locked)
	return locked, err
}

// begin begins the next epoch.
func (d *database) begin(ctx context.Context) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	err = d.conn.QueryRow(ctx, `
		insert into pgjet.leader as l (stream, epoch, process, since, cause, cause_at)
		values ($1, 1, $2, clock_timestamp(), 'starting', clock_timestamp())
		on conflict (stream) do update set epoch = l.epoch + 1,
			process = excluded.process, since = excluded.since, cause = excluded.cause, cause_at = excluded.cause_at
		returning epoch`, d.stream, fmt.Sprintf("%s:%d", host, os.Getpid())).Scan(&d.epoch)
	if err != nil {
		return err
	}
	// From here on a lost write costs a longer resync, nothing else.
	_, err = d.conn.Exec(ctx, `set synchronous_commit = off; set lock_timeout = 0`)
	return err
}

// wait blocks until the lock is ours. Now and then it looks whether who holds it
// hangs in a way that PostgreSQL does not count as silence.
func (d *database) wait(ctx context.Context) error {
	if _, err := d.conn.Exec(ctx, fmt.Sprintf(`set lock_timeout = '%ds'`, silence/2)); err != nil {
		return err
	}
	for {
		err := d.take(ctx)
		if pgErr, ok := errors.AsType[*pgconn.PgError](err); !ok || pgErr.Code != "55P03" { // lock not available
			return err
		}
		if err := d.depose(ctx); err != nil {
			return err
		}
	}
}

// take waits for the lock for a while.
func (d *database) take(ctx context.Context) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	_, err := d.conn.Exec(ctx, `select pg_advisory_lock(`+lockKey+`)`, d.stream)
	return err
}

// depose ends the session of a leader to whom the server could send nothing for long.
func (d *database) depose(ctx context.Context) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	_, err := d.conn.Exec(ctx, `
		select pg_terminate_backend(pid)
		  from pg_locks join pg_stat_activity using (pid)
		 where locktype = 'advisory' and granted and objsubid = 1
		   and (classid::bigint << 32 | objid::bigint) = `+lockKey+`
		   and pg_locks.database = (select oid from pg_database where datname = current_database())
		   and wait_event = 'ClientWrite' and state_change < clock_timestamp() - make_interval(secs => $2)`,
		d.stream, silence)
	return err
}

// explain notes why this leader does not publish; "" if it does.
func (d *database) explain(ctx context.Context, cause string) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	_, err := d.conn.Exec(ctx, `
		update pgjet.leader set cause = nullif($3, ''), cause_at = clock_timestamp()
		 where stream = $1 and epoch = $2 and cause is distinct from nullif($3, '')`, d.stream, d.epoch, cause)
	return blockedByDatabase(err)
}

// A wish is what an operator wants of the relay.
type wish struct {
	paused  bool
	by      string
	reason  string
	adopted int64 // grows when an operator accepts unknown messages
}

func (d *database) wish(ctx context.Context) (w wish, err error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	err = d.conn.QueryRow(ctx, `
		select paused_at is not null, coalesce(paused_by, ''), coalesce(pause_reason, ''),
		       (select coalesce(max(id), 0) from pgjet.adoption a where a.stream = l.stream)
		  from pgjet.leader l where stream = $1`, d.stream).Scan(&w.paused, &w.by, &w.reason, &w.adopted)
	return w, blockedByDatabase(err)
}
