// The tests trust the certificate of their own servers, and no other.
//
//go:debug x509usefallbackroots=1

package mailer_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"net"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/pgjet/pgjet/consumers/mailer"
	"github.com/pgjet/pgjet/internal/testenv"
)

// certificate is valid for 127.0.0.1.
var certificate = func() tls.Certificate {
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	return s.TLS.Certificates[0]
}()

func TestMain(m *testing.M) {
	roots := x509.NewCertPool()
	roots.AddCert(certificate.Leaf)
	x509.SetFallbackRoots(roots)
	testenv.Main(m)
}

const password = "s3cretpw"

// TestCredentialsAreEncrypted: they are sent to a server after TLS has begun, or not at all.
func TestCredentialsAreEncrypted(t *testing.T) {
	mailer.SetTimeout(t, 2*time.Second)
	plain := "250-mail.test\r\n250 AUTH PLAIN LOGIN"
	both := "250-mail.test\r\n250-STARTTLS\r\n250 AUTH PLAIN LOGIN"
	for name, tt := range map[string]struct {
		query, ehlo string
		sent        bool
	}{
		"STARTTLS":                               {"", both, true},
		"optional STARTTLS":                      {"?tls=optional", both, true},
		"required, the server has none":          {"", plain, false},
		"optional, the server has none":          {"?tls=optional", plain, false},
		"off":                                    {"?tls=off", both, false},
		"required, the server has not even AUTH": {"", "250 mail.test", false},
	} {
		t.Run(name, func(t *testing.T) {
			s := &script{
				answers: map[string]string{"EHLO": tt.ehlo, "STARTTLS": "220 go", "AUTH": "235 welcome", "DATA": "354 go"},
				tls:     &tls.Config{Certificates: []tls.Certificate{certificate}},
			}
			err := effect(t, "smtp://me:"+password+"@"+s.start(t)+tt.query)(t.Context(), signup(t, "Ada"))
			if (err == nil) != tt.sent {
				t.Errorf("%v, want sent = %t", err, tt.sent)
			}
			s.checkSecrecy(t, err, tt.sent)
		})
	}
}

// TestRequiredTLS: nothing is sent to a server that cannot encrypt, not even without credentials.
func TestRequiredTLS(t *testing.T) {
	mailer.SetTimeout(t, 2*time.Second)
	s := &script{answers: map[string]string{"DATA": "354 go"}}
	err := effect(t, "smtp://"+s.start(t)+"?tls=required")(t.Context(), signup(t, "Ada"))
	if verdict(err) != "unavailable" {
		t.Errorf("%v, want an outage", err)
	}
	s.checkSecrecy(t, err, false)
}

// checkSecrecy fails if the password or a mail was seen outside of TLS, or the password in err.
func (s *script) checkSecrecy(t *testing.T, err error, sent bool) {
	t.Helper()
	s.hungUp(t)
	clear, secret, _ := strings.Cut(s.heard(), "TLS\n")
	if strings.Contains(clear, "AUTH") || strings.Contains(clear, "MAIL") {
		t.Errorf("the server got in clear:\n%s", clear)
	}
	if seen := strings.Contains(secret, base64.StdEncoding.EncodeToString([]byte("\x00me\x00"+password))); seen != sent {
		t.Errorf("the password was sent = %t, want %t:\n%s", seen, sent, secret)
	}
	if err != nil && strings.Contains(err.Error(), password) {
		t.Errorf("the error shows the password: %v", err)
	}
}

func TestImplicitTLS(t *testing.T) {
	mailer.SetTimeout(t, 2*time.Second)
	for host, sent := range map[string]bool{"127.0.0.1": true, "localhost": false} { // as the certificate says
		s := &script{answers: map[string]string{"EHLO": "250-mail.test\r\n250 AUTH PLAIN", "AUTH": "235 welcome", "DATA": "354 go"}}
		l := listen(t, "127.0.0.1:0")
		s.note("TLS")
		s.serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{certificate}}))
		_, port, _ := net.SplitHostPort(l.Addr().String())
		err := effect(t, "smtps://me:"+password+"@"+host+":"+port)(t.Context(), signup(t, "Ada"))
		if (err == nil) != sent {
			t.Errorf("%s: %v, want sent = %t", host, err, sent)
		}
		s.checkSecrecy(t, err, sent)
	}
}

// TestRefusedCredentials: an operator has to correct a wrong password, and the events wait for
// that. Only the code of the server's answer is shown: the text may name our user.
func TestRefusedCredentials(t *testing.T) {
	mailer.SetTimeout(t, 2*time.Second)
	s := &script{
		answers: map[string]string{
			"EHLO": "250-mail.test\r\n250-STARTTLS\r\n250 AUTH PLAIN", "STARTTLS": "220 go", "AUTH": "535 no me with " + password,
		},
		tls: &tls.Config{Certificates: []tls.Certificate{certificate}},
	}
	err := effect(t, "smtp://me:"+password+"@"+s.start(t))(t.Context(), signup(t, "Ada"))
	if verdict(err) != "unavailable" || !strings.Contains(err.Error(), "535") || !strings.Contains(err.Error(), "--smtp-url") ||
		strings.Contains(err.Error(), "no me") {
		t.Errorf("%v, want an outage with 535 and --smtp-url, and no word of the server", err)
	}
	s.hungUp(t)
}
