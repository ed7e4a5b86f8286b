package main

import (
	"fmt"
	"io"

	"github.com/pgjet/pgjet/consumers/replay"
)

func writePlan(w io.Writer, p *replay.Plan) {
	line, some := counts(w)
	line("consumer", p.Consumer, processesOf(p))
	if p.From > p.To {
		line("stream", p.Stream, "nothing is stored in this range")
	} else {
		line("stream", p.Stream, fmt.Sprintf("sequence %d to %d", p.From, p.To))
	}
	line("way", p.Way, way(p))
	line("selected", p.Selected, "events of the range that it handles")
	line("run", p.Run, "not in the inbox: will be delivered and run")
	some("again", int64(p.Again), "done, and will run again")
	line("skipped", p.Skipped, "done, and stay done")
	some("on the way", int64(p.OnTheWay), "will be delivered without a replay")
	some("waiting", int64(p.Waiting), "wait for an attempt already")
	some("dead letters", int64(p.Dead), "are left alone; to give them back: pgjet dead redrive")
	some("discarded", int64(p.Discarded), "were discarded, and stay discarded")
	some("foreign", int64(p.Foreign), "messages that are no events")
	if p.Gone > 0 {
		line("gone", p.Gone, "sequences that the stream no longer has; if they were events of the consumer, they are not replayed")
	}
	if p.Rebuild {
		line("rebuild", "yes", "what its handlers wrote is cleared first, if it has a Clear; else do that by hand before")
	}
	if p.Effects {
		line("effects", p.Run+p.Again, "events that run have effects outside the database, such as mails")
	}
	if p.Refused != "" {
		line("refused", "yes", p.Refused+"; --force overrides")
	}
}

// way describes how the plan delivers events.
func way(p *replay.Plan) string {
	switch {
	case p.Way == replay.ByIntent:
		return "event by event, while live events go on"
	case p.Again > 0 || p.Rebuild:
		return "the consumer is paused for seconds and set back"
	}
	return "the consumer is paused for seconds and set back; events that are done are delivered and skipped"
}

func processesOf(p *replay.Plan) string {
	switch {
	case p.Paused:
		return "is paused, and stays paused: nothing runs until it is resumed"
	case p.Processes == 0:
		return "no process runs it: nothing happens until one is started"
	case p.Processes == 1:
		return "1 process runs it"
	}
	return fmt.Sprintf("%d processes run it", p.Processes)
}
