package mailer

import (
	"testing"
	"time"
)

// SetTimeout shortens the patience with mail servers for one test.
func SetTimeout(t *testing.T, d time.Duration) {
	before := smtpTimeout
	smtpTimeout = d
	t.Cleanup(func() { smtpTimeout = before })
}
