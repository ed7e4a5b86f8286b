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

// A script is a mail server that answers each line of the client by its first word, "250 ok" by
// default; "" hangs, "bye" closes the connection. For "hello" it greets, for "body" it answers the
// first line of the mail itself.
type script struct {
	answers map[string]string
	pause   time.Duration // before each answer
	tls     *tls.Config   // for STARTTLS
	open    atomic.Int32  // connections

	mu   sync.Mutex
	said []string // lines of the clients; "TLS" where that began
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
				if s.hello(conn) {
					s.talk(conn)
				}
			}()
		}
	}()
}

// hello greets; it reports whether the dialogue goes on.
func (s *script) hello(conn net.Conn) bool {
	answer, ok := s.answer("hello")
	switch {
	case !ok:
		answer = "220 mail.test ESMTP"
	case answer == "":
		_, _ = conn.Read(make([]byte, 1)) // until the client closes the connection
		return false
	case answer == "bye":
		return false
	}
	s.say(conn, answer)
	return strings.HasPrefix(answer, "220")
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
			if answer, _ := s.answer("body"); answer == "bye" {
				return
			}
			continue
		}
		body = false
		s.note(in.Text())
		answer, ok := s.answer(word)
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

// answer returns the answer to a word.
func (s *script) answer(word string) (answer string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	answer, ok = s.answers[word]
	return answer, ok
}

// change changes the answer to a word from now on.
func (s *script) change(word, answer string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers[word] = answer
}

// count returns the number of the clients' lines that began with that word.
func (s *script) count(word string) int { return strings.Count("\n"+s.heard(), "\n"+word) }

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

// TestBrokenServers: the behaviour of the mail server decides the outcome of the event.
func TestBrokenServers(t *testing.T) {
	mailer.SetTimeout(t, 300*time.Millisecond)
	for name, tt := range map[string]struct {
		answers map[string]string
		want    string
	}{
		"greets with 554":                  {map[string]string{"hello": "554 no"}, "unavailable"},
		"greets with 421":                  {map[string]string{"hello": "421 later"}, "unavailable"},
		"breaks off at once":               {map[string]string{"hello": "bye"}, "unavailable"},
		"accepts and hangs":                {map[string]string{"hello": ""}, "unavailable"},
		"greets and hangs":                 {map[string]string{"EHLO": "", "HELO": ""}, "unavailable"},
		"knows no word":                    {map[string]string{"EHLO": "502 no", "HELO": "502 no"}, "unavailable"},
		"goes before the mail":             {map[string]string{"MAIL": "421 later"}, "unavailable"},
		"goes at the recipient":            {map[string]string{"RCPT": "421 later"}, "unavailable"},
		"goes at the end of the mail":      {map[string]string{"DATA": "354 go", ".": "421 later"}, "unavailable"},
		"hangs at the recipient":           {map[string]string{"RCPT": ""}, "unavailable"},
		"dies in the middle of the mail":   {map[string]string{"DATA": "354 go", "body": "bye"}, "unavailable"},
		"wants a login":                    {map[string]string{"MAIL": "530 login first"}, "unavailable"},
		"wants a login for the recipient":  {map[string]string{"RCPT": "530 login first"}, "unavailable"},
		"refuses the sender":               {map[string]string{"MAIL": "550 no"}, "unavailable"},
		"is busy":                          {map[string]string{"MAIL": "451 later"}, "retry"},
		"has a grey list":                  {map[string]string{"RCPT": "450 later"}, "retry"},
		"has no room":                      {map[string]string{"DATA": "452 full"}, "retry"},
		"has no room for the mail":         {map[string]string{"DATA": "354 go", ".": "452 full"}, "retry"},
		"does not know the recipient":      {map[string]string{"RCPT": "550 who"}, "dead"},
		"wants no data":                    {map[string]string{"DATA": "554 no"}, "dead"},
		"does not like the mail":           {map[string]string{"DATA": "354 go", ".": "554 spam"}, "dead"},
		"says yes without a text":          {map[string]string{"MAIL": "250", "RCPT": "250", "DATA": "354 go", ".": "250"}, "done"},
		"says no without a text":           {map[string]string{"RCPT": "550"}, "dead"},
		"says later without a text":        {map[string]string{"DATA": "354 go", ".": "451"}, "retry"},
		"speaks something else":            {map[string]string{"hello": "220 ok", "EHLO": "hé ann@example.com"}, "unavailable"},
		"says yes to what needs no yes":    {map[string]string{"DATA": "250 ok"}, "unavailable"},
		"is full in the middle":            {map[string]string{"DATA": "354 go", "body": "bye"}, "unavailable"},
		"dies after its yes":               {map[string]string{"DATA": "354 go", "QUIT": "bye", "RSET": "bye"}, "done"},
		"hangs after its yes":              {map[string]string{"DATA": "354 go", "QUIT": "", "RSET": ""}, "done"},
		"refuses what comes after its yes": {map[string]string{"DATA": "354 go", "RSET": "550 no", "QUIT": "550 no"}, "done"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &script{answers: tt.answers}
			err := send(t, s.start(t), signup(t, "Ada"))
			if verdict(err) != tt.want {
				t.Errorf("%v: %s, want %s", err, verdict(err), tt.want)
			}
			for _, answer := range tt.answers {
				code, _, _ := strings.Cut(answer, " ")
				if code > "400" && code < "600" && tt.want != "done" && !strings.Contains(err.Error(), code) {
					t.Errorf("%v, want it to name %s", err, code)
				}
			}
			s.hungUp(t)
		})
	}
	if err := send(t, "127.0.0.1:1", signup(t, "Ada")); verdict(err) != "unavailable" {
		t.Errorf("%v: %s without a server, want unavailable", err, verdict(err))
	}
}

