package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/consumers/replay"
	"github.com/pgjet/pgjet/internal/lead"
	"github.com/pgjet/pgjet/internal/operation"
	"github.com/pgjet/pgjet/internal/postgres"
)

// A replayRun is one run of pgjet replay.
type replayRun struct {
	stdio
	*settings
	consumer            string
	selection           replay.Selection
	since, until        string
	dryRun, yes, detach bool
	reason              string
	continues           *operation.Record // the operation to resume; nil: a new one
	rate                int               // of the resumed operation; 0: as before
}

func replayCommand() *cobra.Command {
	a := replayRun{settings: &settings{}}
	cmd := &cobra.Command{
		Use:   "replay CONSUMER",
		Short: "Deliver events that the stream still has to one consumer again",
		Long: `Deliver events that the stream still has to one consumer again. Events that are done in its
inbox are skipped: so a replay restores what a consumer has lost and repeats nothing;
--again runs those events too. A plan with counts is shown first.

Without --until, --type, --key and --rate the consumer is paused, its durable consumer is
set back, and it continues from there. With one of them, the events are handed over one by
one, while live events continue.`,
		Example: `  pgjet replay directory --since 2h --dry-run
  pgjet replay directory --all --again --reason "read model dropped"
  pgjet replay welcome-mailer --from-stream-seq 1200 --type user.created --rate 5`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.consumer = args[0]
			a.stdio = stdioOf(cmd)
			if err := a.check(cmd); err != nil {
				return err
			}
			return replayExit(a.replay(cmd.Context()))
		},
	}
	a.flags(cmd)
	return cmd
}

func (a *replayRun) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&a.selection.All, "all", false, "everything that the stream has")
	f.Uint64Var(&a.selection.FromSeq, "from-stream-seq", 0, "from this sequence of the stream on")
	f.StringVar(&a.since, "since", "", "from a time such as 2026-11-01T00:00:00Z, or how long ago, such as 2h")
	f.StringVar(&a.until, "until", "", "only what was stored before a time, or how long ago")
	f.StringVar(&a.selection.Type, "type", "", "only events of this type, such as user.created")
	f.StringVar(&a.selection.Key, "key", "", "only events of this key")
	f.IntVar(&a.selection.Rate, "rate", 0, "the most events per second; 0 is no limit")
	f.BoolVar(&a.selection.Again, "again", false, "also run what is done; with --all it rebuilds")
	f.BoolVar(&a.selection.Force, "force", false, "run again what has effects outside the database, or rebuild from less than everything")
	f.BoolVar(&a.dryRun, "dry-run", false, "show the plan, and change nothing")
	f.BoolVar(&a.detach, "detach", false, "return once everything is handed over, without watching it run")
	f.BoolVar(&a.yes, "yes", false, "do not ask")
	reasonFlag(f, &a.reason)
	outputFlag(f)
	a.databaseFlag(f)
	a.directFlag(f)
	a.natsURLFlag(f)
	a.access.flags(f)
}

// check completes the selection and checks the flags, before anything connects.
func (a *replayRun) check(cmd *cobra.Command) (err error) {
	if err := notEmpty(cmd.Flags(), "since", "until", "type", "key"); err != nil {
		return err
	}
	chosen := 0
	for _, name := range []string{"all", "from-stream-seq", "since"} {
		if cmd.Flags().Changed(name) {
			chosen++
		}
	}
	s := &a.selection
	switch {
	case chosen != 1:
		return usagef("give one of --from-stream-seq, --since, or --all for everything that the stream has")
	case cmd.Flags().Changed("from-stream-seq") && s.FromSeq == 0:
		return usagef("--from-stream-seq is 0; the first sequence of a stream is 1")
	case s.Rate < 0:
		return usagef("--rate is %d, want 0 or more", s.Rate)
	case s.Again && !a.dryRun:
		err = needReason(a.reason)
	case s.Force && !s.Again:
		err = usagef("--force needs --again: nothing else needs force")
	}
	if err != nil {
		return err
	}
	if s.From, err = timeFlag("--since", a.since); err != nil {
		return err
	}
	if s.Until, err = timeFlag("--until", a.until); err != nil {
		return err
	}
	if !a.dryRun && !a.yes && !terminal(a.in) {
		return usagef("see the plan with --dry-run, then use --yes: there is no terminal to ask on")
	}
	return nil
}

// replay plans, asks, and runs the plan.
func (a *replayRun) replay(ctx context.Context) error {
	db, err := a.reachDirect(ctx)
	if err != nil {
		return err
	}
	defer postgres.Close(db)
	return lead.NameLock(ctx, db, a.replayOn(ctx, db))
}

func (a *replayRun) replayOn(ctx context.Context, db *pgxpool.Pool) error {
	nc, js, err := a.reachNATS()
	if err != nil {
		return err
	}
	defer nc.Close()
	r, err := replay.Open(ctx, db, js, a.consumer)
	if err != nil {
		return err
	}
	defer r.Close()
	if !a.dryRun {
		if err := r.Lock(ctx); err != nil {
			return err
		}
	}
	if a.continues != nil {
		if a.selection, err = r.Continue(*a.continues); err != nil {
			return err
		}
		a.selection.Rate = cmp.Or(a.rate, a.selection.Rate)
	}
	plan, err := r.Plan(ctx, a.selection)
	if err != nil {
		return err
	}
	if err := a.stdio.show(plan, func(w io.Writer) { writePlan(w, plan) }); err != nil {
		return err
	}
	if proceed, err := a.confirmPlan(plan); err != nil || !proceed {
		return err
	}
	return a.run(ctx, r, plan)
}

