package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"time"
)

func main() {
	if kind := os.Getenv(childVariable); kind != "" {
		os.Exit(runChild(kind))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// options select what is measured, and how much.
type options struct {
	quick  bool
	only   []string       // names of scenarios; none: all
	match  *regexp.Regexp // names of variants
	rounds int            // of each variant; 0: 3, or 1 if quick
	growth int            // the largest backlog of the scenario growth; 0: 1 million
	dir    string         // where the servers keep their data; "": a temporary directory
	json   string         // a file for the report
	plots  string         // a directory for the plots
	doc    string         // a document in Markdown whose tables are replaced
	list   bool
	rows   int // of the scenario limits; 0: 100 000, or 50 000 if quick. Tests make it small
}

// orQuick returns full, or quick in a quick run.
func orQuick[T any](o options, full, quick T) T {
	if o.quick {
		return quick
	}
	return full
}

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	var only, match string
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.BoolVar(&o.quick, "quick", false, "a smaller load, one round")
	f.StringVar(&only, "only", "", "the `scenarios` to run, separated by commas")
	f.StringVar(&match, "match", "", "run only variants whose names, as -list shows them, match this `expression`")
	f.IntVar(&o.rounds, "rounds", 0, "how often each variant is measured: 3 times, or once if quick")
	f.IntVar(&o.growth, "growth", 0, "the largest `backlog` to grow to: 1000000, or 100000 if quick")
	f.StringVar(&o.dir, "dir", "", "the directory for the servers' data, on the disk to measure")
	f.StringVar(&o.json, "json", "", "write the report to this `file`, too")
	f.StringVar(&o.plots, "plots", "", "write plots to this `directory`")
	f.StringVar(&o.doc, "doc", "", "replace the tables in this `document`, docs/benchmarks.md, by those of the run")
	f.BoolVar(&o.list, "list", false, "list the scenarios and their variants")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	var err error
	if o.match, err = regexp.Compile(match); err != nil {
		return o, fmt.Errorf("-match: %w", err)
	}
	if f.NArg() > 0 || o.rounds < 0 || o.growth < 0 {
		return o, fmt.Errorf("see bench -help")
	}
	if o.rounds == 0 {
		o.rounds = orQuick(o, 3, 1)
	}
	if only != "" {
		o.only = strings.Split(only, ",")
	}
	return o, nil
}

// run is main without the process. It returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	var chosen []scenario
	if err == nil {
		chosen, err = choose(scenarios(o), o.only, o.match)
	}
	if err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 2
	}
	if o.list {
		list(stdout, chosen)
		return 0
	}
	r, err := measure(ctx, o, chosen, stderr)
	if r != nil {
		err = errors.Join(err, r.publish(o, stdout))
	}
	switch {
	case ctx.Err() != nil:
		fmt.Fprintln(stderr, "bench: interrupted")
		return 130
	case err != nil:
		fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
	return 0
}

// measure starts the servers, runs the scenarios and stops the servers. The report
// is nil if they did not start.
func measure(ctx context.Context, o options, chosen []scenario, stderr io.Writer) (*report, error) {
	began := time.Now()
	l, err := startLab(ctx, o)
	if err != nil {
		return nil, err
	}
	r := &report{Machine: l.machine(ctx), Quick: o.quick, Began: began.UTC().Truncate(time.Second)}
	err = execute(ctx, l, o, chosen, r, stderr)
	r.Took = time.Since(began).Round(time.Second).String()
	return r, errors.Join(err, l.stop())
}
