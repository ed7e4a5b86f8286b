package mailer

import (
	"errors"
	"fmt"
	"net"
	"net/textproto"
	"strconv"

	"github.com/cenkalti/backoff/v4"
	gomail "github.com/wneessen/go-mail"
)

// An awayError says that nothing can be sent now, whatever the mail: the server cannot be
// reached, breaks off, is about to shut down, or does not let us in.
type awayError struct{ error }

func (e awayError) Unwrap() error { return e.error }

// serverAway is the answer of a server that closes the connection.
const serverAway = 421

// notLetIn are the answers of a server that wants other credentials, or encryption.
var notLetIn = map[int]bool{530: true, 534: true, 535: true, 538: true}

func (s Server) address() string { return net.JoinHostPort(s.Host, strconv.Itoa(s.Port)) }

// noGreeting is what err means before the first word about a mail. Of the server's own
// words it tells the code: they may name our user.
func (s Server) noGreeting(err error) error {
	answer, ok := errors.AsType[*textproto.Error](err)
	switch {
	case !ok:
		return awayError{fmt.Errorf("mail server %s: %w", s.address(), err)}
	case notLetIn[answer.Code]:
		return s.loginRefused(answer.Code)
	}
	return awayError{fmt.Errorf("mail server %s answered %d before any mail", s.address(), answer.Code)}
}

func (s Server) loginRefused(code int) error {
	return awayError{fmt.Errorf("mail server %s answered %d: it refuses the user, password or encryption of --smtp-url; correct that",
		s.address(), code)}
}

// refusal is what err means in the dialogue about one mail. It does not show
// addresses, though the server's own words would.
func (s Server) refusal(err error) error {
	e, ok := errors.AsType[*gomail.SendError](err)
	switch {
	case !ok, e.ErrorCode() == 0 && e.Reason != gomail.ErrSMTPDataClose:
		return awayError{fmt.Errorf("mail server %s broke off the dialogue, or took too long", s.address())}
	case e.ErrorCode() == 0:
		return awayError{fmt.Errorf("mail server %s did not answer after the whole mail, and may have taken it; it is sent again with the same Message-ID", s.address())}
	case notLetIn[e.ErrorCode()]:
		return s.loginRefused(e.ErrorCode())
	}
	err = fmt.Errorf("mail server answered %d: %s", e.ErrorCode(), e.Reason)
	switch {
	case e.ErrorCode() == serverAway:
		return awayError{err}
	case e.ErrorCode() < 500:
		return err
	case e.Reason == gomail.ErrSMTPMailFrom: // it refuses every mail of this sender
		return awayError{fmt.Errorf("%w; it refuses the sender of --mail-from", err)}
	}
	return backoff.Permanent(err)
}
