package mailaddr_test

import (
	"errors"
	"net/mail"
	"strings"
	"testing"

	"golang.org/x/text/unicode/norm"

	"github.com/pgjet/pgjet/internal/mailaddr"
)

func TestParse(t *testing.T) {
	for in, want := range map[string]string{
		"ann@example.com":                   "ann@example.com",
		"Ann.O'Neill+x@EXAMPLE.co.uk":       "Ann.O'Neill+x@example.co.uk",
		"a@localhost":                       "a@localhost",
		"a@bücher.example":                  "a@xn--bcher-kva.example",
		"a@BÜCHER.example":                  "a@xn--bcher-kva.example",
		norm.NFD.String("a@bücher.example"): "a@xn--bcher-kva.example",
		"a@xn--bcher-kva.example":           "a@xn--bcher-kva.example",
		"a@XN--BCHER-KVA.example":           "a@xn--bcher-kva.example",
		"a@straße.example":                  "a@xn--strae-oqa.example", // not strasse, which is another domain
		"a@日本語。jp":                          "a@xn--wgv71a119e.jp",
		"a@ｅｘａｍｐｌｅ.com":                     "a@example.com",
		"a@mañana.com":                      "a@xn--maana-pta.com",
		"a@נועה.example":                    "a@xn--8dbb6aj.example",
		"a@r3---sn-4g5e6nsz.example":        "a@r3---sn-4g5e6nsz.example",
		"hé@example.com":                    "hé@example.com",
		`"a b"@example.com`:                 `"a b"@example.com`,
		`"a\"b@c"@example.com`:              `"a\"b@c"@example.com`,
		strings.Repeat("a", 64) + "@b.cd":   strings.Repeat("a", 64) + "@b.cd",
	} {
		a, err := mailaddr.Parse(in)
		if err != nil || a.String() != want {
			t.Errorf("Parse(%q) = %q, %v, want %q", in, a, err, want)
			continue
		}
		if again, err := mailaddr.Parse(a.String()); err != nil || again != a {
			t.Errorf("Parse(%q) = %q, %v, want it unchanged", a, again, err)
		}
		if back, err := mail.ParseAddress(a.Header(`Dwayne "The Rock" \J, Jr.`).String()); err != nil || back.Name != `Dwayne "The Rock" \J, Jr.` || back.Address != a.Local+"@"+a.Domain {
			t.Errorf("the header of %q reads as %v, %v", a, back, err)
		}
		if got := a.NeedsSMTPUTF8(); got != (in == "hé@example.com") {
			t.Errorf("%q: NeedsSMTPUTF8() = %t", in, got)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	label := strings.Repeat("a", 61) + "."
	for in, want := range map[string]error{
		"": mailaddr.ErrInvalid, "ann": mailaddr.ErrInvalid, "@example.com": mailaddr.ErrInvalid, "a@b@example.com": mailaddr.ErrInvalid,
		"Ann <a@example.com>": mailaddr.ErrInvalid, "<a@example.com>": mailaddr.ErrInvalid, "a@example.com (Ann)": mailaddr.ErrInvalid,
		"(Ann)a@example.com": mailaddr.ErrInvalid, "a@example.com, b@example.com": mailaddr.ErrInvalid, "a b@example.com": mailaddr.ErrInvalid,
		" a@example.com": mailaddr.ErrInvalid, "a@example.com ": mailaddr.ErrInvalid, "a@example.com\r\nBcc: e": mailaddr.ErrInvalid,
		"a\r\nb@example.com": mailaddr.ErrInvalid, "a..b@example.com": mailaddr.ErrInvalid, "\xff@example.com": mailaddr.ErrInvalid,
		`"a"@example.com`:      mailaddr.ErrInvalid, // the same as a@example.com, which is how to write it
		"a\u200bb@example.com": mailaddr.ErrInvalid, "a\u00a0b@example.com": mailaddr.ErrInvalid, "a\u202eb@example.com": mailaddr.ErrInvalid,
		"a@": mailaddr.ErrInvalid, "a@.com": mailaddr.ErrInvalid, "a@example..com": mailaddr.ErrInvalid, "a@example.com.": mailaddr.ErrInvalid,
		"a@[127.0.0.1]": mailaddr.ErrDomain, "a@exam_ple.com": mailaddr.ErrDomain, "a@-x.com": mailaddr.ErrDomain, "a@xn--a.com": mailaddr.ErrDomain,
		"a@xn--.com": mailaddr.ErrDomain, "a@" + strings.Repeat("a", 64) + ".com": mailaddr.ErrDomain,
		"a@" + strings.Repeat("ü", 60) + ".com": mailaddr.ErrDomain, // 63 letters would do, 63 octets of their code do not
		strings.Repeat("a", 65) + "@b.cd":       mailaddr.ErrTooLong, strings.Repeat("é", 33) + "@b.cd": mailaddr.ErrTooLong,
		`"` + strings.Repeat(" ", 63) + `"@b.cd`:                        mailaddr.ErrTooLong,
		"ann@" + strings.Repeat(label, 4) + "abc":                       mailaddr.ErrTooLong,
		"a@" + strings.Repeat("bücher.", 18) + "example":                mailaddr.ErrTooLong, // 153 octets, 261 when encoded
		strings.Repeat("a", 30_000) + "@" + strings.Repeat("b", 30_000): mailaddr.ErrTooLong,
	} {
		if a, err := mailaddr.Parse(in); !errors.Is(err, want) {
			t.Errorf("Parse(%.80q) = %q, %v, want %v", in, a, err, want)
		}
	}
	if _, err := mailaddr.Parse("ann@" + strings.Repeat(label, 4) + "ab"); err != nil {
		t.Errorf("an address of 254 octets: %v", err)
	}
}
