package producer

import (
	"net/mail"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// Limits of what a user may send. Bytes are what machines pay for, characters are
// what people count.
const (
	maxEmail         = 254 // bytes
	maxLocalPart     = 64  // bytes
	maxName          = 200 // characters
	minPassword      = 12  // characters
	maxPassword      = 256 // characters
	maxPasswordBytes = 1024
)

// label is one part of a host name. The last one is no number: that would be an
// IP address.
var (
	label    = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	topLabel = regexp.MustCompile(`[a-z]`)
)

// checkEmail returns the address as it is stored: with the domain in lower case.
// The local part stays as it is, although two addresses that differ only in the
// case of letters count as the same.
func checkEmail(email string) (string, *FieldError) {
	bad := func(code, message string) (string, *FieldError) {
		return "", &FieldError{"email", code, message}
	}
	at := strings.LastIndexByte(email, '@')
	switch {
	case email == "":
		return bad("email_required", "An email address is required.")
	case len(email) > maxEmail || at > maxLocalPart: // before anything parses it
		return bad("email_too_long", "The email address may have 254 bytes, 64 of them before the @.")
	case strings.ContainsFunc(email, func(r rune) bool { return r > unicode.MaxASCII }):
		return bad("email_not_ascii", "Only ASCII email addresses are supported for now.")
	}
	// Parsing accepts more than an address: names, comments, brackets, quotes.
	parsed, err := mail.ParseAddress(email)
	if err != nil || parsed.Name != "" || parsed.Address != email || strings.Count(email, "@") != 1 {
		return bad("email_invalid", "This is not a plain email address such as ann@example.com.")
	}
	domain := strings.ToLower(email[at+1:])
	if !validDomain(domain) {
		return bad("email_domain", "The email address needs a domain with a dot, such as example.com.")
	}
	return email[:at+1] + domain, nil
}

func validDomain(domain string) bool {
	labels := strings.Split(domain, ".")
	for _, l := range labels {
		if !label.MatchString(l) {
			return false
		}
	}
	return len(labels) > 1 && topLabel.MatchString(labels[len(labels)-1])
}

// checkName returns the name as it is stored: without space around it.
func checkName(name string) (string, *FieldError) {
	if len(name) > maxName*utf8.UTFMax || utf8.RuneCountInString(strings.TrimSpace(name)) > maxName {
		return "", &FieldError{"name", "name_too_long", "The name may have 200 characters."}
	}
	if hasHidden(name) {
		return "", &FieldError{"name", "control_character", "The name has control or invisible characters."}
	}
	name = strings.TrimSpace(name)
	if name == "" {
		return "", &FieldError{"name", "name_required", "A name is required."}
	}
	return name, nil
}

// hidden are characters that nobody sees and that can make a name look like
// another: controls, bidirectional overrides, zero-width characters, fillers.
var hidden = []*unicode.RangeTable{
	unicode.Cc, unicode.Cf, unicode.Co, unicode.Zl, unicode.Zp, unicode.Other_Default_Ignorable_Code_Point,
}

// joined are scripts in whose words a zero-width joiner or non-joiner is a letter
// like any other.
var joined = []*unicode.RangeTable{
	unicode.Arabic, unicode.Bengali, unicode.Devanagari, unicode.Gujarati, unicode.Gurmukhi, unicode.Kannada,
	unicode.Khmer, unicode.Malayalam, unicode.Mongolian, unicode.Myanmar, unicode.Oriya, unicode.Sinhala,
	unicode.Syriac, unicode.Tamil, unicode.Telugu,
}

func hasHidden(s string) bool {
	runes := []rune(s)
	for i, r := range runes {
		if r == '\u200c' || r == '\u200d' {
			if i > 0 && i+1 < len(runes) && unicode.In(runes[i-1], joined...) && unicode.In(runes[i+1], joined...) {
				continue
			}
			return true
		}
		if unicode.In(r, hidden...) {
			return true
		}
	}
	return false
}

// checkPassword returns the password as it is hashed. There are no rules on what it
// is made of.
func checkPassword(password, email string) (string, *FieldError) {
	bad := func(code, message string) (string, *FieldError) {
		return "", &FieldError{"password", code, message}
	}
	password, wrong := composedPassword(password)
	switch {
	case wrong != nil:
		return "", wrong
	case utf8.RuneCountInString(password) < minPassword:
		return bad("password_too_short", "The password needs at least 12 characters.")
	case strings.ContainsFunc(password, unicode.IsControl):
		return bad("password_control_character", "The password has control characters.")
	case strings.EqualFold(password, email):
		return bad("password_is_email", "The password must not be the email address.")
	}
	return password, nil
}

// composedPassword returns the password in Unicode's composed form, so that é is é on
// every keyboard. It refuses those that are too long before it works on them.
func composedPassword(password string) (string, *FieldError) {
	if password == "" {
		return "", &FieldError{"password", "password_required", "A password is required."}
	}
	composed := ""
	if len(password) <= maxPasswordBytes {
		composed = norm.NFC.String(password)
	}
	if composed == "" || utf8.RuneCountInString(composed) > maxPassword {
		return "", &FieldError{"password", "password_too_long", "The password may have 256 characters in 1024 bytes."}
	}
	return composed, nil
}
