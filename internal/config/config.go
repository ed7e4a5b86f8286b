// Package config reads the configuration of a process from layers: defaults, a YAML or TOML
// file, the environment, flags. A later layer wins, key by key.
//
//   - [Schema.Load] accepts the whole configuration or nothing, and reports all errors at
//     once: unknown keys with the nearest known one, wrong types, values out of range, keys
//     that are set twice. It names the line, and never shows a secret.
//   - Keys of a [Section] may change while the process runs. [Live] follows the file and
//     passes each valid change to its subscribers as a whole; a bad file changes nothing.
//   - All other keys are read at the start only. A running process that uses such a key
//     refuses a file that changes it.
//
// Text is literal: there are no variables, aliases or includes in a file.
package config

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/v2"
)

// A Value is the effective value of a key with its origin: "default", a file and line, the
// name of a variable, or a flag.
type Value struct {
	Key    string `json:"key"`
	Text   string `json:"value"`
	Origin string `json:"origin"`
}

// byDefault is the origin of a default.
const byDefault = "default"

// A Config is one valid set of values. It does not change.
type Config struct {
	file     string
	stamp    stamp // of the file, before it was read
	empty    bool  // the file has no byte
	schema   *Schema
	values   map[string]Value
	entries  map[string][]string // of groups, by the group
	sections *koanf.Koanf
	warnings []string
	hash     string
}

// Load reads file, unless it is "", then the variables of sections, such as
// PGJET_USERS__CACHE__TTL, then given: values from flags, or from the variables that stand
// for flags. Its error joins all faults.
func (s *Schema) Load(file string, environ []string, given []Value) (*Config, error) {
	l := &loading{
		schema: s, environ: make(map[string]string),
		Config: &Config{file: file, schema: s, values: make(map[string]Value), sections: koanf.New(".")},
	}
	for _, variable := range environ {
		name, text, _ := strings.Cut(variable, "=")
		l.environ[name] = text
	}
	entries := l.readFile()
	l.expand(entries)
	for _, k := range l.schema.keys {
		l.values[k.Name] = Value{k.Name, k.Default, byDefault}
	}
	l.take(entries)
	l.readSections(environ)
	l.readSecrets(given)
	for _, v := range given {
		if _, ok := l.schema.byName[v.Key]; ok {
			l.set(v)
		}
	}
	l.decode()
	if most := 100; len(l.errs) > most {
		l.errs = append(l.errs[:most], fmt.Errorf("and %d more", len(l.errs)-most))
	}
	if len(l.errs) > 0 {
		return nil, errors.Join(l.errs...)
	}
	l.hash = l.sum()
	return l.Config, nil
}

// File returns the path of the file, "" if there is none.
func (c *Config) File() string { return c.file }

// Hash identifies the values, secrets excluded.
func (c *Config) Hash() string { return c.hash }

// Warnings returns what is valid but unwise.
func (c *Config) Warnings() []string { return c.warnings }

// Lookup returns the value of a key, and whether a layer sets it. It may be a secret.
func (c *Config) Lookup(key string) (Value, bool) {
	v, ok := c.values[key]
	return v, ok && v.Origin != byDefault
}

// Values returns all effective values, in the order of the schema. Secrets are masked.
func (c *Config) Values() []Value {
	var all []Value
	for _, k := range c.schema.keys {
		v := c.values[k.Name]
		v.Text = k.mask(v.Text)
		if v.Origin == byDefault {
			v.Origin += k.Note
		}
		all = append(all, v)
	}
	return all
}

// Get returns the values of a section as a T, which is the type of its default.
func Get[T any](c *Config, section string) T {
	var t T
	if err := c.unmarshal(section, &t); err != nil {
		panic(err) // no schema with such a section passed Load
	}
	return t
}

func (c *Config) unmarshal(section string, to any) error {
	if !c.sections.Exists(section) {
		return fmt.Errorf("configuration: no section %s", section)
	}
	return c.sections.Unmarshal(section, to)
}

// sum hashes the values that are set, and all values of sections. Defaults of other keys do
// not count, since they differ between processes.
func (c *Config) sum() string {
	h := sha256.New()
	for _, k := range slices.SortedFunc(slices.Values(c.schema.keys), func(a, b *Key) int { return cmp.Compare(a.Name, b.Name) }) {
		if v := c.values[k.Name]; !k.Secret && (k.typed != nil || v.Origin != byDefault) {
			fmt.Fprintf(h, "%s=%q\n", k.Name, v.Text)
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:6])
}

// A loading is a configuration that is being loaded.
type loading struct {
	*Config
	schema  *Schema
	environ map[string]string
	errs    []error
}

func (l *loading) fail(format string, args ...any) {
	l.errs = append(l.errs, fmt.Errorf(format, args...))
}

// set makes v the value of its key, or reports why it cannot.
func (l *loading) set(v Value) {
	k := l.schema.byName[v.Key]
	text, err := k.parse(v.Text)
	if err != nil {
		l.fail("%s: %s is %s, want %s", v.Origin, v.Key, k.found(v.Text), k.Want)
		return
	}
	v.Text = text
	l.values[v.Key] = v
}

// readSections reads the variables that name a key of a section: __ separates levels.
func (l *loading) readSections(environ []string) {
	for _, name := range slices.Sorted(slices.Values(environ)) {
		name, text, _ := strings.Cut(name, "=")
		key, ok := strings.CutPrefix(name, "PGJET_")
		if !ok || text == "" {
			continue
		}
		if !strings.Contains(key, "__") {
			l.notFlat(name, strings.ToLower(key))
			continue
		}
		key = strings.ToLower(strings.ReplaceAll(key, "__", "."))
		if l.schema.secretFile(key) != nil {
			continue
		}
		if _, ok := l.schema.byName[key]; !ok {
			l.fail("environment variable %s: %s", name, l.schema.unknown(key))
			continue
		}
		l.set(Value{key, text, name})
	}
}

// notFlat refuses a variable that was meant for a key in a section. Other unknown variables
// are not refused: the system sets some for a service with our name.
func (l *loading) notFlat(variable, name string) {
	for _, k := range l.schema.keys {
		if k.typed != nil && strings.ReplaceAll(k.Name, ".", "_") == name {
			l.fail("environment variable %s: unknown, did you mean PGJET_%s?", variable, strings.ToUpper(strings.ReplaceAll(k.Name, ".", "__")))
		}
	}
}

// decode decodes the values into the sections, and checks them against their rules.
func (l *loading) decode() {
	typed := make(map[string]any)
	for _, k := range l.schema.keys {
		if k.typed != nil {
			typed[k.Name], _ = k.typed(l.values[k.Name].Text) // parsed before
		}
	}
	if err := l.sections.Load(confmap.Provider(typed, "."), nil); err != nil {
		l.fail("configuration: %w", err)
		return
	}
	for _, section := range l.schema.sections {
		for _, key := range l.broken(section) {
			v, k := l.values[key], l.schema.byName[key]
			l.fail("%s: %s is %s, want %s", v.Origin, key, k.found(v.Text), k.Want)
		}
	}
}
