package mailer

import (
	"embed"
	"fmt"
	htmltemplate "html/template"
	"text/template"

	"github.com/pgjet/pgjet/events"
)

//go:embed templates
var files embed.FS

// A kind is a kind of mail: the mark of its Message-IDs, and its parts.
type kind struct {
	mark string
	text *template.Template
	html *htmltemplate.Template
}

func newKind(mark string) kind {
	return kind{mark, template.Must(template.ParseFS(files, "templates/"+mark+".txt")),
		htmltemplate.Must(htmltemplate.ParseFS(files, "templates/"+mark+".html"))}
}

var (
	welcome  = newKind("welcome")
	rejected = newKind("rejected")
	reminder = newKind("reminder")
)

// A letter is the text to one address about one event. Nobody has confirmed that the address
// belongs to the person who signed up. So a letter contains nothing that this person typed, not
// even the name, in the text or a header; otherwise our server would send a stranger's message to
// anybody.
type letter struct {
	kind
	subject string
	email   string
	name    string // only to keep it out of errors
	Reason  string // for the templates, in our words
}

// letterFor returns the letter about e.
func letterFor(e events.Event) (l letter, err error) {
	switch e.Type {
	case events.UserCreated{}.EventType():
		u, err := events.Decode[events.UserCreated](e)
		return letter{kind: welcome, subject: "Welcome", email: u.Email, name: u.Name}, err
	case events.UserRejected{}.EventType():
		u, err := events.Decode[events.UserRejected](e)
		return letter{kind: rejected, subject: "We could not open your account", email: u.Email, name: u.Name, Reason: inWords(u.Reason)}, err
	case events.UserStillPending{}.EventType():
		u, err := events.Decode[events.UserStillPending](e)
		return letter{kind: reminder, subject: "Your account is not ready yet", email: u.Email, name: u.Name}, err
	}
	return l, fmt.Errorf("unknown_type: the mailer has no mail for %s", e.Type)
}

// reasons maps codes of [events.UserRejected] to words.
var reasons = map[string]string{
	"billing_declined": "Our billing service declined to open an account for you. Nothing was charged. You may sign up again once that is settled with your bank.",
}

// inWords returns a reason as the user reads it. An unknown code is not shown: it is for programs.
func inWords(code string) string {
	if text, ok := reasons[code]; ok {
		return text
	}
	return "Something that belongs to an account could not be set up for you. You may sign up again later."
}
