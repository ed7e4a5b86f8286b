package mailer

import (
	"fmt"
	"net/textproto"
	"regexp"
	"strings"
	"unicode"
)

// maxWords bounds the kept part of a server's answer, in characters.
const maxWords = 300

var (
	// enhanced is an enhanced status code (RFC 3463), with which each line of an answer may begin.
	enhanced = regexp.MustCompile(`^[245]\.\d{1,3}\.\d{1,3}(\s+|$)`)
	// addressed is what looks like a mail address, also in a URL or as a bounce's sender.
	addressed = regexp.MustCompile(`(?i)[^\s<>"'()\[\],;:]*(@|%40|＠)[^\s<>"'()\[\],;]*`)
	// token is what is too long for a word: a ticket, a credential, the hash of an address.
	token = regexp.MustCompile(`[A-Za-z0-9+/_=-]{24,}`)
)

// words returns a server's answer as it may be kept and logged: the code, the enhanced status code
// of its first line, and its text in one line. Mail addresses, the user and the password of s, the
// parts of p's address, the words of its recipient's name, and long tokens are masked.
func (s Server) words(answer *textproto.Error, p *parcel) string {
	code, text := fmt.Sprint(answer.Code), make([]string, 0, 1)
	for i, line := range strings.Split(printable(answer.Msg), "\n") {
		line = strings.TrimSpace(line)
		if status := enhanced.FindString(line); status != "" {
			line = line[len(status):]
			if i == 0 {
				code += " " + strings.TrimSpace(status)
			}
		}
		text = append(text, strings.Fields(line)...)
	}
	return strings.TrimSpace(code + " " + shorten(s.mask(strings.Join(text, " "), p)))
}

// printable returns s in UTF-8, with blanks in place of characters that are neither line ends nor
// printable.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(s, "\uFFFD"))
}

func (s Server) mask(text string, p *parcel) string {
	text = addressed.ReplaceAllString(text, "…@…")
	if s.Password != "" {
		text = strings.ReplaceAll(text, s.Password, "…")
	}
	text = maskWord(text, s.User)
	if p != nil {
		text = maskWord(text, p.to.Local)
		for word := range strings.FieldsSeq(p.name) {
			text = maskWord(text, word)
		}
	}
	return token.ReplaceAllString(text, "…")
}

// maskWord masks a word wherever it occurs as a whole word, in any case.
func maskWord(text, word string) string {
	if word == "" {
		return text
	}
	alone := regexp.MustCompile(`(?i)(^|[^\pL\pN])` + regexp.QuoteMeta(word) + `($|[^\pL\pN])`)
	for range 2 { // two adjacent occurrences share the character between them
		text = alone.ReplaceAllString(text, "${1}…${2}")
	}
	return text
}

func shorten(s string) string {
	if r := []rune(s); len(r) > maxWords {
		return string(r[:maxWords-1]) + "…"
	}
	return s
}
