package relay

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/pgjet/pgjet/internal/drain"
	"github.com/pgjet/pgjet/internal/lead"
	"github.com/pgjet/pgjet/internal/upkeep"
)

const (
	// watchEvery is how often a relay, leading or not, reads the status.
	watchEvery = 2 * time.Second
	// countEvery is the least time between two counts of the outbox. Counting takes at most
	// one part in fifty of its time.
	countEvery = time.Minute
)

// A watch observes the outbox over a connection of its own, so that metrics are right even
// while no relay leads and while NATS is away.
type watch struct {
	*Relay
	busy  string // why the partitions cannot be maintained
	audit auditor

	mu          sync.Mutex
	status      *Status // nil while PostgreSQL is away
	unaccounted *int64
	backlog     drain.Estimate // of what is pending
	horizon     horizon
	stop        func() error
}

// gauges are the metrics of a watch. They are absent while PostgreSQL is away.
var gauges = []struct {
	name, unit, description string
	read                    func(w *watch, observe func(float64, ...attribute.KeyValue))
}{
	{"pgjet.outbox.pending_events", "", "Events that are committed and not published.", func(w *watch, observe func(float64, ...attribute.KeyValue)) {
		observe(float64(w.status.Pending.Events))
	}},
	{"pgjet.outbox.oldest_pending", "s", "Age of the oldest event that is committed and not published; 0 if there is none.", func(w *watch, observe func(float64, ...attribute.KeyValue)) {
		observe(w.status.Pending.OldestSeconds)
	}},
	{"pgjet.outbox.backlog_time", "s", "Time until nothing is pending, if that goes on to shrink as in the last minute; +Inf if it does not shrink.", func(w *watch, observe func(float64, ...attribute.KeyValue)) {
		if seconds, known := w.backlog.Seconds(); known {
			observe(seconds)
		}
	}},
	{"pgjet.outbox.quarantined", "", "Events in quarantine, by state.", func(w *watch, observe func(float64, ...attribute.KeyValue)) {
		q := w.status.Quarantined
		observe(float64(q.Held), attribute.String("state", "held"))
		observe(float64(q.Retry), attribute.String("state", "retry"))
		observe(float64(q.Dropped), attribute.String("state", "dropped"))
	}},
	{"pgjet.outbox.scheduled_due_events", "", "Scheduled events that are due and not in the outbox yet, by the reason for it; 10001 stands for that or more.", func(w *watch, observe func(float64, ...attribute.KeyValue)) {
		observe(float64(w.status.Scheduled.Due), attribute.String("reason", w.status.Scheduled.Reason))
	}},
	{"pgjet.outbox.scheduled_overdue", "s", "For how long the first scheduled event that is not in the outbox yet has been due; 0 if there is none.", func(w *watch, observe func(float64, ...attribute.KeyValue)) {
		observe(w.status.Scheduled.OverdueSeconds)
	}},
	{"pgjet.stream.unknown_messages", "", "Messages that the stream holds and the outbox does not know.", func(w *watch, observe func(float64, ...attribute.KeyValue)) {
		observe(float64(w.status.Unknown))
	}},
	{"pgjet.relay.led", "", "1 if any relay holds the lead, else 0.", func(w *watch, observe func(float64, ...attribute.KeyValue)) {
		observe(map[bool]float64{true: 1}[w.status.Leads])
	}},
	{"pgjet.audit.differences", "", "Places at which outbox and stream differ, by the last whole pass of the background audit, by kind.", func(w *watch, observe func(float64, ...attribute.KeyValue)) {
		for kind, n := range w.status.Audit.kinds() {
			observe(float64(n), attribute.String("kind", kind))
		}
	}},
	{"pgjet.audit.age", "s", "Since when the last whole pass of the background audit has ended.", func(w *watch, observe func(float64, ...attribute.KeyValue)) {
		if w.status.Audit != nil {
			observe(w.status.At.Sub(*w.status.Audit.EndedAt).Seconds())
		}
	}},
	{"pgjet.postgres.oldest_snapshot", "s", "For how long, as far as this process has seen, one transaction or replication slot has kept PostgreSQL from cleaning up rows that are gone; 0 if none does.", func(w *watch, observe func(float64, ...attribute.KeyValue)) {
		observe(w.horizon.held(w.status.At).Seconds())
	}},
	{"pgjet.outbox.unaccounted_events", "", "Events that are neither published, pending, in quarantine nor pruned. Anything but 0 is a defect.", func(w *watch, observe func(float64, ...attribute.KeyValue)) {
		if w.unaccounted != nil {
			observe(float64(*w.unaccounted))
		}
	}},
}

func newWatch(r *Relay, meter metric.Meter) (*watch, error) {
	w := &watch{Relay: r}
	registered := make([]metric.Float64ObservableGauge, len(gauges))
	instruments := make([]metric.Observable, len(gauges))
	for i, g := range gauges {
		var err error
		registered[i], err = meter.Float64ObservableGauge(g.name, metric.WithUnit(g.unit), metric.WithDescription(g.description))
		if err != nil {
			return nil, err
		}
		instruments[i] = registered[i]
	}
	registration, err := meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.status == nil {
			return nil
		}
		for i, g := range gauges {
			g.read(w, func(v float64, labels ...attribute.KeyValue) {
				o.ObserveFloat64(registered[i], v, metric.WithAttributes(labels...), r.metrics.own)
			})
		}
		return nil
	}, instruments...)
	if err == nil {
		w.stop = registration.Unregister
	}
	return w, err
}

