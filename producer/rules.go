package producer

import (
	"errors"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"

	"github.com/pgjet/pgjet/internal/guessable"
	"github.com/pgjet/pgjet/internal/mailaddr"
)

// Limits of a user's input. Bytes cost memory; people count characters.
const (
	maxName          = 200 // characters
	minPassword      = 12  // characters
	maxPassword      = 256 // characters
	maxPasswordBytes = 1024
)

// topLabel matches a letter in the last part of a domain's name: without one it would be an
// IP address.
var topLabel = regexp.MustCompile(`[a-z][^.]*$`)

// checkEmail returns the address as it is stored: with the domain in ASCII and lower case, so
// that bücher.example and xn--bcher-kva.example are one. The local part stays as it is,
// although two addresses that differ only in the case of letters count as the same.
func checkEmail(email string) (string, *FieldError) {
	bad := func(code, message string) (string, *FieldError) {
		return "", &FieldError{"email", code, message}
	}
	if email == "" {
		return bad("email_required", "An email address is required.")
	}
	a, err := mailaddr.Parse(email)
	local, _, _ := strings.Cut(email, "@")
	switch {
	case errors.Is(err, mailaddr.ErrTooLong):
		return bad("email_too_long", "The email address may have 254 bytes, 64 of them before the @.")
	case strings.ContainsFunc(local, func(r rune) bool { return r > unicode.MaxASCII }):
		return bad("email_not_ascii", "Only ASCII is supported before the @ of an email address.")
	case errors.Is(err, mailaddr.ErrDomain), err == nil && !validDomain(a.Domain):
		return bad("email_domain", "The email address needs a domain with a dot, such as example.com.")
	case err != nil, strings.HasPrefix(local, `"`):
		return bad("email_invalid", "This is not a plain email address such as ann@example.com.")
	}
	return a.String(), nil
}

// validDomain reports whether a domain may be one of the Internet: it has a dot, and is no
// IP address.
func validDomain(domain string) bool {
	return strings.Contains(domain, ".") && topLabel.MatchString(domain)
}

// checkPassword returns the password in the form that is hashed. The only rule on its
// characters is that it is not among the passwords that attackers try first.
func checkPassword(password, email, name string) (string, *FieldError) {
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
	case strings.EqualFold(norm.NFKC.String(password), email):
		return bad("password_is_email", "The password must not be the email address.")
	case guessable.Password(password, email, name):
		return bad("password_common", "This password is among the first that anybody would try. Use several words that do not belong together.")
	}
	return password, nil
}

// composedPassword returns the password in Unicode's composed form, so that é is the same
// on every keyboard. It refuses a password that is too long before it works on it.
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
