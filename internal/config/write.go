package config

import (
	"fmt"
	"io"
	"regexp"
	"strings"
	"text/tabwriter"
)

// Write writes the defaults as YAML, with a comment on each key. Keys that may change
// while a process runs are set, the others are comments.
func (s *Schema) Write(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(t, "# These take effect while processes run, as soon as this file is saved.\n\n")
	var open []string
	for _, k := range s.keys {
		if k.Live {
			open = k.write(t, open)
		}
	}
	fmt.Fprint(t, "\n# These take effect when a process starts.\n\n")
	for _, k := range s.keys {
		if !k.Live {
			fmt.Fprintf(t, "# %s: %s\t# %s\n", k.Name, scalar(k.Default), k.Usage)
		}
	}
	for _, g := range s.groups {
		g.write(t)
	}
	return t.Flush()
}

// write writes one key below the sections that are open, and returns the sections that are
// open afterwards.
func (k *Key) write(w io.Writer, open []string) []string {
	levels := strings.Split(k.Name, ".")
	last := len(levels) - 1
	for i, name := range levels[:last] {
		if i < len(open) && open[i] == name {
			continue
		}
		fmt.Fprintf(w, "%s%s:\n", strings.Repeat("  ", i), name)
		open = append(open[:i:i], name)
	}
	note := k.Usage
	if note == "" {
		note = k.Want
	}
	fmt.Fprintf(w, "%s%s: %s\t# %s\n", strings.Repeat("  ", last), levels[last], scalar(k.Default), note)
	return open[:last:last]
}

// simple matches text that YAML needs no quotes for.
var simple = regexp.MustCompile(`^[\w./-]+(:[\w./-]+)*$`)

func scalar(text string) string {
	if simple.MatchString(text) {
		return text
	}
	return fmt.Sprintf("%q", text)
}
