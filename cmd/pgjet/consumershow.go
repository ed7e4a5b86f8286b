package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/consumers/status"
	"github.com/pgjet/pgjet/internal/operate"
)

// showConsumers writes one line for each consumer, then what to do.
func showConsumers(cmd *cobra.Command, all []status.Status) error {
	err := show(cmd, all, func(w io.Writer) {
		fmt.Fprintln(w, "NAME\tSTATE\tLAG\tRETRYING\tDEAD\tRATE\tOLDEST\tWHY")
		for _, s := range all {
			fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%s\t%s\t%s\n", plain(s.Name), s.Why.Code, lag(s), s.Retrying, s.DeadLetters,
				handled(s), oldest(s), plain(reasonText(s)))
		}
	})
	if err != nil || outputForm(cmd) == "json" {
		return err
	}
	first, out := true, cmd.OutOrStdout()
	for _, s := range all {
		for _, line := range nextSteps(s, operate.NextForConsumer) {
			if first {
				fmt.Fprintln(out)
				first = false
			}
			fmt.Fprintln(out, harmless(line))
		}
	}
	return nil
}

// reasonText describes the worst reason, and names the others.
func reasonText(s status.Status) string {
	if len(s.Also) == 0 {
		return s.Why.Text
	}
	var codes []string
	for _, w := range s.Also {
		codes = append(codes, w.Code)
	}
	return fmt.Sprintf("%s (and %d more: %s)", s.Why.Text, len(codes), strings.Join(codes, ", "))
}

// nextSteps returns one line for each unhealthy reason of a consumer, with the command to type, which
// next returns.
func nextSteps(s status.Status, next func(s status.Status, code string, own bool) string) (lines []string) {
	for _, w := range s.Reasons() {
		if !w.Healthy() && w.Code != "dead_letters" {
			lines = append(lines, fmt.Sprintf("%s is %s -> %s", s.Name, w.Code, next(s, w.Code, ownConsumers[s.Name] != nil)))
		}
	}
	if s.DeadLetters > 0 {
		letters := "dead letters"
		if s.DeadLetters == 1 {
			letters = "dead letter"
		}
		lines = append(lines, fmt.Sprintf("%d %s for %s -> pgjet dead groups --consumer %s", s.DeadLetters, letters, s.Name, word(s.Name)))
	}
	return lines
}

// showConsumer writes all that is known of one consumer.
func showConsumer(cmd *cobra.Command, s status.Status) error {
	return show(cmd, s, func(w io.Writer) {
		line := lines(w)
		line("name", "%s", s.Name)
		line("stream", "%s", s.Stream)
		line("state", "%s", s.Why.Code)
		line("order", "%s", order(s))
		line("lag", "%s not delivered yet", lag(s))
		line("oldest", "%s, of those that are not handled: not delivered, in flight or retrying", oldest(s))
		line("retrying", "%d", s.Retrying)
		if s.Unasked {
			line("dead", "%d to be decided on", s.DeadLetters)
		} else {
			line("in flight", "%d; %d of %d not acknowledged", s.InFlight, s.AckPending, s.MaxAckPending)
			line("done", "%d", s.Done)
			line("dead", "%d to be decided on, of %d", s.DeadLetters, s.Dead)
			line("unaccounted", "%d", s.Unaccounted)
			line("rate", "%s handled, %s arrive", rate(s.Rate), rate(s.Arrivals))
		}
		if p := s.Paused; p != nil {
			line("paused", "by %s %s: %s", p.By, ago(s.At.Sub(p.At)), p.Reason)
		}
		if len(s.Slices) > 1 {
			for _, one := range s.Slices {
				waits := fmt.Sprintf("lag %d, %d not acknowledged", one.Lag, one.AckPending)
				if s.Unasked {
					waits = "lag ?"
				}
				owner := "nobody's"
				if one.Process != "" {
					owner = one.Process + "'s since " + since(s.At, one.Since)
				}
				line("slice", "%d is %s; %s; %s: %s", one.Slice, owner, waits, one.Why.Code, one.Why.Text)
			}
		}
		for _, p := range s.Processes {
			line("process", "%s", aboutProcess(s, p))
			if p.Error != "" {
				line("last error", "%s", p.Error)
			}
		}
		if p := s.Last; p != nil {
			line("last process", "%s, seen %s", p.Process, ago(s.At.Sub(p.SeenAt)))
		}
		for _, w := range s.Reasons() {
			line("why", "%s", w.Text)
		}
		for _, next := range nextSteps(s, operate.NextAtConsumer) {
			line("next", "%s", next)
		}
	})
}

// order describes how many processes may work at a time, and which ones do.
func order(s status.Status) string {
	if !s.Ordered {
		return "none: processes share the events"
	}
	if len(s.Slices) > 1 {
		return fmt.Sprintf("per key: processes share %d slices", len(s.Slices))
	}
	for _, only := range s.Slices {
		return fmt.Sprintf("per key: one process is active, %s since %s", cmp.Or(only.Process, "none now"), since(s.At, only.Since))
	}
	return "per key: one process is active, none yet"
}

func aboutProcess(s status.Status, p status.Process) string {
	text := fmt.Sprintf("%s since %s, %d workers; of the last %d attempts %d failed, the median took %s",
		p.Process, ago(s.At.Sub(p.Since)), p.Workers, p.Attempts, p.Failed, seconds(p.Seconds).Round(100*time.Microsecond))
	if p.Cause != "" {
		text += "; it handles nothing: " + p.Cause
	}
	return text
}

// lag formats the number of events that were not delivered: "?" if JetStream was not asked.
func lag(s status.Status) string {
	if s.Unasked {
		return "?"
	}
	return fmt.Sprint(s.Lag)
}

// handled formats the rate of a consumer: "?" if JetStream was not asked.
func handled(s status.Status) string {
	if s.Unasked {
		return "?"
	}
	return rate(s.Rate)
}

// rate formats a rate.
func rate(r float64) string {
	if r > 0 && r < 10 {
		return fmt.Sprintf("%.1f/s", r)
	}
	return fmt.Sprintf("%.0f/s", r)
}

// oldest returns how long the oldest event has waited.
func oldest(s status.Status) string {
	if s.OldestSeconds == 0 {
		return "-"
	}
	return ago(seconds(s.OldestSeconds))
}
