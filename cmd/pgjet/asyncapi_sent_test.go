package main

import (
	"bytes"
	"net/http"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

// TestAsyncAPISaysWhatIsSent: headers, subjects and payloads of all events of two users are as
// docs/asyncapi.yaml and the schemas describe them.
func TestAsyncAPISaysWhatIsSent(t *testing.T) {
	t.Parallel()
	dir, port := stateDir(t), freePorts(t)
	r := waitDev(start(t, env{"PGJET_USERS__REMIND_AFTER": "100ms"}, devArgs(dir, port)...), dir, port)
	db, js := openDB(t, r.Database), testenv.Connect(t, r.NATS)
	user := func(email, state string) string {
		t.Helper()
		id := signUp(t, r.Users, email)
		testenv.Eventually(t, patience, email+" is "+state, func() bool {
			return query[string](t, db, `select state from users.users where id = $1`, id) == state
		})
		return id
	}
	call := func(want int, method, url, body, token string) {
		t.Helper()
		header := map[string]string{"Content-Type": "application/json"}
		if token != "" {
			header["Authorization"] = "Bearer " + token
		}
		if status, _, text := request(t, method, url, body, header); status != want {
			t.Fatalf("%s %s = %d %s, want %d", method, url, status, text, want)
		}
	}
	ann := user("ann@example.com", "active")
	must(t, exitOK, "users", "grant", ann, "admin", "--reason", "test", "--database-url", r.Database)
	token := logIn(t, r.Users, "ann@example.com")
	call(http.StatusOK, http.MethodPatch, r.Users+"/users/"+ann, `{"name":"Anna \u00e4"}`, token)
	call(http.StatusOK, http.MethodPut, r.Billing+"/fault", `{"status":402}`, "")
	bob := user("bob@example.com", "rejected")
	call(http.StatusNoContent, http.MethodDelete, r.Users+"/users/"+bob, "", token)

	call(http.StatusOK, http.MethodPut, r.Billing+"/fault", `{"status":503}`, "")
	user("eve@example.com", "pending")
	testenv.Eventually(t, patience, "she is still pending", func() bool {
		return query[int](t, db, `select count(*) from pgjet.outbox where type = 'user.still_pending'`) > 0
	})

	published := func() int { return len(stored(t, js)) }
	testenv.Eventually(t, patience, "all is published", func() bool { return published() == query[int](t, db, `select count(*) from pgjet.outbox`) })
	doc, _ := readAsyncAPI(t)
	headers := compileSchema(t, asJSON(t, doc.Components.MessageTraits.Event.Headers))
	seen := make(map[string]bool)
	for _, msg := range stored(t, js) {
		eventType := msg.Header["ce-type"][0]
		seen[eventType] = true
		if err := headers.Validate(plainHeaders(msg.Header)); err != nil {
			t.Errorf("the headers of a %s: %v", eventType, err)
		}
		if want := events.Subject(eventType, msg.Header["ce-subject"][0]); msg.Subject != want {
			t.Errorf("a %s has the subject %s, want %s", eventType, msg.Subject, want)
		}
		payload, err := jsonschema.UnmarshalJSON(bytes.NewReader(msg.Data))
		if err != nil {
			t.Fatal(err)
		}
		if err := payloadSchema(t, eventType).Validate(payload); err != nil {
			t.Errorf("the payload of a %s: %v", eventType, err)
		}
	}
	for _, eventType := range ownTypes(t) {
		if !seen[eventType] {
			t.Errorf("no %s was sent", eventType)
		}
	}
}

// payloadSchema returns the schema of a type's payloads.
func payloadSchema(t *testing.T, eventType string) *jsonschema.Schema {
	t.Helper()
	text, err := events.Schemas.ReadFile("schema/" + eventType + ".json")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return compileSchema(t, doc)
}
