package operate

import (
	"cmp"
	"strings"

	"github.com/pgjet/pgjet/consumers/saga"
	"github.com/pgjet/pgjet/consumers/status"
)

// NextAtConsumer is [NextForConsumer] beside the status of the consumer: instead of the command that
// shows the consumer, it returns the one that explains the reason.
func NextAtConsumer(s status.Status, code string, own bool) string {
	if _, r := find(Consumer, code); strings.HasPrefix(r.Next, "pgjet consumer get ") {
		return "pgjet explain " + code
	}
	return NextForConsumer(s, code, own)
}

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
