package config

import (
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-playground/validator/v10"
)

// A Schema is the set of all keys.
type Schema struct {
	keys     []*Key
	byName   map[string]*Key
	sections []Section
	groups   []Group
}

// A Key is a single value. It is text, which its user interprets.
type Key struct {
	Name    string // such as database_url
	Default string
	Note    string // more about the default, for people
	Usage   string
	Want    string                            // a valid value, in words
	Parse   func(text string) (string, error) // checks a text, and returns its usual form; nil accepts any
	Secret  bool                              // shown masked; NAME_file names a file with the value instead
	Live    bool                              // may change while the process runs
	Used    bool                              // by this process
	typed   func(string) (any, error)         // of a key in a section
}

// A Section is a group of keys that may change while the process runs. Default is a struct
// whose fields have koanf and validate tags, or a map[string]bool that has all keys.
type Section struct {
	Name    string // such as users, or services.billing
	Default any
}

// NewSchema returns the schema with these keys and sections.
func NewSchema(keys []Key, sections ...Section) *Schema {
	s := &Schema{byName: make(map[string]*Key), sections: sections}
	for _, k := range keys {
		s.add(k)
	}
	for _, section := range sections {
		s.addSection(section.Name, reflect.ValueOf(section.Default))
	}
	return s
}

func (s *Schema) add(k Key) {
	s.keys = append(s.keys, &k)
	s.byName[k.Name] = &k
}

