package producer_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/pgjet/pgjet/internal/auth"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/producer"
)

// badInput is a request that must be refused: status, code and the fields that the
// answer names.
type badInput struct {
	name        string
	contentType string // empty: application/json; "none": no header
	encoding    string
	body        string
	status      int
	code        string
	fields      string // separated by spaces
}

// with returns a sign-up with one field replaced by raw JSON.
func with(field, raw string) string {
	v := map[string]string{"email": `"ann@example.com"`, "name": `"Ann"`, "password": `"` + password + `"`}
	v[field] = raw
	return fmt.Sprintf(`{"email":%s,"name":%s,"password":%s}`, v["email"], v["name"], v["password"])
}

// and returns a sign-up with something more at the end of the object.
func and(more string) string { return strings.TrimSuffix(with("", ""), "}") + more }

var badBodies = []badInput{
	{name: "empty body", body: "", status: 400, code: "body_required"},
	{name: "only space", body: " \n", status: 400, code: "json_invalid"},
	{name: "half an object", body: `{`, status: 400, code: "json_invalid"},
	{name: "object cut short", body: and(``), status: 400, code: "json_invalid"},
	{name: "byte order mark", body: "\ufeff" + with("", ""), status: 400, code: "json_invalid"},
	{name: "array", body: `[]`, status: 400, code: "json_object_required"},
	{name: "string", body: `"x"`, status: 400, code: "json_object_required"},
	{name: "null", body: `null`, status: 400, code: "json_object_required"},
	{name: "number", body: `1`, status: 400, code: "json_object_required"},
	{name: "two objects", body: with("", "") + with("", ""), status: 400, code: "json_trailing_data"},
	{name: "trailing garbage", body: with("", "") + "x", status: 400, code: "json_trailing_data"},
	{name: "comment", body: `{/**/}`, status: 400, code: "json_invalid"},
	{name: "trailing comma", body: and(`,}`), status: 400, code: "json_invalid"},
	{name: "NaN", body: with("name", `NaN`), status: 400, code: "json_invalid"},
	{name: "duplicate field", body: and(`,"email":"bob@example.com"}`), status: 400, code: "duplicate_field", fields: "email"},
	{name: "duplicate field, escaped", body: and(`,"em\u0061il":"bob@example.com"}`), status: 400, code: "duplicate_field", fields: "email"},
	{name: "field in other case", body: and(`,"EMAIL":"bob@example.com"}`), status: 400, code: "unknown_field", fields: "EMAIL"},
	{name: "field in other case alone", body: `{"Email":"ann@example.com","name":"Ann","password":"` + password + `"}`, status: 400, code: "unknown_field", fields: "Email"},
	{name: "is_admin", body: and(`,"is_admin":true}`), status: 400, code: "unknown_field", fields: "is_admin"},
	{name: "id", body: and(`,"id":1}`), status: 400, code: "unknown_field", fields: "id"},
	{name: "created_at", body: and(`,"created_at":"2020-01-01T00:00:00Z"}`), status: 400, code: "unknown_field", fields: "created_at"},
	{name: "$schema", body: and(`,"$schema":"x"}`), status: 400, code: "unknown_field", fields: "$schema"},
	{name: "email is a number", body: with("email", `1`), status: 400, code: "wrong_type", fields: "email"},
	{name: "name is an array", body: with("name", `["Ann"]`), status: 400, code: "wrong_type", fields: "name"},
	{name: "password is an object", body: with("password", `{"a":"`+password+`"}`), status: 400, code: "wrong_type", fields: "password"},
	{name: "password is a boolean", body: with("password", `true`), status: 400, code: "wrong_type", fields: "password"},
	{name: "over 64 KiB", body: with("name", `"`+strings.Repeat("a", 64<<10)+`"`), status: 413, code: "body_too_large"},
	{name: "1 MiB", body: with("name", `"`+strings.Repeat("a", 1<<20)+`"`), status: 413, code: "body_too_large"},
	{name: "deep", body: with("name", strings.Repeat("[", 10_000)+strings.Repeat("]", 10_000)), status: 400, code: "json_too_deep"},
	{name: "deep and open", body: strings.Repeat(`{"a":`, 10_000), status: 400, code: "json_too_deep"},
	{name: "invalid UTF-8", body: with("name", "\"A\xffnn\""), status: 400, code: "invalid_utf8"},
	{name: "overlong UTF-8", body: with("name", "\"A\xc0\xafnn\""), status: 400, code: "invalid_utf8"},
	{name: "lone surrogate", body: with("name", `"A\ud800nn"`), status: 400, code: "json_invalid"},
	{name: "lone low surrogate", body: with("name", `"A\udc00nn"`), status: 400, code: "json_invalid"},
	{name: "raw control character", body: with("name", "\"A\x01nn\""), status: 400, code: "json_invalid"},

	{name: "text/plain", contentType: "text/plain", body: with("", ""), status: 415, code: "content_type"},
	{name: "form", contentType: "application/x-www-form-urlencoded", body: "email=a", status: 415, code: "content_type"},
	{name: "no content type", contentType: "none", body: with("", ""), status: 415, code: "content_type"},
	{name: "UTF-16", contentType: "application/json; charset=utf-16", body: with("", ""), status: 415, code: "content_type"},
	{name: "merge patch", contentType: "application/merge-patch+json", body: with("", ""), status: 415, code: "content_type"},
	{name: "malformed content type", contentType: "application/json; charset", body: with("", ""), status: 415, code: "content_type"},
	{name: "gzip", encoding: "gzip", body: "\x1f\x8b\x08", status: 415, code: "content_encoding"},
}

