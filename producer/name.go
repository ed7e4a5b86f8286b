package producer

import (
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// maxMarks is how many combining marks may follow one another: more than any script needs.
// More of them would paint over the lines above and below.
const maxMarks = 8

// checkName returns the name as it is stored: composed (NFC), trimmed, and with one U+0020
// for any blanks between words. A name is text to be shown, not an identifier: no script,
// letter or symbol is refused. Invisible characters are, unless the letters around them
// need them; see [invisible].
func checkName(name string) (string, *FieldError) {
	bad := func(code, message string) (string, *FieldError) {
		return "", &FieldError{"name", code, message}
	}
	name = oneBlank(name)
	runes := []rune(name)
	for i := range runes {
		if invisible(runes, i) {
			return bad("control_character", "The name has control characters, or invisible ones that its script or emoji do not need there.")
		}
	}
	switch {
	case name == "":
		return bad("name_required", "A name is required.")
	case !strings.ContainsFunc(name, visible):
		return bad("name_invisible", "The name shows nothing: it needs letters, digits or symbols.")
	case strayMarks(runes):
		return bad("name_marks", "The name has an accent or vowel sign without a letter, or too many on one.")
	}
	name = composed(name)
	if utf8.RuneCountInString(name) > maxName {
		return bad("name_too_long", "The name may have 200 characters.")
	}
	return name, nil
}

// oneBlank trims s and replaces each run of blanks of any kind with one U+0020.
func oneBlank(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return unicode.Is(unicode.Zs, r) }), " ")
}

// composed returns s in NFC, but keeps ideographs that are canonically equal to others:
// people whose names contain them distinguish them.
func composed(s string) string {
	var b strings.Builder
	for s != "" {
		i := strings.IndexFunc(s, compatibilityIdeograph)
		if i < 0 {
			i = len(s)
		}
		b.WriteString(norm.NFC.String(s[:i]))
		_, size := utf8.DecodeRuneInString(s[i:])
		b.WriteString(s[i : i+size])
		s = s[i+size:]
	}
	return b.String()
}

func compatibilityIdeograph(r rune) bool {
	return r >= 0xF900 && r <= 0xFAFF || r >= 0x2F800 && r <= 0x2FA1F
}

const (
	nonJoiner      = '\u200c'
	joiner         = '\u200d'
	vowelSeparator = '\u180e' // of Mongolian
	brailleBlank   = '\u2800'
)

// blank are letters and symbols with an empty shape.
const blank = "\ufffc\U0001d159\U00013441\U00013442\U00016fe4"

// visible reports whether r shows something by itself.
func visible(r rune) bool {
	return r != brailleBlank && unicode.IsOneOf([]*unicode.RangeTable{unicode.L, unicode.N, unicode.P, unicode.S}, r) &&
		!unicode.Is(unicode.Other_Default_Ignorable_Code_Point, r)
}

// joined are scripts whose letters are joined, or change their shape, next to a joiner or a
// non-joiner, at the end of a word too.
var joined = []*unicode.RangeTable{
	unicode.Adlam, unicode.Arabic, unicode.Hanifi_Rohingya, unicode.Khmer, unicode.Mandaic, unicode.Manichaean,
	unicode.Mongolian, unicode.Myanmar, unicode.Nko, unicode.Phags_Pa, unicode.Sogdian, unicode.Syriac, unicode.Tai_Tham,
}

// invisible reports whether the rune at i is invisible and not needed by its neighbours: a
// control, a bidirectional override, a tag, a filler, an unassigned or private code point,
// a misplaced joiner.
func invisible(runes []rune, i int) bool {
	before, after := rune(' '), rune(' ')
	if i > 0 {
		before = runes[i-1]
	}
	if i+1 < len(runes) {
		after = runes[i+1]
	}
	switch r := runes[i]; {
	case r == joiner, r == nonJoiner:
		return !joinerBelongs(runes[:i], r, after)
	case unicode.Is(unicode.Variation_Selector, r):
		return !selectorBelongs(r, before)
	case tag(r):
		return !tagBelongs(runes, i)
	case r == vowelSeparator:
		return !unicode.Is(unicode.Mongolian, before) || !unicode.Is(unicode.Mongolian, after)
	case r == brailleBlank: // the space of Braille
		return !braille(before) || !braille(after)
	default:
		return !unicode.IsGraphic(r) || unicode.Is(unicode.Other_Default_Ignorable_Code_Point, r) || strings.ContainsRune(blank, r)
	}
}

