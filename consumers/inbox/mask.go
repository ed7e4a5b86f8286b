package inbox

import (
	"maps"
	"regexp"
	"strings"
)

// masked replaces a text that is not shown.
const masked = "(masked)"

// address matches a mail address: operators paste texts elsewhere.
var address = regexp.MustCompile(`[^\s"'<>(),;:=]+@[^\s"'<>(),;:=]+`)

// Mask returns text with mail addresses replaced.
func Mask(text string) string { return address.ReplaceAllString(text, "…@…") }

// innocent are the headers that reveal nothing about people: the key is an id.
var innocent = map[string]bool{
	"ce-specversion": true, "ce-id": true, "ce-source": true, "ce-type": true, "ce-subject": true, "ce-time": true,
	"ce-datacontenttype": true, "content-type": true, "Content-Type": true, "Pgjet-Seq": true, "Pgjet-Outbox": true, "traceparent": true,
}

// Public reports whether pgjet, NATS or a standard chose the values of a header. Such values contain
// nothing about people.
func Public(header string) bool { return innocent[header] || strings.HasPrefix(header, "Nats-") }

// MaskHeader returns a header without the values that a producer chose.
func MaskHeader(header map[string][]string) map[string][]string {
	header = maps.Clone(header)
	for name := range header {
		if !Public(name) {
			header[name] = []string{masked}
		}
	}
	return header
}

// Mask replaces mail addresses in the texts.
func (l *Letter) Mask() {
	l.Error, l.ChangeReason = Mask(l.Error), Mask(l.ChangeReason)
}

// Mask removes the payload and the values of headers that a producer chose, and replaces mail
// addresses in the texts.
func (m *DeadMessage) Mask() {
	m.Letter.Mask()
	m.Data, m.DataBase64, m.Masked = nil, nil, true
	m.ErrorGroup, m.Stack = Mask(m.ErrorGroup), Mask(m.Stack)
	m.Header = MaskHeader(m.Header)
}

// Mask masks the message and the texts about it.
func (e *LetterDetails) Mask() {
	e.DeadMessage.Mask()
	for i := range e.AttemptLog {
		e.AttemptLog[i].Error = Mask(e.AttemptLog[i].Error)
	}
	for i := range e.Operations {
		e.Operations[i].Reason = Mask(e.Operations[i].Reason)
	}
}