var badFields = []badInput{
	{name: "nothing", body: `{}`, status: 422, code: "invalid_fields", fields: "email name password"},
	{name: "nulls", body: `{"email":null,"name":null,"password":null}`, status: 422, code: "invalid_fields", fields: "email name password"},
	{name: "no email", body: `{"name":"Ann","password":"` + password + `"}`, status: 422, code: "email_required", fields: "email"},
	{name: "no password", body: `{"email":"ann@example.com","name":"Ann"}`, status: 422, code: "password_required", fields: "password"},
	{name: "two wrong", body: `{"email":"ann","name":"Ann","password":"short"}`, status: 422, code: "invalid_fields", fields: "email password"},

	email("empty", ``, "email_required"),
	email("a space", ` `, "email_invalid"),
	email("no @", `ann`, "email_invalid"),
	email("no domain", `ann@`, "email_invalid"),
	email("no local part", `@example.com`, "email_invalid"),
	email("two @", `ann@bob@example.com`, "email_invalid"),
	email("quoted @", `\"ann@bob\"@example.com`, "email_invalid"),
	email("inner space", `an n@example.com`, "email_invalid"),
	email("outer space", ` ann@example.com`, "email_invalid"),
	email("space at the end", `ann@example.com `, "email_invalid"),
	email("255 bytes", "ann@"+strings.Repeat(strings.Repeat("a", 49)+".", 5)+"a", "email_too_long"),
	email("60 KiB", strings.Repeat("a", 30_000)+"@"+strings.Repeat("b", 30_000), "email_too_long"),
	email("local part of 65 bytes", strings.Repeat("a", 65)+"@example.com", "email_too_long"),
	email("CRLF", `ann@example.com\r\nBcc: eve@example.com`, "email_invalid"),
	email("line break at the end", `ann@example.com\n`, "email_invalid"),
	email("null byte", `ann\u0000@example.com`, "email_invalid"),
	email("null byte in the domain", `ann@exa\u0000mple.com`, "email_invalid"),
	email("tab", `ann\t@example.com`, "email_invalid"),
	email("with a name", `Ann <ann@example.com>`, "email_invalid"),
	email("with a quoted name", `\"Ann\" <ann@example.com>`, "email_invalid"),
	email("in brackets", `<ann@example.com>`, "email_invalid"),
	email("open bracket", `<ann@example.com`, "email_invalid"),
	email("two addresses", `ann@example.com, bob@example.com`, "email_invalid"),
	email("group", `friends: ann@example.com;`, "email_invalid"),
	email("comment", `ann@example.com (Ann)`, "email_invalid"),
	email("comment inside", `ann(Ann)@example.com`, "email_invalid"),
	email("SMTP parameter", `ann@example.com> SIZE=1`, "email_invalid"),
	email("encoded word", `=?utf-8?q?ann?= <ann@example.com>`, "email_invalid"),
	email("address literal", `ann@[127.0.0.1]`, "email_domain"),
	email("IP address", `ann@127.0.0.1`, "email_domain"),
	email("no dot", `ann@localhost`, "email_domain"),
	email("dot at the end", `ann@example.com.`, "email_invalid"),
	email("underscore in the domain", `ann@exam_ple.com`, "email_domain"),
	email("hyphen first", `ann@-example.com`, "email_domain"),
	email("label of 64 bytes", `ann@`+strings.Repeat("a", 64)+`.com`, "email_domain"),
	email("umlaut", `ünn@example.com`, "email_not_ascii"),
	email("umlaut on both sides", `ünn@bücher.example`, "email_not_ascii"),
	email("domain that is too long when encoded", `a@`+strings.Repeat("bücher.", 18)+"example", "email_too_long"),
	email("label that is too long when encoded", `a@`+strings.Repeat("ü", 60)+".example", "email_domain"),
	email("punycode of nothing", `ann@xn--.example`, "email_domain"),
	email("broken punycode", `ann@xn--a.example`, "email_domain"),
	email("punycode of what is no letter", `ann@xn--ls8h.example.123`, "email_domain"),
	email("joiner in the domain", `ann@a\u200db.example`, "email_domain"),
	email("override in the domain", `ann@a\u202eb.example`, "email_domain"),
	email("two directions in a label", `ann@aא.example`, "email_domain"),
	email("quoted blank", `\"ann bob\"@example.com`, "email_invalid"),
	email("Cyrillic а", `аnn@example.com`, "email_not_ascii"),
	email("zero-width space", `ann\u200b@example.com`, "email_not_ascii"),

	name("empty", ``, "name_required"),
	name("spaces", `   `, "name_required"),
	name("no-break space", `\u00a0`, "name_required"),
	name("null byte", `A\u0000nn`, "control_character"),
	name("line break", `Ann\r\nBcc: eve@example.com`, "control_character"),
	name("line break at the end", `Ann\n`, "control_character"),
	name("delete", `A\u007fnn`, "control_character"),
	name("C1 control", `A\u0085nn`, "control_character"),
	name("right-to-left override", `A\u202enn`, "control_character"),
	name("isolate", `A\u2066nn`, "control_character"),
	name("zero-width space", `A\u200bnn`, "control_character"),
	name("joiner between Latin letters", `A\u200dnn`, "control_character"),
	name("byte order mark", `A\ufeffnn`, "control_character"),
	name("soft hyphen", `A\u00adnn`, "control_character"),
	name("Hangul filler", `\u3164`, "control_character"),
	name("line separator", `A\u2028nn`, "control_character"),
	name("blank Braille", `\u2800`, "control_character"),
	name("blank Braille between letters", `a\u2800b`, "control_character"),
	name("Hangul fillers", `\u115f\u1160`, "control_character"),
	name("Hangul filler in a name", `Ann\u3164`, "control_character"),
	name("variation selector alone", `\ufe0f`, "control_character"),
	name("variation selector on a letter", `A\ufe0fnn`, "control_character"),
	name("ideographic variation selector on a letter", `A\udb40\udd00`, "control_character"),
	name("grapheme joiner", `A\u034fnn`, "control_character"),
	name("Khmer inherent vowel", `\u17b5`, "control_character"),
	name("tags", `\udb40\udc41\udb40\udc42`, "control_character"),
	name("flag with too few tags", `\ud83c\udff4\udb40\udc67\udb40\udc7f`, "control_character"),
	name("flag whose tags do not end", `\ud83c\udff4`+tags("gbsct"), "control_character"),
	name("flag whose tags end twice", `\ud83c\udff4`+tags("gbsct\x7f\x7f"), "control_character"),
	name("flag with words in tags", `\ud83c\udff4`+tags("gb hidden words\x7f"), "control_character"),
	name("flag with tags in capitals", `\ud83c\udff4`+tags("GBSCT\x7f"), "control_character"),
	name("flag with many tags", `\ud83c\udff4`+tags(strings.Repeat("gbsct\x7f", 1000)), "control_character"),
	name("many tags", `Ann`+tags(strings.Repeat("a", 4000)), "control_character"),
	name("tags after another emoji", `🎉`+tags("gbsct\x7f"), "control_character"),
	name("selector after a Latin letter", `A\ufe0fnn`, "control_character"),
	name("two selectors", `❤\ufe0f\ufe0f`, "control_character"),
	name("Mongolian selector after a Latin letter", `A\u180bnn`, "control_character"),
	name("vowel separator between Latin letters", `A\u180enn`, "control_character"),
	name("vowel separator at the end", `\u182d\u180e`, "control_character"),
	name("private use", `\ue000`, "control_character"),
	name("unassigned", `\u0378`, "control_character"),
	name("noncharacter", `a\uffff`, "control_character"),
	name("interlinear annotation", `a\ufff9b`, "control_character"),
	name("object replacement", `\ufffc`, "control_character"),
	name("null notehead", `\ud834\udd59`, "control_character"),
	name("left-to-right mark", `\u200eAnn`, "control_character"),
	name("word joiner", `A\u2060nn`, "control_character"),
	name("invisible times", `A\u2062nn`, "control_character"),
	name("two joiners", `\u0634\u200c\u200c\u0647`, "control_character"),
	name("joiner alone", `\u200d`, "control_character"),
	name("joiner before a Persian letter", `\u200c\u0634`, "control_character"),
	name("joiner between Devanagari letters without a virama", `\u0915\u200d\u0916`, "control_character"),
	name("joiner after an emoji", `🎉\u200d`, "control_character"),
	name("non-joiner within an emoji", `👩\u200c👧`, "control_character"),
	name("a lone accent", `\u0301`, "name_invisible"),
	name("accents alone", `\u0301 \u20dd`, "name_invisible"),
	name("a lone vowel sign", `\u0d3e`, "name_invisible"),
	name("an accent after a blank", `Ann \u0301`, "name_marks"),
	name("an accent first", `\u0301Ann`, "name_marks"),
	name("a pile of accents", `A`+strings.Repeat(`\u0301`, 9), "name_marks"),
	name("a pile of accents with joiners", `\u0634`+strings.Repeat(`\u064b\u200c`, 9), "control_character"),
	name("a pile of accents around a joiner", `\u0634`+strings.Repeat(`\u064b`, 5)+`\u200c`+strings.Repeat(`\u064b`, 5), "name_marks"),
	name("every kind of blank", `\u00a0\u1680\u2000\u2003\u200a\u202f\u205f\u3000`, "name_required"),
	name("tab", `A\tnn`, "control_character"),
	name("201 characters", strings.Repeat("ä", 201), "name_too_long"),
	name("10 kB", strings.Repeat("a", 10_000), "name_too_long"),

	pass("empty", ``, "password_required"),
	pass("11 characters", `hunter2hunt`, "password_too_short"),
	pass("11 characters in 22 bytes", strings.Repeat("é", 11), "password_too_short"),
	pass("12 code points that are 6 letters", strings.Repeat(`e\u0301`, 6), "password_too_short"),
	pass("257 characters", strings.Repeat("a", 257), "password_too_long"),
	pass("1025 bytes", strings.Repeat("a", 1025), "password_too_long"),
	pass("60 KiB", strings.Repeat("a", 60<<10), "password_too_long"),
	pass("null byte", `correct\u0000horse`, "password_control_character"),
	pass("line break", `correct\nhorse\nbattery`, "password_control_character"),
	pass("the address", `Ann@Example.com`, "password_is_email"),
	pass("the address in wide letters", `Ａｎｎ＠ｅｘａｍｐｌｅ．ｃｏｍ`, "password_is_email"),
}

