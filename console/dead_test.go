package console_test

import (
	"fmt"
	"html"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/pgjet/pgjet/console"
	"github.com/pgjet/pgjet/internal/testenv"
)

// TestWrongView: an address that names something that does not exist is refused, and not answered with an empty list, or with another one.
func TestWrongView(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	died(t, db, "mailer", 1)
	base := serve(t, console.Config{DB: db}, nil)
	for path, want := range map[string]int{
		"/dead?state=lost": 400, "/dead?state=done&after=x": 400, "/dead?since=x": 400, "/dead?group=x": 400, "/dead?consumer=mialer": 404,
		"/events?state=lost": 400, "/events?after=x": 400, "/events?since=x": 400, "/sagas?state=lost": 400, "/operations?state=lost": 400, "/operations?after=x": 400,
		"/scheduled?after=x": 400, "/retrying?after=x": 400, "/retrying?consumer=mialer": 404,
	} {
		if a := ask(t, http.MethodGet, base+path, ""); a.status != want {
			t.Errorf("GET %s = %d, want %d\n%s", path, a.status, want, a.body)
		}
	}
}

// TestUndoLater: a console that did not make a discard can undo exactly that.
func TestUndoLater(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	died(t, db, "mailer", 3)
	base := serve(t, console.Config{DB: db}, nil)
	discard(t, base, "id=1", 1)
	discard(t, base, "consumer=mailer", 2)
	later := serve(t, console.Config{DB: db}, nil)
	page := ask(t, http.MethodGet, later+"/operations/2", "").body
	undo := regexp.MustCompile(`href="([^"]*verb=reopen[^"]*)"`).FindStringSubmatch(page)
	if undo == nil {
		t.Fatalf("the page does not lead to what undoes it:\n%s", page)
	}
	if n := planned(t, ask(t, http.MethodGet, later+html.UnescapeString(undo[1]), "").body).Get("count"); n != "2" {
		t.Errorf("to undo the second discard reopens %s dead letters, want its 2", n)
	}
	if page = ask(t, http.MethodGet, serve(t, console.Config{DB: db, ReadOnly: true}, nil)+"/operations/2", "").body; strings.Contains(page, "verb=reopen") {
		t.Errorf("a console that may change nothing offers to undo:\n%s", page)
	}
}

// discard discards the n dead letters that a query selects, and waits until that is done.
func discard(t *testing.T, base, which string, n int) {
	t.Helper()
	form := planned(t, ask(t, http.MethodGet, base+"/dead/plan?verb=discard&"+which, "").body)
	form.Set("reason", "nobody needs them")
	begun := ask(t, http.MethodPost, base+"/dead/run", form.Encode(), own)
	testenv.Eventually(t, 10*time.Second, "they are discarded", func() bool {
		page := follow(t, base, begun).body
		return strings.Contains(page, fmt.Sprintf("%d of %d discarded", n, n)) && strings.Contains(page, "ended")
	})
}
