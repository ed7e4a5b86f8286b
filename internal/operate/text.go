package operate

import (
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/pgjet/pgjet/events"
)

// Plain returns s on one line, without characters that would move a terminal's cursor or a column.
func Plain(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsGraphic(r) {
			return r
		}
		return ' '
	}, s)
}

// Word returns s as one word of a command, quoted only if a shell would change it.
func Word(s string) string {
	safe := func(r rune) bool {
		return r < unicode.MaxASCII && (unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("_-./:@%+,", r))
	}
	if s = Plain(s); s != "" && strings.IndexFunc(s, func(r rune) bool { return !safe(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// WithPrefix returns a command with the flag --prefix, if it accepts one and the prefix is not the
// default.
func WithPrefix(command, prefix string) string {
	if prefix == "" || prefix == events.Prefix {
		return command
	}
	for _, takes := range []string{"pgjet relay --", "pgjet stream ", "pgjet consumer ensure ", "pgjet consume "} {
		if strings.HasPrefix(command+" --", takes) {
			return command + " --prefix " + Word(prefix)
		}
	}
	return command
}

// Typed returns a command with the flag --stream, if it accepts one, has none yet, and the stream
// is not the default.
func Typed(command, stream string) string {
	for _, takes := range []string{"pgjet relay", "pgjet stream", "pgjet consumer ensure", "pgjet consume ", "pgjet audit", "pgjet republish"} {
		if stream != events.DefaultStream && strings.HasPrefix(command, takes) && !strings.Contains(command, " --stream ") {
			return command + " --stream " + Word(stream)
		}
	}
	return command
}

// Ago formats how long ago something was.
func Ago(d time.Duration) string {
	switch d = max(d, 0); {
	case d < time.Minute:
		return fmt.Sprintf("%ds ago", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh ago", int(d.Hours()))
	}
	return fmt.Sprintf("%dd ago", int(d.Hours())/24)
}

// since formats how long before now t was; "-" if t is nil.
func since(now time.Time, t *time.Time) string {
	if t == nil {
		return "-"
	}
	return Ago(now.Sub(*t))
}

// without returns text without the code at its beginning.
func without(text, code string) string { return strings.TrimPrefix(text, code+": ") }

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// AtMost formats a number that is counted up to 10 000.
func AtMost(n int64, one, more string) string {
	switch {
	case n > 10_000:
		return "more than 10000 " + more
	case n == 1:
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, more)
}