// tags returns text as Unicode's tags, which are invisible.
func tags(text string) string {
	return strings.Map(func(r rune) rune { return r + 0xE0000 }, text)
}

func email(name, raw, code string) badInput {
	return badInput{name: "email: " + name, body: with("email", `"`+raw+`"`), status: 422, code: code, fields: "email"}
}

func name(name, raw, code string) badInput {
	return badInput{name: "name: " + name, body: with("name", `"`+raw+`"`), status: 422, code: code, fields: "name"}
}

func pass(name, raw, code string) badInput {
	return badInput{name: "password: " + name, body: with("password", `"`+raw+`"`), status: 422, code: code, fields: "password"}
}

func TestBadInput(t *testing.T) {
	db := testenv.Postgres(t)
	srv := serve(t, db)
	for _, tt := range append(badBodies, badFields...) {
		t.Run(tt.name, func(t *testing.T) {
			req := request(t, "POST", srv.URL+"/users", strings.NewReader(tt.body))
			if tt.contentType != "" {
				req.Header.Set("Content-Type", tt.contentType)
			}
			if tt.contentType == "none" {
				req.Header.Del("Content-Type")
			}
			if tt.encoding != "" {
				req.Header.Set("Content-Encoding", tt.encoding)
			}
			a := do(t, req)
			p := wantProblem(t, a, tt.status, tt.code)
			var fields []string
			for _, f := range p.Errors {
				fields = append(fields, f.Field)
				if f.Code == "" || f.Message == "" {
					t.Errorf("error %+v lacks a code or a message", f)
				}
			}
			if got := strings.Join(fields, " "); got != tt.fields {
				t.Errorf("fields = %q, want %q", got, tt.fields)
			}
			wantNoEcho(t, a, tt.body)
		})
	}
	if n, m := count(t, db, "users.users"), count(t, db, "pgjet.outbox"); n != 0 || m != 0 {
		t.Errorf("%d users and %d events were stored, want none", n, m)
	}
}

