package console

import (
	"fmt"
	"html/template"
	"net/url"
	"strings"
	"time"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/internal/operate"
)

// funcs are the functions of templates.
func (c *Console) funcs() template.FuncMap {
	return template.FuncMap{
		"path": func(parts ...any) template.URL { return template.URL(c.config.Path + escapedPath(parts)) }, //nolint:gosec // of this console
		"link": func(path string, pairs ...string) template.URL {
			return template.URL(c.config.Path + path + query(pairs...))
		}, //nolint:gosec // of this console
		"badge": badge,
		"ago":   ago,
		"in":    in,
		"rate":  rate,
		"count": count,
		"word":  operate.Word,
		"key":   masked,
		"mask":  masked,
		"short": short,
		"lasts": func(seconds float64) string { return lasts(time.Duration(seconds * float64(time.Second))) },
		"number": func(p *int64) int64 {
			if p == nil {
				return 0
			}
			return *p
		},
		"above": func(seq int64) int64 { return seq + 1 }, // a list after that begins with seq
	}
}

// escapedPath returns a path. It escapes every second part.
func escapedPath(parts []any) string {
	var b strings.Builder
	for i, p := range parts {
		text := fmt.Sprint(p)
		if i%2 == 1 {
			text = url.PathEscape(text)
		}
		b.WriteString(text)
	}
	return b.String()
}

// query returns the query of a URL, without names that have no value.
func query(pairs ...string) string {
	v := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			v.Set(pairs[i], pairs[i+1])
		}
	}
	if len(v) == 0 {
		return ""
	}
	return "?" + v.Encode()
}

// badges are the appearances of states: a class for the colour, and a sign, because not everybody
// sees colours.
var badges = map[string][2]string{
	"agrees": {"good", "✓"}, "same": {"good", "✓"}, "outbox_only": {"quiet", "…"}, "done": {"good", "✓"}, "moving": {"good", "✓"}, "ready": {"good", "✓"}, "works": {"good", "✓"}, "published": {"good", "✓"}, "leads": {"good", "✓"}, "undone": {"good", "↩"},
	"idle": {"quiet", "–"}, "ignored": {"quiet", "–"}, "standby": {"quiet", "–"}, "discarded": {"quiet", "⌫"}, "dropped": {"quiet", "⌫"},
	"waiting": {"quiet", "…"}, "pending": {"quiet", "…"}, "scheduled": {"quiet", "◷"}, "unknown": {"quiet", "?"}, "redriven": {"busy", "⟲"},
	"planned": {"quiet", "◷"}, "cancelled": {"quiet", "⌫"}, "stopped": {"retry", "⏸"}, "running": {"busy", "▶"}, "trying": {"busy", "▶"}, "effects": {"warn", "▲"}, "starting": {"busy", "▶"}, "undoing": {"retry", "↩"},
	"retrying": {"retry", "↻"}, "retry": {"retry", "↻"}, "retried": {"retry", "↻"}, "degraded": {"retry", "↻"}, "breaker_open": {"retry", "↻"},
	"paused": {"warn", "⏸"}, "consumer_paused": {"warn", "⏸"}, "slow": {"warn", "▲"}, "quarantined": {"warn", "▲"}, "held": {"warn", "▲"},
}

// badge formats a state. An unknown state looks bad.
func badge(state string) template.HTML {
	look, known := badges[state]
	if !known {
		look = [2]string{"bad", "✗"}
	}
	return template.HTML(fmt.Sprintf(`<span class="badge %s"><span aria-hidden="true">%s</span> %s</span>`, //nolint:gosec // the word is escaped
		look[0], look[1], template.HTMLEscapeString(strings.ReplaceAll(state, "_", " "))))
}

// ago formats how long ago a time was, with the exact time as a tooltip.
func ago(at any) template.HTML {
	t, known := at.(time.Time)
	if p, ok := at.(*time.Time); ok && p != nil {
		t, known = *p, true
	}
	if !known || t.IsZero() {
		return "–"
	}
	return timed(t, operate.Ago(time.Since(t)))
}

// in formats when a time will be.
func in(at any) template.HTML {
	t, known := at.(time.Time)
	if p, ok := at.(*time.Time); ok && p != nil {
		t, known = *p, true
	}
	switch d := time.Until(t); {
	case !known || t.IsZero():
		return "–"
	case d <= 0:
		return timed(t, operate.Ago(-d))
	default:
		return timed(t, "in "+lasts(d))
	}
}

func timed(t time.Time, text string) template.HTML {
	t = t.UTC()
	return template.HTML(fmt.Sprintf(`<time datetime="%s" title="%s">%s</time>`, t.Format(time.RFC3339Nano), t.Format("2006-01-02 15:04:05.000 UTC"), text)) //nolint:gosec // of times alone
}

// lasts formats a duration.
func lasts(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours())/24)
}

func rate(r float64) string {
	if r > 0 && r < 10 {
		return fmt.Sprintf("%.1f/s", r)
	}
	return fmt.Sprintf("%.0f/s", r)
}

// count formats a number, or a pointer to one, with a thin space between groups of three digits.
func count(n any) string {
	if p, is := n.(*int64); is {
		if p == nil {
			return "–"
		}
		n = *p
	}
	digits := fmt.Sprint(n)
	for i := len(digits) - 3; i > 0 && digits[i-1] != '-'; i -= 3 {
		digits = digits[:i] + "\u202f" + digits[i:]
	}
	return digits
}

// short shortens a text for a cell of a table.
func short(text string) string {
	const most = 160
	if r := []rune(operate.Plain(text)); len(r) > most {
		return string(r[:most-1]) + "…"
	}
	return operate.Plain(text)
}

// masked is [short] without mail addresses.
func masked(text string) string { return short(inbox.Mask(text)) }

func secondsOf(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
