package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/replay"
	"github.com/pgjet/pgjet/internal/operate"
)

// A deadChange is one run of a command that changes dead letters.
type deadChange struct {
	stdio
	operate.Verb
	next string // the command to type afterwards

	selection deadSelection
	reason    string
	rate      int
	dryRun    bool
	all, yes  bool
	wait      bool
	timeout   time.Duration
}

func (s *settings) deadRedriveCommand() *cobra.Command {
	c := &deadChange{Verb: operate.Redrive, next: "to see what becomes of them: pgjet dead ls --state all"}
	cmd := s.deadChangeCommand(c)
	cmd.Short = "Give dead letters back to the one consumer that gave up on them"
	cmd.Long = `Give dead letters back to the one consumer that gave up on them, with the same event id;
other consumers do not notice. An event that was handled meanwhile is not run again. One
that was discarded has to be reopened first.`
	f := cmd.Flags()
	f.IntVar(&c.rate, "rate", 0, "the most per second; 0 is no limit")
	f.BoolVar(&c.wait, "wait", false, "wait until each is done, or dead again")
	f.DurationVar(&c.timeout, "timeout", 5*time.Minute, "how long --wait waits")
	return cmd
}

func (s *settings) deadDiscardCommand() *cobra.Command {
	c := &deadChange{Verb: operate.Discard, next: "to bring one back: pgjet dead reopen ID"}
	cmd := s.deadChangeCommand(c)
	cmd.Short = "Give dead letters up for good"
	cmd.Long = `Give dead letters up for good. They are kept for two weeks with the reason, and later events
of their key no longer wait for them. The command waits for the attempts that their consumer
is making, and holds the consumer up meanwhile.`
	return cmd
}

func (s *settings) deadReopenCommand() *cobra.Command {
	c := &deadChange{Verb: operate.Reopen, next: "to give one back to its consumer: pgjet dead redrive ID"}
	cmd := s.deadChangeCommand(c)
	cmd.Short = "Make discarded dead letters dead again"
	return cmd
}

func (s *settings) deadChangeCommand(c *deadChange) *cobra.Command {
	cmd := &cobra.Command{Use: c.Name + " [ID...]", RunE: func(cmd *cobra.Command, args []string) error {
		c.stdio = stdioOf(cmd)
		f, err := c.check(args)
		if err != nil {
			return err
		}
		return s.withoutDeadline(cmd.Context(), func(ctx context.Context, db *pgxpool.Pool) error { return c.run(ctx, db, f) })
	}}
	f := cmd.Flags()
	c.selection.flags(f)
	f.BoolVar(&c.all, "all", false, "all that can be "+c.Past+", of all consumers")
	f.BoolVar(&c.dryRun, "dry-run", false, "count, and change nothing")
	if !c.Mild {
		f.BoolVar(&c.yes, "yes", false, "do not ask")
	}
	reasonFlag(f, &c.reason)
	outputFlag(f)
	return cmd
}

// check returns the selection. All dead letters are selected only by --all.
func (c *deadChange) check(args []string) (f inbox.Filter, err error) {
	if f, err = c.selection.resolve(args); err != nil {
		return f, err
	}
	switch {
	case !c.all && !c.selection.selects() && !f.Named():
		return f, usagef("name dead letters by their ID or by a flag such as --consumer, or use --all. See: pgjet dead ls")
	case c.all && f.Named():
		return f, usagef("name dead letters by their ID, or use --all; not both")
	case c.rate < 0:
		return f, usagef("--rate is %d, want 0 or more", c.rate)
	case c.dryRun:
		return f, nil
	case c.NeedsReason:
		if err := needReason(c.reason); err != nil {
			return f, err
		}
	}
	if !c.Mild && !c.yes && !f.Named() && !terminal(c.in) {
		return f, usagef("see what would be %s with --dry-run, then use --yes", c.Past)
	}
	return f, nil
}

// manyGivenUp is the number of dead letters above which a discard asks for the count to be typed.
const manyGivenUp = 100