func (s *Schema) addSection(name string, v reflect.Value) {
	if v.Kind() == reflect.Map {
		names := v.MapKeys()
		slices.SortFunc(names, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
		for _, n := range names {
			s.addLeaf(name+"."+n.String(), v.MapIndex(n), "")
		}
		return
	}
	for field, value := range v.Fields() {
		if field.Tag.Get("koanf") == "-" {
			continue
		}
		key := name + "." + field.Tag.Get("koanf")
		if value.Kind() == reflect.Struct {
			s.addSection(key, value)
		} else {
			s.addLeaf(key, value, named(v.Type(), field.Tag.Get("validate")))
		}
	}
}

func (s *Schema) addLeaf(name string, v reflect.Value, rules string) {
	k := Key{Name: name, Live: true, Used: true, Default: fmt.Sprint(v.Interface())}
	switch v.Interface().(type) {
	case time.Duration:
		k.Want, k.typed = "a duration such as 500ms", func(t string) (any, error) { return time.ParseDuration(t) }
	case int:
		k.Want, k.typed = "a whole number", func(t string) (any, error) { return strconv.Atoi(t) }
	case uint:
		k.Want, k.typed = "a whole number", func(t string) (any, error) { n, err := strconv.ParseUint(t, 10, 0); return uint(n), err }
	case float64:
		k.Want, k.typed = "a number", func(t string) (any, error) { return strconv.ParseFloat(t, 64) }
	case bool:
		k.Want, k.typed = "true or false", func(t string) (any, error) { return strconv.ParseBool(t) }
	case string:
		k.Want, k.typed = "text", func(t string) (any, error) { return t, nil }
	default:
		panic(fmt.Sprintf("configuration: %s is a %s, which no key can be", name, v.Type()))
	}
	k.Want += limits(rules)
	s.add(k)
}

// named returns rules with the key of a field instead of its name.
func named(t reflect.Type, rules string) string {
	for field := range t.Fields() {
		rules = strings.ReplaceAll(rules, "field="+field.Name, "field="+field.Tag.Get("koanf"))
	}
	return rules
}

// limits describes the rules of a validate tag.
func limits(rules string) string {
	low, high, rest := "", "", ""
	for rule := range strings.SplitSeq(rules, ",") {
		name, param, _ := strings.Cut(rule, "=")
		switch name {
		case "min", "gte":
			low = param
		case "max", "lte":
			high = param
		case "ltefield":
			rest += ", at most " + param
		case "gtefield":
			rest += ", at least " + param
		case "url", "http_url":
			rest += " such as http://host:8080"
		case "oneof":
			rest += ", one of " + strings.ReplaceAll(param, " ", ", ")
		}
	}
	switch {
	case low != "" && high != "":
		return ", from " + low + " to " + high + rest
	case low != "":
		return ", " + low + " or more" + rest
	case high != "":
		return ", at most " + high + rest
	}
	return rest
}

// parse returns text in its usual form: 1m0s for 60s.
func (k *Key) parse(text string) (string, error) {
	if k.typed != nil {
		v, err := k.typed(text)
		return fmt.Sprint(v), err
	}
	if k.Parse != nil {
		return k.Parse(text)
	}
	return text, nil
}

// found shows a wrong value, as much of it as may be shown.
func (k *Key) found(text string) string {
	const most = 40
	text = k.mask(text)
	if r := []rune(text); len(r) > most {
		text = string(r[:most]) + "…"
	}
	if strings.Contains(text, "${") {
		return strconv.Quote(text) + " (there are no variables in a file)"
	}
	return strconv.Quote(text)
}

// open matches an address that cannot hold a password.
var open = regexp.MustCompile(`^[a-z]+://(\[[0-9a-f:]+\]|[\w.-]+)(:\d+)?(/[\w-]*)?$`)

// mask hides what is or may be a secret, such as an address with a user under any key. It
// shows an address without user and password as a whole.
func (k *Key) mask(text string) string {
	withUser := strings.Contains(text, "://") && strings.Contains(text, "@")
	if text == "" || !k.Secret && !withUser {
		return text
	}
	for part := range strings.SplitSeq(text, ",") {
		if !open.MatchString(strings.TrimSpace(part)) {
			return "****"
		}
	}
	return text
}

// rules checks structs of sections by their validate tags.
var rules = newRules()

func newRules() *validator.Validate {
	v := validator.New(validator.WithRequiredStructEnabled())
	v.RegisterTagNameFunc(func(f reflect.StructField) string { return f.Tag.Get("koanf") })
	return v
}

// broken returns the keys of a section whose values break their rules.
func (l *loading) broken(section Section) []string {
	t := reflect.TypeOf(section.Default)
	if t.Kind() != reflect.Struct {
		return nil
	}
	v := reflect.New(t)
	if err := l.unmarshal(section.Name, v.Interface()); err != nil {
		l.fail("configuration: section %s: %w", section.Name, err)
		return nil
	}
	var keys []string
	if err := rules.Struct(v.Interface()); err != nil {
		for _, f := range err.(validator.ValidationErrors) { //nolint:errorlint // it is never another one
			_, path, _ := strings.Cut(f.Namespace(), ".")
			keys = append(keys, section.Name+"."+path)
		}
	}
	return keys
}

// unknown returns a message that there is no such key, with the key that may be meant.
func (s *Schema) unknown(key string) string {
	if most := 100; len(key) > most {
		return "unknown key " + strconv.Quote(key[:most]+"…")
	}
	parent, name := split(key)
	best, distance := "", max(2, len(name)/3)+1
	for _, k := range s.keys {
		for candidate := k.Name; candidate != ""; candidate, _ = split(candidate) {
			within, last := split(candidate)
			d := Edits(name, last)
			if within != parent {
				d++
			}
			if d < distance {
				best, distance = candidate, d
			}
		}
	}
	if best == "" {
		return "unknown key " + strconv.Quote(key)
	}
	return "unknown key " + strconv.Quote(key) + ", did you mean " + best + "?"
}

// section reports whether there are keys below this one.
func (s *Schema) section(key string) bool {
	return s.group(key) || slices.ContainsFunc(s.keys, func(k *Key) bool { return strings.HasPrefix(k.Name, key+".") })
}

// split returns the section of a key, and its name there.
func split(key string) (parent, name string) {
	if i := strings.LastIndexByte(key, '.'); i >= 0 {
		return key[:i], key[i+1:]
	}
	return "", key
}

// Edits returns how many letters have to be inserted, deleted or replaced to turn a into b.
func Edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			d := diagonal
			if a[i] != b[j] {
				d++
			}
			diagonal = row[j+1]
			row[j+1] = min(d, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