// wantNoEcho fails if a repeats what was sent.
func wantNoEcho(t *testing.T, a answer, sent string) {
	t.Helper()
	if len(a.body) > 2048 {
		t.Errorf("the answer has %d bytes", len(a.body))
	}
	for _, secret := range []string{password, "correct", "hunter2", "bob@", "eve@", "Bcc"} {
		if strings.Contains(string(a.body), secret) {
			t.Errorf("the answer repeats %q: %s", secret, a.body)
		}
	}
	if len(sent) > 2 && strings.Contains(string(a.body), sent) {
		t.Errorf("the answer repeats the body: %s", a.body)
	}
}

func TestInvalidJSONNamesTheOffset(t *testing.T) {
	srv := serve(t, testenv.Postgres(t))
	for body, want := range map[string]string{
		`{`:              "at byte 1",
		`{"email" 1}`:    "at byte 9",
		`{"email":tru3}`: "at byte 12",
	} {
		if p := wantProblem(t, post(t, srv, body), 400, "json_invalid"); !strings.Contains(p.Detail, want) {
			t.Errorf("%s: detail = %q, want it to say %q", body, p.Detail, want)
		}
	}
}

// A client may put anything in the place of a field's name.
func TestUnknownFieldIsCutShort(t *testing.T) {
	srv := serve(t, testenv.Postgres(t))
	p := wantProblem(t, post(t, srv, `{"\u001b[31m`+strings.Repeat("a", 10_000)+`":1}`), 400, "unknown_field")
	if f := p.Errors[0].Field; len(f) > 70 || strings.Contains(f, "\x1b") {
		t.Errorf("field = %q, want it short and printable", f)
	}
}

