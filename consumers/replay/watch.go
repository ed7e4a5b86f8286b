package replay

import (
	"context"
	"fmt"
	"time"

	"github.com/pgjet/pgjet/internal/operation"
)

// A durable consumer that was just set back may not report that yet. So two looks have to agree that
// nothing is left, and many if the inbox does not know as many events as the plan selects.
const (
	looks     = 2
	moreLooks = 20
)

// watch returns when the consumer has attempted everything that the plan selects.
func (r *Replay) watch(ctx context.Context, p *Plan, result *Result, begun time.Time, progress Progress) error {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	beat := time.Now()
	for agree := 0; ; {
		passed, left, err := r.left(ctx, p)
		if err != nil {
			return fmt.Errorf("watch consumer %s: %w", r.name, err)
		}
		due, err := r.due(ctx, p, result, begun)
		if err != nil {
			return fmt.Errorf("watch consumer %s: %w", r.name, err)
		}
		total := p.Selected
		if p.Way == ByIntent {
			total, left = result.Handed, result.Waiting
		}
		progress(result.Operation, max(0, total-left), total)
		if time.Since(beat) > operation.Beat {
			beat = time.Now()
			if err := r.note(ctx, r.db, *result, operation.Running, r.before+int64(p.Run+p.Again)); err != nil {
				return err
			}
		}
		agree++
		if !passed || due > 0 {
			agree = 0
		}
		ended, err := r.ended(ctx, p, agree)
		if err != nil {
			return fmt.Errorf("watch consumer %s: %w", r.name, err)
		}
		if ended {
			result.Step = "done"
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// ended reports whether the replay has ended, if so many looks in a row found nothing left.
func (r *Replay) ended(ctx context.Context, p *Plan, agree int) (bool, error) {
	switch {
	case agree == 0 || p.Way == ByReset && agree < looks:
		return false, nil
	case p.Way == ByIntent || agree >= moreLooks:
		return true, nil
	}
	known := 0
	err := r.db.QueryRow(ctx, `
		select count(*) from pgjet.inbox where consumer = $1 and generation = $2 and stream_seq between $3 and $4`,
		r.name, r.generation, int64(p.From), int64(p.To)).Scan(&known)
	return known >= p.Selected, err
}

// left reports whether the durable consumer is past the last event of the plan, and about how many
// events it has yet to deliver.
func (r *Replay) left(ctx context.Context, p *Plan) (passed bool, n int, err error) {
	if p.Way == ByIntent {
		return true, 0, nil
	}
	infos, err := r.look(ctx)
	if err != nil {
		return false, 0, err
	}
	passed = true
	for _, info := range infos {
		pending := int(info.NumPending) + info.NumAckPending
		passed = passed && (info.AckFloor.Stream >= p.last || pending == 0)
		n += pending
	}
	return passed, n, nil
}

// due returns how many intents of the range are running or wait for a process. Intents that wait
// for their time, or behind an earlier event or dead letter of their key, do not count.
func (r *Replay) due(ctx context.Context, p *Plan, result *Result, begun time.Time) (due int, err error) {
	err = r.db.QueryRow(ctx, `
		select count(*) filter (where due_at <= statement_timestamp() and not exists (
		           select from pgjet.dead_letter d where d.consumer = i.consumer and d.key = i.key and d.state = 'dead'
		              and (d.generation, d.stream_seq) < (i.generation, i.stream_seq))), count(*),
		       (select count(*) from pgjet.dead_letter where consumer = $1 and state = 'dead' and at >= $5
		           and generation = $2 and stream_seq between $3 and $4)
		  from pgjet.intent i where consumer = $1 and generation = $2 and stream_seq between $3 and $4`,
		r.name, r.generation, int64(p.From), int64(p.To), begun).Scan(&due, &result.Waiting, &result.Dead)
	return due, err
}
