package main

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/pflag"

	"github.com/pgjet/pgjet/internal/operation"
)

// actor returns the user who runs this command, as user@host.
func actor() string { return operation.Actor() }

func reasonFlag(f *pflag.FlagSet, reason *string) {
	f.StringVar(reason, "reason", "", "why; it is kept with the change")
}

// needReason returns an error if no reason is given.
func needReason(reason string) error {
	if strings.TrimSpace(reason) == "" {
		return usagef("say why with --reason; it is kept with the change")
	}
	return nil
}

// confirm asks a question. The answer is no unless it is y or yes.
func confirm(in io.Reader, out io.Writer, question string) bool {
	fmt.Fprint(out, question+" [y/N] ")
	answer, _ := bufio.NewReader(in).ReadString('\n')
	a := strings.ToLower(strings.TrimSpace(answer))
	return a == "y" || a == "yes"
}

// confirmByTyping asks for a word to be typed, such as a count or a name, so that the question has
// to be read.
func confirmByTyping(in io.Reader, out io.Writer, question, want string) bool {
	fmt.Fprintf(out, "%s Type %s to continue: ", question, want)
	answer, _ := bufio.NewReader(in).ReadString('\n')
	return strings.TrimSpace(answer) == want
}

// manyEvents is the number of events above which their count has to be typed.
const manyEvents = 10_000

// confirmCount asks before n events are changed. The count has to be typed if there are many, or if
// the change is grave.
func confirmCount(in io.Reader, out io.Writer, question string, n int64, grave bool) bool {
	if n > manyEvents || grave {
		return confirmByTyping(in, out, question, fmt.Sprint(n))
	}
	return confirm(in, out, question)
}
