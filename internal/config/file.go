package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// maxFile bounds a configuration file, or a file with a secret.
const maxFile = 1 << 20

// maxLevels is more than any key has. Deeper levels are not read: a section that deep is
// unknown.
const maxLevels = 8

// An entry is one key of a file, in the order of the file.
type entry struct {
	key  string
	kind kind
	text string
	line int // 0 if unknown
}

type kind int

const (
	single  kind = iota
	nothing      // null
	section
	list
	alias
)

// readFile returns the entries of the file.
func (l *loading) readFile() []entry {
	if l.file == "" {
		return nil
	}
	l.stamp = stampOf(l.file)
	b, err := read(l.file)
	if err != nil {
		l.errs = append(l.errs, err)
		return nil
	}
	l.empty = len(b) == 0
	entries, err := parse(l.file, b)
	if err != nil {
		l.errs = append(l.errs, err)
		return nil
	}
	return entries
}

// take turns the entries of the file into values.
func (l *loading) take(entries []entry) {
	lines, skip := make(map[string]int), ""
	for _, e := range entries {
		at := l.file
		if e.line > 0 {
			at = fmt.Sprintf("%s:%d", l.file, e.line)
		}
		first, twice := lines[e.key]
		lines[e.key] = e.line
		_, known := l.schema.byName[e.key]
		switch known = known || l.schema.secretFile(e.key) != nil; {
		case skip != "" && strings.HasPrefix(e.key, skip):
		case twice:
			l.fail("%s: %s is set already in line %d", at, e.key, first)
		case e.kind == alias:
			l.fail("%s: %s is an alias, which is not allowed", at, e.key)
		case !known && !l.schema.section(e.key):
			l.fail("%s: %s", at, l.schema.unknown(e.key))
			skip = e.key + "."
		case e.kind == nothing || e.kind == single && e.text == "": // as if the key were absent
		case !known && e.kind != section:
			l.fail("%s: %s is a section, want keys below it", at, e.key)
		case known && e.kind != single:
			l.fail("%s: %s is a section or a list, want a single value", at, e.key)
			skip = e.key + "."
		case known && l.schema.byName[e.key] == nil:
			l.values[e.key] = Value{e.key, e.text, at} // the name of a secret's file
		case known:
			l.set(Value{e.key, e.text, at})
			l.guard(e)
		}
	}
}

// guard warns of a secret that others can read.
func (l *loading) guard(e entry) {
	info, err := os.Stat(l.file)
	k := l.schema.byName[e.key]
	if err != nil || info.Mode().Perm()&0o077 == 0 || k.mask(e.text) == e.text {
		return
	}
	warning := fmt.Sprintf("%s holds the secret %s, and others can read it: chmod 600", l.file, e.key)
	if k.Secret {
		warning += ", or name a file with the secret in " + e.key + "_file"
	}
	l.warnings = append(l.warnings, warning)
}

// secretFile returns the secret whose file a key names, nil if it names none.
func (s *Schema) secretFile(key string) *Key {
	name, ok := strings.CutSuffix(key, "_file")
	if k := s.byName[name]; ok && k != nil && k.Secret {
		return k
	}
	return nil
}

// readSecrets reads secrets from the files that the file, or a variable, names, unless they
// are given.
func (l *loading) readSecrets(given []Value) {
	for _, k := range l.schema.keys {
		if !k.Secret || !k.Used {
			continue
		}
		file := l.values[k.Name+"_file"]
		delete(l.values, k.Name+"_file")
		if file.Text != "" && l.values[k.Name].Origin != byDefault {
			l.fail("%s: %s and %s are both given, want one of them", file.Origin, k.Name, file.Key)
			continue
		}
		variable := variable(k.Name)
		if path := l.environ[variable+"_FILE"]; path != "" {
			if l.environ[variable] != "" {
				l.fail("environment variables %s and %s_FILE are both given, want one of them", variable, variable)
				continue
			}
			file = Value{Text: path, Origin: variable + "_FILE"}
		}
		if file.Text == "" || slices.ContainsFunc(given, func(v Value) bool { return v.Key == k.Name }) {
			continue
		}
		b, err := read(file.Text)
		secret := string(bytes.TrimSpace(b))
		if err == nil && secret == "" {
			err = fmt.Errorf("%s is empty, want the value of %s", file.Text, k.Name)
		}
		if err != nil {
			l.fail("%s: %w", file.Origin, err)
			continue
		}
		l.set(Value{k.Name, secret, file.Origin})
	}
}

// read returns the content of a regular file.
func read(path string) ([]byte, error) {
	info, err := os.Stat(path) // before it is opened: a pipe would wait for a writer
	if err != nil {
		return nil, fmt.Errorf("cannot read the file: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("cannot read the file: %s is %s, want a regular file", path, what(info.Mode()))
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the file: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read the file: %w", err)
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("cannot read the file: %s has more than %d bytes", path, maxFile)
	}
	return b, nil
}

func what(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "a directory"
	case m&fs.ModeNamedPipe != 0:
		return "a pipe"
	}
	return "a device or socket"
}

// parse returns the entries of a file in the format that its name indicates.
func parse(file string, b []byte) ([]entry, error) {
	b = bytes.TrimPrefix(b, []byte("\ufeff"))
	if !utf8.Valid(b) {
		return nil, fmt.Errorf("%s is not UTF-8", file)
	}
	switch strings.ToLower(filepath.Ext(file)) {
	case ".yaml", ".yml":
		return parseYAML(file, b)
	case ".toml":
		return parseTOML(file, b)
	}
	return nil, fmt.Errorf("%s is neither .yaml nor .yml nor .toml, want a name that shows its format", file)
}

// quoted matches a piece of the file in an error of the parser: it may be part of a secret.
var quoted = regexp.MustCompile("['\"`].*['\"`]")

func parseYAML(file string, b []byte) ([]entry, error) {
	d := yaml.NewDecoder(bytes.NewReader(b))
	var doc, more yaml.Node
	if err := d.Decode(&doc); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		text := quoted.ReplaceAllString(strings.TrimPrefix(err.Error(), "yaml: "), "…")
		if bytes.HasPrefix(b, []byte("\t")) || bytes.Contains(b, []byte("\n\t")) {
			text += "; indent with spaces, not with tabs"
		}
		return nil, fmt.Errorf("%s: not YAML: %s", file, text)
	}
	if err := d.Decode(&more); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: more than one document, want one", file)
	}
	top := doc.Content[0]
	if top.Tag == "!!null" && top.Kind == yaml.ScalarNode {
		return nil, nil
	}
	if top.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("%s:%d: not keys and values, such as log_level: info", file, top.Line)
	}
	return walkYAML(nil, "", top), nil
}

func walkYAML(entries []entry, prefix string, mapping *yaml.Node) []entry {
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		name, value := mapping.Content[i], mapping.Content[i+1]
		e := entry{key: prefix + name.Value, text: value.Value, line: name.Line}
		switch {
		case value.Kind == yaml.AliasNode:
			e.kind = alias
		case value.Kind == yaml.SequenceNode:
			e.kind = list
		case value.Kind == yaml.MappingNode:
			e.kind = section
		case value.Tag == "!!null":
			e.kind = nothing
		}
		entries = append(entries, e)
		if e.kind == section && strings.Count(e.key, ".") < maxLevels {
			entries = walkYAML(entries, e.key+".", value)
		}
	}
	return entries
}