// Each of these is unusual and valid.
func TestGoodInput(t *testing.T) {
	db := testenv.Postgres(t)
	srv := serve(t, db)
	for i, tt := range []struct{ name, contentType, body, wantName string }{
		{"charset", "application/json;charset=UTF-8", with("", ""), "Ann"},
		{"content type in capitals", `Application/JSON ; charset="utf-8"`, with("", ""), "Ann"},
		{"space around the object", "", " \n" + with("", "") + "\n ", "Ann"},
		{"exactly 64 KiB", "", with("", "") + strings.Repeat(" ", 64<<10-len(with("", ""))-3), "Ann"},
		{"password of 12 characters", "", with("password", `"x1 ?kd 7 uvn"`), "Ann"},
		{"password of 256 characters", "", with("password", `"`+manyCharacters(256)+`"`), "Ann"},
		{"password of emoji", "", with("password", `"👩‍👩‍👧👩‍👩‍👧👩‍👩‍👧 \u0022quoted\u0022"`), "Ann"},
		{"space around the name", "", with("name", `"  Ann Example "`), "Ann Example"},
		{"name of 200 characters", "", with("name", `"`+strings.Repeat("ä", 200)+`"`), strings.Repeat("ä", 200)},
		{"name with emoji", "", with("name", `"Ann ❤️ 🎉"`), "Ann ❤️ 🎉"},
		{"Sinhala name with a joiner", "", with("name", `"ශ්\u200dරී"`), "ශ්\u200dරී"},
		{"Persian name with a non-joiner", "", with("name", `"علی\u200cرضا"`), "علی\u200cرضا"},
		{"Malayalam name with a chillu", "", with("name", `"\u0d30\u0d3e\u0d1c\u0d28\u0d4d\u200d"`), "\u0d30\u0d3e\u0d1c\u0d28\u0d4d\u200d"},
		{"Persian name that ends in a non-joiner", "", with("name", `"\u0634\u0647\u200c"`), "\u0634\u0647\u200c"},
		{"non-joiner after a vowel sign", "", with("name", `"\u0634\u064e\u200c\u0647"`), "\u0634\u064e\u200c\u0647"},
		{"non-joiner before a blank", "", with("name", `"\u0634\u0647\u200c \u0639"`), "\u0634\u0647\u200c \u0639"},
		{"Bengali ya-phalaa", "", with("name", `"\u09b0\u200d\u09cd\u09af\u09be\u09ac"`), "\u09b0\u200d\u09cd\u09af\u09be\u09ac"},
		{"Kannada non-joiner", "", with("name", `"\u0cb0\u0cbe\u0c9c\u0ccd\u200c\u0c95\u0cc1"`), "\u0cb0\u0cbe\u0c9c\u0ccd\u200c\u0c95\u0cc1"},
		{"Marathi eyelash", "", with("name", `"\u0930\u094d\u200d\u092f"`), "\u0930\u094d\u200d\u092f"},
		{"Mongolian vowel separator", "", with("name", `"\u182d\u180e\u1820"`), "\u182d\u180e\u1820"},
		{"Mongolian selector before a vowel separator", "", with("name", `"\u182d\u180b\u180e\u1820"`), "\u182d\u180b\u180e\u1820"},
		{"Mongolian selector four", "", with("name", `"\u1820\u180f"`), "\u1820\u180f"},
		{"flag of a country", "", with("name", `"Ann 🇩🇪"`), "Ann 🇩🇪"},
		{"flags of parts of countries", "", with("name", `"Ann 🏴`+tags("gbsct\x7f")+`🏴`+tags("usca\x7f")+`"`), "Ann 🏴" + tags("gbsct\x7f") + "🏴" + tags("usca\x7f")},
		{"flags with joiners", "", with("name", `"🏳\ufe0f\u200d🌈 🏴\u200d☠\ufe0f"`), "🏳\ufe0f\u200d🌈 🏴\u200d☠\ufe0f"},
		{"text and colour", "", with("name", `"☎\ufe0e ☎\ufe0f ©\ufe0f ㊗\ufe0f"`), "☎\ufe0e ☎\ufe0f ©\ufe0f ㊗\ufe0f"},
		{"variants of symbols", "", with("name", `"0\ufe00 ♔\ufe00 ，\ufe01 ∩\ufe00 က\ufe00"`), "0\ufe00 ♔\ufe00 ，\ufe01 ∩\ufe00 က\ufe00"},
		{"emoji with joiners", "", with("name", `"👩\u200d👩\u200d👧 🧑🏽\u200d⚕️"`), "👩\u200d👩\u200d👧 🧑🏽\u200d⚕️"},
		{"keycap", "", with("name", `"1️⃣"`), "1️⃣"},
		{"ideographic variation", "", with("name", `"\u845b\udb40\udd00"`), "\u845b\U000e0100"},
		{"compatibility ideograph", "", with("name", `"\ufa19\u8c37 e\u0301"`), "\ufa19\u8c37 \u00e9"},
		{"decomposed", "", with("name", `"Rene\u0301e"`), "Ren\u00e9e"},
		{"Vietnamese, decomposed", "", with("name", `"Nguye\u0302\u0303n"`), "Nguy\u1ec5n"},
		{"Braille with a blank", "", with("name", `"⠁\u2800⠃"`), "⠁\u2800⠃"},
		{"many blanks", "", with("name", `"a`+strings.Repeat(" ", 180)+`b"`), "a b"},
		{"more blanks than characters", "", with("name", `"a`+strings.Repeat(`\u3000`, 1800)+`b"`), "a b"},
		{"blanks of all kinds", "", with("name", `"\u00a0a\u1680\u2000\u2003b\u200a\u202f c\u205f\u3000"`), "a b c"},
		{"quotes and commas", "", with("name", `"Dwayne \"The Rock\" J, \\ Jr."`), `Dwayne "The Rock" J, \ Jr.`},
		{"Arabic name", "", with("name", `"آن"`), "آن"},
		{"template", "", with("name", `"{{.Password}}"`), "{{.Password}}"},
		{"script", "", with("name", `"<script>alert(1)</script>"`), "<script>alert(1)</script>"},
		{"lookup", "", with("name", `"${jndi:ldap://x}"`), "${jndi:ldap://x}"},
		{"SQL", "", with("name", `"'; drop table users.users; --"`), "'; drop table users.users; --"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			body := strings.Replace(tt.body, "ann@", fmt.Sprintf("ann%02d.o'x+y@", i), 1)
			if tt.name == "exactly 64 KiB" {
				body = body[:64<<10]
			}
			req := request(t, "POST", srv.URL+"/users", strings.NewReader(body))
			if tt.contentType != "" {
				req.Header.Set("Content-Type", tt.contentType)
			}
			a := do(t, req)
			if a.StatusCode != 201 {
				t.Fatalf("status = %d, want 201: %s", a.StatusCode, a.body)
			}
			if got := a.user(t).Name; got != tt.wantName {
				t.Errorf("name = %q, want %q", got, tt.wantName)
			}
		})
	}
}

