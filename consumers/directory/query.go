package directory

import (
	"encoding/base64"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"
)

const (
	defaultLimit = 50
	maxLimit     = 500
)

// A limit is the number of users of a page.
type limit string

// Schema describes a limit as a number.
func (limit) Schema(huma.Registry) *huma.Schema {
	least, most := 1.0, float64(maxLimit)
	return &huma.Schema{Type: huma.TypeInteger, Minimum: &least, Maximum: &most, Default: defaultLimit}
}

func (l limit) number() (int, error) {
	if l == "" {
		return defaultLimit, nil
	}
	n, err := strconv.Atoi(string(l))
	if err != nil || n < 1 || n > maxLimit {
		return 0, invalid("limit", "must be a number from 1 to "+strconv.Itoa(maxLimit))
	}
	return n, nil
}

// A cursor is the position of a user in the list. It is self-contained, so that a listing can go on
// after that user is gone, for example while the directory is rebuilt.
type cursor struct {
	name string // the user's key
	id   uuid.UUID
}

// String returns the cursor as text for the client.
func (c cursor) String() string {
	return base64.RawURLEncoding.EncodeToString(append(c.id[:], c.name...))
}

// parseCursor returns the position in a client's cursor; "" is before the first user.
func parseCursor(after string) (c cursor, err error) {
	if after == "" {
		return c, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(after)
	if err != nil || len(b) < len(c.id) {
		return c, invalid("after", "must be the next of the page before")
	}
	copy(c.id[:], b)
	c.name = string(b[len(c.id):])
	if !storable(c.name) {
		return c, invalid("after", "must be the next of the page before")
	}
	return c, nil
}

// pattern returns the pattern for text that begins with q, whatever its case.
func pattern(q string) string {
	return strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`).Replace(key(q)) + "%"
}

// storable reports whether PostgreSQL accepts s as text.
func storable(s string) bool { return utf8.ValidString(s) && !strings.Contains(s, "\x00") }

// parseDay returns a day, or nil for "".
func parseDay(name, s string) (*time.Time, error) {
	if s == "" {
		return nil, nil
	}
	day, err := time.Parse(time.DateOnly, s)
	if err != nil {
		return nil, invalid(name, "must be a day, such as 2026-11-01")
	}
	return &day, nil
}
