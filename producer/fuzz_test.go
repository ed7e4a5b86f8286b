package producer

import (
	"net/mail"
	"regexp"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"
)

// FuzzSignUpBody reads any body: an accepted one obeys the rules, and a refused one is a
// problem of the client that does not repeat the password.
func FuzzSignUpBody(f *testing.F) {
	for _, seed := range []string{
		goodBody, `{`, `{}{}`, `[]`, `{"email":1}`, `{"a":{"a":1}}`, "{\"name\":\"\xff\"}", `{"name":"\ud800"}`,
		`{"email":"a@b@c","name":"\u202e","password":"\u0000"}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var n newUser
		if p := decode(data, &n); p != nil {
			if p.Status != 400 || p.Code == "" {
				t.Errorf("decode(%q) = %v, want status 400 and a code", data, p)
			}
			return
		}
		sent := n.Password
		if invalid := n.check(); invalid != nil {
			p := invalidFields(invalid)
			if p.Status != 422 || len(sent) > 12 && strings.Contains(p.Detail, sent) {
				t.Errorf("check(%q) = %v, want 422 without the password", data, p)
			}
			return
		}
		local, domain, ok := strings.Cut(n.Email, "@")
		if !ok || local == "" || strings.ToLower(domain) != domain || !strings.Contains(domain, ".") || len(n.Email) > 254 {
			t.Errorf("email %q was accepted", n.Email)
		}
		if again, wrong := checkName(n.Name); wrong != nil || again != n.Name {
			t.Errorf("name %q was accepted, and then read as %q (%v)", n.Name, again, wrong)
		}
		if strings.Join(strings.Fields(n.Name), " ") != n.Name || n.Name == "" || utf8.RuneCountInString(n.Name) > 200 || !utf8.ValidString(n.Name) {
			t.Errorf("name %q was accepted", n.Name)
		}
		if c := utf8.RuneCountInString(n.Password); c < 12 || c > 256 || strings.ContainsRune(n.Password, 0) {
			t.Errorf("password %q was accepted", n.Password)
		}
	})
}

// FuzzEmail checks any address: an accepted one is one plain address, in the form in which
// it is stored. It cannot smuggle in a header of a mail or a command of SMTP.
func FuzzEmail(f *testing.F) {
	for _, seed := range []string{
		"ann@example.com", "Ann.O'Neill+x@EXAMPLE.co.uk", "", "@", "ann@", "@example.com", "a@b@c.de", "ann@[127.0.0.1]", "ann@127.0.0.1",
		"Ann <ann@example.com>", "ann@example.com, bob@example.com", "ann@example.com\r\nBcc: eve@example.com", "\"a b\"@example.com",
		"ann@bücher.example", "ann@xn--bcher-kva.example", "ann@ｂüＣher。example", "ann@a\u00adb.example", "\"a b\"@bücher.example",
		"ann@example.com> SIZE=1", "ann@-x.com", "ünn@example.com", "ann(x)@example.com", "a\x00@b.cd", strings.Repeat("a", 65) + "@example.com",
	} {
		f.Add(seed)
	}
	plain := regexp.MustCompile(`^[!-?A-~]{1,64}@([a-z0-9-]{1,63}\.)+[a-z0-9-]{1,63}$`)
	f.Fuzz(func(t *testing.T, given string) {
		email, wrong := checkEmail(given)
		if wrong != nil {
			if email != "" || wrong.Field != "email" || wrong.Code == "" || len(given) > 12 && strings.Contains(wrong.Message, given) {
				t.Errorf("checkEmail(%q) = %q, %+v, want no address and an error that does not repeat it", given, email, wrong)
			}
			return
		}
		if !plain.MatchString(email) || len(email) > 254 || strings.ContainsAny(email, "<>()[],;: \"\\") || ascii(given) && !strings.EqualFold(email, given) {
			t.Errorf("checkEmail(%q) = %q was accepted", given, email)
		}
		if parsed, err := mail.ParseAddress(email); err != nil || parsed.Address != email {
			t.Errorf("checkEmail(%q) = %q, which reads as %v (%v)", given, email, parsed, err)
		}
		if again, wrong := checkEmail(email); wrong != nil || again != email {
			t.Errorf("checkEmail(%q) = %q, %v, want what it returned before", email, again, wrong)
		}
	})
}

func ascii(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r > unicode.MaxASCII })
}

// FuzzCursor reads any cursor: for each id it accepts exactly one.
func FuzzCursor(f *testing.F) {
	for _, seed := range []string{
		cursor(uuid.Nil), cursor(uuid.Max), cursor(uuid.MustParse("0198c2f0-0000-7000-8000-000000000000")),
		"", "A", strings.Repeat("A", 27), strings.Repeat("\n", 27), cursor(uuid.Max) + "=", cursor(uuid.Max)[:26] + "_", "äääääääääääää\xff",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, c string) {
		id, ok := readCursor(c)
		if ok != (cursor(id) == c) {
			t.Errorf("readCursor(%q) = %s, %v, and the cursor of that is %q", c, id, ok, cursor(id))
		}
		if !ok && id != uuid.Nil {
			t.Errorf("readCursor(%q) = %s although it is none", c, id)
		}
		if len(c) < 16 {
			return
		}
		id = uuid.UUID([]byte(c[:16]))
		if back, ok := readCursor(cursor(id)); !ok || back != id {
			t.Errorf("readCursor(cursor(%s)) = %s, %v", id, back, ok)
		}
	})
}

// FuzzIdempotencyKey reads any header: a key is short and visible, and the same in
// quotes and without.
func FuzzIdempotencyKey(f *testing.F) {
	for _, seed := range []string{
		"a", `"a"`, `""`, `"`, `"a`, `"a"b"`, `a b`, "a,b", `"a";b=c`, `"a\"b"`, "ä", "a\n", "\x00", strings.Repeat("a", 256), "aGk/=+", "a:b",
	} {
		f.Add(seed)
	}
	visible := regexp.MustCompile(`^[\x21-\x7e]{1,255}$`)
	f.Fuzz(func(t *testing.T, line string) {
		key, p := idempotencyKey([]string{line})
		if p != nil {
			if key != "" || p.Status != 400 || p.Code != "idempotency_key_invalid" {
				t.Errorf("idempotencyKey(%q) = %q, %v, want no key and 400", line, key, p)
			}
			return
		}
		if !visible.MatchString(key) || strings.ContainsAny(key, `"\,;`) {
			t.Errorf("idempotencyKey(%q) = %q was accepted", line, key)
		}
		for _, same := range []string{key, `"` + key + `"`} {
			if again, p := idempotencyKey([]string{same}); p != nil || again != key {
				t.Errorf("idempotencyKey(%q) = %q, %v, want %q", same, again, p, key)
			}
		}
		if _, p := idempotencyKey([]string{line, line}); p == nil {
			t.Errorf("two headers %q were accepted", line)
		}
	})
}
