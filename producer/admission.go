package producer

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/failsafe-go/failsafe-go/adaptivelimiter"
)

const (
	// leastAdmitted is how many requests of an operation are worked on at a time, however
	// slow they have become: a burst after a calm night is no overload.
	leastAdmitted = 20
	// admissionWait is how long a request waits for others to end. Who waits longer than
	// it takes to ask again only keeps others waiting.
	admissionWait = 250 * time.Millisecond
	// maxArriving is how many bodies of an operation's requests may be on their way at a
	// time. Each takes memory, for as long as its client pleases to send it.
	maxArriving = 512
)

var (
	// errOverloaded says that too many requests are being worked on.
	errOverloaded = errors.New("too many requests at a time")
	// errArriving says that too many bodies are on their way.
	errArriving = errors.New("too many bodies arrive at a time")
)

// An admission bounds how many requests of one operation are worked on at a time. It
// raises the bound as long as they take as long as they used to, and lowers it when
// they take longer. As many more wait for a moment, but none in an overload: each would wait for
// as long as all before it take, only to be refused after its body was read.
//
// Each operation has one of its own: its requests take about the same time, so that
// slower means busier, and who signs up keeps nobody from reading.
//
// It is the one place here that meets failsafe-go, whose API is not yet settled.
type admission struct {
	operation string
	current   atomic.Pointer[limiter]
	line      gate // its slots are current's limit
	arriving  *gate
	gates     []func() *gate // that its requests have to pass, as they are now
}

// turnsAway reports whether a request that comes now would be turned away later on.
func (a *admission) turnsAway() bool {
	if a.line.turnsAway() {
		if len(a.gates) > 0 {
			a.gates[0]().miss() // before the first one nothing is spent on a request
		}
		return true
	}
	return slices.ContainsFunc(a.gates, func(g func() *gate) bool { return g().turnsAway() })
}

type limiter struct {
	adaptivelimiter.AdaptiveLimiter[any]
	most int
}

// tune sets the upper bound. The bound below it starts over.
func (a *admission) tune(most int) {
	if old := a.current.Load(); old != nil && old.most == most {
		return
	}
	least := uint(min(leastAdmitted, most))
	a.current.Store(&limiter{most: most, AdaptiveLimiter: adaptivelimiter.NewBuilder[any]().
		WithLimits(least, uint(most), least).
		WithMaxLimitStabilizationWindow(10 * time.Second).
		WithBaselineWindow(100). // seconds, about: a bad minute is not yet what is usual
		Build()})
	a.resize()
}

// resize makes the limit hold, as it is now.
func (a *admission) resize() {
	limit := a.current.Load().Limit()
	a.line.resize(limit, limit)
}

// shed answers r if there is no room for it anyway, and reports whether it did. It comes
// before all else, traces too: what takes long to refuse keeps others from being answered.
func (s *Server) shed(w http.ResponseWriter, r *http.Request) bool {
	pattern := r.Method + " " + r.URL.Path
	a, ok := s.admissions[pattern]
	if !ok {
		_, pattern = s.mux.Handler(r)
		a, ok = s.admissions[pattern]
	}
	if !ok || !a.turnsAway() {
		return false
	}
	s.secure(w.Header(), r)
	_ = s.refusal(r.Context(), errOverloaded) // counts it
	overloaded.write(w)
	return true
}

// overloaded is the answer to those who are shed. They are many: it is made once.
var overloaded = newReadyAnswer(overloadProblem())

// A readyAnswer is a problem that is written often.
type readyAnswer struct {
	status int
	header http.Header
	body   []byte
}

func newReadyAnswer(p *Problem) readyAnswer {
	body, err := json.Marshal(p)
	if err != nil {
		panic(err) // strings and an int
	}
	header := p.GetHeaders()
	header.Set("Content-Type", p.ContentType(""))
	header.Set("Content-Length", strconv.Itoa(len(body)))
	return readyAnswer{p.Status, header, body}
}

func (a readyAnswer) write(w http.ResponseWriter) {
	maps.Copy(w.Header(), a.header)
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body) // the client's loss
}

type arrivedKey struct{}

// receive refuses a request whose body would be one too many on the way. Those whose
// body has come have left, with arrived: they are bounded by enter.
func (s *Server) receive(a *admission) func(huma.Context, func(huma.Context)) {
	return func(ctx huma.Context, next func(huma.Context)) {
		if ctx.Operation().RequestBody == nil {
			next(ctx)
			return
		}
		leave, err := a.arriving.enter(ctx.Context(), 0)
		if err != nil {
			_, w := humago.Unwrap(ctx)
			writeProblem(w, s.refusal(ctx.Context(), errArriving))
			return
		}
		defer leave() // if it never came
		next(huma.WithValue(ctx, arrivedKey{}, leave))
	}
}

// arrived says that the body of ctx's request has come, if it has one.
func arrived(ctx context.Context) {
	if leave, ok := ctx.Value(arrivedKey{}).(func()); ok {
		leave()
	}
}

// enter returns once the request may go on. Its end is told with leave; only if it was
// a usual one does it tell how long requests take. enter returns [errOverloaded] if
// there are too many, and ctx's error if ctx is cancelled.
func (a *admission) enter(ctx context.Context) (leave func(usual bool), err error) {
	out, err := a.line.enter(ctx, admissionWait)
	if errors.Is(err, context.Canceled) {
		return nil, err
	}
	if err != nil {
		return nil, errOverloaded
	}
	permit, ok := a.current.Load().TryAcquirePermit()
	if !ok { // the limit has just been lowered
		out()
		return nil, errOverloaded
	}
	return func(usual bool) {
		if usual {
			permit.Record()
		} else {
			permit.Drop()
		}
		a.resize()
		out()
	}, nil
}

// admission returns a new admission for op, under the tuning.
func (s *Server) admission(op huma.Operation) *admission {
	a := &admission{operation: op.OperationID, arriving: newGate(maxArriving, 0), gates: s.gates[op.OperationID]}
	s.mu.Lock()
	defer s.mu.Unlock()
	a.tune(s.tuning.Load().Requests)
	s.admissions[op.Method+" "+op.Path] = a
	return a
}
