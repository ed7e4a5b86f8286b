package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/devmail"
	"github.com/pgjet/pgjet/internal/testenv"
)

// post signs a user up and returns the answer.
func post(t testing.TB, users, email string) (int, http.Header, string) {
	t.Helper()
	return request(t, http.MethodPost, users+"/users", signUpBody(email), map[string]string{"Content-Type": "application/json"})
}

func signUpBody(email string) string {
	return fmt.Sprintf(`{"email":%q,"name":"Ann","password":"correct horse battery"}`, email)
}

// signUp signs a user up and returns the id.
func signUp(t testing.TB, users, email string) string {
	t.Helper()
	status, _, body := post(t, users, email)
	var u struct{ ID string }
	if err := json.Unmarshal([]byte(body), &u); status != http.StatusCreated || err != nil {
		t.Fatalf("POST /users = %d %s, want 201", status, body)
	}
	return u.ID
}

// logIn returns an access token of a user whom signUp created.
func logIn(t testing.TB, users, email string) string {
	t.Helper()
	status, _, body := request(t, http.MethodPost, users+"/sessions", fmt.Sprintf(`{"email":%q,"password":"correct horse battery"}`, email),
		map[string]string{"Content-Type": "application/json"})
	var s struct{ Token string }
	if err := json.Unmarshal([]byte(body), &s); status != http.StatusCreated || err != nil {
		t.Fatalf("POST /sessions = %d %s, want 201", status, body)
	}
	return s.Token
}

// getAs is get with an access token.
func getAs(t testing.TB, token, url string) (int, string) {
	t.Helper()
	status, _, body := request(t, http.MethodGet, url, "", map[string]string{"Authorization": "Bearer " + token})
	return status, body
}

// mails returns the mails to an address in the inbox at that URL.
func mails(t testing.TB, inbox, to string) []devmail.Mail {
	t.Helper()
	status, body := get(t, inbox+"/api/messages?to="+to)
	var all []devmail.Mail
	if err := json.Unmarshal([]byte(body), &all); status != http.StatusOK || err != nil {
		t.Fatalf("GET /api/messages = %d %s", status, body)
	}
	return all
}

// refuseMails makes the mail server of that inbox answer the next mails with a code.
func refuseMails(t testing.TB, inbox string, code, count int) {
	t.Helper()
	body := fmt.Sprintf(`{"status":%d,"count":%d}`, code, count)
	if status, _, answer := request(t, http.MethodPut, inbox+"/fault", body, nil); status != http.StatusOK {
		t.Fatalf("PUT /fault = %d %s", status, answer)
	}
}

// fillStream limits the stream to one more message.
func fillStream(t testing.TB, js jetstream.JetStream) {
	t.Helper()
	stream, err := js.Stream(t.Context(), events.DefaultStream)
	if err != nil {
		t.Fatal(err)
	}
	config := stream.CachedInfo().Config
	config.MaxMsgs = 1
	if _, err := js.UpdateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
}

// oneMail waits for a mail to an address, and checks that it is the only one.
func oneMail(t testing.TB, inbox, to string) devmail.Mail {
	t.Helper()
	testenv.Eventually(t, patience, "a mail to "+to+" arrives", func() bool { return len(mails(t, inbox, to)) > 0 })
	all := mails(t, inbox, to)
	if len(all) != 1 {
		t.Fatalf("%d mails to %s, want 1", len(all), to)
	}
	return all[0]
}

// checkPages checks the admin pages of a process that is ready.
func checkPages(t testing.TB, admin string) {
	t.Helper()
	for path, want := range map[string]string{
		"/livez":   `"status":"ok"`,
		"/readyz":  `"status":"ok"`,
		"/metrics": "go_goroutines ",
	} {
		if status, body := get(t, admin+path); status != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("GET %s%s = %d %.300s, want 200 and %s", admin, path, status, body, want)
		}
	}
}

// firstPort is where this test run begins to look for free ports: below those that the system
// assigns.
var (
	firstPort = 20_000 + portCount*rand.IntN(10_000/portCount)
	blocks    atomic.Int32
)

// freePorts returns the first of a block of free ports for pgjet dev.
func freePorts(t testing.TB) int {
	t.Helper()
	for range 1000 {
		first := firstPort + portCount*int(blocks.Add(1))
		if len(busyPorts(t, first)) == 0 {
			return first
		}
	}
	t.Fatal("no free ports")
	return 0
}

// busyPorts returns the ports of a block that are in use.
func busyPorts(t testing.TB, first int) []int {
	t.Helper()
	var busy []int
	for port := first; port < first+portCount; port++ {
		if l, err := net.Listen("tcp", local(port)); err != nil {
			busy = append(busy, port)
		} else {
			l.Close()
		}
	}
	return busy
}

// alive reports whether a process with that id is running. A zombie is not.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// stored returns the messages of the stream, in order.
func stored(t testing.TB, js jetstream.JetStream) []*jetstream.RawStreamMsg {
	t.Helper()
	stream, err := js.Stream(t.Context(), "EVENTS")
	if err != nil {
		t.Fatal(err)
	}
	var all []*jetstream.RawStreamMsg
	for seq := uint64(1); seq <= stream.CachedInfo().State.LastSeq; seq++ {
		msg, err := stream.GetMsg(t.Context(), seq)
		if err != nil {
			t.Fatalf("message %d of the stream: %v", seq, err)
		}
		all = append(all, msg)
	}
	return all
}
