package main

import (
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pgjet/pgjet/consumers/inbox"
)

func deadCommand() *cobra.Command {
	var s settings
	cmd := group(&cobra.Command{
		Use:   "dead",
		Short: "Look at dead letters, and decide on them",
		Long: `Look at dead letters, the events that a consumer gave up on, and decide on them. They are in
the database of the consumer. Payloads and what looks like a mail address are shown only
with --reveal.`,
	}, s.deadGroupsCommand(), s.deadListCommand(), s.deadGetCommand(), s.deadExportCommand(),
		s.deadRedriveCommand(), s.deadDiscardCommand(), s.deadReopenCommand())
	s.databaseFlag(cmd.PersistentFlags())
	return cmd
}

// A deadSelection selects dead letters by flags and arguments.
type deadSelection struct {
	filter       inbox.Filter
	state        string
	since, until string
	given        *pflag.FlagSet
}

func (d *deadSelection) flags(f *pflag.FlagSet) {
	d.given = f
	f.StringVar(&d.filter.Consumer, "consumer", "", "only those of this consumer")
	f.StringVar(&d.filter.Group, "group", "", "only those of this group, such as g_1a2b3c4d; see pgjet dead groups")
	f.StringVar(&d.filter.Type, "type", "", "only events of this type")
	f.StringVar(&d.filter.Key, "key", "", "only events of this key")
	f.StringVar(&d.since, "since", "", "only those given up since then: a time in RFC 3339, or how long ago, such as 2h")
	f.StringVar(&d.until, "until", "", "only those given up before then, in the same form")
}

// selects reports whether any flag selects.
func (d *deadSelection) selects() bool {
	f := d.filter
	return f.Consumer+f.Group+f.Type+f.Key+d.since+d.until != ""
}

// stateFlag adds --state, for commands that only read.
func (d *deadSelection) stateFlag(f *pflag.FlagSet) {
	f.StringVar(&d.state, "state", inbox.Dead, "only those that are dead, redriven, done or discarded; or all; those named by ID are shown in any state")
}

// resolve returns the filter of the flags and the arguments.
func (d *deadSelection) resolve(args []string) (f inbox.Filter, err error) {
	f = d.filter
	if err := notEmpty(d.given, "consumer", "group", "type", "key", "since", "until"); err != nil {
		return f, err
	}
	if f.Group != "" && !inbox.IsGroup(f.Group) {
		return f, usagef("--group is %q, want the form g_1a2b3c4d; see: pgjet dead groups", f.Group)
	}
	if f.Since, err = timeFlag("--since", d.since); err != nil {
		return f, err
	}
	if f.Until, err = timeFlag("--until", d.until); err != nil {
		return f, err
	}
	if err := nameDead(&f, args); err != nil {
		return f, err
	}
	if d.state != "all" && !f.Named() {
		f.State = d.state
	}
	return f, nil
}

// nameDead adds arguments to f: ids of dead letters, or of events.
func nameDead(f *inbox.Filter, words []string) error {
	for _, word := range words {
		if !f.AddName(word) {
			return usagef("%q is no ID, which is a number such as 42, or an event's id; see: pgjet dead ls", short(word))
		}
	}
	return nil
}
