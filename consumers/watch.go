package consumers

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	saveEvery      = time.Second         // the place in the stream, and the sign of life
	attemptsKept   = 7 * 24 * time.Hour  // the attempt log
	deadRetention  = 14 * 24 * time.Hour // dead letters that are done or discarded
	processesKept  = time.Hour
	prunedAtOnce   = 10_000
	recentAttempts = 50               // that a process remembers
	recentFor      = 10 * time.Minute // for so long
	judged         = 10               // attempts before a share of them means anything
	recovery       = 5                // attempts in a row that end an outage
)

var (
	countEvery   = 10 * time.Second // what the metrics show, and what got lost
	reclaimAfter = 5 * time.Second  // of a session
	pruneEvery   = time.Minute
	guardEvery   = 2 * time.Second // what somebody did to the durable consumer
)

// recent are the last attempts of a process.
type recent struct {
	mu  sync.Mutex
	all []ending
}

// add notes one more. When enough in a row have succeeded, failures before them are history.
func (r *recent) add(e ending) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.all) == recentAttempts {
		r.all = r.all[1:]
	}
	r.all = append(r.all, e)
	last := r.all[max(0, len(r.all)-recovery):]
	if len(last) == recovery && Failing(len(r.all), failures(r.all)) && failures(last) == 0 {
		r.all = slices.Clone(last)
	}
}

func failures(all []ending) (n int) {
	for _, e := range all {
		if e.err != nil {
			n++
		}
	}
	return n
}

// summary returns how many attempts there were in the last minutes, how many of them failed,
// their median time, and the last error.
func (r *recent) summary() (attempts, failed int, took time.Duration, reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = slices.DeleteFunc(r.all, func(e ending) bool { return time.Since(e.began.Add(e.took)) > recentFor })
	times := make([]time.Duration, 0, len(r.all))
	for _, e := range r.all {
		times = append(times, e.took)
		if e.err != nil {
			reason = e.err.Error()
		}
	}
	if len(times) > 0 {
		slices.Sort(times)
		took = times[len(times)/2]
	}
	return len(r.all), failures(r.all), took, reason
}

// share returns which part of the last attempts failed, 0 if there are too few.
func (r *recent) share() float64 {
	attempts, failed, _, _ := r.summary()
	if attempts < judged {
		return 0
	}
	return float64(failed) / float64(attempts)
}

// Failing reports whether so many of a consumer's last attempts failed that something is wrong with
// more than an event: half of ten or more.
func Failing(attempts, failed int) bool { return attempts >= judged && failed*2 >= attempts }

// Share says how many of the last attempts failed.
func Share(attempts, failed int) string {
	if attempts == failed {
		return fmt.Sprintf("all of the last %d attempts failed", attempts)
	}
	return fmt.Sprintf("%d of the last %d attempts failed", failed, attempts)
}

// Degraded returns "" unless most attempts of this process fail. It then returns the word failing
// and the last error. A degraded runner is [Runner.Ready]: neither a restart nor another process
// would help.
func (r *Runner) Degraded() string {
	attempts, failed, _, reason := r.recent.summary()
	if !Failing(attempts, failed) {
		return ""
	}
	return "failing: " + Share(attempts, failed) + ": " + Masked(storable(reason))
}

// watch looks after the consumer until something fails, or ctx ends: it obeys
// operators, saves the place, and tells that the process lives. Until
// holding ends it then keeps the connection, and with it the lead.
func (t *term) watch(ctx, holding context.Context) error {
	var saveDue time.Time
	for ctx.Err() == nil {
		current, err := t.current(ctx)
		switch {
		case err != nil:
			return ignoreEnd(ctx, &databaseError{"look at the consumer", err})
		case !current:
			t.fail(errSuperseded)
		}
		if late(&saveDue, saveEvery) {
			t.save(ctx)
			if err := t.lookAtLocks(ctx); err != nil {
				return ignoreEnd(ctx, &databaseError{"look at the locks of attempts", err})
			}
			if err := t.heartbeat(ctx, t.conn, t.gate.closed()); err != nil {
				return ignoreEnd(ctx, &databaseError{"tell that the process lives", err})
			}
		}
		t.sleep(ctx, pollEvery)
	}
	for t.sleep(holding, pollEvery) {
		if _, err := t.current(holding); err != nil {
			return nil
		}
	}
	return nil
}

