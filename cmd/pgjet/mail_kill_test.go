package main

import (
	"bufio"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

// A mailTrap is a mail server that kills the sender of a mail, once for each victim. It does so
// when it reads the command at, before it answers.
type mailTrap struct {
	at     string
	victim chan *service

	mu    sync.Mutex
	taken []string // the Message-ID of each accepted mail
}

// setMailTrap starts a trap that serves until cleanup, and returns it with its address.
func setMailTrap(t *testing.T, at string) (trap *mailTrap, addr string) {
	t.Helper()
	l, err := net.Listen("tcp", anyPort)
	if err != nil {
		t.Fatal(err)
	}
	trap = &mailTrap{at: at, victim: make(chan *service, 1)}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() { trap.talk(conn) })
		}
	})
	t.Cleanup(func() { l.Close(); running.Wait() }) // its clients have ended by then
	return trap, l.Addr().String()
}

func (m *mailTrap) talk(conn net.Conn) {
	defer conn.Close()
	fmt.Fprint(conn, "220 mail.test\r\n")
	for in := bufio.NewScanner(conn); in.Scan(); {
		word, answer := strings.ToUpper(strings.Fields(in.Text() + " ?")[0]), "250 ok"
		if word == "DATA" {
			answer = "354 go"
		}
		if m.springs(word) {
			return
		}
		fmt.Fprint(conn, answer+"\r\n")
		if word == "DATA" && !m.take(in, conn) {
			return
		}
	}
}

// take reads a mail and keeps it. It returns whether the client is alive.
func (m *mailTrap) take(in *bufio.Scanner, conn net.Conn) bool {
	id := ""
	for in.Scan() && in.Text() != "." {
		if name, value, _ := strings.Cut(in.Text(), ": "); strings.EqualFold(name, "Message-ID") {
			id = value
		}
	}
	if in.Text() != "." {
		return false // the mail is not complete
	}
	m.mu.Lock()
	m.taken = append(m.taken, id)
	m.mu.Unlock()
	if m.springs(".") {
		return false
	}
	fmt.Fprint(conn, "250 taken\r\n")
	return true
}

// springs kills the victim if the time has come.
func (m *mailTrap) springs(word string) bool {
	if word != m.at {
		return false
	}
	select {
	case p := <-m.victim:
		p.Kill()
		return true
	default:
		return false
	}
}

func (m *mailTrap) mails() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.taken)
}

// TestMailerKilledAtWork kills the mailer with SIGKILL at each step of sending a mail. The mail is
// always sent. It is sent twice only if the server had accepted it, with the same Message-ID.
func TestMailerKilledAtWork(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		at    string // the last command of the client
		mails int
	}{
		"before the server is told of the mail":      {"EHLO", 1},
		"before the mail":                            {"DATA", 1},
		"when the server has the mail":               {".", 2},
		"between the server's answer and our commit": {"QUIT", 2}, // QUIT follows the answer to the mail; the commit follows the answer to QUIT
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db, url := testenv.Postgres(t), testenv.NATS(t).URL()
			js := ensureStream(t, url)
			trap, smtp := setMailTrap(t, tt.at)
			victim := startMailer(t, db.Config().ConnString(), url, smtp)
			trap.victim <- victim
			id := publishSignUp(t, js)
			victim.Eventually(patience, "it is killed", victim.Ended)
			if state, intents := intentOf(t, db, id); state != "intent" || intents != 1 {
				t.Errorf("the killed process left the event %q with %d intents, want one", state, intents)
			}
			if n := len(trap.mails()); n != tt.mails-1 {
				t.Errorf("the server has %d mails of the killed process, want %d", n, tt.mails-1)
			}

			next := startMailer(t, db.Config().ConnString(), url, smtp)
			next.Eventually(patience, "the event is done", func() bool {
				state, intents := intentOf(t, db, id)
				return state == "done" && intents == 0
			})
			want := slices.Repeat([]string{"<" + id.String() + ".welcome@pgjet.example>"}, tt.mails)
			if got := trap.mails(); !slices.Equal(got, want) {
				t.Errorf("the server has the mails %q, want %q", got, want)
			}
		})
	}
}

// publishSignUp puts a sign-up into the stream and returns its event id.
func publishSignUp(t *testing.T, js jetstream.JetStream) uuid.UUID {
	t.Helper()
	e, err := events.New(events.UserCreated{UserID: uuid.NewString(), Email: "ann@example.com", Name: "Ann"})
	if err != nil {
		t.Fatal(err)
	}
	e.Source = "/users"
	subject, header, body := e.Message()
	if _, err := js.PublishMsg(t.Context(), &nats.Msg{Subject: subject, Header: header, Data: body}); err != nil {
		t.Fatal(err)
	}
	return e.ID
}

// intentOf returns the inbox's state of an event, "" if it has none, and its number of intents.
func intentOf(t *testing.T, db *pgxpool.Pool, id uuid.UUID) (state string, intents int) {
	t.Helper()
	err := db.QueryRow(t.Context(), `
		select coalesce((select state from pgjet.inbox where event_id = $1), ''),
		       (select count(*) from pgjet.intent where event_id = $1)`, id).Scan(&state, &intents)
	if err != nil {
		t.Fatal(err)
	}
	return state, intents
}
