package mailer

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"time"

	gomail "github.com/wneessen/go-mail"
	"github.com/wneessen/go-mail/smtp"

	"github.com/pgjet/pgjet/internal/mailaddr"
)

// smtpTimeout bounds the dialogue with the mail server. It is long, since some servers inspect a
// mail for a while before they accept it, and a client that closes the connection meanwhile sends
// it twice.
var smtpTimeout = 30 * time.Second

// A Server is a mail server that accepts mails for delivery.
type Server struct {
	Host     string
	Port     int
	User     string
	Password string
	TLS      string // "required", "optional" (STARTTLS if offered), "off", or "implicit" (from the first byte)
}

// ParseServer reads an address such as
//
//	smtp://user:password@mail.example.com:587?tls=required
//	smtps://user:password@mail.example.com
//
// tls is required if there is a user, else optional; smtps is TLS from the first byte. Ports
// default to 587 and 465. Its errors do not show the password.
func ParseServer(address string) (Server, error) {
	u, err := url.Parse(address)
	if err != nil { // err would repeat the address, with the password
		return Server{}, errors.New("SMTP URL is not of the form smtp://user:password@host:port")
	}
	s := Server{Host: u.Hostname(), User: u.User.Username(), TLS: u.Query().Get("tls")}
	s.Password, _ = u.User.Password()
	switch {
	case s.Host == "":
		return s, errors.New("SMTP URL has no host; it should look like smtp://mail.example.com:587")
	case u.Scheme == "smtps":
		s.TLS, s.Port = "implicit", 465
	case u.Scheme != "smtp":
		return s, fmt.Errorf("SMTP URL begins with %s://, want smtp:// or smtps://", u.Scheme)
	default:
		s.Port = 587
	}
	switch s.TLS {
	case "":
		s.TLS = "optional"
		if s.User != "" {
			s.TLS = "required"
		}
	case "required", "optional", "off", "implicit":
	default:
		return s, fmt.Errorf("SMTP URL has tls=%s, want required, optional or off", s.TLS)
	}
	if p := u.Port(); p != "" {
		if s.Port, err = strconv.Atoi(p); err != nil || s.Port < 1 || s.Port > 65535 {
			return s, fmt.Errorf("SMTP URL has port %q, want 1 to 65535", p)
		}
	}
	return s, nil
}

func (s Server) options() []gomail.Option {
	options := []gomail.Option{gomail.WithPort(s.Port), gomail.WithTimeout(smtpTimeout), gomail.WithoutNoop()}
	switch s.TLS {
	case "required":
		options = append(options, gomail.WithTLSPolicy(gomail.TLSMandatory))
	case "off":
		options = append(options, gomail.WithTLSPolicy(gomail.NoTLS))
	default: // go-mail recognises implicit TLS
		options = append(options, gomail.WithTLSPolicy(gomail.TLSOpportunistic))
	}
	if s.User != "" {
		options = append(options, gomail.WithSMTPAuth(gomail.SMTPAuthAutoDiscover),
			gomail.WithUsername(s.User), gomail.WithPassword(s.Password))
	}
	return options
}

// dialer returns a function that connects to the server, for as long as dialogue lasts: go-mail
// would use a new timeout for each part of it, and not close the connection if one fails.
func (s Server) dialer(dialogue context.Context) gomail.DialContextFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		raw, err := new(net.Dialer).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		context.AfterFunc(dialogue, func() { _ = raw.Close() })
		conn := &boundedConn{Conn: raw}
		if s.TLS != "implicit" {
			return conn, nil
		}
		secure := tls.Client(conn, &tls.Config{ServerName: s.Host}) // go-mail checks the type of the connection
		if err := secure.HandshakeContext(ctx); err != nil {
			_ = raw.Close()
			return nil, err
		}
		return secure, nil
	}
}

// A parcel is a mail and its envelope.
type parcel struct {
	from, to mailaddr.Address
	name     string // of the recipient, which the server may know; it is masked in errors
	content  bytes.Buffer
}

func (p *parcel) needsSMTPUTF8() bool { return p.from.NeedsSMTPUTF8() || p.to.NeedsSMTPUTF8() }

// send sends p and returns nil once the server has accepted it. Otherwise its error is an
// [awayError], permanent, or one to try again after; see verdict.go.
func (s Server) send(ctx context.Context, p *parcel) error {
	ctx, cancel := context.WithTimeout(ctx, smtpTimeout)
	defer cancel()
	client, err := gomail.NewClient(s.Host, append(s.options(), gomail.WithDialContextFunc(s.dialer(ctx)))...)
	if err != nil {
		return awayError{fmt.Errorf("mail server %s: %w", s.Host, err)}
	}
	conn, err := client.DialToSMTPClientWithContext(ctx)
	if err != nil {
		return s.notReady(err)
	}
	defer func() { _ = client.CloseWithSMTPClient(conn) }() // the mail is accepted by then, or not
	return s.handIn(conn, p)
}

// handIn is the transaction of one mail. RFC 6531 allows SMTPUTF8 only if it is needed: the next
// server may lack it.
func (s Server) handIn(conn *smtp.Client, p *parcel) error {
	if offered, _ := conn.Extension("SMTPUTF8"); p.needsSMTPUTF8() && !offered {
		return s.lacksSMTPUTF8(p)
	}
	conn.SkipSMTPUTF8(!p.needsSMTPUTF8())
	if err := unlessYes(conn.Mail("<" + p.from.String() + ">")); err != nil {
		return s.refusal(atMail, p, err)
	}
	if err := unlessYes(conn.Rcpt("<" + p.to.String() + ">")); err != nil {
		return s.refusal(atRcpt, p, err)
	}
	w, err := conn.Data()
	if err != nil {
		return s.refusal(atData, p, err)
	}
	_, failed := p.content.WriteTo(w)
	if err := unlessYes(w.Close()); err != nil { // if the server closed the connection meanwhile, this reads its last answer
		if failed != nil {
			return s.refusal(atContent, p, err)
		}
		return s.refusal(atEnd, p, err)
	}
	return nil
}
