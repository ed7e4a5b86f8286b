package consumers

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers/inbox"
)

const (
	attemptsKept  = 7 * 24 * time.Hour  // the attempt log
	deadRetention = 14 * 24 * time.Hour // dead letters that are done or discarded
	processesKept = time.Hour
)

var (
	countEvery = 10 * time.Second // what the metrics show, and what got lost
	pruneEvery = time.Minute
)

// An auditor counts the events of the consumer by state, has lost ones delivered again, and deletes
// old records. The tenure of the first slice has one.
type auditor struct {
	*run
	inbox    sliceInbox
	database database
	fail     context.CancelCauseFunc // ends the session

	// Of the goroutine that counts.
	missing int64 // events, as of the last counts
	missed  int   // in how many counts in a row
}

// count updates the metrics until ctx ends, and notices lost events. Counting a large inbox takes
// long: it may use a fiftieth of the time.
func (a *auditor) count(ctx context.Context) {
	defer a.metrics.account(nil) // the next owner of the slice reports from now on
	for early := 20; ; early-- {
		begun := time.Now()
		account, err := readAccount(ctx, a.inbox, a.js, a.stream, a.Consumer.Name)
		rest := max(countEvery, 50*time.Since(begun))
		switch {
		case err == nil:
			early = 0
			a.metrics.account(&account)
			a.check(ctx, account)
		case early > 0 && errors.Is(err, jetstream.ErrConsumerNotFound): // other slices may begin just now
			rest = countEvery / 20
		case ctx.Err() == nil:
			a.log.InfoContext(ctx, "events were not counted", "err", err)
		}
		if !sleep(ctx, rest) {
			return
		}
	}
}

// check recovers events that are missing in several counts in a row. Events in transit are not.
func (a *auditor) check(ctx context.Context, account Account) {
	switch {
	case account.Unaccounted <= 0:
		a.missing = 0
		if account.Delivered >= a.recovered.delivered { // the last recovery helped
			a.recovered = recovered{}
		}
	case a.missing == 0 || account.Unaccounted < a.missing:
		a.missing, a.missed = account.Unaccounted, 1
	case a.missed < 2:
		a.missed++
	default:
		a.missing = 0
		a.recover(ctx, account)
	}
}

// A recovered says how many events were missing when everything was last delivered again, and up to
// which sequence.
type recovered struct {
	events    int64
	delivered uint64
}

// recover has JetStream deliver everything again, since it counts events as handled that the inbox
// does not have.
func (a *auditor) recover(ctx context.Context, account Account) {
	if a.recovered.events == account.Unaccounted { // the last recovery did not help
		return
	}
	a.recovered = recovered{account.Unaccounted, account.Delivered}
	a.log.ErrorContext(ctx, "JetStream counts events as delivered that the inbox does not have; it will deliver all of them again, and those that the inbox has are skipped",
		"events", account.Unaccounted)
	// This session would give back new deliveries, which may count against a limit: the next session gets them.
	if err := a.database.Redeliver(ctx); err != nil {
		a.log.ErrorContext(ctx, "lost events were not recovered, will retry", "err", err)
		a.recovered = recovered{}
	}
	a.fail(inbox.ErrSuperseded)
}

// prune deletes old records until ctx ends: of the attempt log, of dead letters that are done or
// discarded, of gone processes, and of the inbox if Retention is set.
func (a *auditor) prune(ctx context.Context) {
	for {
		more, err := a.pruneSome(ctx)
		if err != nil && ctx.Err() == nil {
			a.log.WarnContext(ctx, "old records were not pruned, will retry", "err", err)
		}
		if more && err == nil && ctx.Err() == nil {
			continue
		}
		if !sleep(ctx, pruneEvery) {
			return
		}
	}
}

// pruneSome deletes a few records, and reports whether there may be more.
func (a *auditor) pruneSome(ctx context.Context) (more bool, err error) {
	keep := inbox.Retention{Attempts: attemptsKept, Dead: deadRetention, Processes: processesKept, Inbox: a.Runner.Retention}
	if keep.Inbox > 0 {
		stream, err := a.js.Stream(ctx, a.stream)
		if err != nil {
			return false, err
		}
		keep.First = stream.CachedInfo().State.FirstSeq
	}
	return a.inbox.Prune(ctx, keep)
}