// TestNoAnswerToTheWholeMail: the server may have accepted it, so the error says so.
func TestNoAnswerToTheWholeMail(t *testing.T) {
	mailer.SetTimeout(t, 300*time.Millisecond)
	for _, answer := range []string{"", "bye"} {
		s := &script{answers: map[string]string{"DATA": "354 go", ".": answer}}
		err := send(t, s.start(t), signup(t, "Ada"))
		if verdict(err) != "unavailable" || !strings.Contains(err.Error(), "may have taken it") {
			t.Errorf("%q: %v, want an outage that may have taken the mail", answer, err)
		}
		s.hungUp(t)
	}
}

// TestSlowServer: the timeout is for the whole dialogue, so that the attempt's time is never used
// up between the server's acceptance and the commit.
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

// TestAttemptEnds: the dialogue ends with the attempt.
func TestAttemptEnds(t *testing.T) {
	s := &script{answers: map[string]string{"EHLO": ""}}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	begun := time.Now()
	err := effect(t, "smtp://"+s.start(t))(ctx, signup(t, "Ada"))
	if took := time.Since(begun); verdict(err) != "unavailable" || took > 5*time.Second || s.count("EHLO") != 1 {
		t.Errorf("%v after %s and %d dialogues, want an outage at the end of the attempt's only one", err, took, s.count("EHLO"))
	}
	s.hungUp(t)
}

// TestErrorsShowNoAddress: a quote of the server stays out of errors, and so out of logs, spans and
// dead letters.
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