// late reports whether something was due, and when it is again.
func late(due *time.Time, every time.Duration) bool {
	if time.Now().Before(*due) {
		return false
	}
	*due = time.Now().Add(every)
	return true
}

func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// current reports whether nobody superseded or paused the session.
func (t *term) current(ctx context.Context) (current bool, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTime) // cancelling would close the connection
	defer cancel()
	err = t.conn.QueryRow(ctx, `
		select epoch = $2 and paused_at is null from pgjet.consumer where name = $1`, t.Consumer.Name, t.place.epoch).Scan(&current)
	return current, err
}

// save writes down up to where the inbox has everything. One that is lost costs a
// longer look at the inbox, later.
func (t *term) save(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTime)
	defer cancel()
	floor, high := t.hands.passed()
	if high == 0 {
		return
	}
	if !t.ordered() { // other processes hold events, too
		floor = t.ackFloor.Load()
	}
	_, err := t.conn.Exec(ctx, `
		update pgjet.consumer set floor = case when $3 > 0 then $3 else floor end, high = greatest(high, $4)
		 where name = $1 and epoch = $2 and ($3 > 0 and floor <> $3 or high < $4)`,
		t.Consumer.Name, t.place.epoch, int64(floor), int64(high))
	if err != nil && ctx.Err() == nil {
		t.Log.InfoContext(ctx, "the place in the stream was not saved", "err", err)
	}
}

// heartbeat tells that the process lives, and why it handles nothing, if so.
func (t *term) heartbeat(ctx context.Context, db interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}, cause error,
) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTime)
	defer cancel()
	attempts, failed, took, reason := t.recent.summary()
	word := ""
	if cause != nil {
		word = storable(cause.Error())
	}
	_, err := db.Exec(ctx, `
		insert into pgjet.process as p (consumer, process, workers, cause, attempts, failed, took, error)
		values ($1, $2, $3, nullif($4, ''), $5, $6, $7, nullif($8, ''))
		on conflict (consumer, process) do update set seen_at = clock_timestamp(), workers = excluded.workers, cause = excluded.cause,
			attempts = excluded.attempts, failed = excluded.failed, took = excluded.took, error = excluded.error`,
		t.Consumer.Name, t.process, t.Consumer.Workers, word, attempts, failed, took, storable(reason))
	return err
}

// farewell says that the process handles nothing any more, and left nothing half done.
func (t *term) farewell(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, pingTime)
	defer cancel()
	b := &pgx.Batch{}
	b.Queue(`delete from pgjet.process where consumer = $1 and process = $2`, t.Consumer.Name, t.process)
	b.Queue(`update pgjet.consumer set process = null where name = $1 and process = $2`, t.Consumer.Name, t.process)
	_ = t.conn.SendBatch(ctx, b).Close() // if it fails, others take it for dead
}

// prune forgets until ctx ends what is too old: of the attempt log, of dead letters that
// were dealt with, of processes that are gone, and of the inbox if Retention says so.
func (t *term) prune(ctx context.Context) {
	for {
		more, err := t.pruneSome(ctx)
		if err != nil && ctx.Err() == nil {
			t.Log.WarnContext(ctx, "what is old was not pruned, will retry", "err", err)
		}
		if more && err == nil && ctx.Err() == nil {
			continue
		}
		if !t.sleep(ctx, pruneEvery) {
			return
		}
	}
}

