// Package guessable recognises the passwords that attackers try first.
package guessable

import (
	_ "embed" // the words
	"slices"
	"strings"
	"unicode"

	"golang.org/x/text/unicode/norm"
)

// fewestParts is how many parts a password needs at least; see [Password].
const fewestParts = 8

// most is how many characters of a password are looked at.
const most = 256

// commonWordList are the words of which most common passwords are made, one a line. Digits
// and signs that stand for letters are those letters.
//
//go:embed common_words.txt
var commonWordList string

// commonWords are those words, also backwards, by their first runes.
var commonWords = func() map[rune][][]rune {
	words := make(map[rune][][]rune)
	for _, word := range bothWays(strings.Fields(commonWordList)) {
		words[word[0]] = append(words[word[0]], word)
	}
	return words
}()

// keyRows are the rows of keys that people type as passwords, also backwards.
var keyRows = bothWays([]string{
	"12345678901234567890", "abcdefghijklmnopqrstuvwxyz",
	"qwertyuiop[]", "asdfghjkl;'", "zxcvbnm,./", // QWERTY
	"qwertzuiopü", "asdfghjklöä", "yxcvbnm,.-", "azertyuiop", "qsdfghjklm", "wxcvbn", // QWERTZ, AZERTY
	"!@#$%^&*()_+", "!\"§$%&/()=?", "1qaz2wsx3edc4rfv5tgb6yhn7ujm", "1q2w3e4r5t6y7u8i9o0p", "qazwsxedcrfvtgbyhnujm",
	"0246802468", "1357913579", "159357", "147258369", "112233445566778899", "aabbccddeeff",
})

// lookalikes are digits and signs that are written for letters.
var lookalikes = strings.NewReplacer("@", "a", "4", "a", "8", "b", "3", "e", "1", "i", "!", "i", "|", "i", "0", "o", "5", "s", "$", "s", "7", "t", "+", "t")

// Password reports whether password is one that attackers try first. It counts the fewest
// parts of which the password can be made. A part is a common word, a row of keys, a year,
// a repeated character or piece, a word that an attacker knows of the user, or any other
// character. A word counts backwards, too, and letters and digits of another width or style
// count as the plain ones.
func Password(password, email, name string) bool {
	own := personal(email, name)
	same := norm.NFKC.String(password)
	return fewParts(password, own) || same != password && fewParts(same, own)
}

// fewParts is Password for one form of the password and the words of the user, own.
func fewParts(password string, own [][]rune) bool {
	plain := []rune(strings.ToLower(password))
	plain = plain[:min(most, len(plain))]                // a ligature may stand for many
	letters := []rune(lookalikes.Replace(string(plain))) // of the same length
	fewest := make([]int, len(plain)+1)                  // parts before i
	for i := range plain {
		fewest[i+1] = i + 1
	}
	for i := range plain {
		for _, n := range partsAt(plain, letters, i, own) {
			fewest[i+n] = min(fewest[i+n], fewest[i]+1)
		}
	}
	return fewest[len(plain)] < fewestParts
}

// partsAt returns the possible lengths of parts that begin at i. own are the words of the
// user.
func partsAt(plain, letters []rune, i int, own [][]rune) []int {
	rest := plain[i:]
	lengths := []int{1}
	for _, words := range [][][]rune{commonWords[letters[i]], commonWords[rest[0]], own} {
		for _, word := range words {
			if hasPrefix(letters[i:], word) || hasPrefix(rest, word) {
				lengths = append(lengths, len(word))
			}
		}
	}
	least := 4 // of a row: many words contain three letters of one
	if unicode.IsDigit(rest[0]) {
		least = 3
	}
	row := longestRow(rest)
	for n := least; n <= row; n++ {
		lengths = append(lengths, n)
	}
	same := sameRunes(rest)
	for n := 3; n <= same; n++ {
		lengths = append(lengths, n)
	}
	if isYear(rest) {
		lengths = append(lengths, 4)
	}
	for n := 2; n <= min(i, len(rest)); n++ {
		if slices.Equal(plain[i-n:i], rest[:n]) { // a repetition
			lengths = append(lengths, n)
		}
	}
	return lengths
}

// longestRow returns how much of the beginning of s stands in one of keyRows.
func longestRow(s []rune) int {
	longest := 0
	for _, row := range keyRows {
		longest = max(longest, longestIn(row, s))
	}
	return longest
}

// longestIn returns how much of the beginning of s stands in row.
func longestIn(row, s []rune) int {
	longest := 0
	for at := range row {
		n := 0
		for at+n < len(row) && n < len(s) && row[at+n] == s[n] {
			n++
		}
		longest = max(longest, n)
	}
	return longest
}

// sameRunes returns how often the first rune of s is repeated.
func sameRunes(s []rune) int {
	n := 0
	for n < len(s) && s[n] == s[0] {
		n++
	}
	return n
}

// isYear reports whether s begins with a year in which a person may have been born, or
// live.
func isYear(s []rune) bool {
	return len(s) >= 4 && (hasPrefix(s, []rune("19")) || hasPrefix(s, []rune("20"))) && unicode.IsDigit(s[2]) && unicode.IsDigit(s[3])
}

func hasPrefix(s, prefix []rune) bool {
	return len(s) >= len(prefix) && slices.Equal(s[:len(prefix)], prefix)
}

// personal returns the words of the user's address and name, also backwards, with digits
// and signs as they are and as guessable reads them.
func personal(email, name string) [][]rune {
	var words []string
	separates := func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) }
	for _, word := range strings.FieldsFunc(strings.ToLower(norm.NFKC.String(email+" "+name)), separates) {
		if len(word) >= 3 {
			words = append(words, word, lookalikes.Replace(word))
		}
	}
	return bothWays(words)
}

// bothWays returns words as runes, each as it is and backwards.
func bothWays(words []string) [][]rune {
	var all [][]rune
	for _, word := range words {
		forward := []rune(word)
		back := slices.Clone(forward)
		slices.Reverse(back)
		all = append(all, forward, back)
	}
	return all
}
