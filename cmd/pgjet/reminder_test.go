package main

import (
	"net/http"
	"testing"

	"github.com/pgjet/pgjet/internal/testenv"
)

// TestReminderMail: a user that is still pending after a while gets one mail about it; one that became active before, or was
// deleted, gets none.
func TestReminderMail(t *testing.T) {
	t.Parallel()
	dir, port := stateDir(t), freePorts(t)
	r := waitDev(start(t, env{"PGJET_USERS__REMIND_AFTER": "6s"}, devArgs(dir, port)...), dir, port)
	db := openDB(t, r.Database)
	scheduled := func() int { return query[int](t, db, `select count(*) from pgjet.scheduled`) }

	ann := signUp(t, r.Users, "ann@example.com")
	testenv.Eventually(t, patience, "ann is active, and nothing is scheduled any more", func() bool {
		return query[string](t, db, `select state from users.users where id = $1`, ann) == "active" && scheduled() == 0
	})
	must(t, exitOK, "users", "grant", ann, "admin", "--reason", "test", "--database-url", r.Database)
	if status, _, body := request(t, http.MethodPut, r.Billing+"/fault", `{"status":503}`, map[string]string{"Content-Type": "application/json"}); status != http.StatusOK {
		t.Fatalf("PUT fault = %d %s", status, body)
	}
	bob, eve := signUp(t, r.Users, "bob@example.com"), signUp(t, r.Users, "eve@example.com")
	token := logIn(t, r.Users, "ann@example.com")
	if status, _, body := request(t, http.MethodDelete, r.Users+"/users/"+bob, "", map[string]string{"Authorization": "Bearer " + token}); status != http.StatusNoContent {
		t.Fatalf("DELETE = %d %s", status, body)
	}
	if n := scheduled(); n != 1 {
		t.Errorf("%d events are scheduled, want that of %s", n, eve)
	}
	testenv.Eventually(t, patience, "eve has a second mail", func() bool { return len(mails(t, r.Inbox, "eve@example.com")) == 2 })
	if got := mails(t, r.Inbox, "eve@example.com")[0].Subject; got != "Your account is not ready yet" {
		t.Errorf("it is about %q", got)
	}
	oneMail(t, r.Inbox, "ann@example.com")
	oneMail(t, r.Inbox, "bob@example.com")
	if got := query[string](t, db, `select string_agg(key, ' ') from pgjet.outbox where type = 'user.still_pending'`); got != eve {
		t.Errorf("still pending are %s, want %s", got, eve)
	}
}
