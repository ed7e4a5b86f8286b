package console_test

import (
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/pgjet/pgjet/console"
	"github.com/pgjet/pgjet/internal/testenv"
)

// TestRetryingByError: events that wait for another attempt are grouped by their error, without what differs in it, with the first and last time.
func TestRetryingByError(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	died(t, db, "mailer", 0)
	testenv.Exec(t, db, `
		insert into pgjet.intent (consumer, event_id, type, key, stream, generation, stream_seq, subject, header, data, attempts, error, since)
		select 'mailer', gen_random_uuid(), 'user.created', 'k' || n, 'EVENTS', 1, n, 'events.00.user.created', '{}', '{}', 1,
		       case when n < 4 then 'no room for eve' || n || '@example.com' when n = 4 then 'mail server away' end, '2026-01-01'::timestamptz + n * interval '1 day'
		  from generate_series(1, 5) n`)
	base := serve(t, console.Config{DB: db}, nil)
	for path, shown := range map[string]bool{"/retrying": true, "/retrying?consumer=mailer": true, "/retrying?after=mailer/00000000-0000-0000-0000-000000000000": false} {
		body := ask(t, http.MethodGet, base+path, "").body
		var got []string
		for _, m := range regexp.MustCompile(`data-label="Events" class="num"><a [^>]*>(\d+)</a>.*?data-label="Error">([^<]*)<.*?title="([^ "]*)[^"]*".*?title="([^ "]*)`).FindAllStringSubmatch(body, -1) {
			got = append(got, strings.Join(m[1:], "|"))
		}
		want := []string{"3|no room for …@…|2026-01-02|2026-01-04", "1|mail server away|2026-01-05|2026-01-05"}
		if !shown {
			want = nil
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s groups them as %q, want %q", path, got, want)
		}
	}
}