// pruneSome deletes a little at a time, and reports whether there may be more.
func (t *term) pruneSome(ctx context.Context) (more bool, err error) {
	b := &pgx.Batch{}
	queue := func(sql string, args ...any) {
		b.Queue(sql, args...).Exec(func(tag pgconn.CommandTag) error {
			more = more || tag.RowsAffected() == prunedAtOnce
			return nil
		})
	}
	queue(`
		delete from pgjet.attempt where ctid = any(array(select ctid from pgjet.attempt
		 where consumer = $1 and began < statement_timestamp() - make_interval(secs => $2) limit $3))`,
		t.Consumer.Name, attemptsKept.Seconds(), prunedAtOnce)
	queue(`
		delete from pgjet.dead_letter where ctid = any(array(select ctid from pgjet.dead_letter
		 where consumer = $1 and state in ('done', 'discarded') and changed_at < statement_timestamp() - make_interval(secs => $2) limit $3))`,
		t.Consumer.Name, deadRetention.Seconds(), prunedAtOnce)
	queue(`delete from pgjet.process where consumer = $1 and seen_at not between statement_timestamp() - make_interval(secs => $2) and statement_timestamp() + make_interval(secs => $2)`,
		t.Consumer.Name, processesKept.Seconds())
	if t.Retention > 0 {
		stream, err := t.JS.Stream(ctx, t.Stream)
		if err != nil {
			return false, err
		}
		queue(`
			delete from pgjet.inbox where ctid = any(array(select ctid from pgjet.inbox
			 where consumer = $1 and state in ('done', 'discarded') and at < statement_timestamp() - make_interval(secs => $2)
			   and (generation < $3 or stream_seq < $4) limit $5))`,
			t.Consumer.Name, t.Retention.Seconds(), t.place.generation, int64(stream.CachedInfo().State.FirstSeq), prunedAtOnce)
	}
	return more, t.db().Send(ctx, b)
}

// count brings the metrics up to date until ctx ends, and notices events that got lost. A
// large inbox takes long to count: that may cost a fiftieth of the time.
func (t *term) count(ctx context.Context) {
	for {
		begun := time.Now()
		a, err := ReadAccount(ctx, t.db(), t.JS, t.Stream, t.Consumer.Name)
		switch {
		case err == nil:
			t.ackFloor.Store(a.AckFloor)
			t.metrics.account(&a)
			t.reckon(ctx, a)
		case ctx.Err() == nil:
			t.Log.InfoContext(ctx, "events were not counted", "err", err)
		}
		if !t.sleep(ctx, max(countEvery, 50*time.Since(begun))) {
			return
		}
	}
}

// reckon has events recovered that are missing time and again: those that are just on
// their way are not.
func (t *term) reckon(ctx context.Context, a Account) {
	switch {
	case a.Unaccounted <= 0:
		t.missing = 0
		if a.Delivered >= t.recovered.delivered { // it did help
			t.recovered = recovered{}
		}
	case t.missing == 0 || a.Unaccounted < t.missing:
		t.missing, t.missed = a.Unaccounted, 1
	case t.missed < 2:
		t.missed++
	default:
		t.missing = 0
		t.recover(ctx, a)
	}
}

// A recovered says how many events were missing when everything was last delivered once
// more, and up to where.
type recovered struct {
	events    int64
	delivered uint64
}

// recover has JetStream deliver everything once more, since it counts events as
// handled that the inbox does not know.
func (t *term) recover(ctx context.Context, a Account) {
	if t.recovered.events == a.Unaccounted { // it did not help
		return
	}
	t.recovered = recovered{a.Unaccounted, a.Delivered}
	t.Log.ErrorContext(ctx, "JetStream counts events as delivered that the inbox does not know; it will deliver all once more, and what the inbox knows is skipped",
		"events", a.Unaccounted)
	next := t.place
	err := t.supersede(ctx, &next, nil)
	// This session would give back what it gets now, which a limit may count as enough.
	t.redeliver = err == nil
	if err != nil {
		t.Log.ErrorContext(ctx, "lost events were not recovered, will retry", "err", err)
		t.recovered = recovered{}
	}
	t.fail(errSuperseded)
}

var errStandby = fmt.Errorf("standby: another process is active")