// TestInternationalDomain: however a domain is written, the address is one.
func TestInternationalDomain(t *testing.T) {
	db := testenv.Postgres(t)
	srv := serve(t, db)
	a := post(t, srv, with("email", `"Ann@bücher.example"`))
	if got := a.user(t).Email; a.StatusCode != 201 || got != "Ann@xn--bcher-kva.example" {
		t.Fatalf("status %d, email %q, want the domain encoded", a.StatusCode, got)
	}
	for _, same := range []string{"ann@xn--bcher-kva.example", "ann@BÜCHER.example", `ann@bu\u0308cher.example`, "ANN@XN--BCHER-KVA.EXAMPLE", "ann@ｂücher。example"} {
		wantProblem(t, post(t, srv, with("email", `"`+same+`"`)), 409, "email_taken")
		login := request(t, "POST", srv.URL+"/sessions", strings.NewReader(fmt.Sprintf(`{"email":"%s","password":"%s"}`, same, password)))
		if a := do(t, login); a.StatusCode != 201 {
			t.Errorf("log in as %s: status %d, want 201: %s", same, a.StatusCode, a.body)
		}
	}
	if _, changed, err := producer.Grant(t.Context(), db, "ann@bücher.example", auth.Admin, "test", "test"); err != nil || !changed {
		t.Errorf("Grant() = %t, %v, want the user found", changed, err)
	}
}

// manyCharacters returns a text of n different characters, of three bytes each.
func manyCharacters(n int) string {
	text := make([]rune, n)
	for i := range text {
		text[i] = '\u4e00' + rune(i)
	}
	return string(text)
}
