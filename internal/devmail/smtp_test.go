package devmail_test

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/smtp"
	"net/textproto"
	"strconv"
	"strings"
	"testing"

	"github.com/wneessen/go-mail"
	"go.uber.org/goleak"

	"github.com/pgjet/pgjet/internal/devmail"
)

func TestFaults(t *testing.T) {
	for _, code := range []int{421, 451, 550} {
		t.Run(strconv.Itoa(code), func(t *testing.T) {
			s := start(t, "")
			s.do(t, "PUT", "/fault", fmt.Sprintf(`{"status":%d,"count":2}`, code), http.StatusOK)
			for left := 2; left > 0; left-- {
				s.wantFault(t, fmt.Sprintf(`{"status":%d,"count":%d}`, code, left))
				msg := welcome(t, "ann@example.com")
				must(t, msg.Cc("carl@example.com")) // one send, one fault
				var sendErr *mail.SendError
				if err := s.trySend(t, msg); !errors.As(err, &sendErr) || sendErr.ErrorCode() != code {
					t.Fatalf("send = %v, want code %d", err, code)
				}
			}
			s.wantFault(t, `{}`)
			if got := s.mails(t); len(got) != 0 {
				t.Errorf("%d mails are stored although sending failed", len(got))
			}
			s.send(t, welcome(t, "ann@example.com"))
			if got := s.users(t); len(got) != 1 {
				t.Errorf("after the faults: %v, want ann", got)
			}
		})
	}
}

func TestFault421ClosesTheConnection(t *testing.T) {
	for code, closes := range map[int]bool{421: true, 451: false} {
		t.Run(strconv.Itoa(code), func(t *testing.T) {
			s := start(t, "")
			s.do(t, "PUT", "/fault", fmt.Sprintf(`{"status":%d,"count":1}`, code), http.StatusOK)
			c := dial(t, s.addr)
			for _, line := range []string{"EHLO test", "MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>", "DATA"} {
				command(t, c, line)
			}
			must(t, c.PrintfLine("Subject: hi\r\n\r\nhi\r\n."))
			got, text, _ := c.ReadResponse(0)
			if got != code || !strings.Contains(text, "devmail: fault injected") {
				t.Errorf("answer to DATA = %d %s, want %d and what it is", got, text, code)
			}
			_, err := c.Cmd("NOOP")
			if err == nil {
				_, _, err = c.ReadResponse(250)
			}
			if (err != nil) != closes {
				t.Errorf("NOOP afterwards = %v, want the connection closed: %t", err, closes)
			}
		})
	}
}

func TestTooLargeAMail(t *testing.T) {
	s := start(t, "")
	body := strings.Repeat(strings.Repeat("x", 98)+"\r\n", 110_000) // 11 MB
	err := smtp.SendMail(s.addr, nil, "a@example.com", []string{"b@example.com"}, []byte("Subject: x\r\n\r\n"+body))
	var answer *textproto.Error
	if !errors.As(err, &answer) || answer.Code != 552 {
		t.Errorf("send 11 MB = %v, want 552", err)
	}
	if n := len(s.mails(t)); n != 0 {
		t.Errorf("%d mails stored, want none", n)
	}
}

// TestSMTPUTF8: an address that is not ASCII is accepted only from a sender that has asked
// for SMTPUTF8.
func TestSMTPUTF8(t *testing.T) {
	for _, without := range []bool{false, true} {
		s := start(t, "", func(s *devmail.Server) { s.WithoutSMTPUTF8 = without })
		c := dial(t, s.addr)
		answer := func(line string) (int, string) {
			_, err := c.Cmd("%s", line)
			must(t, err)
			code, text, _ := c.ReadResponse(0)
			return code, text
		}
		if _, offered := answer("EHLO test"); strings.Contains(offered, "SMTPUTF8") == without {
			t.Errorf("without %t: EHLO is answered %q", without, offered)
		}
		for _, line := range []string{"MAIL FROM:<hé@example.com>", "MAIL FROM:<a@bücher.example>"} {
			if code, text := answer(line); code != 553 || !strings.HasPrefix(text, "5.6.7 ") {
				t.Errorf("without %t: %s is answered %d %s, want 553 5.6.7", without, line, code, text)
			}
		}
		command(t, c, "MAIL FROM:<a@example.com>")
		if code, text := answer("RCPT TO:<hé@example.com>"); code != 553 || !strings.HasPrefix(text, "5.6.7 ") {
			t.Errorf("without %t: RCPT is answered %d %s, want 553 5.6.7", without, code, text)
		}
		if without {
			continue
		}
		command(t, c, "RSET")
		for _, line := range []string{"MAIL FROM:<hé@example.com> SMTPUTF8", "RCPT TO:<hé@example.com>"} {
			command(t, c, line)
		}
	}
}

func TestServeSMTPEnds(t *testing.T) {
	leak := goleak.IgnoreCurrent()
	s := start(t, t.TempDir())
	idle, busy := dial(t, s.addr), dial(t, s.addr)
	command(t, idle, "EHLO test")
	for _, line := range []string{"EHLO test", "MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>", "DATA"} {
		command(t, busy, line)
	}
	must(t, busy.PrintfLine("Subject: never finished"))

	s.stop() // fails the test unless ServeSMTP returns nil
	for name, c := range map[string]*textproto.Conn{"idle": idle, "busy": busy} {
		if code, text, _ := c.ReadResponse(0); code != 421 {
			t.Errorf("%s sender got %d %s, want 421", name, code, text)
		}
		c.Close()
	}
	if n := len(s.mails(t)); n != 0 {
		t.Errorf("%d mails, want none: the one begun never ended", n)
	}
	s.web.Close()
	goleak.VerifyNone(t, leak)
}

func TestServeSMTPReportsABrokenListener(t *testing.T) {
	s, err := devmail.New("", slog.New(slog.DiscardHandler))
	must(t, err)
	l := listen(t)
	must(t, l.Close())
	if err := s.ServeSMTP(t.Context(), l); !errors.Is(err, net.ErrClosed) {
		t.Errorf("ServeSMTP of a closed listener = %v, want %v", err, net.ErrClosed)
	}
}

func dial(t *testing.T, addr string) *textproto.Conn {
	t.Helper()
	c, err := textproto.Dial("tcp", addr)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	_, _, err = c.ReadResponse(220)
	must(t, err)
	return c
}

func command(t *testing.T, c *textproto.Conn, line string) {
	t.Helper()
	_, err := c.Cmd("%s", line)
	must(t, err)
	code, text, _ := c.ReadResponse(0)
	if code >= 400 {
		t.Fatalf("%s = %d %s", line, code, text)
	}
}
