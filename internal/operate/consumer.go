package operate

import (
	"cmp"
	"strings"

	"github.com/pgjet/pgjet/consumers/saga"
	"github.com/pgjet/pgjet/consumers/status"
)

// NextForConsumer returns what to do about a reason of a consumer. own is whether the asking
// program can run the consumer.
func NextForConsumer(s status.Status, code string, own bool) string {
	_, r := find(Consumer, code)
	switch code {
	case "paused":
		if s.Paused == nil { // paused in JetStream
			r.Next = ""
		}
	case "no_process":
		if !own {
			return "start one"
		}
	case "saga_waiting":
		if len(s.Sagas) > 0 {
			r.Next = "pgjet saga ls --state " + cmp.Or(s.Sagas[0].State, saga.Running)
		}
	}
	return WithPrefix(Typed(strings.ReplaceAll(r.next(), "NAME", Word(s.Name)), s.Stream), s.Prefix)
}
