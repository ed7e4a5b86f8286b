package mailer

import (
	"errors"
	"fmt"
	"net"
	"net/textproto"
	"strconv"

	"github.com/cenkalti/backoff/v4"
)

// An awayError says that no mail can be sent now: the server cannot be reached, closes the
// connection, is about to shut down, or does not accept our credentials.
type awayError struct{ error }

func (e awayError) Unwrap() error { return e.error }

// A stage is a stage of the transaction of one mail, in the words of an error.
type stage string

const (
	atMail    stage = "to MAIL FROM"
	atRcpt    stage = "to RCPT TO"
	atData    stage = "to DATA"
	atContent stage = "in the middle of the mail"
	atEnd     stage = "to the whole mail"
)

// serverAway is the answer of a server that closes the connection.
const serverAway = 421

// notLetIn are the answers of a server that wants other credentials, or encryption.
var notLetIn = map[int]bool{530: true, 534: true, 535: true, 538: true}

func (s Server) address() string { return net.JoinHostPort(s.Host, strconv.Itoa(s.Port)) }

// answerOf returns the server's answer in err, if there is one: also one without a text (RFC 5321,
// section 4.2), which textproto does not read.
func answerOf(err error) (*textproto.Error, bool) {
	if answer, ok := errors.AsType[*textproto.Error](err); ok {
		return answer, true
	}
	short, _ := errors.AsType[textproto.ProtocolError](err)
	code := 0
	_, err = fmt.Sscanf(string(short), `short response: "%3d"`, &code)
	return &textproto.Error{Code: code}, err == nil
}

// unlessYes returns err unless it is a positive answer without a text.
func unlessYes(err error) error {
	if answer, ok := answerOf(err); ok && answer.Code/10 == 25 {
		return nil
	}
	return err
}

// notReady returns the error for err before the transaction of a mail: when connecting, and in the
// greeting, EHLO, STARTTLS or AUTH.
func (s Server) notReady(err error) error {
	answer, ok := answerOf(err)
	_, garbled := errors.AsType[textproto.ProtocolError](err) // it quotes the server's answer
	switch {
	case errors.Is(err, errLongAnswer):
		return s.talksTooLong()
	case !ok && garbled:
		return awayError{fmt.Errorf("mail server %s does not speak SMTP", s.address())}
	case !ok:
		return awayError{fmt.Errorf("mail server %s: %w", s.address(), err)}
	case notLetIn[answer.Code]:
		return s.loginRefused(answer)
	}
	return awayError{fmt.Errorf("mail server %s answered before any mail: %s", s.address(), s.words(answer, nil))}
}

func (s Server) talksTooLong() error {
	return awayError{fmt.Errorf("mail server %s: %w", s.address(), errLongAnswer)}
}

func (s Server) loginRefused(answer *textproto.Error) error {
	return awayError{fmt.Errorf("mail server %s refuses the user, password or encryption of --smtp-url, correct that: %s",
		s.address(), s.words(answer, nil))}
}

// lacksSMTPUTF8 returns the error for a mail that needs this extension of the server. If the
// sender's address needs it, every mail does.
func (s Server) lacksSMTPUTF8(p *parcel) error {
	if p.from.NeedsSMTPUTF8() {
		return awayError{fmt.Errorf("mail server %s does not offer SMTPUTF8, which the address of --mail-from needs", s.address())}
	}
	return backoff.Permanent(fmt.Errorf(
		"the recipient's address needs SMTPUTF8 (its local part is not ASCII), which mail server %s does not offer", s.address()))
}

// refusal returns the error for err in the transaction of one mail.
func (s Server) refusal(at stage, p *parcel, err error) error {
	answer, ok := answerOf(err)
	switch {
	case !ok && at != atEnd && errors.Is(err, errLongAnswer):
		return s.talksTooLong()
	case !ok && at == atEnd:
		return awayError{fmt.Errorf("mail server %s did not answer after the whole mail, and may have taken it; it is sent again with the same Message-ID", s.address())}
	case !ok:
		return awayError{fmt.Errorf("mail server %s broke off the dialogue, or took too long", s.address())}
	case notLetIn[answer.Code]:
		return s.loginRefused(answer)
	}
	err = fmt.Errorf("mail server answered %s: %s", at, s.words(answer, p))
	switch {
	case answer.Code == serverAway, answer.Code < 400, answer.Code > 599: // not an answer to this
		return awayError{err}
	case answer.Code < 500:
		return err
	case at == atMail && !p.needsSMTPUTF8(): // it refuses every mail of this sender
		return awayError{fmt.Errorf("%w; it refuses the sender of --mail-from", err)}
	}
	return backoff.Permanent(err)
}