// run counts, asks, changes what was counted, and waits for the result if --wait is set.
func (c *deadChange) run(ctx context.Context, db *pgxpool.Pool, f inbox.Filter) error {
	plan, err := operate.PlanDead(ctx, db, c.Verb, f)
	if err != nil {
		return fmt.Errorf("nothing was changed: %w", err)
	}
	if c.dryRun {
		err := c.show(plan.Outcomes, "would be ")
		fmt.Fprintln(c.err, "nothing was changed")
		return err
	}
	n := operate.Total(plan.Outcomes).Changed
	if n > 1 && !c.Mild && !c.yes && !f.Named() {
		if err := c.show(plan.Outcomes, "would be "); err != nil {
			return err
		}
		if !confirmCount(c.in, c.err, fmt.Sprintf("%d dead letters: %s them?", n, c.Name), n, c.Name == operate.Discard.Name && n > manyGivenUp) {
			fmt.Fprintln(c.err, "nothing was changed")
			return nil
		}
	}
	if lasts := operate.Lasts(n, c.rate); lasts > 0 {
		fmt.Fprintf(c.err, "%d dead letters, %d a second: this takes about %s\n", n, c.rate, lasts)
	}
	done, err := plan.Run(ctx, db, replay.Decision{By: actor(), Reason: c.reason, Rate: c.rate})
	switch {
	case err != nil && len(done) == 0:
		return err
	case err != nil:
		return &exitError{exitPartly, errors.Join(err, c.show(done, ""))}
	}
	if err := c.show(done, ""); err != nil {
		return err
	}
	return c.after(ctx, db, operate.Total(done))
}

// after reports what was left out, or waits for the result.
func (c *deadChange) after(ctx context.Context, db *pgxpool.Pool, o inbox.Outcome) error {
	if c.wait && len(o.IDs) > 0 {
		if err := c.await(ctx, db, o.IDs); err != nil {
			return err
		}
	} else if o.Changed > 0 {
		fmt.Fprintln(c.err, c.next)
	}
	if o.Other == 0 {
		return nil
	}
	code := exitPartly
	if o.Changed+o.Done+o.Waiting == 0 {
		code = exitRefused
	}
	hint := ""
	if c.Name != "reopen" {
		hint = "; a discarded one has to be reopened first"
	}
	return &exitError{code, fmt.Errorf("%d are in a state that does not allow them to be %s, and were not changed%s. See: pgjet dead ls --state all", o.Other, c.Past, hint)}
}

func (c *deadChange) show(all []inbox.Outcome, would string) error {
	if all == nil {
		all = []inbox.Outcome{}
	}
	if len(all) == 0 {
		fmt.Fprintln(c.err, "no dead letter is selected")
	}
	return c.stdio.show(all, func(w io.Writer) {
		for _, o := range all {
			fmt.Fprintf(w, "%s\t%d %s%s", plain(o.Consumer), o.Changed, would, c.Past)
			for _, rest := range []struct {
				n    int64
				text string
			}{{o.Done, "done meanwhile, not run again"}, {o.Waiting, "waiting for an attempt already"}, {o.Other, "in another state"}} {
				if rest.n > 0 {
					fmt.Fprintf(w, ", %d %s", rest.n, rest.text)
				}
			}
			fmt.Fprintln(w)
		}
	})
}

// lookEvery is the interval at which await polls.
const lookEvery = 250 * time.Millisecond

// await shows the progress of redriven dead letters until none waits for an attempt, then the
// outcomes.
func (c *deadChange) await(ctx context.Context, db *pgxpool.Pool, ids []int64) error {
	end := time.Now().Add(c.timeout)
	fmt.Fprintf(c.err, "waiting for %d, for %s at most\n", len(ids), c.timeout)
	bar := newProgress(c.err, "redrive", "")
	for {
		p, err := inbox.ReadProgress(ctx, db, ids)
		if err != nil {
			return err
		}
		bar.report(0, len(ids)-int(p.Redriven), len(ids))
		late := time.Now().After(end)
		if p.Redriven == 0 || late {
			bar.finish()
			fmt.Fprintf(c.err, "of %d: %d done, %d dead again, %d discarded, %d to come\n", len(ids), p.Done, p.Dead, p.Discarded, p.Redriven)
		}
		switch {
		case p.Redriven == 0 && p.Dead > 0:
			return &exitError{exitPartly, fmt.Errorf("%d died again. See: pgjet dead groups", p.Dead)}
		case p.Redriven == 0:
			return nil
		case late:
			return &exitError{exitTimeout, fmt.Errorf("%d still wait for an attempt after %s; is their consumer running, and not paused? See: pgjet dead ls --state redriven", p.Redriven, c.timeout)}
		}
		select {
		case <-time.After(lookEvery):
		case <-ctx.Done():
			return fmt.Errorf("stopped waiting; %d still wait for an attempt, which goes on without this: %w", p.Redriven, ctx.Err())
		}
	}
}