// joinerBelongs reports whether a joiner or non-joiner has a meaning after some runes and
// before another: after a letter of a script that joins (Persian, Urdu, Mongolian); beside
// a virama, whose shape it changes (Malayalam chillus, Bengali ya-phalaa, Sinhala); a
// joiner within an emoji.
func joinerBelongs(runes []rune, r, after rune) bool {
	if len(runes) == 0 {
		return false
	}
	before := runes[len(runes)-1]
	base := strings.TrimRightFunc(string(runes), func(r rune) bool { return unicode.Is(unicode.M, r) })
	letter, _ := utf8.DecodeLastRuneInString(base)
	switch {
	case !unicode.In(before, unicode.L, unicode.M):
	case unicode.In(letter, joined...), virama(before), virama(after):
		return true
	}
	return r == joiner && (unicode.Is(unicode.S, before) || before == '\ufe0f') && unicode.Is(unicode.S, after)
}

// virama reports whether r is the sign that removes the vowel from an Indic consonant.
func virama(r rune) bool {
	const class = 9 // canonical combining class
	return norm.NFC.PropertiesString(string(r)).CCC() == class
}

const (
	tagSpace    = '\U000e0020' // the first one
	tagEnd      = '\U000e007f'
	blackFlag   = '\U0001f3f4'
	mostFlagTag = 7 // tags of one flag, with the end
)

func tag(r rune) bool { return r >= tagSpace && r <= tagEnd }

// subdivision matches the tags of a flag, with their end: a country and a part of it, such
// as gbsct.
var subdivision = regexp.MustCompile(`^[a-z]{2}[a-z0-9]{1,4}\x7f$`)

// tagBelongs reports whether the tag at i belongs to a flag of a part of a country, such as
// Scotland: a black flag with tags (UTS #51, flag emoji tag sequences).
func tagBelongs(runes []rune, i int) bool {
	first := i
	for first > 0 && tag(runes[first-1]) && i-first < mostFlagTag {
		first--
	}
	said := []byte{}
	for _, r := range runes[first:min(len(runes), first+mostFlagTag)] {
		if !tag(r) {
			break
		}
		said = append(said, byte(r-tagSpace+' '))
	}
	return first > 0 && runes[first-1] == blackFlag && i < first+len(said) && subdivision.Match(said)
}

// varied is punctuation to which a variation selector gives another position in its square,
// or another width.
const varied = "‘’“”、。！，．：；？"

// selectorBelongs reports whether a variation selector chooses the shape of the rune before it: of
// a symbol (colour or text), an ideograph, or a letter of a script that has variants. They are those of
// Unicode's StandardizedVariants.txt, of its emoji, and of its ideographic variations.
func selectorBelongs(r, before rune) bool {
	switch {
	case r == '\ufe0e', r == '\ufe0f':
		return unicode.In(before, unicode.S, unicode.Nd) || strings.ContainsRune("#*‼⁉〰ℹ", before)
	case unicode.Is(unicode.Mongolian, r):
		return unicode.In(before, unicode.Mongolian)
	case r >= 0xE0100:
		return unicode.Is(unicode.Han, before)
	}
	return strings.ContainsRune(varied+"0", before) ||
		unicode.In(before, unicode.Han, unicode.Myanmar, unicode.Phags_Pa, unicode.Manichaean, unicode.Egyptian_Hieroglyphs, unicode.S)
}

func braille(r rune) bool { return unicode.Is(unicode.Braille, r) }

// strayMarks reports whether a combining mark stands alone, or too many stand together.
func strayMarks(runes []rune) bool {
	marks := 0
	for i, r := range runes {
		switch {
		case r == joiner, r == nonJoiner:
		case !unicode.Is(unicode.M, r):
			marks = 0
		case i == 0 || runes[i-1] == ' ':
			return true
		default:
			marks++
		}
		if marks > maxMarks {
			return true
		}
	}
	return false
}
