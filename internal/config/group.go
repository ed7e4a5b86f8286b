package config

import (
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// A Group is a section whose entries the author of the configuration names, each with the
// same keys. In the group relays, relays.orders.stream is the stream of the entry orders.
// Entries are read at the start only.
type Group struct {
	Name  string
	Usage string
	Keys  func(entry string) []Key // their names are those within the entry
}

// entryName matches the name of an entry: characters that an environment variable can hold,
// and -.
var entryName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,39}$`)

// With returns a schema with a group.
func (s *Schema) With(g Group) *Schema {
	more := *s
	more.groups = append(slices.Clip(s.groups), g)
	return &more
}

// Entries returns the names of the entries of a group, sorted.
func (c *Config) Entries(group string) []string { return c.entries[group] }

// expand returns the schema with the keys of each entry that the file or a variable names.
func (l *loading) expand(entries []entry) {
	l.entries = make(map[string][]string)
	whole := *l.schema
	whole.keys, whole.byName = slices.Clone(whole.keys), maps.Clone(whole.byName)
	for _, g := range whole.groups {
		for _, name := range l.named(g.Name, entries) {
			if !entryName.MatchString(name) {
				l.fail("%s.%s: a name is lower-case letters, digits, _ and -, at most 40", g.Name, name)
				continue
			}
			l.entries[g.Name] = append(l.entries[g.Name], name)
			for _, k := range g.Keys(name) {
				k.Name = g.Name + "." + name + "." + k.Name
				whole.add(k)
			}
		}
	}
	l.schema, l.Config.schema = &whole, &whole
}

// named returns the names below a group, in the file or in a variable.
func (l *loading) named(group string, entries []entry) []string {
	names := make(map[string]bool)
	for _, e := range entries {
		if rest, ok := strings.CutPrefix(e.key, group+"."); ok {
			name, _, _ := strings.Cut(rest, ".")
			names[name] = true
		}
	}
	for variable, text := range l.environ {
		rest, ok := strings.CutPrefix(variable, "PGJET_"+strings.ToUpper(group)+"__")
		if name, _, below := strings.Cut(rest, "__"); ok && below && text != "" {
			names[strings.ToLower(name)] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// group reports whether key is a group.
func (s *Schema) group(key string) bool {
	return slices.ContainsFunc(s.groups, func(g Group) bool { return g.Name == key })
}

// write writes an example of the group, as a comment.
func (g Group) write(w io.Writer) {
	fmt.Fprintf(w, "# %s:\t# %s\n#   NAME:\n", g.Name, g.Usage)
	for _, k := range g.Keys("NAME") {
		fmt.Fprintf(w, "#     %s: %s\t# %s\n", k.Name, scalar(k.Default), k.Usage)
	}
}

// variable returns the name of the variable of a key.
func variable(key string) string {
	return "PGJET_" + strings.ToUpper(strings.ReplaceAll(key, ".", "__"))
}
