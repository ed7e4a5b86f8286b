// Package devmail is the mail server of "pgjet dev". It receives mails by SMTP, and shows
// them on a web page for people and as JSON for tests. It delivers nothing any further.
//
// It is for development only. Anyone who reaches its sockets may send any mail and read
// every mail: there is no authentication and no TLS, so listen on loopback.
//
// # SMTP
//
// Every recipient is accepted, one that is not ASCII if the sender has asked for SMTPUTF8.
// A mail is answered with 250 once it is stored: with a directory, once its file is
// written, synced and renamed. A mail may have 10 MiB. The newest 1000 mails are kept, up
// to 128 MiB together, but always the newest one.
//
// # HTTP
//
//	GET    /                   the page; /messages/{id} with that mail open
//	GET    /api/messages       every [Mail], newest first; ?to=ann@example.com filters
//	GET    /api/messages/{id}  one [Mail]
//	DELETE /api/messages       delete all mails and their files
//	/fault                     the next sends fail: see [devfault]
//
// A fault comes at the end of DATA, as from a server that is full, restarting or dislikes
// the content: the sender has sent everything and is refused, after a delay if the fault has
// one. So one send uses up one fault, however many recipients it names, and its mail is not
// stored. With code 421 the connection is closed as well.
//
// Errors are application/problem+json (RFC 9457). A browser may change things from this
// server's own pages only, and on loopback a request must ask for 127.0.0.1 or localhost: see
// [web.Guard].
package devmail

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/emersion/go-smtp"

	"github.com/pgjet/pgjet/internal/devfault"
)

const (
	maxMail       = 10 << 20 // bytes of one mail
	maxRecipients = 1000     // of one mail
	readTimeout   = time.Minute
	writeTimeout  = 10 * time.Second
)

// A Server receives mails by SMTP and shows them over HTTP. It is safe for concurrent use.
type Server struct {
	// WithoutSMTPUTF8 makes it a server without that extension (RFC 6531): it refuses
	// addresses that are not ASCII. It must not change while ServeSMTP runs.
	WithoutSMTPUTF8 bool

	log    *slog.Logger
	box    *mailbox
	faults devfault.Switch
}

// New returns a server that keeps mails in dir, one file each, and starts with the mails in
// it; it makes dir if need be. A file that cannot be read is logged and left alone. With
// dir "" mails live in memory only. Two servers must not share a directory.
func New(dir string, log *slog.Logger) (*Server, error) {
	box, err := openMailbox(dir, log)
	if err != nil {
		return nil, fmt.Errorf("open mailbox %s: %w", dir, err)
	}
	return &Server{log: log, box: box}, nil
}

// ServeSMTP serves SMTP on l until ctx ends, then returns nil; any other end is an error.
// Before it returns, it closes l, lets a mail that is being received be stored and
// answered, and answers 421 to all other clients. Nothing of it runs on afterwards.
func (s *Server) ServeSMTP(ctx context.Context, l net.Listener) error {
	srv := s.smtpServer()
	door := &listener{Listener: l}
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()

	err := srv.Serve(door)
	door.drain()
	_ = srv.Shutdown(context.WithoutCancel(ctx)) // waits; the write timeout bounds it
	if ctx.Err() != nil {
		return nil // the listener was closed on purpose
	}
	return fmt.Errorf("serve smtp on %s: %w", l.Addr(), err)
}

func (s *Server) smtpServer() *smtp.Server {
	srv := smtp.NewServer(smtp.BackendFunc(s.newSession))
	srv.Domain = "localhost"
	srv.MaxMessageBytes = maxMail
	srv.MaxRecipients = maxRecipients
	srv.ReadTimeout = readTimeout
	srv.WriteTimeout = writeTimeout
	srv.EnableSMTPUTF8 = !s.WithoutSMTPUTF8
	srv.ErrorLog = slog.NewLogLogger(s.log.Handler(), slog.LevelWarn)
	return srv
}
