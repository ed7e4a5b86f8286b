package devmail

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"time"

	"github.com/emersion/go-message"
	_ "github.com/emersion/go-message/charset" // decodes more than UTF-8
	"github.com/emersion/go-message/mail"
)

// A Mail is one mail as the API shows it. Strings and slices are never null; text
// is UTF-8 with "\n" at line ends. Attachments are not shown.
type Mail struct {
	ID      string              `json:"id"`
	From    string              `json:"from"` // sender of the envelope, "" for a bounce
	To      []string            `json:"to"`   // recipients of the envelope, Bcc among them
	Subject string              `json:"subject"`
	Headers map[string][]string `json:"headers"` // decoded, by canonical name, such as "Message-Id"
	Text    string              `json:"text"`    // the text part; of a mail that is no MIME, all of it
	HTML    string              `json:"html"`
	Time    time.Time           `json:"time"` // when it was stored, UTC

	size int64 // bytes as it was sent
}

// parse reads a mail. If it breaks the rules of MIME, the whole mail is the text.
func parse(raw []byte) Mail {
	m := Mail{Headers: map[string][]string{}, size: int64(len(raw))}
	e, err := message.Read(bytes.NewReader(raw))
	if e != nil {
		m.addHeaders(&e.Header)
	}
	if readable(err) {
		err = m.addParts(mail.NewReader(e))
	}
	if err != nil {
		m.Text, m.HTML = plain(raw), ""
	}
	return m
}

// readable reports whether err leaves something to read, if only undecoded.
func readable(err error) bool {
	return err == nil || message.IsUnknownCharset(err) || message.IsUnknownEncoding(err)
}

func (m *Mail) addHeaders(h *message.Header) {
	for f := h.Fields(); f.Next(); {
		value, err := f.Text()
		if err != nil {
			value = f.Value()
		}
		m.Headers[f.Key()] = append(m.Headers[f.Key()], plain([]byte(value)))
	}
	if s := m.Headers["Subject"]; len(s) > 0 {
		m.Subject = s[0]
	}
}

func (m *Mail) addParts(r *mail.Reader) error {
	for {
		p, err := r.NextPart()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case !readable(err):
			return err
		}
		if err := m.addPart(p); err != nil {
			return err
		}
	}
}

// addPart adds a part that is text and no attachment.
func (m *Mail) addPart(p *mail.Part) error {
	h, ok := p.Header.(*mail.InlineHeader)
	if !ok {
		return nil
	}
	kind, _, _ := h.ContentType() // if it cannot be parsed: as it is
	if !strings.HasPrefix(kind, "text/") {
		return nil
	}
	body, err := io.ReadAll(p.Body)
	if err != nil {
		return err
	}
	into := &m.Text
	if kind == "text/html" {
		into = &m.HTML
	}
	if *into != "" {
		*into += "\n"
	}
	*into += plain(body)
	return nil
}

// plain returns b as valid UTF-8 with "\n" at line ends.
func plain(b []byte) string {
	s := strings.ToValidUTF8(string(b), "\uFFFD")
	return strings.ReplaceAll(s, "\r\n", "\n")
}