// confirmPlan reports whether to run the plan.
func (a *replayRun) confirmPlan(plan *replay.Plan) (bool, error) {
	switch {
	case a.dryRun:
		fmt.Fprintln(a.err, "nothing was changed")
		return false, nil
	case plan.Refused != "":
		return false, usagef("%s; if that is what you want, say --force", plan.Refused)
	case plan.Empty():
		fmt.Fprintln(a.err, "nothing to replay; nothing was changed")
		return false, nil
	case a.yes:
		return true, nil
	}
	n, grave := int64(plan.Run+plan.Again), plan.Effects || a.selection.Force // effects happen again, or a rebuild is not complete
	if confirmCount(a.in, a.err, fmt.Sprintf("Replay %d events to %s?", n, plan.Consumer), n, grave) {
		return true, nil
	}
	fmt.Fprintln(a.err, "nothing was changed")
	return false, nil
}

func (a *replayRun) run(ctx context.Context, r *replay.Replay, plan *replay.Plan) error {
	reason := a.reason
	if strings.TrimSpace(reason) == "" {
		reason = "none given"
	}
	watch := !a.detach && !plan.Paused && plan.Processes > 0
	progress := newProgress(a.err, "replay", plan.Consumer)
	result, err := r.Run(ctx, plan, replay.Order{By: actor(), Reason: reason, Watch: watch, Progress: progress.report})
	progress.finish()
	if a.output == "json" && result.Operation != 0 {
		if err := a.stdio.show(result, nil); err != nil {
			return err
		}
	}
	if err != nil {
		return a.stopped(ctx, plan, result, err)
	}
	fmt.Fprintln(a.err, outcome(plan, result))
	return nil
}

// stopped reports how far the replay came, and how to resume it.
func (a *replayRun) stopped(ctx context.Context, plan *replay.Plan, result replay.Result, err error) error {
	if result.Step == "handed over" {
		fmt.Fprintf(a.err, "everything is handed over to %s, which goes on by itself\n", plan.Consumer)
	} else if result.Operation != 0 {
		fmt.Fprintf(a.err, "replay %d stopped while it was %s, %d events handed over; to go on:\n  %s\n",
			result.Operation, result.Step, result.Handed, a.resumeCommand(plan, result))
	}
	if ctx.Err() != nil {
		return &exitError{exitInterrupted, errors.New("interrupted")}
	}
	return err
}

// resumeCommand returns the command that replays the rest of the plan.
func (a *replayRun) resumeCommand(plan *replay.Plan, result replay.Result) string {
	s := a.selection
	words := []string{"pgjet replay", word(plan.Consumer)}
	if plan.Way == replay.ByReset && s.All {
		words = append(words, "--all")
	} else {
		words = append(words, fmt.Sprint("--from-stream-seq ", result.Next))
	}
	if plan.Way == replay.ByIntent { // events that were stored since are not part of the plan
		words = append(words, "--until "+plan.Until.UTC().Format(time.RFC3339Nano))
	}
	for _, flag := range []struct{ name, value string }{{"--type", s.Type}, {"--key", s.Key}} {
		if flag.value != "" {
			words = append(words, flag.name+" "+shellQuote(plain(flag.value)))
		}
	}
	if s.Rate > 0 {
		words = append(words, fmt.Sprint("--rate ", s.Rate))
	}
	if s.Again {
		words = append(words, "--again")
	}
	if s.Force {
		words = append(words, "--force")
	}
	if a.reason != "" {
		words = append(words, "--reason "+shellQuote(plain(a.reason)))
	}
	return strings.Join(words, " ")
}

// outcome describes in one line how the replay ended.
func outcome(plan *replay.Plan, result replay.Result) string {
	line := fmt.Sprintf("replay %d: %d events handed over to %s", result.Operation, plan.Run+plan.Again, plan.Consumer)
	switch {
	case plan.Paused:
		return line + ", which is paused: it goes on when it is resumed"
	case plan.Processes == 0:
		return line + "; no process runs it: it goes on when one is started"
	case result.Step != "done":
		return line + ", which goes on by itself"
	}
	line += " and tried"
	if result.Waiting > 0 {
		line += fmt.Sprintf("; %d wait for another attempt or an earlier event of their key", result.Waiting)
	}
	if result.Dead > 0 {
		line += fmt.Sprintf("; %d became dead letters", result.Dead)
	}
	return line
}

// replayExit adds exit codes to errors that have none: a replay was interrupted, or a server did not answer.
func replayExit(err error) error {
	if _, ok := errors.AsType[*exitError](err); ok || reasonExit(err) != exitFailed {
		return err
	}
	for _, code := range []struct {
		err  error
		code int
	}{
		{context.Canceled, exitInterrupted}, {nats.ErrNoResponders, exitUnreachable}, {nats.ErrConnectionClosed, exitUnreachable},
		{nats.ErrTimeout, exitUnreachable}, {context.DeadlineExceeded, exitUnreachable},
	} {
		if errors.Is(err, code.err) {
			return &exitError{code.code, err}
		}
	}
	return err
}
