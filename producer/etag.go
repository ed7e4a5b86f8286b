package producer

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

// etag returns the strong entity tag of a version.
func etag(version int) string { return `"` + strconv.Itoa(version) + `"` }

// fieldLines returns all lines of the request's header with this name, nil if there are
// none. huma reads only the first one.
func fieldLines(ctx huma.Context, name string) []string {
	r, _ := humago.Unwrap(ctx)
	return r.Header.Values(name)
}

// etags are the lines of an If-Match or If-None-Match header, nil if the request has
// none. Each holds a list of tags, or *.
type etags []string

// A comparison says whether weak tags count (RFC 9110, section 8.8.3.2): for
// If-None-Match they do, for If-Match never.
type comparison bool

const (
	weak   comparison = true
	strong comparison = false
)

// match reports whether tag, a strong one of a user that exists, is among the tags. A
// header that is no list of tags matches nothing, so that a client which sends it by
// mistake changes nothing.
func (t etags) match(tag string, c comparison) bool {
	list := strings.Join(t, ",")
	if strings.TrimSpace(list) == "*" {
		return true
	}
	found := false
	for {
		list = strings.TrimLeft(list, " \t,")
		if list == "" {
			return found
		}
		given, isWeak := strings.CutPrefix(list, "W/")
		one, rest, ok := cutTag(given)
		if !ok {
			return false
		}
		found = found || one == tag && (!isWeak || c == weak)
		list = rest
	}
}

// cutTag returns the quoted tag at the beginning of list, and what follows it: nothing,
// or a comma and the next.
func cutTag(list string) (tag, rest string, ok bool) {
	if !strings.HasPrefix(list, `"`) {
		return "", "", false
	}
	end := strings.IndexByte(list[1:], '"') + 2
	if end == 1 {
		return "", "", false
	}
	tag, rest = list[:end], strings.TrimLeft(list[end:], " \t")
	return tag, rest, rest == "" || rest[0] == ','
}

// checkIfMatch returns a problem if the request expects another version.
func (t etags) checkIfMatch(version int) error {
	if t == nil || t.match(etag(version), strong) {
		return nil
	}
	return newProblem(http.StatusPreconditionFailed, "changed_meanwhile",
		"If-Match names another version of the user. Get it again, and decide anew.")
}
