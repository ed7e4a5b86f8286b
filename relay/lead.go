package relay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/jserror"
	"github.com/pgjet/pgjet/internal/lead"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/session"
	"github.com/pgjet/pgjet/internal/sqlstate"
	"github.com/pgjet/pgjet/relay/backlog"
)

var errStandby = errors.New("standby: another relay leads")

// leadOf is the prefix of the name of a stream's lead.
const leadOf = "pgjet.relay."

// application is the application name of the sessions that take the lead.
const application = "pgjet-relay"

// A Holder is a session that holds the lead.
type Holder = lead.Holder

// Taken returns what to do about a session that is no relay and holds the lead.
func Taken(h Holder) string {
	return fmt.Sprintf("the lead is %s, which is no relay; find out what it is, and end it with pg_terminate_backend", h)
}

// takeLead connects to the database and waits until this is the only relay of the stream.
func takeLead(ctx context.Context, r *Relay, keeper *session.Keeper) (*database, error) {
	// Losing a write costs a longer resync, nothing else. Writes that must not be lost use
	// [waited].
	conn, err := connect(ctx, r.Database, postgres.Setting{Name: "synchronous_commit", Value: "off"},
		postgres.Setting{Name: "lock_timeout", Value: lockTime})
	if err != nil {
		return nil, blockedByDatabase(err)
	}
	d := &database{conn: conn, stream: r.Stream, Reader: backlog.NewReader(conn)}
	if err := d.lead(ctx, r, keeper); err != nil {
		err = d.withHolder(ctx, blockedByDatabase(fmt.Errorf("take the lead: %w", err)))
		d.close()
		return nil, err
	}
	return d, nil
}

// connect opens the connection of a session. Planning a statement takes longer than running
// it, so each is planned once, and partitions are excluded when it runs. Such a plan does
// not know how large the outbox will be, so the planner has to use the indexes whatever it
// estimates.
func connect(ctx context.Context, config *pgx.ConnConfig, more ...postgres.Setting) (*pgx.Conn, error) {
	return lead.Connect(ctx, config, "the relay", application, append(slices.Clone(planning), more...)...)
}

var planning = []postgres.Setting{
	{Name: "plan_cache_mode", Value: "force_generic_plan"},
	{Name: "enable_seqscan", Value: "off"},
	{Name: "enable_bitmapscan", Value: "off"},
	{Name: "enable_indexscan", Value: "on"}, // whatever the role or the database says
	{Name: "enable_indexonlyscan", Value: "on"},
	{Name: "enable_partition_pruning", Value: "on"},
	{Name: "jit", Value: "off"},
}

// lockTime is less than stepTime, so that the server names the holder of a table lock
// before the relay gives up the connection as dead.
const lockTime = "8s"

// waited are the options of a transaction that waits for the disk.
var waited = pgx.TxOptions{BeginQuery: postgres.Transaction(lead.Silence).BeginQuery + `; set local lock_timeout = '` + lockTime + `'`}

func (d *database) close() { lead.Close(d.conn) }

// tables are the tables without which a relay cannot publish.
var tables = []string{"leader", "checkpoint", "outbox", "quarantine", "adoption", "unknown_message", "scheduled"}

// withHolder returns err, or, if a table lock is why a statement took too long, an error
// that names the lock's holder.
func (d *database) withHolder(ctx context.Context, err error) error {
	if causeOf(err) != string(sqlstate.Timeout) {
		return err
	}
	lock, locked := errors.AsType[*lead.TableLock](lead.NameLock(ctx, d.conn, err, tables...))
	if !locked {
		return err
	}
	return block(string(sqlstate.Timeout), lock)
}

func (d *database) lead(ctx context.Context, r *Relay, keeper *session.Keeper) error {
	err := lead.Take(ctx, d.conn, leadOf+d.stream, func(h lead.Holder) {
		err := fmt.Errorf("%w: the lead is %s", errStandby, h)
		if h.Foreign {
			err = block("lead_taken", errors.New(Taken(h)))
		}
		switch news := keeper.Waiting(err); {
		case news && h.Foreign:
			r.Log.WarnContext(ctx, "not publishing", "err", err)
		case news:
			r.Log.InfoContext(ctx, "another relay leads, standing by", "holder", h.String())
		}
	})
	if err != nil {
		return err
	}
	if err := d.begin(ctx); err != nil {
		return err
	}
	return d.locate(ctx, r.Source)
}

// begin begins the next epoch. It keeps the cause for which the last leader did not
// publish, since the cause may last: it is over when this one publishes.
func (d *database) begin(ctx context.Context) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	return pgx.BeginTxFunc(ctx, d.conn, waited, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, `
		insert into pgjet.leader as l (stream, epoch, process, since, cause, cause_at)
		values ($1, 1, $2, clock_timestamp(), 'starting', clock_timestamp())
		on conflict (stream) do update set epoch = l.epoch + 1,
			process = excluded.process, since = excluded.since, cause_at = excluded.cause_at,
			cause = case when l.cause ~ '^(stopped|paused)' or l.cause_at < clock_timestamp() - interval '30 seconds'
			        then excluded.cause else coalesce(l.cause, excluded.cause) end
		returning epoch`, d.stream, process()).Scan(&d.epoch)
	})
}

// process names this process for people.
func process() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return fmt.Sprintf("%s:%d", host, os.Getpid())
}

// found records that the stream exists and is not known to be another outbox's, before the
// session publishes there. A stream that is not recorded does not keep partitions of the
// outbox.
func (d *database) found(ctx context.Context) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	_, err := d.conn.Exec(ctx, `
		update pgjet.leader set cause = 'starting', cause_at = clock_timestamp()
		 where stream = $1 and epoch = $2 and cause ~ $3`, d.stream, d.epoch, `^(`+string(jserror.StreamMissing)+`|`+ForeignOutbox+`):`)
	return blockedByDatabase(err)
}

// noteCause records why this leader does not publish; "" if it does.
func (d *database) noteCause(ctx context.Context, cause string) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	_, err := d.conn.Exec(ctx, `
		update pgjet.leader set cause = nullif($3, ''), cause_at = clock_timestamp()
		 where stream = $1 and epoch = $2 and cause is distinct from nullif($3, '')`, d.stream, d.epoch, cause)
	return blockedByDatabase(err)
}

// A control is what operators have set for the relay.
type control struct {
	paused  bool
	by      string
	reason  string
	adopted int64 // grows when an operator accepts unknown messages
}

func (d *database) control(ctx context.Context) (w control, err error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	err = d.conn.QueryRow(ctx, `
		select paused_at is not null, coalesce(paused_by, ''), coalesce(pause_reason, ''),
		       (select coalesce(max(id), 0) from pgjet.adoption a where a.stream = l.stream)
		  from pgjet.leader l where stream = $1`, d.stream).Scan(&w.paused, &w.by, &w.reason, &w.adopted)
	return w, blockedByDatabase(err)
}
