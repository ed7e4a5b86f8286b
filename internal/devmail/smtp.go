package devmail

import (
	"errors"
	"io"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/emersion/go-smtp"
)

// Refusals. All but those for an address and the size limit are temporary.
var (
	errNotASCII = &smtp.SMTPError{Code: 553, EnhancedCode: smtp.EnhancedCode{5, 6, 7}, Message: "devmail: an address that is not ASCII needs SMTPUTF8"}

	errNotWhole  = &smtp.SMTPError{Code: 421, EnhancedCode: smtp.EnhancedCode{4, 4, 2}, Message: "devmail: the mail did not arrive whole"}
	errNotStored = &smtp.SMTPError{Code: 452, EnhancedCode: smtp.EnhancedCode{4, 3, 1}, Message: "devmail: the mail could not be stored"}
)

// A session is one SMTP connection.
type session struct {
	*Server
	conn *smtp.Conn
	from string
	to   []string
	utf8 bool // the sender has asked for SMTPUTF8
	// hangUp asks Reset, which follows the answer to DATA, to close the connection.
	hangUp bool
}

func (s *Server) newSession(c *smtp.Conn) (smtp.Session, error) {
	return &session{Server: s, conn: c}, nil
}

// Mail begins a mail.
func (s *session) Mail(from string, o *smtp.MailOptions) error {
	s.from, s.to, s.utf8 = from, nil, o.UTF8
	return s.check(from)
}

// check refuses an address that is not ASCII unless the sender has asked for SMTPUTF8.
func (s *session) check(address string) error {
	if !s.utf8 && strings.ContainsFunc(address, func(r rune) bool { return r > unicode.MaxASCII }) {
		return errNotASCII
	}
	return nil
}

// Rcpt accepts every valid recipient.
func (s *session) Rcpt(to string, _ *smtp.RcptOptions) error {
	if err := s.check(to); err != nil {
		return err
	}
	s.to = append(s.to, to)
	return nil
}

// Data stores the mail, or fails as the current fault says. Do not use the session before r
// has been read to its end: with BDAT, Reset runs at the same time if the sender gives up.
func (s *session) Data(r io.Reader) error {
	raw, err := io.ReadAll(r)
	if err != nil {
		return refusal(err)
	}
	f := s.faults.Take()
	time.Sleep(time.Duration(f.Delay))
	if f.Status != 0 {
		s.hangUp = f.Status == 421
		return &smtp.SMTPError{Code: f.Status, Message: "devmail: fault injected"}
	}
	if err := s.box.put(s.from, slices.Clone(s.to), raw); err != nil {
		s.log.Error("store mail, sender asked to try again", "err", err)
		return errNotStored
	}
	return nil
}

// refusal returns the answer for a mail that could not be read. go-smtp answers an unknown
// error with 554, which is permanent; a broken connection is not.
func refusal(err error) error {
	if smtpErr, ok := errors.AsType[*smtp.SMTPError](err); ok {
		return smtpErr
	}
	if errors.Is(err, smtp.ErrTooLongLine) {
		return err
	}
	return errNotWhole
}

// Reset drops the unfinished mail.
func (s *session) Reset() {
	s.from, s.to = "", nil
	if s.hangUp {
		_ = s.conn.Conn().Close()
	}
}

// Logout has nothing to free.
func (s *session) Logout() error { return nil }