// TestErrorsShowTheServersWords: in one line, with the enhanced status code, at every stage.
func TestErrorsShowTheServersWords(t *testing.T) {
	mailer.SetTimeout(t, time.Second)
	user := "postmaster"
	for _, tt := range []struct {
		answers map[string]string
		want    string
		user    bool
	}{
		{answers: map[string]string{"hello": "554 5.7.1 your network is listed"}, want: "before any mail: 554 5.7.1 your network is listed"},
		{answers: map[string]string{"EHLO": "502 5.5.1 unknown word", "HELO": "502 no"}, want: "502 5.5.1 unknown word"},
		{answers: map[string]string{"EHLO": "250-mail.test\r\n250 AUTH CRAM-MD5", "AUTH": "535 5.7.8 bad password for " + user}, want: "535 5.7.8 bad password for …", user: true},
		{answers: map[string]string{"MAIL": "451 4.3.0 busy"}, want: "to MAIL FROM: 451 4.3.0 busy"},
		{answers: map[string]string{"RCPT": "550 5.1.1 no such user"}, want: "to RCPT TO: 550 5.1.1 no such user"},
		{answers: map[string]string{"RCPT": "450-4.2.0 grey\r\n450-4.2.0 list,\r\n450 4.2.0 come back"}, want: "to RCPT TO: 450 4.2.0 grey list, come back"},
		{answers: map[string]string{"DATA": "452 4.3.1 full"}, want: "to DATA: 452 4.3.1 full"},
		{answers: map[string]string{"DATA": "354 go", ".": "550 5.1.1 no such user"}, want: "to the whole mail: 550 5.1.1 no such user"},
		{answers: map[string]string{"DATA": "354 go", ".": "554"}, want: "to the whole mail: 554"},
		{answers: map[string]string{"RCPT": "550 \a no\xffsuch\tuser"}, want: "550 no\uFFFDsuch user"},
		{answers: map[string]string{"RCPT": "550 5.1.1 <" + secret + ">: user Canary-7F3A unknown, ticket 0123456789abcdef0123456789abcdef"},
			want: "550 5.1.1 <…@…>: user … unknown, ticket …"},
		{answers: map[string]string{"RCPT": "550 see https://mail.test/?to=canary-7f3a%40example.com&why=1"}, want: "550 see https:…@…"},
		{answers: map[string]string{"RCPT": "550 " + strings.Repeat("no ", 200)}, want: "no…"},
	} {
		s := &script{answers: tt.answers}
		url := "smtp://" + s.start(t) + "?tls=off"
		if tt.user {
			url = strings.Replace(url, "smtp://", "smtp://"+user+":geheim@", 1)
		}
		err := effect(t, url)(t.Context(), signup(t, "Ada"))
		if err == nil || !strings.HasSuffix(err.Error(), tt.want) || len(err.Error()) > 500 {
			t.Errorf("%v: %v, want it to end with %q", tt.answers, err, tt.want)
		}
	}
}

// TestEndlessAnswers: only a little of an endless answer is kept.
func TestEndlessAnswers(t *testing.T) {
	mailer.SetTimeout(t, 5*time.Second)
	const size = 8 << 20
	for name, answers := range map[string]map[string]string{
		"a greeting":          {"hello": strings.Repeat("220-mail\r\n", size/10)},
		"a line":              {"hello": "220 " + strings.Repeat("x", size)},
		"EHLO":                {"EHLO": strings.Repeat("250-mail\r\n", size/10) + "250 ok"},
		"MAIL":                {"MAIL": strings.Repeat("451-later\r\n", size/10) + "451 later"},
		"RCPT":                {"RCPT": strings.Repeat("550-nobody\r\n", size/10) + "550 nobody"},
		"the end of the data": {"DATA": "354 go", ".": strings.Repeat("250-ok\r\n", size/10) + "250 ok"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &script{answers: answers}
			err := send(t, s.start(t), signup(t, "Ada"))
			want := "the mail server's answer is too long"
			if answers["."] != "" {
				want = "may have taken it"
			}
			if verdict(err) != "unavailable" || !strings.Contains(err.Error(), want) || len(err.Error()) > 1000 {
				t.Errorf("%.1000v: %s, want unavailable: %s", err, verdict(err), want)
			}
			s.hungUp(t)
		})
	}
}

// TestLongAnswerInTime: what was received before our last write does not count.
func TestLongAnswerInTime(t *testing.T) {
	mailer.SetTimeout(t, 5*time.Second)
	long := func(code string) string { return strings.Repeat(code+"-0123456789\r\n", 2000) + code + " ok" }
	s := &script{answers: map[string]string{
		"hello": long("220"), "EHLO": long("250"), "MAIL": long("250"), "RCPT": long("250"), "DATA": "354 go", ".": long("250"),
	}}
	if err := send(t, s.start(t), signup(t, "Ada")); err != nil {
		t.Errorf("%v, want no error", err)
	}
}
