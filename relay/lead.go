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

// leadOf names the lead of a stream's relays.
const leadOf = "pgjet.relay."

// application is the name of the sessions that take it.
const application = "pgjet-relay"

// A Holder is a session that holds the lead.
type Holder = lead.Holder

// Taken says what to do about a session that is no relay and holds the lead.
func Taken(h Holder) string {
	return fmt.Sprintf("the lead is %s, which is no relay; find out what it is, and end it with pg_terminate_backend", h)
}

// takeLead connects to the database and waits until this is the only relay of the
// stream.
func takeLead(ctx context.Context, r *Relay, keeper *session.Keeper) (*database, error) {
	// A write that is lost costs a longer resync, nothing else; others are [waited] for.
	conn, err := connect(ctx, r.Database, postgres.Setting{Name: "synchronous_commit", Value: "off"},
		postgres.Setting{Name: "lock_timeout", Value: lockTime})
	if err != nil {
		return nil, blockedByDatabase(err)
	}
	d := &database{conn: conn, stream: r.Stream, Reader: backlog.NewReader(conn)}
	if err := d.lead(ctx, r, keeper); err != nil {
		err = d.named(ctx, blockedByDatabase(fmt.Errorf("take the lead: %w", err)))
		d.close()
		return nil, err
	}
	return d, nil
}

// connect opens the connection of a term. To plan a statement takes longer than to run it,
// so each is planned once: partitions are left out when it runs. Such a plan knows nothing of
// how large the outbox will be, so it is to use the indexes, whatever it thinks of them.
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

// lockTime is less than stepTime: the server says that somebody holds a lock on a table before the
// connection is given up, as if the server were away.
const lockTime = "8s"

// waited are the options of a transaction that waits for the disk.
var waited = pgx.TxOptions{BeginQuery: postgres.Transaction(lead.Silence).BeginQuery + `; set local lock_timeout = '` + lockTime + `'`}

func (d *database) close() { lead.Close(d.conn) }

// tables are those without which a relay cannot publish.
var tables = []string{"leader", "checkpoint", "outbox", "quarantine", "adoption", "unknown_message", "scheduled"}

// named returns err, or who keeps the relay from a table, if that is why a statement took too long.
func (d *database) named(ctx context.Context, err error) error {
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

// begin begins the next epoch. It leaves the cause for which the last leader did not publish, if that
// may last: it is over when this one publishes.
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

// process names this one for people.
func process() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return fmt.Sprintf("%s:%d", host, os.Getpid())
}

// found notes that the stream exists and is not known to be another outbox's, before anything of the session is
// published there: partitions of the outbox do not wait for one else.
func (d *database) found(ctx context.Context) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	_, err := d.conn.Exec(ctx, `
		update pgjet.leader set cause = 'starting', cause_at = clock_timestamp()
		 where stream = $1 and epoch = $2 and cause ~ $3`, d.stream, d.epoch, `^(`+string(jserror.StreamMissing)+`|`+ForeignOutbox+`):`)
	return blockedByDatabase(err)
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
