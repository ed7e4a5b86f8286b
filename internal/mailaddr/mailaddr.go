// Package mailaddr parses mail addresses and converts them into the form of SMTP: a domain
// in ASCII (UTS 46, RFC 5891), lengths in octets (RFC 5321, section 4.5.3.1), quotes around
// a local part that needs them.
package mailaddr

import (
	"errors"
	"net/mail"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// Limits of RFC 5321 in octets. A path, which is an address in angle brackets, has 256.
const (
	MaxLocal   = 64
	MaxAddress = 254
)

// Errors for a string that is no address for SMTP. Their texts do not repeat it.
var (
	ErrInvalid = errors.New("it is not one plain mail address, without a name, comments or brackets")
	ErrTooLong = errors.New("it has more than 254 octets, or its local part more than 64, when it is encoded")
	ErrDomain  = errors.New("its domain is not one that the DNS can have")
)

// An Address is one mailbox.
type Address struct {
	Local  string // before the @, without quotes, in the given case
	Domain string // in ASCII and lower case, such as xn--bcher-kva.example
}

// label is one part of a domain's name.
var label = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// domains maps a domain as people type it to its form in the DNS. Hyphens in the third and
// fourth place are reserved by IDNA, and in use.
var domains = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.CheckHyphens(false))

// Parse reads one address without a name, comments or angle brackets. Its errors are
// [ErrInvalid], [ErrTooLong] and [ErrDomain].
func Parse(s string) (Address, error) {
	at := strings.LastIndexByte(s, '@')
	switch {
	case at < 1 || !utf8.ValidString(s):
		return Address{}, ErrInvalid
	case len(s) > MaxAddress*utf8.UTFMax || at > MaxLocal+len(`""`)+MaxLocal: // each character may be quoted
		return Address{}, ErrTooLong
	}
	local, err := parseLocal(s[:at])
	if err != nil {
		return Address{}, err
	}
	domain, err := asciiDomain(s[at+1:])
	if err != nil {
		return Address{}, err
	}
	a := Address{local, domain}
	if path := a.String(); len(path)-len(domain)-len("@") > MaxLocal || len(path) > MaxAddress {
		return Address{}, ErrTooLong
	}
	return a, nil
}

// parseLocal returns a local part without its quotes. net/mail accepts more than local
// parts, so its result must match the input.
func parseLocal(s string) (string, error) {
	parsed, err := mail.ParseAddress(s + "@x.example")
	if err != nil || parsed.Name != "" {
		return "", ErrInvalid
	}
	local := strings.TrimSuffix(parsed.Address, "@x.example")
	if quoted(local) != s || strings.ContainsFunc(local, unseen) {
		return "", ErrInvalid
	}
	return local, nil
}

// unseen reports whether r is an invisible character that RFC 6532 allows.
func unseen(r rune) bool {
	return r > unicode.MaxASCII && (!unicode.IsGraphic(r) || unicode.IsSpace(r))
}

// quoted returns a local part as a header or a command shows it.
func quoted(local string) string {
	s := (&mail.Address{Address: local + "@x"}).String()
	return s[1 : len(s)-len("@x>")]
}

// asciiDomain returns a domain in its form in the DNS.
func asciiDomain(s string) (string, error) {
	if parsed, err := mail.ParseAddress("x@" + s); err != nil || parsed.Address != "x@"+s {
		return "", ErrInvalid
	}
	domain, err := domains.ToASCII(s)
	if err != nil {
		return "", ErrDomain
	}
	for l := range strings.SplitSeq(domain, ".") {
		if !label.MatchString(l) {
			return "", ErrDomain
		}
	}
	return domain, nil
}

// String returns the address, quoted where that is needed.
func (a Address) String() string { return quoted(a.Local) + "@" + a.Domain }

// NeedsSMTPUTF8 reports whether only a server with the extension SMTPUTF8 (RFC 6531) can
// accept the address: a local part has no other encoding.
func (a Address) NeedsSMTPUTF8() bool {
	return strings.ContainsFunc(a.Local, func(r rune) bool { return r > unicode.MaxASCII })
}

// Header returns the address as part of a message, with the name of its owner or "".
func (a Address) Header(name string) *mail.Address {
	return &mail.Address{Name: name, Address: a.Local + "@" + a.Domain}
}