// run runs session after session until ctx ends.
func (w *watch) run(ctx context.Context) {
	for ctx.Err() == nil {
		w.session(ctx)
		w.note(nil, nil)
		sleep(ctx, watchEvery)
	}
}

// session observes until something fails. The relay reports the failure, not the watch.
func (w *watch) session(ctx context.Context) {
	conn, err := connect(ctx, w.Database)
	if err != nil {
		return
	}
	defer lead.Close(conn)
	var unaccounted *int64
	var took time.Duration // to read the status, which long transactions can make slow
	for due := time.Now(); ctx.Err() == nil; sleep(ctx, max(watchEvery, 10*took)) {
		begun := time.Now()
		work, cancel := context.WithTimeout(ctx, countEvery)
		status, err := ReadStatus(work, conn, w.Stream)
		took = time.Since(begun)
		var xid, ago int64
		if err == nil {
			xid, ago, err = readHorizon(work, conn)
		}
		if err == nil {
			w.maintain(work, conn)
			took = max(took, w.compare(work, conn))
		}
		if err == nil && time.Now().After(due) {
			counting := time.Now()
			unaccounted, err = countUnaccounted(work, conn, w.Stream)
			if unaccounted != nil { // there is a checkpoint
				due = time.Now().Add(max(countEvery, 50*time.Since(counting)))
			}
		}
		cancel()
		if err != nil {
			return
		}
		w.note(&status, unaccounted)
		w.mu.Lock()
		w.horizon.see(xid, ago, status.At)
		w.mu.Unlock()
	}
}

// A horizon is the oldest transaction id that somebody may still look behind, and since when it has been that. PostgreSQL removes no row that
// was deleted since.
type horizon struct {
	xid   int64
	since time.Time // zero: nothing is held
}

// see notes the oldest id, and how many ids ago it was.
func (h *horizon) see(xid, ago int64, now time.Time) {
	switch {
	case ago == 0:
		*h = horizon{}
	case h.since.IsZero() || h.xid != xid:
		*h = horizon{xid, now}
	}
}

// held returns for how long nothing has been cleaned up.
func (h *horizon) held(now time.Time) time.Duration {
	if h.since.IsZero() {
		return 0
	}
	return max(0, now.Sub(h.since))
}

// horizonSQL finds the oldest transaction id that is held, and how many ids ago it was. Everybody may see it, whoever holds it. What the own
// statement and a VACUUM hold does not count.
const horizonSQL = `
	select xid::text::bigint, age(xid) from (
		select case when age(backend_xid) > age(backend_xmin) then backend_xid else coalesce(backend_xmin, backend_xid) end
		  from pg_stat_activity
		 where datname = current_database() and usesysid is not null and pid <> pg_backend_pid() and pid not in (select pid from pg_stat_progress_vacuum)
		union all select xmin from pg_replication_slots
		union all select catalog_xmin from pg_replication_slots
		union all select transaction from pg_prepared_xacts where database = current_database()) as held (xid)
	 where xid is not null order by age(xid) desc limit 1`

func readHorizon(ctx context.Context, conn *pgx.Conn) (xid, ago int64, err error) {
	err = conn.QueryRow(ctx, horizonSQL).Scan(&xid, &ago)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, 0, nil
	}
	return xid, ago, err
}

// maintain maintains the partitions of the outbox, as any relay may, even while nothing is
// published. A failure does not keep the relay from publishing.
func (w *watch) maintain(ctx context.Context, conn *pgx.Conn) {
	done, err := upkeep.Maintain(ctx, conn, w.Retention)
	if ctx.Err() != nil {
		return // the relay is being stopped
	}
	if done.Pruned > 0 {
		w.metrics.pruned.Add(ctx, done.Pruned, w.metrics.own)
		w.Log.InfoContext(ctx, "pruned the outbox", "partitions", done.Dropped, "events", done.Pruned)
	}
	if err != nil {
		done.Busy = blockedByDatabase(err).Error()
	}
	if done.Busy != w.busy && done.Busy != "" {
		w.Log.WarnContext(ctx, "cannot maintain the outbox now, will keep trying", "reason", done.Busy)
	}
	w.busy = done.Busy
}

func (w *watch) note(s *Status, unaccounted *int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status, w.unaccounted = s, unaccounted
	if s == nil {
		w.backlog.Forget()
	} else {
		w.backlog.See(s.Pending.Events, time.Now())
	}
}

// countUnaccounted counts the events that the newest checkpoint covers, row by row, and
// returns the difference to the number that relays counted while they published. It returns
// nil if there is no checkpoint.
func countUnaccounted(ctx context.Context, conn *pgx.Conn, stream string) (*int64, error) {
	var n *int64
	err := conn.QueryRow(ctx, `
		with checkpoint as (
			select snapshot, floor, events from pgjet.checkpoint
			 where stream = $1 and system_identifier = (select system_identifier from pg_control_system())
			 order by id desc limit 1
		)
		select (select count(*) from pgjet.outbox where seq <= c.floor)
		     - (select count(*) from pgjet.outbox
		         where seq <= c.floor and (xid >= pg_snapshot_xmax(c.snapshot) or xid = any (array(select pg_snapshot_xip(c.snapshot))))
		           and not pg_visible_in_snapshot(pgjet.outbox_xid(xid, xmin), c.snapshot))
		     + (select events from pgjet.pruned) - c.events
		  from checkpoint c`, stream).Scan(&n)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("count the outbox: %w", err)
	}
	return n, nil
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
