package config

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/knadh/koanf/parsers/toml/v2"
)

func parseTOML(file string, b []byte) ([]entry, error) {
	values, err := toml.Parser().Unmarshal(b)
	if err != nil {
		at := file
		var positioned interface{ Position() (row, column int) }
		if errors.As(err, &positioned) {
			row, _ := positioned.Position()
			at = fmt.Sprintf("%s:%d", file, row)
		}
		return nil, fmt.Errorf("%s: not TOML: %s", at, quoted.ReplaceAllString(strings.TrimPrefix(err.Error(), "toml: "), "…"))
	}
	return walkTOML(nil, "", values, linesTOML(string(b))), nil
}

func walkTOML(entries []entry, prefix string, values map[string]any, lines map[string]int) []entry {
	for _, name := range slices.Sorted(maps.Keys(values)) {
		e := entry{key: prefix + name, text: fmt.Sprint(values[name]), line: lines[prefix+name]}
		switch value := values[name].(type) {
		case map[string]any:
			e.kind, e.text = section, ""
			if entries = append(entries, e); strings.Count(e.key, ".") < maxLevels {
				entries = walkTOML(entries, e.key+".", value, lines)
			}
			continue
		case []any, []map[string]any:
			e.kind, e.text = list, ""
		}
		entries = append(entries, e)
	}
	return entries
}

var (
	tableTOML = regexp.MustCompile(`^\s*\[\[?\s*([^\]]+?)\s*\]`)
	keyTOML   = regexp.MustCompile(`^\s*([\w."'-]+)\s*=`)
)

// linesTOML returns the line of each key, for messages. It reads nothing else, and can be
// wrong about a file with multi-line strings.
func linesTOML(text string) map[string]int {
	lines, prefix, n := make(map[string]int), "", 0
	unquote := strings.NewReplacer(`"`, "", `'`, "", " ", "")
	for line := range strings.Lines(text) {
		n++
		if m := tableTOML.FindStringSubmatch(line); m != nil {
			prefix = unquote.Replace(m[1]) + "."
			lines[strings.TrimSuffix(prefix, ".")] = n
		} else if m := keyTOML.FindStringSubmatch(line); m != nil {
			lines[prefix+unquote.Replace(m[1])] = n
		}
	}
	return lines
}
