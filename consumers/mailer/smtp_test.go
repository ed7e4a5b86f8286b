package mailer_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pgjet/pgjet/consumers/mailer"
	"github.com/pgjet/pgjet/internal/testenv"
)

// A script is a mail server that answers each line of the client by what it says
// for its first word, "250 ok" if nothing; "" hangs, "bye" closes the connection.
// For "body" it answers the first line of the mail itself.
type script struct {
	answers map[string]string
	pause   time.Duration // before each answer
	tls     *tls.Config   // for STARTTLS
	open    atomic.Int32  // connections

	mu   sync.Mutex
	said []string // by the clients; "TLS" where that began
}

func (s *script) start(t *testing.T) (addr string) {
	t.Helper()
	l := listen(t, "127.0.0.1:0")
	s.serve(l)
	return l.Addr().String()
}

func (s *script) serve(l net.Listener) {
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.open.Add(1)
			go func() {
				defer s.open.Add(-1)
				defer conn.Close()
				s.say(conn, "220 mail.test ESMTP")
				s.talk(conn)
			}()
		}
	}()
}

func (s *script) say(conn net.Conn, line string) {
	time.Sleep(s.pause)
	fmt.Fprint(conn, line+"\r\n")
}

func (s *script) talk(conn net.Conn) {
	in, body := bufio.NewScanner(conn), false
	for in.Scan() {
		word, _, _ := strings.Cut(strings.ToUpper(in.Text()), " ")
		if body && word != "." {
			if s.answers["body"] == "bye" {
				return
			}
			continue
		}
		body = false
		s.note(in.Text())
		answer, ok := s.answers[word]
		switch {
		case !ok:
			answer = "250 ok"
		case answer == "":
			continue
		case answer == "bye":
			return
		}
		s.say(conn, answer)
		body = word == "DATA" && strings.HasPrefix(answer, "354")
		if word == "STARTTLS" && strings.HasPrefix(answer, "220") {
			s.note("TLS")
			s.talk(tls.Server(conn, s.tls))
			return
		}
	}
}

func (s *script) note(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.said = append(s.said, line)
}

func (s *script) heard() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.said, "\n")
}

// hungUp waits until the client has closed its connections.
func (s *script) hungUp(t *testing.T) {
	t.Helper()
	testenv.Eventually(t, 5*time.Second, "the client hangs up", func() bool { return s.open.Load() == 0 })
}

func TestBrokenServers(t *testing.T) {
	mailer.SetTimeout(t, 300*time.Millisecond)
	for name, tt := range map[string]struct {
		answers map[string]string
		sent    bool
	}{
		"accepts and hangs":                {map[string]string{"EHLO": "", "HELO": ""}, false},
		"knows no word":                    {map[string]string{"EHLO": "502 no", "HELO": "502 no"}, false},
		"dies in the middle of the mail":   {map[string]string{"DATA": "354 go", "body": "bye"}, false},
		"hangs at the end of the mail":     {map[string]string{"DATA": "354 go", ".": ""}, false},
		"dies at the end of the mail":      {map[string]string{"DATA": "354 go", ".": "bye"}, false},
		"dies after its yes":               {map[string]string{"DATA": "354 go", "QUIT": "bye", "RSET": "bye"}, true},
		"hangs after its yes":              {map[string]string{"DATA": "354 go", "QUIT": "", "RSET": ""}, true},
		"refuses what comes after its yes": {map[string]string{"DATA": "354 go", "RSET": "550 no", "QUIT": "550 no"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := &script{answers: tt.answers}
			err := send(t, s.start(t), signup(t, "Ada"))
			if permanent(err) || (err == nil) != tt.sent {
				t.Errorf("%v, want sent = %t", err, tt.sent)
			}
			s.hungUp(t)
		})
	}
	if err := send(t, "127.0.0.1:1", signup(t, "Ada")); err == nil {
		t.Error("sent without a server")
	}
}

// TestSlowServer: the time is that of the whole dialogue, so that the attempt's is
// never used up between the server's yes and the commit.
func TestSlowServer(t *testing.T) {
	const timeout = 500 * time.Millisecond
	mailer.SetTimeout(t, timeout)
	s := &script{pause: timeout / 3, answers: map[string]string{"DATA": "354 go"}}
	addr := s.start(t)
	begun := time.Now()
	if err := send(t, addr, signup(t, "Ada")); err == nil {
		t.Error("sent, although there was no time for it")
	}
	if took := time.Since(begun); took > timeout*3/2 {
		t.Errorf("the dialogue took %s, want no more than %s", took, timeout)
	}
	s.hungUp(t)
}

// TestAttemptEnds: the dialogue does not outlive the attempt.
func TestAttemptEnds(t *testing.T) {
	s := &script{answers: map[string]string{"EHLO": ""}}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	begun := time.Now()
	err := consumer(t, "smtp://"+s.start(t)).Handle(ctx, nil, signup(t, "Ada"))
	if took := time.Since(begun); err == nil || took > 5*time.Second {
		t.Errorf("%v after %s, want an error at the end of the attempt", err, took)
	}
	s.hungUp(t)
}

// TestErrorsShowNoAddress: whatever the server quotes stays out of errors, and with
// them out of logs, spans and dead letters.
func TestErrorsShowNoAddress(t *testing.T) {
	mailer.SetTimeout(t, time.Second)
	for _, answers := range []map[string]string{
		{"RCPT": "550 <" + secret + "> does not live here"},
		{"RCPT": "450 <" + secret + "> is busy"},
		{"MAIL": "553 no mail for " + secret},
		{"DATA": "554 " + secret},
		{"DATA": "354 go", ".": "554 " + secret},
	} {
		s := &script{answers: answers}
		var log bytes.Buffer
		err := send(t, s.start(t), signup(t, "Ada"))
		slog.New(slog.NewTextHandler(&log, nil)).Error("failed", "err", err)
		if err == nil || strings.Contains(log.String(), secret) {
			t.Errorf("%v: %s", answers, &log)
		}
	}
}
